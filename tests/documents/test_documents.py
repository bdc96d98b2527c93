"""What the documents print is so: their commands are understood and their Python runs; and the checker can refuse."""

import re

import pytest

from experiments.problems.chain_fields import OBJECTIVES
from tests.documents import checking, reading, running, stand_ins
from tests.documents.reading import CONFIGS, PAGES


def test_every_command_of_every_page_is_understood():
    """In one test, since a folder that two pages name has one config on both."""
    runs = {}
    assert [fault for page in PAGES + CONFIGS for fault in checking.faults(page, runs)] == []
    assert {"runs/mixture", "latents/imagenet256", "runs/dit_xl"} <= runs.keys(), "commands were not found"


# pages whose Python needs no files are run by tests/test_readme.py
WITH_FILES = [page for page in PAGES if reading.python(page) and page not in ("README.md", "docs/own-model.md")]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_FILES)
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stand_ins.write_for_python(tmp_path, page)
    with stand_ins.small_networks():
        names = reading.run_python(page)
    if page == "docs/weights.md":
        assert names["images"].shape == (1, 256, 256, 3)


def test_learning_names_every_objective_as_configs_do():
    assert set(OBJECTIVES) <= {code for _, code in checking.inline("docs/learning.md")}


def faults(tmp_path, text: str) -> str:
    page = tmp_path / "page.md"
    page.write_text(f"# A title\n{text}\n")
    return "\n".join(checking.faults(str(page)))


RUN = "python -m experiments.main --config=configs/mixture.py --workdir=runs/a"
CONVERT = "python -m experiments.tools.convert"


@pytest.mark.parametrize(
    "command, words",
    [
        (RUN, ""),
        (f"mkdir -p weights && {CONVERT} 64x64_diffusion.pt weights/adm-64.safetensors", ""),
        (f"{RUN}\npython -m experiments.main --workdir=runs/a --config.job=sample --config.sample.weight=1", ""),
        (f"{RUN} \\\n    --config.learn.btch=8", "page.md:4: .*learn.btch"),
        (f"{RUN}\n{RUN.replace('mixture', 'digits')}", "page.md:4: .*base.depth"),
        (f"{RUN} --config.job=sample --config.sample.weight=runs/a/weights/l2_seed_0.safetensors", "sample.weight"),
        (f"{CONVERT} mine.pt mine.safetensors", "nothing above this on the page makes mine.pt"),
        (
            f"{CONVERT} checkpoint.pt new/mine.safetensors",
            "nothing above this on the page makes the folder of new/mine",
        ),
        (f"{CONVERT} 64x64_diffusion.pt mine.safetensors", "other pages call it weights/adm-64"),
        (f"{CONVERT} 64x64_diffusion.pt --kee=ema mine.safetensors", "unrecognized arguments"),
        ("python -m experiments.tools.fid calc --images 64x64_diffusion.pt", "required: --ref"),
        ("python -m experiments.tools.prepare mnits", "no set mnits"),
        ("python -m experiments.convert a b", "no module"),
        ("pip install learn-to-guide", "no release"),
        ("pip install -e '.[tests]'", "no extra tests"),
        ("make tests", "tests"),
        ("ls runs", "unknown program ls"),
    ],
)
def test_a_command_that_cannot_work_is_a_fault(tmp_path, command, words):
    found = faults(tmp_path, f"<!-- run by hand -->\n```\n{command}  # a comment\n```")
    assert re.search(words, found) if words else not found, found


@pytest.mark.parametrize(
    "text, words",
    [
        ("```\npip install -e .\n```", "say above the block"),
        ("<!-- not run: -->\n```\npip install -e .\n```", "say above the block"),
        ("<!-- not run: no room -->\n```\ngcloud ssh\n```", ""),
        ("```yaml\na: 1\n```", "neither commands nor Python"),
        ("Indented:\n\n    python -m experiments.main --cofnig=a\n", "page.md:4: .*cofnig"),
        ("`learn.batch`, `guidance/types.py`, `guidance.fit(x)`, `python -m experiments.tools.fid calc`", ""),
        ("`learn.btch`", "no field learn.btch"),
        ("a\n`guidance/no.py`", "page.md:3: .*no file"),
        ("`guidance.no_such(x)`", "no_such"),
        ("`python -m experiments.no_such`", "no such module"),
        ("`--config=configs/mixture.py:no`", "preset"),
        ("[here](#a-title)", ""),
        ("[here](#another)", "no heading #another"),
        ("[here](nowhere.md)", "no such file"),
    ],
)
def test_a_sentence_that_is_not_so_is_a_fault(tmp_path, text, words):
    found = faults(tmp_path, text)
    assert re.search(words, found) if words else not found, found


def test_a_folder_has_one_config_on_all_pages(tmp_path):
    runs = {}
    for number, source in enumerate(("mixture.py", "mixture.py --config.seeds=4", "mixture.py:exact")):
        page = tmp_path / f"{number}.md"
        page.write_text(f"    python -m experiments.main --workdir=runs/a --config=configs/{source}\n")
        found = checking.faults(str(page), runs)
        assert len(found) == (number == 2), "a run may grow, and nothing else"
    assert "runs/a is of another config" in found[0] and "problem.error" in found[0]


def test_what_is_run_by_hand(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- run by hand with --config.seeds=1 -->\n```\nb\n```\n<!-- not run: c -->\n```\nd\n```\n")
    assert [(block.text, flags) for block, flags in running.by_hand(str(page))] == [("b\n", "--config.seeds=1")]
