"""The report: one self-contained HTML page about all conditions, and its pictures and numbers as files."""

import logging
import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from paretune.frontiers.budget import BudgetCurve, budget_curves
from paretune.frontiers.comparing import compare
from paretune.frontiers.confirmed import confirmations
from paretune.frontiers.tables.spreadsheet import csv_text
from paretune.frontiers.verdict import Comparison
from paretune.report.classes import Groups, classes_section
from paretune.report.confirmed import confirmed_section
from paretune.report.drawing import as_points, draw, styles
from paretune.report.elsewhere import elsewhere_section
from paretune.report.figures import converter, frontier_pdf, frontier_png, frontier_svg, split
from paretune.report.overview import overview_section
from paretune.report.pictures import pictures_section
from paretune.report.races import race_section
from paretune.report.robustness import RobustnessCurve, robustness_curves
from paretune.report.sections import Part, condition_section, epsilon_section, plural
from paretune.report.shell import assemble, csv_link, text_of
from paretune.report.specs.frontier import ON_PAGE_WIDTHS
from paretune.report.tables import run_table
from paretune.runs import disk
from paretune.runs.store import Run, as_runs

log = logging.getLogger(__name__)

_POINTS = 3000  # drawn in one report; with the plotting library it then stays below 1.5 MB
_NAMED = 3  # tasks; of more, the heading has the number
_FOLD = 3  # conditions; of more, sections start folded to their headings

_VOLUME = (
    "<p><strong>Volume</strong> takes accuracy on shifted images as a third axis: the three-dimensional hypervolume of the "
    "same checkpoints, which are chosen by clean and robust accuracy alone. Shifted images that are made of report images "
    "are drawn with them, others by themselves.</p>"
)

Runs = str | Path | Run | Iterable[Run | str | Path]


def write_report(
    runs: Runs, path: str | Path = "report.html", *, title: str | None = None, **options: Any
) -> Path:
    """Compare the runs and write the page, with ``.svg``, ``.png`` and ``.pdf`` of its frontiers and ``areas.csv``.

    The page is one file that works without a network. It shows each task, attack and epsilon with its verdict,
    frontiers, areas and pairs, in light and dark; then what a race put out, accuracy out of distribution, such as on other
    domains or corrupted images, if it was measured, with volumes, a few images before and after the attack, and the accuracy
    of each class. Runs may be unfinished; the page then says so.

    Args:
        runs: a directory, runs from :func:`paretune.runs.load_runs`, or several of either.
        path: of the page; its directory is made if needed.
        title: the page's heading.
        **options: those of :func:`paretune.compare`, such as ``reference``, ``level``, ``min_clean`` and ``margin``.

    Returns:
        ``path``.

    Raises:
        ImportError: vl-convert is not installed.
        FileNotFoundError, ValueError: as :func:`paretune.compare`.
    """
    converter()
    path = Path(path)
    loaded = as_runs(runs)
    comparison = compare(loaded, **options)
    disk.write_text(path, _page(loaded, comparison, title, options.get("groups")))
    disk.write_text(path.with_suffix(".svg"), frontier_svg(loaded, title=title, comparison=comparison))
    # Encoding takes about a second a million pixels, so many conditions share the pixels of one.
    scale = 2 / math.sqrt(len(comparison.conditions))
    png = frontier_png(loaded, title=title, scale=scale, comparison=comparison)
    pdf = frontier_pdf(loaded, title=title, comparison=comparison)
    for suffix, content in ((".png", png), (".pdf", pdf)):
        disk.write_atomically(path.with_suffix(suffix), _writer(content))
    disk.write_text(path.with_name("areas.csv"), _csv(comparison))
    log.info("wrote %s", path)
    return path


def report_html(runs: Runs, *, title: str | None = None, **options: Any) -> str:
    """The page of :func:`write_report` alone, as text, for those who serve it themselves.

    Args:
        runs: as in :func:`write_report`.
        title: as in :func:`write_report`.
        **options: as in :func:`write_report`.

    Raises:
        ImportError, FileNotFoundError, ValueError: as :func:`write_report`.
    """
    converter()
    loaded = as_runs(runs)
    return _page(loaded, compare(loaded, **options), title, options.get("groups"))


def _page(runs: list[Run], comparison: Comparison, title: str | None, groups: Groups | None) -> str:
    points = as_points(runs)
    looks = styles(points["label"])
    first = comparison.conditions[0]
    conditions = comparison.conditions
    curves = _by_condition(budget_curves(runs, reference=first.settings.start, level=first.level))
    limit = _POINTS // len(conditions)
    rows = [rows for _, rows in split(points)]
    drawings = [
        draw(frame, widths=ON_PAGE_WIDTHS, limit=limit, origin=condition.settings.start)
        for frame, condition in zip(rows, conditions, strict=True)
    ]
    over_epsilon = _by_attack(robustness_curves(points))
    partial = [not all(runs[index].done for index in frame["run_index"].unique()) for frame in rows]
    folded = len(conditions) > _FOLD
    parts: list[Part] = []
    if len(conditions) > 1:
        parts.append(overview_section(comparison, drawings, partial, looks))
    for number, (condition, drawing, frame) in enumerate(zip(conditions, drawings, rows, strict=True)):
        shown = {area.strategy: looks[area.strategy] for area in condition.areas}
        of_budget = curves[condition.task, condition.threat, condition.epsilon, condition.attack]
        of_budget.sort(key=lambda curve: [*shown].index(curve.strategy))
        parts.append(
            condition_section(
                number, condition, drawing, frame, of_budget, shown, partial=partial[number], folded=folded
            )
        )
    if any(condition.race_tables() for condition in conditions):
        parts.append(race_section(conditions, looks, folded=folded))
    for number, of_attack in enumerate(over_epsilon):
        parts.append(epsilon_section(number, of_attack, looks, folded=folded))
    if confirmed := confirmations(runs, first.settings.start):
        parts.append(confirmed_section(confirmed, looks, folded=folded))
    if any(condition.elsewhere for condition in conditions):
        parts.append(elsewhere_section(conditions, rows, looks, folded=folded))
    parts.append(pictures_section(conditions, points, runs, looks, folded=folded))
    parts.append(classes_section(conditions, rows, runs, looks, groups, folded=folded))
    unfinished = sum(not run.done for run in runs)
    method = Template(text_of("method.html")).substitute(
        level=f"{100 * first.level:g}%",
        interval={"basic": "basic", "bca": "bias-corrected and accelerated"}[first.settings.interval],
        resamples=f"{first.settings.resamples:,}",
        margin=f"{first.margin:g}",
        versions=escape(_versions(points)),
        volume=_VOLUME if any(condition.volumes for condition in conditions) else "",
        runs=run_table(runs, points),
        save=csv_link("areas.csv", _csv(comparison), "Save the areas as CSV"),
    )
    tasks = sorted({condition.task for condition in conditions})
    where = ", ".join(tasks) if len(tasks) <= _NAMED else f"{len(tasks)} tasks"
    return assemble(
        title=title or f"Robustness and accuracy on {where}",
        summary=f"{len(looks)} {plural('strategy', len(looks))} · {len(runs)} {plural('run', len(runs))} · "
        f"{len(points):,} {plural('point', len(points))}",
        body="\n".join([_partial(unfinished, len(runs)), *(part.html for part in parts), method]),
        plots={key: spec for part in parts for key, spec in part.plots.items()},
    )


def _by_condition(curves: Iterable[BudgetCurve]) -> dict[tuple[str, str, float, str], list[BudgetCurve]]:
    groups: dict[tuple[str, str, float, str], list[BudgetCurve]] = {}
    for curve in curves:
        groups.setdefault((curve.task, curve.threat, curve.epsilon, curve.attack), []).append(curve)
    return groups


def _by_attack(curves: Iterable[RobustnessCurve]) -> list[list[RobustnessCurve]]:
    groups: dict[tuple[str, str, str], list[RobustnessCurve]] = {}
    for curve in curves:
        groups.setdefault((curve.task, curve.threat, curve.attack), []).append(curve)
    return [*groups.values()]


def _partial(unfinished: int, runs: int) -> str:
    """A warning while runs go on."""
    if not unfinished:
        return ""
    return (
        f'<p class="card partial" role="status"><strong>Not finished.</strong> {unfinished} of {runs} '
        f"{plural('run', runs)} {'has' if unfinished == 1 else 'have'} not ended; what follows is about the points so "
        "far, and will change.</p>"
    )


def _csv(comparison: Comparison) -> str:
    table = comparison.to_frame()
    for column in ("seeds", "per_seed"):
        table[column] = [" ".join(str(value) for value in values) for values in table[column]]
    return csv_text(table)


def _versions(points: pd.DataFrame) -> str:
    """``torch 2.9.0, timm 1.0``; several versions of one package are all named."""
    versions_of: dict[str, set[str]] = {}
    for versions in points["versions"]:
        for name, version in versions.items():
            versions_of.setdefault(str(name), set()).add(str(version))
    return (
        ", ".join(f"{name} {' and '.join(sorted(versions_of[name]))}" for name in sorted(versions_of))
        or "not recorded"
    )


def _writer(content: bytes) -> Any:
    return lambda path: path.write_bytes(content)
