"""Linear rules: the guided prediction lies on the line through the two predictions."""

from guidance.ranges import not_by_name
from guidance.rules.stacking import neutral
from guidance.shapes import like
from guidance.types import Array


@not_by_name("it is the weight 0")
@neutral
def unguided(positive: Array, reference: Array, omega: Array) -> Array:
    """D_c, whatever the weight."""
    del reference, omega
    return positive


@neutral
def cfg(positive: Array, reference: Array, omega: Array) -> Array:
    """Classifier-free guidance: D_c + omega (D_c - D_u).

    omega = 0 gives D_c to the last bit, omega = -1 gives D_u. The rule is affine, so it is the same in x0, eps, v,
    velocity and score space. Shapes: positive, reference [batch, ...], omega [batch]. Two evaluations a step.
    Source: Classifier-Free Diffusion Guidance, arXiv 2207.12598, eq. 6 (its w is our omega).
    """
    return positive + like(omega, positive) * (positive - reference)


def omega_from_scale(scale):
    """omega = scale - 1: from the number that diffusers and the Imagen paper print."""
    return scale - 1


def scale_from_omega(omega):
    """scale = 1 + omega: the number that diffusers and the Imagen paper print."""
    return 1 + omega
