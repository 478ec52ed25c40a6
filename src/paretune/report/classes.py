"""The section of a report about classes: which ones a strategy gets wrong, clean and under attack."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from paretune.frontiers.classes import ByClass, by_class
from paretune.frontiers.verdict import Condition
from paretune.report.drawing import Style
from paretune.report.labels import shorten
from paretune.report.marks import symbol
from paretune.report.pictures import card
from paretune.report.sections import Part
from paretune.report.tables import table
from paretune.runs.examples import Examples
from paretune.runs.naming import condition_names
from paretune.runs.store import Run

_MANY, _WORST, _BEST = 20, 10, 3  # of more than so many classes, so many are listed
_TABLES = 12  # strategies of a condition with a table of their own; of more, those with the largest areas

Groups = Mapping[str, tuple[ArrayLike, ArrayLike]]


@dataclass(frozen=True)
class _Measured:
    """One strategy under one condition."""

    label: str
    clean: ByClass
    robust: ByClass


def classes_section(
    conditions: Sequence[Condition],
    rows: Sequence[pd.DataFrame],
    runs: list[Run],
    looks: dict[str, Style],
    groups: Groups | None,
    *,
    folded: bool,
) -> Part:
    """Balanced accuracy beside the plain one, and the classes of each strategy, worst first.

    Args:
        conditions: what the report is about.
        rows: the points of each, as :func:`paretune.report.drawing.as_points` gives them.
        runs: that ``run_index`` of the points counts.
        looks: of the strategies.
        groups: as in :func:`paretune.compare`.
        folded: whether the section starts folded to its heading.
    """
    names = condition_names([(c.task, c.threat, c.epsilon, c.attack) for c in conditions])
    parts = []
    for name, condition, of_condition in zip(names, conditions, rows, strict=True):
        kept = next(
            (kept for index in of_condition["run_index"].unique() if (kept := runs[index].examples())), None
        )
        if kept is not None:
            of_task = (groups or {}).get(condition.task)
            body = _condition(condition, of_condition, runs, kept, of_task and of_task[0], looks)
            heading = f"<summary>{escape(name)}</summary>"
            several = len(conditions) > 1
            parts.append(
                f"<details {'' if folded else 'open'}>{heading}{body}</details>" if several else body
            )
    intro = (
        '<p class="small">Of each seed the checkpoint with the best robust accuracy on the select split, measured on the '
        "report split and averaged over seeds. Balanced accuracy is the mean over classes, in which rare ones count as much "
        f"as common ones. Intervals ({100 * conditions[0].level:g}%) are Wilson’s, of one class and strategy each: of many "
        "classes, the worst looks worse than it is.</p>"
    )
    lacking = len(conditions) - len(parts)
    of = f" of {lacking} conditions" if parts else ""
    missing = f"The labels of the images{of} were not kept, as by older versions."
    missing = f'<p class="small">{missing}</p>' if lacking else ""
    if not parts:
        return card("classes", "Class by class", missing, folded=None)
    return card("classes", "Class by class", intro + "".join(parts) + missing, folded=folded)


def _condition(
    condition: Condition,
    rows: pd.DataFrame,
    runs: list[Run],
    kept: Examples,
    groups: ArrayLike | None,
    looks: dict[str, Style],
) -> str:
    measured = [
        _measure(estimate.strategy, rows, runs, kept, groups, condition.level) for estimate in condition.areas
    ]
    head = ("Strategy", "Clean", "Balanced clean", "Robust", "Balanced robust", "Worst class, robust")
    summary = []
    for strategy in measured:
        worst = int(strategy.robust.worst_first[0])
        ends = strategy.robust.low[worst], strategy.robust.high[worst]
        summary.append(
            (
                f"{symbol(looks[strategy.label])}<span>{escape(strategy.label)}</span>",
                with_interval(*strategy.clean.plain),
                with_interval(*strategy.clean.balanced),
                with_interval(*strategy.robust.plain),
                with_interval(*strategy.robust.balanced),
                f"{escape(shorten(kept.classes[strategy.robust.labels[worst]]))}: "
                + with_interval(float(strategy.robust.accuracy[worst]), *map(float, ends)),
            )
        )
    figures = [_classes(strategy, kept.classes, looks) for strategy in measured[:_TABLES]]
    left_out = (
        f'<p class="small">Tables are of the {_TABLES} strategies with the largest areas.</p>'
        if len(measured) > _TABLES
        else ""
    )
    shown = table("Plain and balanced accuracy", head, summary)
    return f'{shown}<div class="grids">{"".join(figures)}</div>{left_out}'


def _measure(
    label: str, rows: pd.DataFrame, runs: list[Run], kept: Examples, groups: ArrayLike | None, level: float
) -> _Measured:
    """The chosen checkpoint of each seed; "Best robust" in the table of areas is the same choice."""
    points = rows[rows["label"] == label].sort_values(["run_index", "step"])
    chosen = [of_seed.iloc[np.argmax(of_seed["robust_select"])] for _, of_seed in points.groupby("seed")]
    bits = [runs[row["run_index"]].bits(row) for row in chosen]
    clean, robust = (
        by_class(
            kept.labels, np.stack([answers[f"report/{name}"] for answers in bits]), level=level, groups=groups
        )
        for name in ("clean", "robust")
    )
    return _Measured(label, clean, robust)


def _classes(strategy: _Measured, names: Sequence[str], looks: dict[str, Style]) -> str:
    """One strategy: its classes by rising robust accuracy."""
    order = [int(place) for place in strategy.robust.worst_first]
    note, between = "", len(order) - _WORST - _BEST
    if len(order) > _MANY:
        note = f' <span class="small">the {_WORST} worst and the {_BEST} best of {len(order)}</span>'
        order = order[:_WORST] + order[-_BEST:]
    rows = [
        (
            f"<span>{escape(names[strategy.robust.labels[place]])}</span>",
            str(strategy.robust.examples[place]),
            *(
                text
                for classes in (strategy.robust, strategy.clean)
                for text in (
                    f"<strong>{classes.accuracy[place]:.1%}</strong>",
                    _interval(float(classes.low[place]), float(classes.high[place])),
                )
            ),
        )
        for place in order
    ]
    if note:
        rows.insert(_WORST, (f"<span>{between} between</span>", *5 * ("…",)))
    head = ("Class", "Images", "Robust", "Interval", "Clean", "Interval")
    return (
        f"<figure><figcaption>{symbol(looks[strategy.label])} {escape(strategy.label)}{note}</figcaption>"
        f"{table(f'{strategy.label}: accuracy of each class', head, rows)}</figure>"
    )


def with_interval(value: float, low: float, high: float) -> str:
    """A fraction and the ends of its interval, as HTML."""
    return f'{value:.1%} <span class="small">{_interval(low, high)}</span>'


def _interval(low: float, high: float) -> str:
    return f"{100 * low:.1f} – {high:.1%}"
