"""What the tests of the job `sample` share."""

import pathlib

import numpy as np

from experiments.main import main


def refused(arguments, capsys, code=2) -> str:
    """The one line of a command that cannot work, behind lines of progress where it took long."""
    capsys.readouterr()
    assert main(arguments) == code
    *progress, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(said.startswith("sampling: ") for said in progress), [*progress, line]
    return line


def held(workdir, into="samples") -> dict[str, np.ndarray]:
    with np.load(pathlib.Path(workdir) / into / "samples.npz") as arrays:
        return dict(arrays)
