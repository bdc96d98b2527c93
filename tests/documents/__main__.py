"""Keeps the documents true: reads every command and every block of Python that they print, checks it, and runs it.

    python -m tests.documents                        # what the tests do: a minute
    python -m tests.documents --all [PAGE ...]       # and every block that is marked `run by hand`

It stands with the tests, and not in `experiments/`, because it is about the repository: the documents are not
installed, and it needs stand-ins for published files that only tests need.

A page is README.md, a file of docs/ or the header of a config. Its blocks are those between fences, and the indented
lines that begin with `python -m`. A block of commands says in a comment on the line above it what becomes of it:

    <!-- run by hand -->                   runs with --all, as it is printed
    <!-- run by hand with FLAGS -->        the same; FLAGS, which make it small, are added to every run of a job
    <!-- not run: REASON -->               hours, a download or a cluster

Whatever the comment says, every command is checked in the tests: its program, its flags, the names and ranges of its
fields, and that every file it reads is a file that an earlier command of the page has made, or one of `stand_ins`.
Indented commands have no comment: those of a preset called smoke are run by hand, the others are checked. A block of
Python runs in the tests, after those above it on the page; one under `<!-- needs torch -->` where PyTorch is.
Inline code is read too: commands, paths, modules and the names of fields in it must exist.
"""

import argparse
import sys

from tests.documents import checking, running
from tests.documents.reading import CONFIGS, PAGES


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.documents", description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="README.md, docs/NAME.md or configs/NAME.py (all)")
    parser.add_argument("--all", action="store_true", help="run the blocks that are marked `run by hand`, too")
    options = parser.parse_args(arguments)
    wrong, runs = [], {}
    for page in options.pages or PAGES + CONFIGS:
        wrong += checking.faults(page, runs)
        if options.all:
            wrong += running.run_by_hand(page)
    print(*wrong, f"{len(wrong)} faults", sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
