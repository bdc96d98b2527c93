"""Names of classes stay with their numbers: in the folder of a run, in latents, and in what was made with them."""

import json

import pytest

from experiments import data
from experiments.data import latents
from experiments.files import names


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        (("a", "b"), ("a", "b"), None),
        (None, ("a", "b"), None),
        (("a", "b"), None, None),
        (("a", "b", "c"), ("a", "c"), "3 classes there, 2 here"),
        (("a", "b", "c"), ("a", "c", "b"), "class 1 is 'b' there, 'c' here"),
    ],
)
def test_what_tells_names_apart(there, here, said):
    assert names.difference(there, here) == said


def test_a_run_keeps_the_names_that_it_began_with(tmp_path):
    data.keep_names(tmp_path, ("ant", "bée"))
    assert json.loads((tmp_path / "classes.json").read_text(encoding="utf-8")) == ["ant", "bée"]
    data.keep_names(tmp_path, ("ant", "bée"))
    with pytest.raises(ValueError, match="class 1 is 'bée' there, 'cat' here") as error:
        data.keep_names(tmp_path, ("ant", "cat"))
    assert str(tmp_path / "classes.json") in str(error.value) and "\n" not in str(error.value)
    for content in ("", "{", "3", "null"):
        (tmp_path / "classes.json").write_text(content)
        with pytest.raises(ValueError, match="classes.json is not a list of names of classes") as error:
            data.keep_names(tmp_path, ("ant", "bee"))
        assert "\n" not in str(error.value)


def about(*classes: str) -> latents.About:
    return latents.About("here", "random", "float32", 4, 2, 1, (2, 2, 3), len(classes), classes)


def test_latents_keep_the_names_of_their_labels(tmp_path):
    pytest.importorskip("array_record", reason="needs the extra [data]")
    latents.describe(tmp_path, about("ant", "bee"))
    latents.describe(tmp_path, about("ant", "bee"))
    with pytest.raises(ValueError, match="is of other classes: class 0 is 'ant' there, 'bee' here"):
        latents.describe(tmp_path, about("bee", "ant"))
    with pytest.raises(ValueError, match="is of another classes"):
        latents.describe(tmp_path, about("ant", "bee", "cat"))
    for k, labels in enumerate(([0, 1], [1, 0])):
        path = latents.shard_path(tmp_path, about("ant", "bee"), k)
        latents.write_shard(path, [[[[[[0.0] * 3] * 2] * 2] * 2]] * 2, labels)
    assert data.Latents(tmp_path).names == ("ant", "bee")


def test_latents_from_before_names_were_kept_were_in_alphabetical_order(tmp_path):
    pytest.importorskip("array_record", reason="needs the extra [data]")
    old = about("1", "10", "2")._asdict()
    del old["names"]
    (tmp_path / "latents.json").write_text(json.dumps(old))
    latents.describe(tmp_path, about("1", "10", "2"))
    with pytest.raises(ValueError, match="is of other classes: class 1 is '10' there, '2' here"):
        latents.describe(tmp_path, about("1", "2", "10"))
