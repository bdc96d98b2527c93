"""A network that is trained on latents from disk: what it is fed, the chain, and what is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("array_record", reason="needs array_record: pip install '.[data]'")

from experiments import data, problems
from experiments.files import weight_files
from experiments.main import load, main
from experiments.problems.images import labelled
from guidance.nets import vae
from guidance.nets.dit import dit
from tests.conftest import REPOSITORY
from tests.experiments.sampled import held, refused

CONFIGS = REPOSITORY / "configs"
CONFIG = f"{CONFIGS / 'imagenet256_dit.py'}"
PLAIN = {"problem.instrument": "random", "problem.reference": "", "problem.vae": "random"}


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """Latents [2, 2, 2, 2, 4] of 20 pictures of ten classes, by the random autoencoder."""
    folder = tmp_path_factory.mktemp("latents") / "smoke"
    assert main([f"--config={CONFIGS / 'encode.py'}:smoke", f"--workdir={folder}"]) == 0
    return folder


def of(latents, **fields) -> dict[str, str]:
    tiny = {"problem.latents": str(latents), "problem.images": "0", "base.patch": "2", "base.width": "16"}
    return tiny | {name.replace("__", "."): value for name, value in fields.items()}


def test_it_is_the_published_size_with_its_settings():
    config = load(CONFIG, PLAIN | {"problem.latents": "synthetic"})
    ours = labelled.NETWORKS["dit"](config.base, 1000).net
    assert ours == dit("B/2", dtype=jnp.bfloat16, residual=jnp.float32, learn_sigma=False, remat=True)
    assert (config.base.batch, config.base.learning_rate, config.base.condition_dropout) == (256, 1e-4, 0.1)


def test_a_batch_is_drawn_from_the_laws_on_disk(latents):
    """Each row from the law of its image, one view or the other; afresh at every update; the same of any part."""
    problem = problems.build(load(f"{CONFIG}:smoke", of(latents)))
    assert problem.model.shape == (2, 2, 4) and len(problem.model.conditions) == 10 == problem.model.null
    whole, *parts = (problem.data.feed(8, part, 3) for part in ((0, 1), (0, 2), (1, 2)))
    stored = data.Latents(latents)
    loader = data.Loader(stored, 8, 3)
    views, noise = [], []
    for update in (0, 1, 5, 6, 7):
        x0, labels = whole(update)
        assert x0.dtype == np.float32 and x0.shape == (8, 2, 2, 4)
        for mine, theirs in zip((x0, labels), zip(*(part(update) for part in parts), strict=True), strict=True):
            np.testing.assert_array_equal(mine, np.concatenate(theirs))
        for row, index in zip(x0, loader.where(update)[1], strict=True):
            law = stored[int(index)]["image"]
            off = np.abs(row / vae.SCALE - law[:, 0]) / law[:, 1]  # in deviations, of either view
            views.append(int(np.argmin(off.reshape(2, -1).max(axis=1))))
            noise.append((row / vae.SCALE - law[views[-1], 0]) / law[views[-1], 1])
            assert off.reshape(2, -1).max(axis=1).min() < 5.5  # of 640 draws: once in 40,000 runs
        np.testing.assert_array_equal(labels, [stored[int(i)]["label"] for i in loader.where(update)[1]])
    assert {0, 1} == set(views)
    flat = np.stack(noise).reshape(40, -1)
    apart = np.abs(flat[:, None] - flat[None]).max(axis=-1)[~np.eye(40, dtype=bool)]
    assert apart.min() > 0.1, "every row at every update has noise of its own"
    np.testing.assert_array_equal(whole(1)[0], parts[0](1)[0].tolist() + parts[1](1)[0].tolist())
    assert not np.array_equal(whole(0)[0], problem.data.feed(8, (0, 1), 4)(0)[0])


@pytest.mark.slow
def test_the_chain_on_latents_from_disk(latents, tmp_path):
    """Trained; guidance learned for what was trained; sampled with both. How it is measured is `imported_latents`'."""
    overrides = {f"config.{name}": value for name, value in of(latents, learn__select_every="0").items()}
    flags = [f"--config={CONFIG}:smoke", f"--workdir={tmp_path}", *(f"--{k}={v}" for k, v in overrides.items())]
    assert main([*flags, "--config.job=train"]) == 0
    rows = list(map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()))
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and all(np.isfinite(row["loss"]) for row in rows)
    assert main([*flags, "--config.job=learn"]) == 0
    (path,) = (tmp_path / "weights").iterdir()
    assert weight_files.read(path)[1].null == 10
    assert [p.name for p in (tmp_path / "pictures").glob("base*")] == ["base_seed_0_update_0000004.png"]
    assert main([*flags, "--config.job=sample", "--config.sample.seeds=0-4", f"--config.sample.weight={path}"]) == 0
    arrays = held(tmp_path)
    assert arrays["arr_0"].shape == (5, 16, 16, 3) and arrays["arr_0"].dtype == np.uint8


def test_what_is_refused(latents, tmp_path, capsys):
    def line(**fields):
        overrides = [f"--config.{k}={v}" for k, v in of(latents, **fields).items()]
        return refused([f"--config={CONFIG}:smoke", f"--workdir={tmp_path / 'x'}", *overrides], capsys)

    assert "problem.latents = 'nowhere'" in line(problem__latents="nowhere")
    assert "base.patch = 4: the latents are 2 a side, no multiple of 4" in line(base__patch="4")
    assert "base.network = unet: the latents are 2 a side" in line(base__network="unet")
    assert "problem.instrument = 'classifier'" in line(problem__instrument="classifier")
    assert "base.heads" in line(base__heads="3")
    about = json.loads((latents / "latents.json").read_text())
    (tmp_path / "latents.json").write_text(json.dumps(about | {"classes": None}))
    assert "files are missing" in line(problem__latents=tmp_path)
    for path in latents.glob("*.array_record"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert "latents without labels" in line(problem__latents=tmp_path)
