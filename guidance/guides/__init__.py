"""Guides: rules with their weights and branches, as samplers take them."""

from guidance.guides.delayed import delayed
from guidance.guides.several import classifier_chosen, composed, dynamic, perpendicular, rectified, summed
from guidance.guides.two import at_conditions, autoguided, both_branches, cfg, early_stopping, guided, unguided

__all__ = [
    "at_conditions",
    "autoguided",
    "both_branches",
    "cfg",
    "classifier_chosen",
    "composed",
    "delayed",
    "dynamic",
    "early_stopping",
    "guided",
    "perpendicular",
    "rectified",
    "summed",
    "unguided",
]
