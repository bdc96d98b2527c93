"""The picture of the three stages: drawn by its command, legible, and fed with what the theory says."""

import csv

import numpy as np

from experiments.tools import three_stages


def test_the_command_draws_the_picture(tmp_path, capsys):
    out = tmp_path / "stages.png"
    assert three_stages.main(["--out", str(out), "--samples", "300", "--steps", "60"]) == 0
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and out.stat().st_size < 250_000
    lines = list(csv.DictReader(out.with_suffix(".csv").read_text(encoding="utf-8").splitlines()))
    curves = [line for line in lines if line["panel"] == "posterior share of the weak mode"]
    assert len(curves) == 5 * 61 and {line["line"] for line in curves} > {"omega = 8", "triangle, mean 4"}
    assert r"\toprule" in out.with_suffix(".tex").read_text(encoding="utf-8")
    assert sum(line["panel"] == "concentration" for line in lines) == 3 * 300
    assert str(out) in capsys.readouterr().out


def test_no_text_overlaps_and_nothing_is_cut_off():
    figure = three_stages.picture(three_stages.measure(samples=200, steps=40)).figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    axes = figure.get_axes()
    assert len(axes) == 6
    titles = [axis.title for axis in axes] + [axis.xaxis.label for axis in axes] + [figure._suptitle]
    boxes = [text.get_window_extent(renderer) for text in titles]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :]), titles[i].get_text()


def test_measures_start_where_they_must():
    """At t = 1 nothing has happened: equal distances, the prior share of the weak mode, nothing decided."""
    measured = three_stages.measure(samples=200, steps=20)
    runs = 2 * len(three_stages.OMEGAS) - 1
    assert measured.path.shape == (runs, 21, 200, 2)
    np.testing.assert_allclose(measured.distance[:, 0], 1, rtol=1e-6)
    np.testing.assert_allclose(measured.distance[0], 1, rtol=1e-6)  # unguided over unguided
    np.testing.assert_allclose(measured.weak[:, 0], three_stages.SHARES[three_stages.WEAK], rtol=1e-5)
    np.testing.assert_allclose(measured.decided[:, 0], 0, atol=1e-5)
    assert np.all(np.asarray(measured.distance[1:, 5]) < 1)


def test_the_edge_of_the_basins_is_the_neutral_line_near_data():
    """At t -> 0 a point belongs to the nearer mode: the edge goes to <x, across> = 0 (the modes have equal norm)."""
    late, early = (np.asarray(three_stages.boundary(time, (0.0, 4.0), points=201, steps=50)) for time in (0.05, 0.7))
    np.testing.assert_allclose(late, 0, atol=0.08)  # the grid of starting points is .04 fine
    assert np.all(early < late - 0.1)  # the strong mode's prior share pushes the edge away from it
