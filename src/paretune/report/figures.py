"""The frontier plot as a file for a README, and as matplotlib axes for a paper."""

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from paretune.frontiers.cells import chosen_front
from paretune.frontiers.comparing import compare
from paretune.frontiers.pareto import ordered_area
from paretune.frontiers.ranking import Area
from paretune.frontiers.verdict import Comparison
from paretune.report.drawing import Drawing, Style, as_points, draw, styles
from paretune.report.labels import area_text, origin_text
from paretune.report.specs import frontier
from paretune.report.specs.legend import legend_spec
from paretune.runs.naming import attack_text, condition_names
from paretune.runs.store import Run, as_runs

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
_SEEDS = 8  # seeds that are listed; more are counted
_ORIGIN = (0.0, 0.0)  # where areas of tables start
_LEGEND = 360  # pixels of width, at least


def frontier_svg(
    source: Source, *, width: int = 620, title: str | None = None, comparison: Comparison | None = None
) -> str:
    """The frontiers as an SVG picture on white; several conditions stand in two columns.

    The legend has the strategies by rank with their areas; the lines below the title say the attack, the number of images,
    the seeds, and where areas start.

    Args:
        source: runs, their directory, or a table with the columns ``strategy``, ``clean`` and ``robust``. Areas of a table
            count all its points, and have no intervals.
        width: of one plotting area, in pixels.
        title: of the picture; by default the task and the threat, where they are known.
        comparison: of these runs, with the areas that the legend tells; by default that of :func:`paretune.compare`
            with its default options.

    Raises:
        ImportError: vl-convert is not installed.
        ValueError: the comparison is of other runs.
    """
    svg: str = converter().vegalite_to_svg(_static_spec(source, width, title, comparison))
    # The renderer numbers clip paths on and on; numbered from 0, the same points give the same file.
    numbers: dict[str, str] = {}
    clips = r'(?<=url\(#)clip\d+|(?<=id=")clip\d+'
    return re.sub(clips, lambda match: numbers.setdefault(match[0], f"clip{len(numbers)}"), svg)


def frontier_png(
    source: Source,
    *,
    width: int = 620,
    title: str | None = None,
    scale: float = 2.0,
    comparison: Comparison | None = None,
) -> bytes:
    """The same picture as PNG, with ``scale`` image pixels to one of the SVG.

    Args:
        source: as in :func:`frontier_svg`.
        width: as in :func:`frontier_svg`.
        title: as in :func:`frontier_svg`.
        scale: image pixels per unit, above 0.
        comparison: as in :func:`frontier_svg`.

    Raises:
        ImportError: vl-convert is not installed.
    """
    png: bytes = converter().vegalite_to_png(_static_spec(source, width, title, comparison), scale=scale)
    return png


def frontier_pdf(
    source: Source, *, width: int = 620, title: str | None = None, comparison: Comparison | None = None
) -> bytes:
    """The same picture as PDF: vectors, with its fonts in it, for papers.

    Args:
        source: as in :func:`frontier_svg`.
        width: as in :func:`frontier_svg`.
        title: as in :func:`frontier_svg`.
        comparison: as in :func:`frontier_svg`.

    Raises:
        ImportError: vl-convert is not installed.
    """
    pdf: bytes = converter().vegalite_to_pdf(_static_spec(source, width, title, comparison))
    return pdf


def plot_frontiers(
    source: Source, ax: "Axes | None" = None, *, comparison: Comparison | None = None
) -> "Axes":
    """Draw the frontiers of one condition with matplotlib.

    Args:
        source: runs, their directory, or a table with the columns ``strategy``, ``clean`` and ``robust``.
        ax: axes to draw on; new ones by default.
        comparison: as in :func:`frontier_svg`.

    Returns:
        The axes; a legend below them has the strategies by rank, with their areas.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are several tasks, attacks or epsilons; choose the rows of one.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('plot_frontiers needs matplotlib: pip install "paretune[plot]"') from error
    pictures = _pictures(source, comparison)
    if len(pictures) > 1:
        names = "; ".join(picture.name for picture in pictures)
        raise ValueError(
            f"points hold {len(pictures)} conditions ({names}); choose one, by points[points.epsilon == …]"
        )
    (picture,) = pictures
    looks = picture.looks
    drawing = draw(picture.points, widths=(500, 500), height=380, origin=picture.origin)
    axes = ax if ax is not None else plt.subplots(figsize=(6, 6), layout="constrained")[1]
    visible = drawing.points[drawing.points["inside"]]
    for (label, _), rows in drawing.stairs.groupby(["strategy", "line"]):
        style = looks[str(label)]
        axes.step(
            rows["clean"],
            rows["robust"],
            where="pre",
            color=style.colour,
            linestyle=(0, style.dash),
            linewidth=1.3,
            alpha=frontier.faintness(drawing),
        )
    for area in picture.areas:
        style = looks[area.strategy]
        points_of = visible[visible["strategy"] == area.strategy]
        chosen, other = points_of[points_of["chosen"]], points_of[~points_of["chosen"]]
        marker = _MARKERS[style.shape]
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
            zorder=3,
            clip_on=False,
        )
        axes.plot(
            [],
            color=style.colour,
            linestyle=(0, style.dash),
            marker=marker,
            label=f"{area.strategy}  {area_text(area.area, area.low, area.high)}",
        )
    axes.plot(*picture.origin, "o", markersize=7, markerfacecolor="none", markeredgecolor="black")
    axes.set(xlim=drawing.clean, ylim=drawing.robust, xlabel="Clean accuracy", ylabel="Robust accuracy")
    axes.set_title(picture.name, loc="left")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        title="\n".join(_caption(picture, drawing, 500)),
        loc="upper left",
        bbox_to_anchor=(0, -0.16),
        alignment="left",
        frameon=False,
        handlelength=3,
        fontsize="small",
        title_fontsize="small",
    )
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


@dataclass(frozen=True, eq=False)
class _Picture:
    """One condition: its points, and its areas by rank."""

    name: str
    points: pd.DataFrame
    areas: tuple[Area, ...]
    looks: dict[str, Style]  # by rank
    origin: tuple[float, float]
    level: float | None  # of the intervals; None where there are none


def _pictures(source: Source, comparison: Comparison | None) -> list[_Picture]:
    if not isinstance(source, pd.DataFrame):
        source = as_runs(source)
        comparison = comparison or compare(source)
    points = as_points(source)
    looks = styles(points["label"])
    conditions = comparison.conditions if comparison else ()
    known = {(c.task, c.threat, c.epsilon, c.attack): c for c in conditions}
    pictures = []
    for name, rows in split(points):
        first = rows.iloc[0]
        condition = known.get((first["task"], first["threat"], first["epsilon"], first["attack"]))
        areas = condition.areas if condition else () if comparison else _areas(rows)
        if lacking := {*rows["label"]} - {area.strategy for area in areas}:
            raise ValueError(
                f"comparison has no area of {', '.join(sorted(lacking))} in {name!r}; make it from the runs that are drawn, "
                "by compare(runs), or leave it out"
            )
        pictures.append(
            _Picture(
                name,
                rows,
                areas,
                {area.strategy: looks[area.strategy] for area in areas},
                condition.settings.start if condition else _ORIGIN,
                condition.level if condition else None,
            )
        )
    return pictures


def _areas(points: pd.DataFrame) -> tuple[Area, ...]:
    """Of all points, chosen and measured as :func:`paretune.compare` does; the mean over seeds, the largest first."""
    select = [name + "_select" for name in ("clean", "robust") if name + "_select" in points]
    choosing = select if len(select) == 2 else ["clean", "robust"]
    areas = []
    for label, rows in points.groupby("label"):
        per_seed = {}
        for seed, of_seed in rows.groupby("seed", sort=True):
            front = chosen_front(of_seed[choosing].to_numpy(dtype=float), _ORIGIN)
            clean, robust = of_seed[["clean", "robust"]].to_numpy(dtype=float)[front].T
            per_seed[str(seed)] = float(ordered_area(clean, robust, _ORIGIN))
        mean = float(np.mean([*per_seed.values()]))
        areas.append(Area("", str(label), mean, None, None, len(rows), (*per_seed,), (*per_seed.values(),)))
    return tuple(sorted(areas, key=lambda area: (-area.area, area.strategy)))


def _caption(picture: _Picture, drawing: Drawing, width: int) -> list[str]:
    """Lines of text: attack, images and seeds, then what the areas are."""
    points = picture.points
    facts = [attack_text(str(points["attack"].iloc[0]))]
    if "examples" in points:
        facts.append(f"{' and '.join(f'{n:,}' for n in sorted({*points['examples']}))} test images")
    seeds = sorted({str(seed) for seed in points["seed"]} - {""}, key=lambda seed: (len(seed), seed))
    if len(seeds) > _SEEDS:
        facts.append(f"{len(seeds)} seeds")
    elif seeds:
        facts.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}")
    several = drawing.most_seeds > 1
    intervals = f" ({100 * picture.level:g}% interval)" if picture.level else ""
    texts = (
        " · ".join(fact for fact in facts if fact),
        f"{'One staircase a seed. ' if several else ''}Beside each name: its area{intervals}"
        f"{', mean over seeds' if several else ''}, from {origin_text(picture.origin, drawing.clean, drawing.robust)}.",
    )
    return [line for text in texts for line in textwrap.wrap(text, width // 6)]


def _static_spec(
    source: Source, width: int, title: str | None, comparison: Comparison | None
) -> frontier.Spec:
    pictures = _pictures(source, comparison)
    several = len(pictures) > 1
    plots = []
    for picture in pictures:
        drawing = draw(picture.points, widths=(width, width), origin=picture.origin)
        description = describe(picture.points, picture.looks)
        plot = frontier.frontier_spec(drawing, picture.looks, frontier.ON_WHITE, description=description)
        # Views beside each other share the names of data sets and layers, so each carries its own without names.
        plot = _inline(_painted({**plot, "width": width}))
        name = picture.name if title is None or several else title
        heading = {"text": name, "subtitle": _caption(picture, drawing, width)}
        key = legend_spec(picture.areas, picture.looks, frontier.ON_WHITE, max(width, _LEGEND))
        plots.append({"title": heading, "vconcat": [plot, key], "spacing": 14})
    fixed = {"$schema": frontier.SCHEMA, "config": frontier.ON_WHITE.config(), "padding": 16}
    if not several:
        return {**fixed, **plots[0]}
    return {**fixed, "title": title, "concat": plots, "columns": 2, "spacing": 36}


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
