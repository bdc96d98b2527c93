"""What the tests of the job `sample` share."""

import pathlib

import numpy as np

from experiments.main import main


def refused(arguments, capsys, code=2) -> str:
    """The one line of a command that cannot work."""
    capsys.readouterr()
    assert main(arguments) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def held(workdir, into="samples") -> dict[str, np.ndarray]:
    with np.load(pathlib.Path(workdir) / into / "samples.npz") as arrays:
        return dict(arrays)
