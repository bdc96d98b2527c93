"""Everything in closed form: what learned and sampled things are held against.

`mixtures`: Gaussian mixtures and their exact denoisers. `flow_1d`: the flow map in one dimension. `rewards`, `tilts`:
rewards under which a mixture stays a mixture, and the tilted mixture. `model_errors`: denoisers that are wrong in a
known way.
"""
