"""The command line of `experiments.fid`: options -> checks -> one pass over the images -> JSON.

Exit codes: 0 done, 1 the result cannot be written, 2 something given cannot be used (one line on stderr).
"""

import argparse
import json
import pathlib
import sys

import experiments.fid
from experiments.fid import BadInput
from experiments.records import write_atomically

METRICS = ("fid", "sfid", "kid", "is", "prdc")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise BadInput(f"{message}; see {self.prog} --help")


def parser() -> Parser:
    top = Parser(
        prog="python -m experiments.fid",
        description=experiments.fid.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="ref or calc")
    ref = commands.add_parser("ref", help="write the reference statistics of a set of images")
    ref.add_argument("--out", required=True, help="the .npz to write")
    ref.add_argument("--keep", type=int, default=10_000, help="images to store for kid and prdc (10000; 0: none)")
    calc = commands.add_parser("calc", help="compare images with a reference, and print JSON")
    calc.add_argument("--ref", required=True, help="a reference .npz, or images")
    calc.add_argument("--metrics", default="fid", help=f"some of {','.join(METRICS)} (fid)")
    calc.add_argument("--neighbours", type=int, default=5, help="k of precision, recall, density and coverage (5)")
    calc.add_argument("--few", action="store_true", help="allow Frechet distances from too few images")
    calc.add_argument("--out", help="a file for the JSON as well")
    for command in (ref, calc):
        command.add_argument("--images", required=True, help="a folder, or an .npz with uint8 arr_0 [n, H, W, C]")
        command.add_argument("--features", required=True, help="inception, lenet, pixels, or module:function")
        command.add_argument("--weights", help="the network's weights by their published names, .safetensors or .npz")
        command.add_argument("--resizer", help="of inception: tensorflow (the default), torch or clean")
        command.add_argument("--batch", type=int, default=64, help="images a device reads at a time (64)")
    return top


def run(options) -> dict:
    wanted = options.metrics.split(",") if options.command == "calc" else []
    unknown = [name for name in wanted if name not in METRICS]
    if unknown:
        raise BadInput(f"--metrics {unknown[0]}: expected some of {','.join(METRICS)}")
    for name, least in (("batch", 1), ("keep", 0), ("neighbours", 1)):
        if getattr(options, name, least) < least:
            raise BadInput(f"--{name} {getattr(options, name)}: expected at least {least}")
    if options.out and not pathlib.Path(options.out).parent.is_dir():
        raise BadInput(f"--out {options.out}: its folder does not exist")
    from experiments.fid import measure, networks  # heavy: only now that the options are known to be sound
    from experiments.fid.images import open_images
    from experiments.fid.references import read_reference

    images = open_images(options.images)
    reference = read_reference(options.ref) if options.command == "calc" else None
    network = networks.build(options.features, options.weights, options.resizer)
    if reference is None:
        return measure.write_ref(network, images, options.batch, options.keep, options.out)
    return measure.calculate(network, images, reference, wanted, options.batch, options.neighbours, options.few)


def main(arguments: list[str]) -> int:
    try:
        options = parser().parse_args(arguments)
        result = json.dumps(run(options), indent=2, allow_nan=False)
        if options.command == "calc" and options.out:
            write_atomically(pathlib.Path(options.out), result + "\n")
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"error: {error.strerror}: {error.filename or options.out}", file=sys.stderr)
        return 1
    print(result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
