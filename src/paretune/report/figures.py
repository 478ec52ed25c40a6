"""The frontier plot as a file for a README, and as matplotlib axes for a paper."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from paretune.report.drawing import Style, as_points, draw, styles
from paretune.report.specs import frontier
from paretune.runs.naming import condition_names
from paretune.runs.store import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Source = str | Path | Run | Iterable[Run] | pd.DataFrame
_MARKERS = {
    "circle": "o",
    "square": "s",
    "triangle-up": "^",
    "diamond": "D",
    "triangle-down": "v",
    "cross": "P",
    "triangle-right": ">",
    "triangle-left": "<",
}


def frontier_svg(source: Source, *, width: int = 620, title: str | None = None) -> str:
    """The frontiers as an SVG picture on white; several conditions stand in two columns.

    Args:
        source: runs, their directory, or a table with the columns ``strategy``, ``clean`` and ``robust``.
        width: of one plotting area, in pixels.
        title: of the picture; by default the task and the threat, where they are known.

    Raises:
        ImportError: vl-convert is not installed.
    """
    svg: str = converter().vegalite_to_svg(_static_spec(as_points(source), width, title))
    # The renderer numbers clip paths on and on; numbered from 0, the same points give the same file.
    numbers: dict[str, str] = {}
    clips = r'(?<=url\(#)clip\d+|(?<=id=")clip\d+'
    return re.sub(clips, lambda match: numbers.setdefault(match[0], f"clip{len(numbers)}"), svg)


def frontier_png(source: Source, *, width: int = 620, title: str | None = None, scale: float = 2.0) -> bytes:
    """The same picture as PNG, with ``scale`` image pixels to one of the SVG.

    Args:
        source: as in :func:`frontier_svg`.
        width: as in :func:`frontier_svg`.
        title: as in :func:`frontier_svg`.
        scale: image pixels per unit, above 0.

    Raises:
        ImportError: vl-convert is not installed.
    """
    png: bytes = converter().vegalite_to_png(_static_spec(as_points(source), width, title), scale=scale)
    return png


def frontier_pdf(source: Source, *, width: int = 620, title: str | None = None) -> bytes:
    """The same picture as PDF: vectors, with its fonts in it, for papers.

    Args:
        source: as in :func:`frontier_svg`.
        width: as in :func:`frontier_svg`.
        title: as in :func:`frontier_svg`.

    Raises:
        ImportError: vl-convert is not installed.
    """
    pdf: bytes = converter().vegalite_to_pdf(_static_spec(as_points(source), width, title))
    return pdf


def plot_frontiers(source: Source, ax: "Axes | None" = None) -> "Axes":
    """Draw the frontiers of one condition with matplotlib.

    Args:
        source: runs, their directory, or a table with the columns ``strategy``, ``clean`` and ``robust``.
        ax: axes to draw on; new ones by default.

    Returns:
        The axes, with a legend.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are several tasks, attacks or epsilons; choose the rows of one.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('plot_frontiers needs matplotlib: pip install "paretune[plot]"') from error
    points = as_points(source)
    conditions = split(points)
    if len(conditions) > 1:
        names = "; ".join(name for name, _ in conditions)
        raise ValueError(
            f"points hold {len(conditions)} conditions ({names}); choose one, by points[points.epsilon == …]"
        )
    looks = styles(points["label"])
    drawing = draw(points, size=(500, 380))
    axes = ax if ax is not None else plt.subplots(figsize=(6, 4.5), layout="constrained")[1]
    visible = drawing.points[drawing.points["inside"]]
    for _, rows in visible.groupby("run"):
        axes.plot(
            rows["clean"],
            rows["robust"],
            color=looks[rows["strategy"].iloc[0]].colour,
            alpha=0.3,
            linewidth=0.8,
        )
    for label, band in drawing.stairs.groupby("strategy"):
        colour = looks[str(label)].colour
        axes.fill_between(
            band["clean"], band["low"], band["high"], step="pre", color=colour, alpha=0.13, linewidth=0
        )
    for label, style in looks.items():
        stairs = drawing.stairs[drawing.stairs["strategy"] == label]
        points_of = visible[visible["strategy"] == label]
        chosen, other = points_of[points_of["chosen"]], points_of[~points_of["chosen"]]
        marker = _MARKERS[style.shape]
        axes.step(stairs["clean"], stairs["robust"], where="pre", color=style.colour, linewidth=1.8)
        axes.scatter(
            other["clean"], other["robust"], s=10, color=style.colour, alpha=0.45, marker=marker, linewidths=0
        )
        axes.scatter(
            chosen["clean"],
            chosen["robust"],
            s=42,
            color=style.colour,
            marker=marker,
            edgecolors="white",
            linewidths=0.8,
            label=label,
            zorder=3,
        )
    axes.set(xlim=drawing.clean, ylim=drawing.robust, xlabel="Clean accuracy", ylabel="Robust accuracy")
    axes.set_title(conditions[0][0], loc="left")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return axes


def split(points: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The name and the points of each condition; the name is short where task or threat are not known."""
    groups = [rows for _, rows in points.groupby(["task", "threat", "epsilon", "attack"], sort=True)]
    firsts = [rows.iloc[0] for rows in groups]
    known = [(str(f["task"]), str(f["threat"]), float(f["epsilon"]), str(f["attack"])) for f in firsts]
    named = all(task and threat for task, threat, _, _ in known)
    names = condition_names(known) if named else [task for task, *_ in known]
    return [*zip(names, groups, strict=True)]


def describe(points: pd.DataFrame, looks: dict[str, Style]) -> str:
    """What the plot shows, for readers who cannot see it."""
    ranges = []
    for label in looks:
        rows = points[points["label"] == label]
        if len(rows):
            ranges.append(
                f"{label}: {len(rows)} points, clean {rows['clean'].min():.1%} to {rows['clean'].max():.1%}, "
                f"robust {rows['robust'].min():.1%} to {rows['robust'].max():.1%}"
            )
    return (
        "Scatter plot of clean accuracy against robust accuracy with the frontier of each strategy. "
        + "; ".join(ranges)
    )


def converter() -> Any:
    """The module that renders Vega-Lite.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise ImportError('reports need vl-convert: pip install "paretune[report]"') from error
    return vl_convert


def _static_spec(points: pd.DataFrame, width: int, title: str | None) -> frontier.Spec:
    looks = styles(points["label"])
    plots = []
    for name, rows in split(points):
        drawing = draw(rows, size=(width, 430))
        plot = frontier.frontier_spec(drawing, looks, frontier.ON_WHITE, description=describe(rows, looks))
        plots.append({**plot, "width": width, "title": name or None})
    plots = [_painted(plot) for plot in plots]
    padding = {"left": 16, "right": 20, "top": 16, "bottom": 16}
    if len(plots) == 1:
        plots[0]["title"] = title if title is not None else plots[0]["title"]
        return {**plots[0], "config": frontier.ON_WHITE.config(), "padding": padding}
    # Data sets and layers of a concatenated plot share their names, so each plot carries its own without names.
    combined: frontier.Spec = {"concat": [_inline(plot) for plot in plots], "columns": 2, "spacing": 36}
    return {**combined, "title": title, "config": frontier.ON_WHITE.config(), "padding": padding}


def _painted(plot: frontier.Spec) -> frontier.Spec:
    """The opacity of strokes and fills instead of marks.

    The renderer paints each mark that has an opacity of its own on a layer as large as the picture.
    """
    layers = []
    for layer in plot["layer"]:
        encoding = {**layer["encoding"]}
        opacity = encoding.pop("opacity")
        encoding |= {"fillOpacity": opacity, "strokeOpacity": opacity}
        layers.append({**layer, "mark": {**layer["mark"], "opacity": 1}, "encoding": encoding})
    return {**plot, "layer": layers}


def _inline(plot: frontier.Spec) -> frontier.Spec:
    layers = []
    for layer in plot["layer"]:
        nameless = {key: value for key, value in layer.items() if key != "name"}
        layers.append({**nameless, "data": {"values": plot["datasets"][layer["data"]["name"]]}})
    rest = {
        key: value for key, value in plot.items() if key not in ("datasets", "$schema", "params", "layer")
    }
    return {**rest, "layer": layers}
