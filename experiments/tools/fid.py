"""The command line of `experiments.fid`: options -> checks -> one pass over the images -> JSON.

Exit codes: 0 done, 1 the result cannot be written, 2 something given cannot be used (one line on stderr); `gen` also
has those of experiments.main.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys

import experiments.fid
from experiments.fid import BadInput
from experiments.runtime import launch, progress
from experiments.runtime.writing import write_whole
from experiments.tools import generate

METRICS = ("fid", "sfid", "kid", "is", "prdc")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise BadInput(f"{message}; see {self.prog} --help")


def parser() -> Parser:
    top = Parser(
        prog="python -m experiments.tools.fid",
        description=experiments.fid.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="ref, calc or gen")
    ref = commands.add_parser("ref", help="write the reference statistics of a set of images")
    ref.add_argument("--out", required=True, help="the .npz to write")
    ref.add_argument("--keep", type=int, default=10_000, help="images to store for kid and prdc (10000; 0: none)")
    calc = commands.add_parser("calc", help="compare images with a reference, and print JSON")
    gen = commands.add_parser(
        "gen", help="sample, then calc; --config.NAME=VALUE as for experiments.main, whose job sample it runs"
    )
    gen.add_argument("--config", required=True, help="the config to sample with, FILE.py[:PRESET]")
    gen.add_argument("--workdir", required=True, help="its folder; samples that are there already are not drawn again")
    gen.add_argument("--mesh", help="the devices to use, as for experiments.main (all)")
    for command in (calc, gen):
        command.add_argument("--ref", required=True, help="a reference .npz, or images")
        command.add_argument("--metrics", default="fid", help=f"some of {','.join(METRICS)} (fid)")
        command.add_argument("--neighbours", type=int, default=5, help="k of precision, recall, density, coverage (5)")
        command.add_argument("--few", action="store_true", help="allow Frechet distances from too few images")
        command.add_argument("--out", help="a file for the JSON as well")
    for command in (ref, calc):
        command.add_argument(
            "--images", required=True, help="a folder or .zip, or an .npz with uint8 arr_0 [n, H, W, C]"
        )
    for command in (ref, calc, gen):
        command.add_argument("--features", required=True, help="inception, lenet, pixels, or module:function")
        command.add_argument("--weights", help="the network's weights by their published names, .safetensors or .npz")
        command.add_argument("--resizer", help="of inception: tensorflow (the default), torch or clean")
        command.add_argument("--batch", type=int, default=64, help="images a device reads at a time (64)")
    return top


def run(options, rest: list[str], around: contextlib.ExitStack) -> dict:
    """Returns what the command prints. `around` keeps the processes and devices in use until it is closed."""
    wanted = [] if options.command == "ref" else options.metrics.split(",")
    unknown = [name for name in wanted if name not in METRICS]
    if unknown:
        raise BadInput(f"--metrics {unknown[0]}: expected some of {','.join(METRICS)}")
    for name, least in (("batch", 1), ("keep", 0), ("neighbours", 1)):
        if getattr(options, name, least) < least:
            raise BadInput(f"--{name} {getattr(options, name)}: expected at least {least}")
    if options.out and not os.path.isdir(pathlib.Path(options.out).parent):
        raise BadInput(f"--out {options.out}: its folder does not exist")
    job = generate.command(options, rest) if options.command == "gen" else None
    samples = job and generate.folder(job)
    if job:
        around.enter_context(generate.on_its_devices(job))
    with progress.waiting("importing JAX"):  # slow, so only after the options were checked
        from experiments.fid import measure, networks
        from experiments.fid.images import open_images
        from experiments.fid.references import read_reference

    images = None if job else open_images(options.images)
    reference = None if options.command == "ref" else read_reference(options.ref)

    def build():
        with progress.waiting(f"reading the network {options.features}"):
            network = networks.build(options.features, options.weights, options.resizer)
        if job:
            measure.same_network(network, reference)  # before hours of sampling
        return network

    network = generate.run(job, build) if job else build()
    if reference is None:
        return measure.write_ref(network, images, options.batch, options.keep, options.out)
    images = images or open_images(samples / "samples.npz")
    found = measure.calculate(network, images, reference, wanted, options.batch, options.neighbours, options.few)
    return found | ({"sampling": generate.settings(samples)} if job else {})


def main(arguments: list[str]) -> int:
    try:
        options, rest = parser().parse_known_args(arguments)
        if rest and options.command != "gen":
            parser().error(f"unrecognized arguments: {' '.join(rest)}")
        with contextlib.ExitStack() as around:
            result = json.dumps(run(options, rest, around), indent=2, allow_nan=False)
            if options.command != "ref" and options.out and launch.primary():
                write_whole(options.out, result + "\n")
            if launch.primary():
                print(result)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except generate.Ended as ended:
        return ended.args[0]
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"error: {error.strerror}: {error.filename or options.out}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(launch.command(main))
