"""The command line of `experiments.parity`. Exit codes: 0 done, 1 the error of a small network exceeds TOLERANCE, 2 a
command that cannot work, with one line on stderr."""

import argparse
import importlib.util
import pathlib
import sys

from experiments import parity


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.parity")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"networks, from {', '.join(parity.NAMES)}; default all"
    )
    parser.add_argument("--full", action="store_true", help="the published sizes instead of small ones")
    parser.add_argument("--write", type=pathlib.Path, help="a folder for the numbers of the small networks")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(parity.NAMES):
        parser.error(f"unknown network {', '.join(sorted(unknown))}; known: {', '.join(parity.NAMES)}")
    if options.write and not options.write.is_dir():
        parser.error(f"--write {options.write}: no such folder")
    references = {name: parity.reference(name) for name in options.names or parity.NAMES}
    needed = dict.fromkeys(["torch", *(reference.package for reference in references.values())])
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        print(
            f"error: the references need {', '.join(missing)}: pip install 'learn-to-guide[parity]'", file=sys.stderr
        )
        return 2
    worst = 0.0
    print(f"{'network':<22}{'output':<34}relative error")
    for name, reference in references.items():
        for label, config in (reference.full if options.full else {f"{name}, small": reference.small}).items():
            case = reference.theirs(config)
            if options.write and not options.full:
                parity.write(options.write / f"{name}.npz", case)
            for output, error in parity.errors(
                reference.ours(config, case.weights, case.inputs), case.outputs
            ).items():
                print(f"{label:<22}{output:<34}{error:.1e}", flush=True)
                worst = max(worst, error)
    return int(worst > parity.TOLERANCE and not options.full)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
