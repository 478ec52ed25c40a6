"""The report: one self-contained HTML page about all conditions, and its pictures and numbers as files."""

import logging
import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from paretune.frontiers.budget import BudgetCurve, curves_of
from paretune.frontiers.comparing import KnownConditions, compare, compare_runs
from paretune.frontiers.confirmed import confirmations
from paretune.frontiers.settings import Settings
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
from paretune.report.sections import Part, condition_section, epsilon_section, plural, use_text
from paretune.report.shell import assemble, csv_link, text_of
from paretune.report.specs.frontier import ON_PAGE_WIDTHS
from paretune.report.summary import FILES, Shown, left_out_card, shown
from paretune.report.tables import run_table
from paretune.runs import disk
from paretune.runs.columns import point_table
from paretune.runs.objects import check_local
from paretune.runs.store import Run, as_runs

log = logging.getLogger(__name__)

_POINTS = 3000  # drawn in one report; with the plotting library it then stays below 1.5 MB
_NAMED = 3  # tasks; of more, the heading has the number
_FOLD = 3  # conditions; of more, sections start folded to their headings

_PAIR = (
    *(
        "task",
        "attack",
        "threat",
        "epsilon",
        "strategy_a",
        "strategy_b",
        "difference",
        "low",
        "high",
        "p_value",
    ),
    *("p_unadjusted", "margin", "ahead", "equivalent", "behind", "error_examples", "error_seeds"),
)  # columns of pairs.csv
_VOLUME = (
    "<p><strong>Volume</strong> takes accuracy on shifted images as a third axis: the three-dimensional hypervolume of the "
    "same checkpoints, which are chosen by clean and robust accuracy alone. Shifted images that are made of report images "
    "are drawn with them, others by themselves.</p>"
)

Runs = str | Path | Run | Iterable[Run | str | Path]


def write_report(
    runs: Runs, path: str | Path = "report.html", *, title: str | None = None, **options: Any
) -> Path:
    """Compare the runs and write the page; beside it ``.svg``, ``.png`` and ``.pdf`` of its frontiers, and three tables.

    The page is one file that works without a network. It shows each task, attack and epsilon with its verdict,
    frontiers, areas and pairs, in light and dark; then what a race put out, accuracy out of distribution, such as on other
    domains or corrupted images, if it was measured, with volumes, a few images before and after the attack, and the accuracy
    of each class. Runs may be unfinished; the page then says so.

    Of more strategies, conditions or seeds than a page can show, it shows the largest areas and the conditions that the data
    decide least, and says how many it leaves out; ``areas.csv``, ``pairs.csv`` and ``points.csv`` have all.

    Args:
        runs: a directory, its URL, runs from :func:`paretune.runs.load_runs`, or several of these.
        path: of the page, which is no URL; its directory is made if needed.
        title: the page's heading.
        **options: those of :func:`paretune.compare`, such as ``reference``, ``level``, ``min_clean`` and ``margin``.

    Returns:
        ``path``.

    Raises:
        ImportError: vl-convert is not installed.
        FileNotFoundError, ValueError: as :func:`paretune.compare`.
    """
    converter()
    check_local("path", path)
    path = Path(path)
    loaded = as_runs(runs)
    comparison = compare(loaded, **options)
    points = as_points(loaded)
    rows = [of_condition for _, of_condition in split(points)]
    chosen = shown(comparison.conditions, rows)
    disk.write_text(path, _page(loaded, points, rows, comparison, chosen, title, options.get("groups")))
    drawn = points if chosen.whole else pd.concat(chosen.rows)
    seen = Comparison(chosen.conditions)
    disk.write_text(path.with_suffix(".svg"), frontier_svg(drawn, title=title, comparison=seen))
    # Encoding takes about a second a million pixels, so many conditions share the pixels of one.
    scale = 2 / math.sqrt(len(seen.conditions))
    png = frontier_png(drawn, title=title, scale=scale, comparison=seen)
    pdf = frontier_pdf(drawn, title=title, comparison=seen)
    for suffix, content in ((".png", png), (".pdf", pdf)):
        disk.write_atomically(path.with_suffix(suffix), _writer(content))
    disk.write_text(path.with_name("areas.csv"), _csv(comparison))
    disk.write_text(path.with_name("pairs.csv"), _pairs_csv(comparison))
    disk.write_text(path.with_name("points.csv"), csv_text(point_table(loaded)))
    log.info("wrote %s", path)
    return path


def report_html(
    runs: Runs, *, title: str | None = None, known: KnownConditions | None = None, **options: Any
) -> str:
    """The page of :func:`write_report` alone, as text, for those who serve it themselves.

    Args:
        runs: as in :func:`write_report`.
        title: as in :func:`write_report`.
        known: conditions of an earlier page, which are compared again only if their runs are others; filled with those of
            this one.
        **options: as in :func:`write_report`.

    Raises:
        ImportError, FileNotFoundError, ValueError: as :func:`write_report`.
    """
    converter()
    loaded = as_runs(runs)
    points = as_points(loaded)
    rows = [of_condition for _, of_condition in split(points)]
    groups = options.pop("groups", None)
    comparison = compare_runs(loaded, Settings(**options), groups, known)
    chosen = shown(comparison.conditions, rows)
    return _page(loaded, points, rows, comparison, chosen, title, groups)


def _page(
    runs: list[Run],
    points: pd.DataFrame,
    every: list[pd.DataFrame],
    comparison: Comparison,
    chosen: Shown,
    title: str | None,
    groups: Groups | None,
) -> str:
    """The page, with sections of the conditions that are ``chosen``; ``every`` has the points of all, one by one."""
    labels = {area.strategy for condition in chosen.conditions for area in condition.areas}
    looks = styles(points["label"]) | styles(labels)  # those of the pictures beside the page
    first = comparison.conditions[0]
    conditions = chosen.conditions
    rows = [
        every[number][every[number]["label"].isin({area.strategy for area in condition.areas})]
        for number, condition in zip(chosen.numbers, conditions, strict=True)
    ]
    curves = _by_condition(curves_of(pd.concat(rows), runs, first.settings.start, first.level))
    limit = _POINTS // len(conditions)
    drawings = [
        draw(frame, widths=ON_PAGE_WIDTHS, limit=limit, origin=condition.settings.start)
        for frame, condition in zip(chosen.rows, conditions, strict=True)
    ]
    named = {(condition.task, area.strategy) for condition in conditions for area in condition.areas}
    over_epsilon = [
        of_attack
        for curves in _by_attack(robustness_curves(points))
        if (of_attack := [curve for curve in curves if (curve.task, curve.strategy) in named])
    ]
    partial = [not all(runs[index].done for index in frame["run_index"].unique()) for frame in every]
    folded = len(conditions) > _FOLD
    parts: list[Part] = []
    if not chosen.whole:
        parts.append(left_out_card(chosen))
    if len(comparison.conditions) > 1:
        parts.append(overview_section(comparison, chosen, drawings, partial, looks))
    for number, condition, drawing, frame in zip(chosen.numbers, conditions, drawings, rows, strict=True):
        of_strategy = {area.strategy: looks[area.strategy] for area in condition.areas}
        of_budget = curves[condition.task, condition.threat, condition.epsilon, condition.attack]
        of_budget.sort(key=lambda curve: [*of_strategy].index(curve.strategy))
        parts.append(
            condition_section(
                number,
                condition,
                comparison.conditions[number],
                drawing,
                frame,
                of_budget,
                of_strategy,
                use=use_text(comparison.conditions[number], looks, partial[number]),
                folded=folded,
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
        volume=_VOLUME if any(condition.volumes for condition in comparison.conditions) else "",
        runs=run_table(runs, points),
        save=csv_link("areas.csv", _csv(comparison), "Save the areas as CSV")
        if chosen.whole
        else f"All numbers are beside this page: {FILES}.",
    )
    tasks = sorted({condition.task for condition in comparison.conditions})
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


def _pairs_csv(comparison: Comparison) -> str:
    """All pairs of all conditions: what the matrices show, and what they leave out."""
    rows = [{name: getattr(difference, name) for name in _PAIR} for difference in comparison.differences]
    return csv_text(pd.DataFrame(rows, columns=[*_PAIR]))


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
