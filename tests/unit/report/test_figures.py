"""Pictures hold what the runs hold, and say what is missing."""

import re
import struct
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from paretune.frontiers.comparing import compare
from paretune.report import frontier_pdf, frontier_png, frontier_svg, plot_frontiers
from paretune.runs.store import load_points, load_runs

mpl.use("Agg")


@pytest.fixture
def points(runs: Path) -> pd.DataFrame:
    table = load_points(runs)
    return table[table["threat"] == "L2"]


def test_the_svg_names_every_strategy_and_loads_nothing(points: pd.DataFrame) -> None:
    svg = frontier_svg(points)
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"LoRA", "Compacter", "BitFit", "FullFineTune", "Clean accuracy", "digits, L2 ≤ 0.5"} <= {*texts}
    assert not any("href" in name for element in root.iter() for name in element.attrib)
    assert frontier_svg(points, title="A title").count("A title") >= 1
    assert frontier_svg(points) == svg


def texts_of(svg: str) -> list[str]:
    """In the order of painting; lines of one text are joined."""
    texts = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return [" ".join(text.itertext()) for text in texts]


def test_the_legend_tells_areas_and_intervals_by_rank(runs: Path) -> None:
    loaded = load_runs(runs)
    comparison = compare(loaded, reference=(0.1, 0.0), resamples=200)
    texts = texts_of(frontier_svg(loaded, comparison=comparison))
    shown = [text for text in texts if re.fullmatch(r"0\.\d{3} \(0\.\d{3} to 0\.\d{3}\)", text)]
    assert shown == [f"{each.area:.3f} ({each.low:.3f} to {each.high:.3f})" for each in comparison.areas]
    for each in comparison.areas:
        assert each.strategy in texts
    assert " ".join(texts).count("from clean 10%, robust 0%") == 3


def test_the_legend_of_twenty_strategies_has_twenty_marks_and_the_areas_of_the_table() -> None:
    names = [f"A strategy with number {n:02}" for n in range(20)]
    rows = [(name, clean, 1 - clean - n / 100) for n, name in enumerate(names) for clean in (0.5, 0.6)]
    svg = frontier_svg(pd.DataFrame(rows, columns=["strategy", "clean", "robust"]))
    texts = texts_of(svg)
    assert [text for text in texts if text in names][-20:] == names  # the first one has the largest area
    assert texts[-20] == "0.290"  # 0.5 * 0.5 + 0.1 * 0.4 of the first


def test_the_picture_says_the_attack_the_images_and_the_seeds(points: pd.DataFrame) -> None:
    facts = "PGD(L2(0.5)) · 400 test images · seeds 0, 1"
    assert facts in " ".join(texts_of(frontier_svg(points)))
    assert facts in plot_frontiers(points, Figure().subplots()).get_legend().get_title().get_text()
    many = pd.concat([points[points["seed"] == 0].assign(seed=seed) for seed in range(9)])
    assert "PGD(L2(0.5)) · 400 test images · 9 seeds" in " ".join(texts_of(frontier_svg(many)))
    bare = points[["strategy", "clean", "robust"]]
    assert not any("images" in text or "seed" in text for text in texts_of(frontier_svg(bare)))


def test_several_conditions_stand_beside_each_other(runs: Path) -> None:
    svg = frontier_svg(runs)
    assert svg.count("Clean accuracy<") == 3
    assert "digits, L∞ ≤ 4/255, AutoAttack(Linf(4/255))" in svg


def test_the_png_has_the_scaled_size(points: pd.DataFrame) -> None:
    small, large = (frontier_png(points, width=200, scale=scale) for scale in (0.5, 1.0))
    assert small.startswith(b"\x89PNG")
    widths = [struct.unpack(">I", png[16:20])[0] for png in (small, large)]
    assert widths[1] == pytest.approx(2 * widths[0], abs=2)
    assert widths[1] > 200


def test_the_pdf_holds_vectors_and_its_fonts(points: pd.DataFrame) -> None:
    pdf = frontier_pdf(points)
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile" in pdf
    assert b"/Subtype /Image" not in pdf


def test_matplotlib_draws_stairs_points_and_a_legend(points: pd.DataFrame, runs: Path) -> None:
    figure = Figure()
    axes = figure.subplots()
    assert plot_frontiers(points, axes) is axes
    condition = next(each for each in compare(runs).conditions if each.threat == "L2")
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == [f"{each.strategy}  {each.area:.3f}" for each in condition.areas]
    lines = [line for line in axes.get_lines() if len(line.get_xdata())]
    assert len(lines) == 8 + 1  # a staircase a seed, and where areas start
    assert axes.get_title(loc="left") == "digits, L2 ≤ 0.5"
    marks = [each for each in axes.collections if isinstance(each, PathCollection)]
    drawn = sum(len(collection.get_offsets()) for collection in marks)
    low, high = axes.get_xlim(), axes.get_ylim()
    assert drawn == (points["clean"].between(*low) & points["robust"].between(*high)).sum()
    figure.canvas.draw()
    import matplotlib.pyplot as plt

    new = plot_frontiers(points)
    assert new.figure is not figure
    plt.close(new.figure)


def test_matplotlib_takes_one_condition(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"3 conditions \(digits, L2 ≤ 0\.5; digits, L∞"):
        plot_frontiers(runs)


def test_missing_extras_are_named(points: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "paretune\[report\]"'):
        frontier_svg(points)
    with pytest.raises(ImportError, match=r'pip install "paretune\[plot\]"'):
        plot_frontiers(points)


def test_a_comparison_of_other_runs_is_refused(runs: Path) -> None:
    loaded = load_runs(runs)
    fewer = compare([run for run in loaded if run.config["strategy"] != "BitFit"], resamples=100)
    with pytest.raises(ValueError, match=r"comparison has no area of BitFit in 'digits.*compare\(runs\)"):
        frontier_svg(loaded, comparison=fewer)
    with pytest.raises(ValueError, match="no area of BitFit, Compacter, FullFineTune, LoRA in 'birds"):
        frontier_svg(load_points(runs).assign(task="birds"), comparison=fewer)
