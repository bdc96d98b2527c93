"""`experiments.fid`: reading images, references that other programs read, the numbers, and what is refused."""

import json
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from PIL import Image

from experiments.fid import BadInput, images, measure, networks, references
from experiments.files import tensors
from experiments.tools.fid import main
from guidance import metrics
from guidance.nets import inception, lenet


def pictures(seed: int, n: int, side: int = 3, low: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, 256, (n, side, side, 3), np.uint8)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.fixture
def files(tmp_path):
    """Samples of 90 and truth of 80 images of 3 x 3 x 3 = 27 features, and the reference made of the truth."""
    save(tmp_path / "samples.npz", arr_0=pictures(0, 90, low=30), arr_1=np.arange(90), ids=np.arange(100, 190))
    save(tmp_path / "truth.npz", arr_0=pictures(1, 80))
    return tmp_path


def run(capsys, *arguments) -> tuple[int, dict | str]:
    """Exit code, and the JSON or the line of error."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, json.loads(out) if code == 0 else err


def ref(capsys, files, *more):
    return run(
        capsys, "ref", "--images", files / "truth.npz", "--out", files / "ref.npz", "--features", "pixels", *more
    )


def calc(capsys, files, *more, reference="ref.npz", samples="samples.npz"):
    base = ("calc", "--images", files / samples, "--ref", files / reference, "--features", "pixels")
    return run(capsys, *base, *more)


def refused(answer, *patterns):
    """Exit code 2 and one line on stderr that says all of this, behind lines of progress if it took long."""
    code, err = answer
    assert code == 2
    line = err.splitlines()[-1]
    assert line.startswith("error: ") and "Traceback" not in err
    for pattern in patterns:
        assert re.search(pattern, line), (pattern, line)


def flat(array):
    return array.reshape(len(array), -1) / 255


def test_numbers_are_those_of_the_definitions(files, capsys):
    """Fréchet distance by NumPy's covariance and SciPy's root; the others by the library on the same rows."""
    assert ref(capsys, files)[0] == 0
    code, answer = calc(capsys, files, "--metrics", "fid,kid,prdc", "--batch", "32", "--neighbours", "3")
    assert code == 0
    x, y = flat(pictures(0, 90, low=30)), flat(pictures(1, 80))
    s, t = np.cov(x.T), np.cov(y.T)
    exact = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    values = answer["metrics"]
    assert values["fid"] == pytest.approx(exact, rel=1e-5)  # the rows are float32
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    found = jax.jit(lambda y, x: metrics.precision_recall_density_coverage(y, x, k=3))(y, x)
    assert [values[name] for name in found._fields] == pytest.approx([float(v) for v in found], abs=1e-6)
    whole = jax.jit(lambda x, y: metrics.mmd_squared(metrics.polynomial_kernel(), x, y))(x, y)
    assert abs(values["kid"] - whole.value) < 4 * values["kid_standard_error"]
    assert answer["settings"]["kid"] == {"block": 8, "blocks": 10, "seed": 0}
    assert answer["settings"]["prdc"] == {"neighbours": 3}


def test_results_say_what_they_depend_on(files, capsys):
    made = ref(capsys, files, "--keep", "50")[1]
    code, answer = calc(capsys, files, "--out", files / "out.json")
    assert code == 0
    assert json.loads((files / "out.json").read_text()) == answer
    assert answer["images"]["count"] == 90
    assert answer["images"]["ids"] == {"first": 100, "last": 189, "distinct": 90}
    assert answer["reference"]["about"] == made
    assert made["images"]["count"] == 80 and made["kept"] == 50
    assert re.fullmatch("[0-9a-f]{64}", answer["reference"]["sha256"])
    assert answer["network"] == {"name": "pixels", "sha256": "", "resizer": ""}
    assert {"numpy", "jax", "device"} <= answer["versions"].keys()


def test_batches_do_not_matter(files, capsys):
    """Nor do the images that fill the last batch up."""
    first = [calc(capsys, files, "--batch", b, reference="truth.npz")[1]["metrics"]["fid"] for b in (1, 7, 64, 500)]
    np.testing.assert_allclose(first, first[0], rtol=1e-12)


def test_stream_is_the_batch(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(1000, 6)) + 5
    for waiting in (1, 10, 300, 5000):
        monkeypatch.setattr(measure, "BUFFER", waiting)
        stream = measure.Stream()
        for block in np.split(rows, [3, 10, 700]):
            stream.add(block)
        np.testing.assert_allclose(stream.read().mean, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(stream.read().covariance, np.cov(rows.T), rtol=0, atol=1e-12)
        assert stream.read().count == 1000


def test_reference_is_the_evaluation_suites(files, capsys):
    """mu, sigma and arr_0 by name in a plain .npz, arr_0 as an npy member that its reader can stream."""
    ref(capsys, files, "--keep", "30")
    with np.load(files / "ref.npz", allow_pickle=False) as arrays:
        y = flat(pictures(1, 80)).astype(np.float32).astype(np.float64)
        np.testing.assert_allclose(arrays["mu"], y.mean(0), rtol=1e-12)
        np.testing.assert_allclose(arrays["sigma"], np.cov(y.T), rtol=0, atol=1e-14)
        assert arrays["sigma"].dtype == np.float64
        kept, truth = arrays["arr_0"], pictures(1, 80)
    index = [next(i for i, image in enumerate(truth) if np.array_equal(image, one)) for one in kept]
    assert len(set(index)) == 30 and index == sorted(index) and index != list(range(30))
    with zipfile.ZipFile(files / "ref.npz") as archive, archive.open("arr_0.npy") as member:
        assert np.lib.format.read_magic(member) == (1, 0)


def test_a_reference_of_statistics_only(files, capsys):
    """As others publish them: fid works, what needs images says so."""
    ref(capsys, files)
    with np.load(files / "ref.npz", allow_pickle=False) as arrays:
        save(files / "published.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    expected = calc(capsys, files)[1]
    answer = calc(capsys, files, reference="published.npz")[1]
    assert answer["metrics"] == expected["metrics"]
    assert answer["reference"]["about"] is None
    refused(calc(capsys, files, "--metrics", "fid,kid", reference="published.npz"), "no images", "kid")


def test_a_folder_is_read_in_order(files, capsys):
    folder = files / "folder"
    (folder / "b").mkdir(parents=True)
    truth = pictures(1, 80)
    for i, image in enumerate(truth):
        Image.fromarray(image).save(folder / ("b" if i >= 40 else "") / f"{i:03d}.png")
    (folder / "notes.txt").write_text("not an image")
    opened = images.open_images(folder)
    assert opened.count == 80 and opened.shape == (3, 3, 3)
    np.testing.assert_array_equal(np.concatenate(list(opened.blocks(33))), truth)
    from_folder = calc(capsys, files, reference="folder")[1]
    from_file = calc(capsys, files, reference="truth.npz")[1]
    assert from_folder["metrics"] == from_file["metrics"]
    assert from_folder["reference"]["images"]["pixels_sha256"] == from_file["reference"]["images"]["pixels_sha256"]


def test_folders_that_are_refused(tmp_path):
    def opened():
        return list(images.open_images(tmp_path).blocks(8))

    with pytest.raises(BadInput, match="holds no picture"):
        opened()
    Image.fromarray(pictures(0, 1)[0]).save(tmp_path / "a.png")
    Image.fromarray(pictures(0, 1, side=5)[0, :4]).save(tmp_path / "b.png")
    with pytest.raises(BadInput, match=r"sizes 3x3 \(a.png\) and 5x4 \(b.png\)"):
        opened()
    Image.fromarray(np.zeros((3, 3), np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(BadInput, match=r"b.png: .*mode I;16 of more than 8 bits a channel"):
        opened()
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    with pytest.raises(BadInput, match=r"b.png: not a readable picture [^\n]*$"):
        opened()


def test_images_that_are_refused(files, capsys):
    good = pictures(0, 90)
    cases = {
        "float": ({"arr_0": good / np.float32(255)}, "arr_0 is float32, expected uint8"),
        "nan": ({"arr_0": np.full(good.shape, np.nan)}, "arr_0 is float64, expected uint8"),
        "flat": ({"arr_0": flat(good).astype(np.uint8)}, r"shape \(90, 27\), expected \[n, H, W, 1 or 3\]"),
        "channels": ({"arr_0": np.zeros((9, 3, 4, 4), np.uint8)}, r"shape \(9, 3, 4, 4\)"),
        "empty": ({"arr_0": good[:0]}, r"shape \(0, 3, 3, 3\)"),
        "named": ({"images": good}, "holds images; expected images as arr_0"),
        "ids": ({"arr_0": good, "ids": np.arange(3)}, r"ids is int64 \(3,\), expected one integer for each of 90"),
        "objects": ({"arr_0": np.asarray([None, "x"], object)}, "arr_0 is object, expected uint8"),
    }
    for name, (arrays, message) in cases.items():
        save(files / f"{name}.npz", **arrays)
        refused(calc(capsys, files, samples=f"{name}.npz", reference="truth.npz"), f"{name}.npz", message)
    refused(calc(capsys, files, samples="absent.npz", reference="truth.npz"), "absent.npz does not exist")


def test_half_written_and_damaged_files(files, capsys):
    whole = (files / "samples.npz").read_bytes()
    (files / "half.npz").write_bytes(whole[: len(whole) // 2])
    refused(calc(capsys, files, samples="half.npz", reference="truth.npz"), "half.npz is not a whole .npz")
    refused(calc(capsys, files, reference="half.npz"), "half.npz is not a whole .npz")
    at = whole.index(pictures(0, 90, low=30).tobytes()[:100]) + 500
    (files / "flipped.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    refused(
        calc(capsys, files, samples="flipped.npz", reference="truth.npz"), "flipped.npz is not a whole .npz", "CRC"
    )
    (files / "text.npz").write_text("hello")
    refused(calc(capsys, files, samples="text.npz", reference="truth.npz"), "text.npz is not a whole .npz")


def test_references_that_are_refused(files, capsys):
    mean, covariance = np.zeros(27), np.eye(27)
    cases = {
        "no_sigma": ({"mu": mean}, "sigma is missing"),
        "shapes": ({"mu": mean, "sigma": covariance[:5]}, r"sigma is of shape \(5, 27\)"),
        "nan": ({"mu": mean, "sigma": np.nan * covariance}, "not finite"),
        "other": ({"mu": np.zeros(2048), "sigma": np.eye(2048)}, "has 2048 features a row, the network here 27"),
        "nothing": ({"x": mean}, "holds x; expected mu and sigma"),
        "about": ({"mu": mean, "sigma": covariance, "about": np.asarray("hello")}, "about is not what"),
    }
    for name, (arrays, message) in cases.items():
        save(files / f"{name}.npz", **arrays)
        refused(calc(capsys, files, reference=f"{name}.npz"), f"{name}.npz", message)


def test_another_network_than_the_references(files, capsys, tmp_path):
    ref(capsys, files)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in lenet.torch_shapes().items()}
    weights = save(tmp_path / "lenet.npz", **arrays)
    base = ("calc", "--images", files / "samples.npz", "--ref", files / "ref.npz", "--features", "lenet")
    refused(run(capsys, *base, "--weights", weights), "made with name 'pixels', here it is 'lenet'")
    refused(run(capsys, *base), "--weights: --features lenet needs")
    refused(run(capsys, *base, "--weights", files / "truth.npz"), "--weights .*truth.npz: lenet weights: missing")
    refused(run(capsys, *base, "--weights", files / "absent.npz"), "absent.npz does not exist")


def test_weights_of_either_format_are_the_same_network(tmp_path, capsys):
    """The hash in a reference is that of the arrays, so that references made with one go with the other."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in lenet.torch_shapes().items()}
    tensors.write_safetensors(tmp_path / "lenet.safetensors", arrays, {"origin": "elsewhere"})
    save(tmp_path / "lenet.npz", **arrays)
    npz, other = (networks.build("lenet", str(tmp_path / f"lenet.{end}"), None) for end in ("npz", "safetensors"))
    assert npz.about() == other.about()
    grey = pictures(0, 3, side=28)[..., :1]
    np.testing.assert_array_equal(npz.read(grey)["features"], other.read(grey)["features"])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "lenet.safetensors").read_bytes()[:-1])
    base = (
        "ref",
        "--images",
        save(tmp_path / "i.npz", arr_0=grey),
        "--out",
        tmp_path / "r.npz",
        "--features",
        "lenet",
    )
    for name, message in (
        ("cut", "--weights: .*cut.safetensors is not a whole"),
        ("none", "none.safetensors does not"),
    ):
        refused(run(capsys, *base, "--weights", tmp_path / f"{name}.safetensors"), message)


def test_images_of_another_size(files, capsys):
    save(files / "large.npz", arr_0=pictures(2, 90, side=5))
    for name in ("fid", "kid"):
        answer = calc(capsys, files, "--metrics", name, "--few", reference="large.npz")
        refused(answer, r"large.npz gives \{'features': 75\}", r"samples.npz \{'features': 27\}")


def test_too_few_images(files, capsys):
    """27 features need 28 images on both sides."""
    save(files / "few.npz", arr_0=pictures(2, 27))
    refused(calc(capsys, files, samples="few.npz", reference="truth.npz"), "few.npz has 27 images: FID with n < 28")
    refused(calc(capsys, files, reference="few.npz"), "few.npz has 27 images: FID with n < 28 is biased")
    made = ("ref", "--images", files / "few.npz", "--out", files / "ref.npz", "--features", "pixels")
    assert run(capsys, *made)[0] == 0
    refused(calc(capsys, files), "ref.npz has 27 images: FID with n < 28")
    assert calc(capsys, files, "--few")[1]["metrics"]["fid"] > 0
    save(files / "three.npz", arr_0=pictures(2, 3))
    refused(calc(capsys, files, "--metrics", "kid", reference="three.npz"), "kid needs at least 20")
    refused(calc(capsys, files, "--metrics", "prdc", reference="three.npz"), "prdc needs at least 6")


def test_options_that_are_refused(files, capsys):
    refused(calc(capsys, files, "--metrics", "fid,fd"), "--metrics fd: expected some of fid,sfid,kid,is,prdc")
    refused(calc(capsys, files, "--batch", "0"), "--batch 0")
    refused(
        calc(capsys, files, "--metrics", "is", reference="truth.npz"), "pixels has no probabilities, which is needs"
    )
    refused(calc(capsys, files, "--metrics", "sfid", reference="truth.npz"), "no spatial, which sfid needs")
    refused(calc(capsys, files, "--resizer", "clean", reference="truth.npz"), "--resizer clean: pixels take")
    refused(calc(capsys, files, "--out", files / "no" / "x.json", reference="truth.npz"), "folder does not exist")
    refused(run(capsys, "calc", "--images", "x"), "required")
    base = ("calc", "--images", files / "samples.npz", "--ref", files / "truth.npz")
    for name in ("vgg", "no.such:thing", "experiments.fid.networks:nothing"):
        refused(run(capsys, *base, "--features", name), f"--features {name}")


def test_a_network_of_the_users(files, capsys, monkeypatch):
    """By module:function; features that are not finite are refused with the images that gave them."""

    def build(weights, resizer):
        scale = np.inf if weights == "broken" else 1

        def read(x):
            high = np.eye(2)[(x.mean((1, 2, 3)) > 128).astype(int)]
            return {"features": scale * x.mean((1, 2)), "spatial": x.mean((1, 3)), "probabilities": 0.8 * high + 0.1}

        return networks.Network("mine", "00", resizer or "", read)

    monkeypatch.setattr(networks, "mine", build, raising=False)
    base = ("calc", "--images", files / "samples.npz", "--ref", files / "truth.npz")
    base += ("--features", "experiments.fid.networks:mine", "--resizer", "any", "--batch", "50")
    answer = run(capsys, *base, "--metrics", "fid,sfid,is")[1]
    assert answer["network"] == {"name": "mine", "sha256": "00", "resizer": "any"}
    x, y = pictures(0, 90, low=30), pictures(1, 80)
    for name, axes in (("fid", (1, 2)), ("sfid", (1, 3))):
        a, b = (metrics.gaussian_stats(z.mean(axes)) for z in (x, y))
        assert answer["metrics"][name] == pytest.approx(metrics.frechet_distance(a, b))
    share = np.mean(x.mean((1, 2, 3)) > 128)  # probabilities 0.9 and 0.1, so the score is exp(H(marginal) - H(0.1))
    entropy = [-sum(q * np.log(q) for q in (p, 1 - p)) for p in (0.1 + 0.8 * share, 0.1)]
    assert answer["metrics"]["is"] == pytest.approx(np.exp(entropy[0] - entropy[1]), rel=1e-5)
    refused(run(capsys, *base, "--weights", "broken"), "features of images 0 to 49 are not finite")


def test_grey_and_colour():
    grey = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8)
    colour = networks.in_channels(grey, 3)
    assert colour.shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(networks.in_channels(colour, 1), grey)
    with pytest.raises(BadInput, match="grey"):
        networks.in_channels(pictures(0, 1), 1)


def test_clean_resizing_averages_and_does_not_round():
    """Stripes finer than the target become their mean; a smooth ramp keeps fractions of a level."""
    stripes = np.zeros((1, 1200, 1200, 3), np.uint8)
    stripes[:, :, ::2] = 255
    np.testing.assert_allclose(networks.clean(stripes, 299)[0, 5:-5, 5:-5], 127.5, atol=1)
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, None, :, None], (1, 100, 100, 3))
    found = networks.clean(ramp, 299)
    expected = (np.arange(299) + 0.5) * 100 / 299 - 0.5
    np.testing.assert_allclose(found[0, 150, 10:-10, 1], expected[10:-10], atol=1e-3)  # bicubic keeps linear functions


def cubic(size, target):
    """The matrix [target, size] of a bicubic resize whose kernel, of slope -1/2 at 1, widens where it shrinks.

    k(u) = 1 - 5/2 u^2 + 3/2 |u|^3 for |u| < 1 and 2 - 4 |u| + 5/2 u^2 - |u|^3 / 2 for 1 <= |u| < 2 (Keys 1981).
    """
    scale = size / target
    u = np.abs((np.arange(size)[None] + 0.5) - (np.arange(target)[:, None] + 0.5) * scale) / max(scale, 1)
    kernel = np.where(u < 1, 1 - 2.5 * u**2 + 1.5 * u**3, 2 - 4 * u + 2.5 * u**2 - 0.5 * u**3)
    kernel = np.where(u < 2, kernel, 0)
    return kernel / kernel.sum(1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(20, 31), (400, 352)])
def test_clean_resizing_is_bicubic(height, width):
    """On noise, where bilinear and bicubic differ by tens of levels; overshoot is clipped."""
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3)).astype(np.uint8)
    expected = np.einsum(
        "ih,hwc,jw->ijc", cubic(height, 299), image[0].astype(float), cubic(width, 299), optimize=True
    )
    np.testing.assert_allclose(networks.clean(image, 299)[0], np.clip(expected, 0, 255), atol=0.01)


@pytest.mark.parametrize("resizer", ["tensorflow", "torch", "clean"])
def test_what_reaches_inception_and_what_is_taken_from_it(resizer, tmp_path, monkeypatch):
    """Prepared as the resizer says; probabilities without the classifier's bias. The network is replaced by one that
    hands on some of its pixels."""

    def read(params, images):
        rows = images[:, 3::37, 5::41].reshape(images.shape[0], -1)
        return inception.Reading(rows, rows[:, :9], jnp.zeros((len(rows), 3)), rows[:, :3])

    monkeypatch.setattr(inception, "read", read)
    monkeypatch.setattr(inception, "from_torch", lambda arrays: {})
    network = networks.build("inception", str(save(tmp_path / "none.npz", x=np.zeros(1, np.float32))), resizer)
    image = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3)).astype(np.uint8)
    if resizer == "clean":
        resize = cubic
    else:
        shift = 0.0 if resizer == "tensorflow" else 0.5  # corners or centres of pixels

        def resize(n, target):
            places = (np.arange(target) + shift) * n / target - shift
            return np.stack([np.interp(places, np.arange(n), row) for row in np.eye(n)], axis=1)

    along = "ih,bhwc,jw->bijc", resize(40, 299), image.astype(float), resize(30, 299)
    enlarged = np.clip(np.einsum(*along, optimize=True), 0, 255)
    prepared = 2 * enlarged / 255 - 1 if resizer == "torch" else (enlarged - 128) / 128
    expected = prepared[:, 3::37, 5::41].reshape(2, -1)
    found = network.read(image)
    np.testing.assert_allclose(found["features"], expected, atol=2e-4)
    np.testing.assert_allclose(found["spatial"], expected[:, :9], atol=2e-4)
    exponential = np.exp(expected[:, :3])
    np.testing.assert_allclose(found["probabilities"], exponential / exponential.sum(1, keepdims=True), atol=2e-4)
    assert (network.name, network.resizer) == ("inception", resizer)


def test_hash_is_of_the_arrays():
    arrays = {"b": np.arange(6.0), "a": np.zeros(2)}
    assert networks.hash_arrays(arrays) == networks.hash_arrays(dict(reversed(arrays.items())))
    others = [arrays | {"a": np.ones(2)}, arrays | {"b": np.arange(6.0).reshape(2, 3)}, {"a": arrays["a"]}]
    others += [arrays | {"a": np.zeros(2, np.float32)}, {"c": arrays["b"], "a": arrays["a"]}]
    assert len({networks.hash_arrays(one) for one in [arrays, *others]}) == 6


def test_published_distance_of_mnist(shared, tmp_path, capsys):
    """FID(train, test) = 0.0512 of LeNet's 84 features, against statistics as published: mu and sigma only."""
    from experiments import data

    with np.load(shared / "data/weights/mnist_lenet84_stats.npz", allow_pickle=False) as stored:
        save(tmp_path / "train.npz", mu=stored["train_mu"], sigma=stored["train_sigma"])
    test = data.mnist(shared / "data/mnist")[1].images
    save(tmp_path / "test.npz", arr_0=test)
    code, answer = run(
        capsys, "calc", "--images", tmp_path / "test.npz", "--ref", tmp_path / "train.npz", "--features", "lenet",
        "--weights", shared / "data/weights/mnist_lenet5.npz", "--metrics", "fid,is", "--batch", "1000",
    )  # fmt: skip
    assert code == 0
    assert answer["metrics"]["fid"] == pytest.approx(0.0512, abs=5e-5)
    assert 9 < answer["metrics"]["is"] < 10  # ten classes, nearly balanced, nearly certain


@pytest.mark.slow
def test_inception_from_end_to_end(tmp_path, capsys):
    """At random weights: the metrics that few images allow; a reference has spatial statistics and its resizer."""
    from experiments.parity.inception import random_arrays

    weights = tmp_path / "inception.safetensors"
    tensors.write_safetensors(weights, random_arrays(), {})
    save(tmp_path / "truth.npz", arr_0=pictures(0, 20, side=20))
    save(tmp_path / "samples.npz", arr_0=pictures(1, 20, side=20, low=60))
    common = ("--features", "inception", "--weights", weights, "--batch", "4")
    made = run(capsys, "ref", "--images", tmp_path / "truth.npz", "--out", tmp_path / "ref.npz", *common)[1]
    assert made["network"]["resizer"] == "tensorflow"
    with np.load(tmp_path / "ref.npz", allow_pickle=False) as arrays:
        shapes = {name: arrays[name].shape for name in arrays}
    assert shapes == {
        "mu": (2048,), "sigma": (2048, 2048), "mu_s": (2023,), "sigma_s": (2023, 2023), "arr_0": (20, 20, 20, 3),
        "about": (),
    }  # fmt: skip
    base = ("calc", "--images", tmp_path / "samples.npz", "--ref", tmp_path / "ref.npz", *common)
    refused(run(capsys, *base), "samples.npz has 20 images: FID with n < 2049 is biased")
    refused(run(capsys, *base, "--metrics", "sfid"), "samples.npz has 20 images: SFID with n < 2024 is biased")
    answer = run(capsys, *base, "--metrics", "kid,is,prdc", "--neighbours", "3")[1]["metrics"]
    assert answer["kid"] > 4 * answer["kid_standard_error"] > 0
    assert 1 <= answer["is"] < inception.CLASSES and 0 <= answer["precision"] <= 1
    for resizer in ("torch", "clean"):
        refused(run(capsys, *base, "--few", "--resizer", resizer), "made with resizer 'tensorflow'")
    refused(run(capsys, *base, "--resizer", "bilinear"), "--resizer bilinear: expected tensorflow, torch, clean")


def test_a_reference_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = save(tmp_path / "ref.npz", mu=np.zeros(2))
    before = path.read_bytes()

    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        references.write_reference(path, {}, None, {})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["ref.npz"]
