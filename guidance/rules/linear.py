"""Linear rules: the guided prediction lies on the line through the two predictions."""

from guidance.ranges import not_by_name
from guidance.rules.stacking import neutral
from guidance.shapes import like
from guidance.types import Array


@not_by_name("it is the weight 0")
@neutral
def unguided(positive: Array, reference: Array, omega: Array) -> Array:
    """Returns D_c, whatever the weight."""
    del reference, omega
    return positive


@neutral
def cfg(positive: Array, reference: Array, omega: Array) -> Array:
    """Returns the prediction of classifier-free guidance, D_c + omega (D_c - D_u).

    omega = 0 gives D_c to the last bit, and omega = -1 gives D_u. The rule is affine, so that it is the same in x0,
    eps, v, velocity and score space. positive, reference [batch, ...]; omega [batch]. Costs 2 evaluations per step.
    Source: Classifier-Free Diffusion Guidance, arXiv 2207.12598, eq. 6 (its w is our omega).
    """
    return positive + like(omega, positive) * (positive - reference)


def omega_from_scale(scale):
    """Returns omega = scale - 1 for a scale as diffusers and the Imagen paper print it."""
    return scale - 1


def scale_from_omega(omega):
    """Returns scale = 1 + omega, the number that diffusers and the Imagen paper print."""
    return 1 + omega
