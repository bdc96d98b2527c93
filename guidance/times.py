"""The comparison of computed times with typed bounds, for floats, NumPy arrays and JAX arrays."""

EDGE = 1e-6  # a time this close to a bound counts as equal to it


def within(t, lo, hi):
    """Returns whether lo < t <= hi, elementwise. A time within EDGE of a bound counts as equal to it.

    The times of a grid are computed, so that 0.2 on 50 float32 steps is 0.19999999 or 0.20000002. A bound is typed as
    0.2. With this tolerance t is inside if and only if it is in exact arithmetic: on n uniform steps and for bounds of
    two decimals, a time and a bound that differ are at least 1/(100 n) apart. No time above 0 counts as equal to 0,
    since the last step of a grid may start below EDGE.
    """
    return (t > last_equal(lo)) & (t <= last_equal(hi))


def last_equal(bound):
    """Returns the largest time that counts as equal to `bound`."""
    return bound + EDGE * (bound > 0)
