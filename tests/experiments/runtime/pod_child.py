"""One of several processes that are a pod; started by test_pods.py (and with one process by hand, to compare).

    python tests/experiments/runtime/pod_child.py FOLDER

Leaves FOLDER/samples.npz and FOLDER/latents, written by process 0, and FOLDER/parts_N.npz from each; then computes
until it is killed.
"""

import importlib.util
import pathlib
import sys

from experiments.runtime import launch

CONFIGS = pathlib.Path(__file__).resolve().parents[3] / "configs"
CONFIG, ENCODE = f"{CONFIGS}/mixture.py:exact", f"{CONFIGS}/encode.py:smoke"
SETTINGS = {"eval.samples": "60", "eval.sampler": "churned_ddim(0.5)", "seeds": "1"}
STEPS, BATCH, EXAMPLES = 6, 16, 40


def samples():
    """(samples [G, n, d], evaluations): guided by a constant weight, with churn, through the sampler of the jobs."""
    import jax
    import jax.numpy as jnp

    from experiments import jobs, problems
    from experiments.jobs import evaluate
    from experiments.main import load

    config = load(CONFIG, SETTINGS)
    problem = jobs.in_data_parallel(problems.build(config))
    table = jnp.full((STEPS, len(problem.model.conditions)), 0.7)
    return evaluate.sampler(problem, config, STEPS)((), table, jax.random.key(5))


def trained():
    """(weights, shares): a wide layer after five updates of Adam, and the largest part of it that a device holds."""
    import jax
    import jax.numpy as jnp
    import optax

    from experiments.runtime import mesh
    from guidance.learning import update

    optimizer = optax.adam(1e-2)

    def loss(params, key):
        x = mesh.spread(jax.random.normal(key, (BATCH, 64)))
        return jnp.mean((jnp.tanh(x @ params["w"])[:, :64] - x) ** 2)

    params = {"w": jax.random.normal(jax.random.key(0), (64, 1024)) / 8}
    state = mesh.shard((params, optimizer.init(params)))
    step = jax.jit(lambda state, i: update(jax.random.fold_in(jax.random.key(1), i), optimizer, loss, *state)[:2])
    for i in range(5):
        state = step(state, i)
    kept = max(shard.data.size for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards)
    return mesh.local(state)[0]["w"], kept / (64 * 1024)


def features():
    """[n, d]: of images that a decoder with a weight of its own makes of samples, as FIDs of samples read them."""
    import jax.numpy as jnp
    import numpy as np
    from jax.tree_util import Partial

    from experiments.fid import measure, networks
    from experiments.problems.images import inception
    from experiments.runtime import mesh

    decode = mesh.shard(Partial(lambda gain, x: jnp.tanh(gain * x) / 2 + 0.5, jnp.float32(2)))
    drawn = np.random.default_rng(0).normal(size=(EXAMPLES, 8, 8, 3)).astype(np.float32)
    images = inception.as_images("samples", drawn, decode)
    network = networks.build("random", None, None)
    return measure.survey(network, images, 3, stats=["features"], rows=["features"]).rows["features"]


def encoded(folder: pathlib.Path) -> pathlib.Path:
    """The folder of latents of job `encode`."""
    from experiments.jobs import encode
    from experiments.main import load

    folder.mkdir(exist_ok=True)
    encode.run(load(ENCODE, {}), folder)
    return folder


def main(folder: pathlib.Path) -> None:
    launch.start()
    import jax
    import jax.numpy as jnp
    import numpy as np

    from experiments import data
    from experiments.runtime import mesh

    mesh.use(fsdp=True)
    x0, nfe = samples()
    w, kept = trained()
    read = features()
    if importlib.util.find_spec("array_record"):
        encoded(folder / "latents")
    if launch.primary():
        np.savez(folder / "samples.npz", x0=x0, nfe=nfe, w=w, kept=kept, features=read)
    images = np.arange(EXAMPLES, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    source = data.from_arrays("numbers", images, np.arange(EXAMPLES) % 3)
    part = mesh.share(BATCH)
    batch = data.Loader(source, BATCH, part=part, flip=True).at(4)
    everything = mesh.local(mesh.place(batch, BATCH))
    np.savez(folder / f"parts_{jax.process_index()}.npz", part=part, **everything)
    (folder / f"ready_{jax.process_index()}").touch()
    total = jax.jit(lambda x: mesh.spread(x).sum())
    while True:
        total(jnp.ones(1024)).block_until_ready()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
