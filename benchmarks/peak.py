"""Which share of the machine's own matrix-product rate a DiT's forward reaches.

    python -m benchmarks.peak [--sizes S/2 XL/2] [--batch 8] [--repeats 5] [--small]

float32 on a CPU, bfloat16 elsewhere (--precision says otherwise), wall time; the fastest of a few calls on both sides,
which take turns: the machine's own limit, not what else runs on it. Rates are of the arithmetic in matrix products by
the closed formula (`benchmarks.dits`); the compiler's own count stands beside it. It has the elementwise work as well,
and leaves out what a library call hides, such as fused attention. On an accelerator whose published rate is known the
share of that is printed too.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import dits
from benchmarks.timing import alternated, neighbours
from experiments.runtime.launch import keep_freed_memory

# dense bfloat16, from NVIDIA's data sheets
PUBLISHED = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12}


def main(arguments: list[str] | None = None) -> None:
    cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["S/2", "XL/2"])
    parser.add_argument("--batch", type=int, default=8 if cpu else 64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=dits.PRECISIONS, default="float32" if cpu else "bfloat16")
    parser.add_argument("--small", action="store_true", help="one tiny network and a small product")
    options = parser.parse_args(arguments)
    if options.small:
        options.sizes, options.batch, options.repeats = ["tiny"], 2, 1
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, {device}, {options.precision}, batch {options.batch}")

    side, chained = (256, 1) if options.small else (2048, 1) if cpu else (8192, 8)
    nets = {size: dits.network(size, options.precision) for size in options.sizes}
    forwards = {size: forward(net, options.batch) for size, net in nets.items()}
    calls = {"product": product(side, chained, options.precision)} | {n: call for n, (call, _) in forwards.items()}
    turns = alternated(calls, options.repeats)
    best = {name: each.min() for name, each in turns.seconds.items()}

    peak = chained * 2 * side**3 / best["product"]
    published = next((rate for name, rate in PUBLISHED.items() if name in device), None)
    if options.precision != "bfloat16":
        published = None
    print(f"  a {side} x {side} product: {peak / 1e9:.0f} GFLOP/s{_of(peak, published)}")
    for size, (_, counted) in forwards.items():
        flops = options.batch * dits.product_flops(nets[size])
        rate = flops / best[size]
        print(
            f"  DiT-{size:5s} {1e3 * best[size]:9.1f} ms, {flops / 1e9:.1f} GFLOP (counted by the compiler: "
            f"{counted / flops:.3f} of that), {rate / 1e9:.0f} GFLOP/s, {100 * rate / peak:.0f} % of the product's"
            f"{_of(rate, published)}"
        )
    print(neighbours(turns))


def _of(rate: float, published: float | None) -> str:
    return "" if published is None else f", {100 * rate / published:.0f} % of the published {published / 1e12:.0f} T"


def forward(net, batch: int):
    """A compiled forward on `batch` samples, as a call, and its arithmetic as the compiler counts it."""
    params = dits.random_params(net)
    inputs = jnp.ones((batch, *dits.LATENT)), jnp.full(batch, 500.0), jnp.zeros(batch, int)
    compiled = jax.jit(lambda params, *rest: net.apply({"params": params}, *rest)).lower(params, *inputs).compile()
    return lambda: compiled(params, *inputs), compiled.cost_analysis()["flops"]


def product(side: int, chained: int, precision: str):
    """`chained` products of [side, side] matrices in one call; of normal numbers, since ones would need less power."""
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.normal(size=(side, side)) / side**0.5, jnp.dtype(precision))  # keeps the variance

    @jax.jit
    def run(a):
        return jax.lax.fori_loop(0, chained, lambda _, x: x @ a, a)

    return lambda: run(a)


if __name__ == "__main__":
    keep_freed_memory()
    main()
