"""The figures of the study."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#1f6fb4", "#d9730d", "#8a8a8a"


def gains(frame: pd.DataFrame) -> "Figure":
    """Areas under a fixed and a two-hinge schedule of each strategy, a panel for each task and epsilon."""
    frame = frame[frame["schedule"] == "two_hinge"]
    panels = [*frame.groupby(["task", "epsilon"], sort=False)]
    figure, axes, place_of = _panels(len(panels), frame["strategy"])
    for axis, ((task, epsilon), group) in zip(axes, panels, strict=True):
        places = group["strategy"].map(place_of)
        axis.hlines(places, group["fixed"], group["scheduled"], color=GREY, lw=1.2, zorder=1)
        axis.scatter(group["fixed"], places, color=ORANGE, s=28, label="fixed", zorder=2)
        axis.scatter(group["scheduled"], places, color=BLUE, s=28, label="two-hinge", zorder=3)
        for place, row in zip(places, group.itertuples(), strict=True):
            if row.p < 0.05:
                axis.annotate(
                    "*", (max(row.fixed, row.scheduled), place), xytext=(6, -5), textcoords="offset points"
                )
        axis.set_xlim(left=0)
        axis.set_title(f"{task}, {epsilon}", fontsize=10)
        axis.set_xlabel("area")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def tracking(frame: pd.DataFrame) -> "Figure":
    """Slopes of shifted on clean accuracy with intervals, natural and under attack."""
    panels = [*frame.groupby(["task", "objective", "epsilon", "schedule"], sort=False)]
    figure, axes, place_of = _panels(len(panels), frame["strategy"].sort_values(), width=2.6)
    for axis, ((task, objective, epsilon, schedule), group) in zip(axes, panels, strict=True):
        places = group["strategy"].map(place_of)
        axis.hlines(places, group["low"], group["high"], color=BLUE, lw=1.5)
        axis.scatter(group["slope"], places, color=BLUE, s=24)
        axis.axvline(0, color=GREY, lw=0.8)
        what = "natural" if objective == "natural" else f"{epsilon}, {schedule}"
        axis.set_title(f"{task}\n{what}", fontsize=9)
        axis.set_xlabel("slope")
    return figure


def failures(frame: pd.DataFrame) -> "Figure":
    """Share of runs that failed with its interval, by strategy and schedule."""
    panels = [*frame.groupby("schedule", sort=False)]
    figure, axes, place_of = _panels(len(panels), frame["strategy"])
    for axis, (schedule, group) in zip(axes, panels, strict=True):
        places = group["strategy"].map(place_of)
        share = group["failed"] / group["runs"]
        axis.hlines(places, group["low"], group["high"], color=ORANGE, lw=1.5)
        axis.scatter(share, places, color=ORANGE, s=28)
        axis.scatter(group["quiet"] / group["runs"], places, facecolors="none", edgecolors="black", s=50)
        axis.set_xlim(-0.03, 1.03)
        axis.set_title(str(schedule), fontsize=10)
        axis.set_xlabel("share that failed (circle: quietly)")
    return figure


def save(figure: "Figure", file: Path) -> None:
    """As PNG, without what changes from one drawing to the next."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130, metadata={"Software": None})
    plt.close(figure)


def _panels(
    count: int, strategies: pd.Series, *, width: float = 3.3, across: int = 5
) -> tuple["Figure", list[plt.Axes], dict[str, int]]:
    """So many panels, and the height of each strategy, which all panels share: some may lack some."""
    names = [*reversed(dict.fromkeys(strategies))]  # the first is at the top
    columns, rows = min(count, across), math.ceil(count / across)
    size = (1.2 + width * columns, rows * (0.32 * len(names) + 1.3))
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    axes[0][0].set_yticks(range(len(names)), names)
    for axis in axes.flat[:count]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", color="#e6e6e6", lw=0.8)
        axis.set_axisbelow(True)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count]), {name: place for place, name in enumerate(names)}
