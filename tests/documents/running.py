"""Runs the blocks that are marked `run by hand`, with bash and as they are printed."""

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from tests.documents import stand_ins
from tests.documents.reading import REPOSITORY, Block, blocks, is_header


def by_hand(page: str) -> list[tuple[Block, str]]:
    """(block, flags to add) of every block that is run by hand."""
    found = []
    for block in blocks(page):
        if is_header(block) and ":smoke" in block.text:
            smokes = [line for line in block.text.replace("\\\n", "").splitlines() if ":smoke" in line]
            found.append((block._replace(text="\n".join(smokes)), ""))
        elif block.comment.startswith("run by hand"):
            found.append((block, block.comment.removeprefix("run by hand").removeprefix(" with ")))
    return found


PYTHON = """#!/bin/bash
case "$2 $3" in
    experiments.main\\ *|"experiments.tools.fid gen") exec {python} "$@" $SMALL ;;
    *) exec {python} "$@" ;;
esac
"""


def run_by_hand(page: str) -> list[str]:
    """Runs the marked blocks of a page with bash, in a folder with stand-ins; the first that fails is the last."""
    with workspace() as folder:
        stand_ins.write(folder, page)
        programs = folder / "programs"
        programs.mkdir()
        for name, text in {"python": PYTHON.format(python=sys.executable), "pip": "#!/bin/bash\n"}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        modules = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        usual = {"PYTHONPATH": modules, "PATH": path, "TQDM_DISABLE": "1", "MPLBACKEND": "Agg"}
        for block, flags in by_hand(page):
            print(f"{block.at}: {flags or 'as printed'}", flush=True)
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text], cwd=folder, env=os.environ | usual | {"SMALL": flags}
            )
            if done.returncode:
                return [f"{block.at}: exit code {done.returncode}"]
    return []


@contextlib.contextmanager
def workspace() -> Iterator[pathlib.Path]:
    """An empty folder that looks like a clone: with configs/ and docs/, beside a folder `shared`."""
    with tempfile.TemporaryDirectory() as above:
        folder = pathlib.Path(above) / "clone"
        (folder / "docs").mkdir(parents=True)
        (folder / "configs").symlink_to(REPOSITORY / "configs")
        yield folder
