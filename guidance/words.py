"""Words for messages: a list that may be long, in one line that a person can read."""

from collections.abc import Iterable

MOST = 8  # of a list that are named


def listed(words: Iterable, most: int = MOST, between: str = ", ") -> str:
    """ "a, b, c and 412 more": the first `most` of the words, and how many there are beside them; "" for none."""
    words = [str(word) for word in words]
    shown = between.join(words[:most])
    return f"{shown} and {len(words) - most} more" if len(words) > most else shown
