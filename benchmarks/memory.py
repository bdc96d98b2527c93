"""How the memory of an update grows with batch, particles and rollout length, for each way to recompute.

    python -m benchmarks.memory [--size S/2] [--batch 1] [--particles 4] [--steps 4] [--small]

Bytes of the compiled update of learned guidance through a DiT: temporaries, which hold the activations, and arguments,
which are mostly weights. Nothing is computed on a CPU, only compiled. Each line varies one number and keeps the others
at what the options say; its last column is the exponent of the growth of the temporaries. remat="segments" cuts the
rollout into sqrt(steps) segments. On an accelerator every update is run as well, the small ones first, and the highest
number of bytes in use up to then is printed.
"""

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from benchmarks import dits, objectives
from guidance.learning.rollout import REMAT

MIB = 2**20


class Point(NamedTuple):
    """One update; remat "" is the one-step objective."""

    remat: str
    batch: int
    particles: int
    steps: int


class Line(NamedTuple):
    """Updates that differ in one number."""

    varied: str
    points: list[Point]

    def label(self) -> str:
        remat = self.points[0].remat
        return f"rollout, remat {remat}" if remat else "self-consistency"


class Bytes(NamedTuple):
    temporary: int
    arguments: int


def main(arguments: list[str] | None = None) -> None:
    cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="S/2")
    parser.add_argument("--precision", choices=dits.PRECISIONS, default="float32" if cpu else "bfloat16")
    parser.add_argument("--batch", type=int, default=1, help="conditions n (1)")
    parser.add_argument("--particles", type=int, default=4, help="particles m (4)")
    parser.add_argument("--steps", type=int, default=4, help="steps K of the rollouts, a square (4)")
    parser.add_argument("--small", action="store_true", help="a tiny network, and two values of each number")
    options = parser.parse_args(arguments)
    if options.small:
        options.size = "tiny"
    net = dits.network(options.size, options.precision)
    model = objectives.dit_model(net, dits.shapes(net))
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, DiT-{options.size}, {options.precision}; MiB")
    every = lines(options.batch, options.particles, options.steps, (1, 4) if options.small else (1, 4, 16))
    found = {}
    for line in every:
        for point in line.points:
            found[point] = found.get(point) or measured(model, point)
        values = [getattr(point, line.varied) for point in line.points]
        sizes = [found[point] for point in line.points]
        shown = " ".join(f"{size.temporary / MIB:10.1f}" for size in sizes)
        print(
            f"  {line.label():24s} {line.varied:9s} {'/'.join(map(str, values)):9s} {shown}, arguments "
            f"{sizes[-1].arguments / MIB:.1f}, grows like {line.varied}^{exponent(values, sizes):.2f}",
            flush=True,
        )
    if not cpu:
        run(net, found)


def lines(batch: int, particles: int, steps: int, factors: tuple[int, ...]) -> list[Line]:
    """Every number times the factors, which are squares, for the one-step objective and each remat of the rollout."""
    found = []
    for remat in ("", *REMAT):
        start = Point(remat, batch, particles, steps if remat else 0)
        for varied in ("batch", "particles", "steps") if remat else ("batch", "particles"):
            points = [start._replace(**{varied: factor * getattr(start, varied)}) for factor in factors]
            found.append(Line(varied, points))
    return found


def update_of(model: objectives.Model, point: Point) -> Callable:
    if point.remat:
        return objectives.through_sampler(model, point.particles, point.steps, point.remat)
    return objectives.one_step(model, point.particles)


def measured(model: objectives.Model, point: Point) -> Bytes:
    """What the compiled update needs."""
    state = objectives.arguments(model, point.batch, point.particles)
    analysis = jax.jit(update_of(model, point)).lower(*state).compile().memory_analysis()
    return Bytes(analysis.temp_size_in_bytes, analysis.argument_size_in_bytes)


def exponent(values: list[int], sizes: list[Bytes]) -> float:
    """p of temporaries ~ value^p, between the first and the last."""
    return math.log(sizes[-1].temporary / sizes[0].temporary) / math.log(values[-1] / values[0])


def run(net, found: dict[Point, Bytes]) -> None:
    """Runs every update that fits, in the order of its size: the device only says the highest of all so far."""
    device, model = jax.devices()[0], objectives.dit_model(net, dits.random_params(net))
    for point, size in sorted(found.items(), key=lambda item: sum(item[1])):
        if sum(size) > 0.9 * device.memory_stats()["bytes_limit"]:
            print(f"  {point}: {sum(size) / MIB:.0f} compiled, more than the device has")
            continue
        state = objectives.arguments(model, point.batch, point.particles)
        jax.block_until_ready(jax.jit(update_of(model, point))(*state))
        highest = device.memory_stats()["peak_bytes_in_use"]
        print(f"  {point}: {sum(size) / MIB:.1f} compiled, {highest / MIB:.1f} highest in use so far")


if __name__ == "__main__":
    main()
