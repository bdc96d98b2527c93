"""What an update of learned guidance costs, as a ratio to the denoiser forwards that it cannot do without.

    python -m benchmarks.learning_cost [--batch 64] [--particles 4] [--steps 4] [--repeats 15]
                                       [--dit S/2] [--dit-batch 2] [--small]

A self-consistency update contains 2 n m forwards, a rollout of K steps 2 n m K, whose gradient passes through all of
them. It needs a backward pass beside each (about one forward: no parameter of the network has a gradient), with
remat="steps" a second forward, with "segments" a third. Denoisers: the 209k-parameter flow transformer on 28 x 28
images, one of 2.7 million, and a DiT (random weights: the cost is the same), on a CPU without remat="none", which
would keep gigabytes a step. The forwards are timed in the faster of two ways, all at once or 128 at a time, and the
updates use the same one. They take turns in one process. Times and ratios are CPU time of the process on a CPU, so
that other load does not count, and wall time elsewhere; updates a second are wall time. The DiT gets a fifth of the
repetitions.
"""

import argparse
import platform

import flax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import dits, objectives
from benchmarks.timing import seconds, taken
from experiments.runtime.launch import keep_freed_memory
from guidance.learning.rollout import REMAT
from guidance.nets import flow_vit
from guidance.predictions import in_chunks


def main(arguments: list[str] | None = None) -> None:
    cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="conditions n (64)")
    parser.add_argument("--particles", type=int, default=4, help="particles m (4)")
    parser.add_argument("--steps", type=int, default=4, help="steps K of the rollout, a square (4)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--dit", default="S/2", help="size of the DiT (S/2), small or tiny, none to leave it out")
    parser.add_argument("--dit-batch", type=int, default=2 if cpu else 16, help="conditions n of the DiT")
    parser.add_argument("--precision", choices=dits.PRECISIONS, default="float32" if cpu else "bfloat16", help="its")
    parser.add_argument("--small", action="store_true", help="the first network and a tiny DiT, n = m = 2")
    options = parser.parse_args(arguments)
    n, m, steps, repeats = options.batch, options.particles, options.steps, options.repeats
    if options.small:
        n, m, repeats, options.dit, options.dit_batch = 2, 2, 1, "tiny", 2
    print(f"jax {jax.__version__}, flax {flax.__version__}, {jax.devices()[0].device_kind}, {platform.machine()}")
    nets = (flow_vit.FlowViT(), flow_vit.FlowViT(width=192, heads=6, depth=6, mlp=768))
    for net in nets[:1] if options.small else nets:
        compare(objectives.flow_model(net), n, m, steps, REMAT, repeats)
    if options.dit != "none":
        net = dits.network(options.dit, options.precision)
        remats = tuple(remat for remat in REMAT if remat != "none" or not cpu or options.dit in dits.OURS)
        model = objectives.dit_model(net, dits.random_params(net))
        compare(model, options.dit_batch, m, steps, remats, max(1, repeats // 5))


def compare(model: objectives.Model, n: int, m: int, steps: int, remats: tuple[str, ...], repeats: int) -> None:
    """Prints a line for the forwards and one for each objective: time, updates a second, ratio to its forwards."""
    many = jax.random.normal(jax.random.key(0), (2 * n * m, *model.shape))
    inputs = many, jnp.full(2 * n * m, 0.5), jnp.arange(2 * n * m) % (objectives.CLASSES + 1)
    forward = jax.jit(lambda denoise, x, t, c: denoise(x, t, c))
    ways = [model.denoise] + [in_chunks(model.denoise, 128)] * (2 * n * m > 128)
    denoise = min(ways, key=lambda way: np.median([seconds(forward, way, *inputs) for _ in range(4)][1:]))
    model = model._replace(denoise=denoise)

    state = objectives.arguments(model, n, m)
    calls = {"self-consistency": (jax.jit(objectives.one_step(model, m)), 1)}
    for remat in remats:
        update = jax.jit(objectives.through_sampler(model, m, steps, remat))
        calls[f"rollout, {steps} steps, remat {remat}"] = (update, steps)
    forwards, updates = [], {name: [] for name in calls}
    for _ in range(repeats + 1):
        forwards.append(taken(forward, denoise, *inputs))
        for name, (update, _) in calls.items():
            updates[name].append(taken(update, *state))

    costs = np.array([one.cost for one in forwards[1:]])  # the first ones compile
    parameters = sum(leaf.size for leaf in jax.tree.leaves(denoise))
    print(f"{parameters / 1e6:.2f}M parameters, n = {n}, m = {m}: 2 n m forwards {1e3 * np.median(costs):.1f} ms")
    for name, (_, denoisings) in calls.items():
        each = np.array([one.cost for one in updates[name][1:]])
        low, middle, high = np.quantile(each / (denoisings * costs), (0.25, 0.5, 0.75))
        rate = 1 / np.median([one.wall for one in updates[name][1:]])
        print(
            f"  {name:32s} {1e3 * np.median(each):9.1f} ms, {rate:7.3f} updates/s, "
            f"ratio {middle:.3f} (quartiles {low:.3f} to {high:.3f})"
        )


if __name__ == "__main__":
    keep_freed_memory()
    main()
