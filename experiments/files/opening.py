"""Opens the user's files: an error that a library raises for them becomes one line with the full path."""

import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 300  # characters of a library's message that we show: some messages contain the unreadable data itself


def one_line(error) -> str:
    """Returns the message of an error without line breaks."""
    return " ".join(str(error).split())


def existing(path, expected: str) -> pathlib.Path:
    """Returns `path` if it is a file. Otherwise raises FileNotFoundError, which says what was `expected` there."""
    if os.path.isdir(path):
        raise FileNotFoundError(f"{path} is a folder; expected {expected}")
    if not os.path.isfile(path):  # also False for names that no file can have
        raise FileNotFoundError(f"{path} does not exist; expected {expected}")
    return pathlib.Path(path)


@contextmanager
def reading(path, expected: str) -> Iterator[None]:
    """Turns every exception of a library that reads the file at `path` into a ValueError of one line.

    We catch every Exception, because parsers of damaged files fail in undocumented ways: AttributeError for an unknown
    dtype, tokenize.TokenError for a header that is cut short, MemoryError for a size that is noise.
    """
    try:
        yield
    except OSError as error:
        if error.strerror is not None:  # the operating system raised it, not a library
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        raise ValueError(_unreadable(path, expected, error)) from None
    except Exception as error:
        raise ValueError(_unreadable(path, expected, error)) from None


def _unreadable(path, expected: str, error: Exception) -> str:
    message = one_line(error) or type(error).__name__
    return f"{path} is not {expected} ({message if len(message) <= LONGEST else message[:LONGEST] + '...'})"
