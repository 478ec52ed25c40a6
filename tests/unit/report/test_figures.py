"""Pictures hold what the runs hold, and say what is missing."""

import re
import struct
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from paretune.report import frontier_pdf, frontier_png, frontier_svg, plot_frontiers
from paretune.runs.store import load_points

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


def test_a_name_without_room_gets_a_legend() -> None:
    """Twenty strategies on one staircase: names would lie on each other."""
    names = [f"A strategy with number {n:02}" for n in range(20)]
    rows = [(name, clean, 1 - clean) for name in names for clean in np.linspace(0.5, 0.6, 6)]
    svg = frontier_svg(pd.DataFrame(rows, columns=["strategy", "clean", "robust"]))
    assert all(f"{name}<" in svg for name in names)
    symbols = re.findall(r'role-legend-symbol"[^>]*><path transform="[^"]*" ([^>]*)/>', svg)
    assert len({*symbols}) == 20
    few = frontier_svg(pd.DataFrame(rows[:6], columns=["strategy", "clean", "robust"]))
    assert "role-legend-symbol" not in few


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


def test_matplotlib_draws_stairs_points_and_a_legend(points: pd.DataFrame) -> None:
    figure = Figure()
    axes = figure.subplots()
    assert plot_frontiers(points, axes) is axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["BitFit", "Compacter", "FullFineTune", "LoRA"]
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
