"""Files that appear whole: a reader, or a kill, sees the old content or the new one, never half of it."""

import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def replacing(path) -> Iterator[pathlib.Path]:
    """Yields a path beside `path`; what is written there takes its place, once it is on the disk, when the block ends.

    Where the block raises, the old file stays and the new one is removed; what an earlier kill left is removed first.
    """
    path = pathlib.Path(path)
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        yield fresh
        with open(fresh, "rb") as file:
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_whole(path, content: str | bytes) -> None:
    """Replaces the content of a file, in UTF-8 where it is text."""
    with replacing(path) as fresh:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)
