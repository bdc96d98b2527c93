"""The border to files that are the user's: what a library raises there becomes one line with the path in full."""

import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager

SAID = 300  # characters of a library's message that are passed on: some print what they could not read


def one_line(error) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())


def existing(path, expected: str) -> pathlib.Path:
    """`path` if it is a file. Raises FileNotFoundError that says what was expected there."""
    if os.path.isdir(path):
        raise FileNotFoundError(f"{path} is a folder; expected {expected}")
    if not os.path.isfile(path):  # False for names that no file can have, too
        raise FileNotFoundError(f"{path} does not exist; expected {expected}")
    return pathlib.Path(path)


@contextmanager
def reading(path, expected: str) -> Iterator[None]:
    """Around calls of a library that reads the file at `path`: whatever they raise becomes ValueError, in one line.

    Every Exception is meant: parsers of damaged files fail in ways that no documentation lists (AttributeError for a
    dtype without a name, tokenize.TokenError for a torn header, MemoryError for a size that is noise).
    """
    try:
        yield
    except OSError as error:
        if error.strerror is not None:  # the system's, not a library's
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        raise ValueError(_unreadable(path, expected, error)) from None
    except Exception as error:
        raise ValueError(_unreadable(path, expected, error)) from None


def _unreadable(path, expected: str, error: Exception) -> str:
    said = one_line(error) or type(error).__name__
    return f"{path} is not {expected} ({said if len(said) <= SAID else said[:SAID] + '...'})"
