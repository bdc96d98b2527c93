"""Long lists shortened for messages of one line."""

from collections.abc import Iterable

MOST = 8  # how many words of a list are shown


def listed(words: Iterable, most: int = MOST, between: str = ", ") -> str:
    """Returns the first `most` words and how many are left, as in "a, b, c and 412 more"; "" for no words."""
    words = [str(word) for word in words]
    shown = between.join(words[:most])
    return f"{shown} and {len(words) - most} more" if len(words) > most else shown
