"""The one comparison of computed times with bounds that somebody typed. For floats, NumPy's and JAX's arrays alike."""

EDGE = 1e-6  # times that are no further apart are one time


def within(t, lo, hi):
    """Whether lo < t <= hi, elementwise, where a time within EDGE of a bound counts as equal to it.

    A grid computes its times, and 0.2 on 50 float32 steps is 0.19999999 or 0.20000002; a bound is typed, as 0.2. With
    this rule a step that starts at t is inside whenever it is in exact arithmetic: on k/n uniform steps and bounds of
    two decimals, times that differ are at least 1/(100 n) apart. Nothing above 0 counts as equal to 0, since a grid
    may have its last start below EDGE.
    """
    return (t > last_equal(lo)) & (t <= last_equal(hi))


def last_equal(bound):
    """The largest time that counts as equal to `bound`."""
    return bound + EDGE * (bound > 0)
