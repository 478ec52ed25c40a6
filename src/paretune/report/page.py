"""One self-contained HTML page: everything inlined, nothing loaded, every name escaped."""

import functools
import json
import logging
import math
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from paretune import _files
from paretune.report import specs
from paretune.report.area_specs import cost_spec, forest_spec
from paretune.report.drawing import Drawing, Style, draw, styles
from paretune.report.figures import converter, describe, frontier_png, frontier_svg, split
from paretune.report.marks import symbol
from paretune.report.tables import advice_text, area_table, overview_table, pair_table, run_table
from paretune.results import Run, as_runs
from paretune.stats import compare, labelled_points
from paretune.verdict import Comparison, Condition, attack_text, threat_text

log = logging.getLogger(__name__)

_POINTS = 4000  # drawn in one report; with the plotting library it then stays below 1.5 MB


def write_report(
    runs: str | Path | Run | Iterable[Run | str | Path],
    path: str | Path = "report.html",
    *,
    title: str | None = None,
    **options: Any,
) -> Path:
    """Compare the runs and write the page, with ``.svg`` and ``.png`` of its frontiers and ``areas.csv`` beside it.

    The page is one file that works without a network. It shows each task, attack and epsilon with its verdict,
    frontiers, areas and pairs, in light and dark.

    Args:
        runs: a directory, runs from :func:`paretune.load_runs`, or several of either.
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
    points = labelled_points(loaded)
    _files.write_text(path, _page(loaded, comparison, points, title))
    _files.write_text(path.with_suffix(".svg"), frontier_svg(loaded, title=title))
    # Encoding takes about a second a million pixels, so many conditions share the pixels of one.
    png = frontier_png(loaded, title=title, scale=2 / math.sqrt(len(comparison.conditions)))
    _files.write_atomically(path.with_suffix(".png"), lambda temporary: temporary.write_bytes(png))
    _files.write_text(path.with_name("areas.csv"), _csv(comparison))
    log.info("wrote %s", path)
    return path


def _page(runs: list[Run], comparison: Comparison, points: pd.DataFrame, title: str | None) -> str:
    looks = styles(points["label"])
    sections, plots = [], {}
    conditions = zip(comparison.conditions, split(points), strict=True)
    limit = _POINTS // len(comparison.conditions)
    for number, (condition, (_, rows)) in enumerate(conditions):
        shown = {label: style for label, style in looks.items() if label in {*rows["label"]}}
        drawing = draw(rows, size=(820, 430), limit=limit)
        plots[f"frontier-{number}"] = specs.frontier_spec(
            drawing, shown, specs.ON_PAGE, description=describe(rows, shown)
        )
        plots[f"forest-{number}"] = forest_spec(condition, shown, specs.ON_PAGE)
        if len(condition.areas) > 1:
            plots[f"cost-{number}"] = cost_spec(condition, shown, specs.ON_PAGE)
        sections.append(_section(number, condition, drawing, shown, rows))
    several = len(comparison.conditions) > 1
    tasks = ", ".join(sorted({condition.task for condition in comparison.conditions}))
    heading = title or f"Robustness and accuracy on {tasks}"
    first = comparison.conditions[0]
    return _template("page.html").substitute(
        title=escape(heading),
        summary=escape(
            f"{len(looks)} {_plural('strategy', len(looks))} · {len(runs)} {_plural('run', len(runs))} · "
            f"{len(points):,} {_plural('point', len(points))}"
        ),
        overview=overview_table(comparison) if several else "",
        sections="\n".join(sections),
        reference=escape(f"({first.reference[0]:g}, {first.reference[1]:g})"),
        level=f"{first.level:.0%}",
        resamples=f"{first.resamples:,}",
        margin=f"{first.margin:g}",
        versions=escape(_versions(points)),
        runs=run_table(runs, points),
        style=_text("page.css"),
        data=_json({"config": specs.ON_PAGE.config(), "plots": plots}),
        library=_library(),
        script=_text("page.js"),
    )


def _section(
    number: int, condition: Condition, drawing: Drawing, looks: dict[str, Style], rows: pd.DataFrame
) -> str:
    use, advice = condition.recommended.strategy, advice_text(condition)
    ranked = [estimate.strategy for estimate in condition.areas]
    legend = "".join(
        f'<button type="button" class="pick" aria-pressed="false" data-strategy="{escape(label)}">'
        f"{symbol(looks[label])}<span>{escape(label)}</span></button>"
        for label in ranked
    )
    outside = drawing.outside
    hidden = len(rows) - len(drawing.points)
    beyond = f" <small>({outside} {_plural('point', outside)} outside this view)</small>" if outside else ""
    thinned = f" {hidden:,} of {len(rows):,} points are left out of the picture." if hidden else ""
    sentence, _, covers = condition.verdict.partition(". ")
    changes = "".join(f"<li>{escape(change)}</li>" for change in condition.recommendation.would_change)
    notes = "".join(f"<li>{escape(note)}</li>" for note in condition.notes)
    return _template("section.html").substitute(
        number=number,
        heading=f"{escape(condition.task)} <span>{escape(threat_text(condition.threat, condition.epsilon))}</span>",
        attack=escape(attack_text(condition.attack)),
        examples=f"{condition.examples:,}",
        examples_select=f"{condition.examples_select:,}",
        use=f"<span>{advice}</span> {symbol(looks[use])} <strong>{escape(use)}</strong>"
        if len(looks) > 1
        else "",
        verdict=escape(sentence + "."),
        covers=escape(covers),
        legend=legend,
        beyond=beyond,
        thinned=thinned,
        several_hidden="" if len(condition.areas) > 1 else "hidden",
        areas=area_table(condition, looks),
        pairs=pair_table(condition),
        changes=f"<h4>What would change this</h4><ul>{changes}</ul>" if changes else "",
        notes=f"<h4>Notes</h4><ul>{notes}</ul>" if notes else "",
    )


def _csv(comparison: Comparison) -> str:
    table = comparison.to_frame()
    for column in ("seeds", "per_seed"):
        table[column] = [" ".join(str(value) for value in values) for values in table[column]]
    return str(table.to_csv(index=False))


def _versions(points: pd.DataFrame) -> str:
    """``torch 2.9.0, timm 1.0``; several versions of one package are all named."""
    found: dict[str, set[str]] = {}
    for versions in points["versions"]:
        for name, version in versions.items():
            found.setdefault(str(name), set()).add(str(version))
    return (
        ", ".join(f"{name} {' and '.join(sorted(found[name]))}" for name in sorted(found)) or "not recorded"
    )


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor break a line of script."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _plain(value: Any) -> Any:
    return value.item()  # numpy's scalars


@functools.cache
def _library() -> str:
    library: str = converter().javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return library.replace("</script", "<\\/script")


def _text(name: str) -> str:
    return (files("paretune.report") / name).read_text(encoding="utf-8")


def _template(name: str) -> Template:
    return Template(_text(name))


def _plural(noun: str, count: int) -> str:
    if count == 1:
        return noun
    return noun.removesuffix("y") + "ies" if noun.endswith("y") else noun + "s"
