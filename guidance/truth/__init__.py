"""Ground truth in closed form, against which samplers and learned weights are tested.

`mixtures` has Gaussian mixtures with their exact denoisers. `flow_1d` solves the probability-flow ODE of a mixture in
one dimension. `rewards` has rewards and `tilts` the mixtures that they tilt. `model_errors` has denoisers with known
errors.
"""
