"""The numbers of a report as HTML tables."""

from collections.abc import Iterable
from html import escape

import pandas as pd

from paretune.report.drawing import Style
from paretune.report.marks import symbol
from paretune.results import Run
from paretune.verdict import Comparison, Condition, Difference, condition_names


def area_table(condition: Condition, looks: dict[str, Style]) -> str:
    """One row per strategy, best first."""
    head = (
        "Strategy",
        "Area",
        f"{condition.level:.0%} interval",
        "Per seed",
        "Best clean",
        "Best robust",
        "Trainable parameters",
        "Training time",
        "Optimistic area",
    )
    rows = []
    for estimate in condition.areas:
        star = "&nbsp;★" if estimate is condition.recommended else ""
        rows.append(
            (
                f"{symbol(looks[estimate.strategy])}<span>{escape(estimate.strategy)}{star}</span>",
                f"<strong>{estimate.area:.3f}</strong>",
                f"{estimate.low:.3f} – {estimate.high:.3f}",
                " ".join(f"{area:.3f}" for area in estimate.per_seed),
                f"{estimate.best_clean:.1%}",
                f"{estimate.best_robust:.1%}",
                f"{estimate.trainable_parameters:,}",
                duration(estimate.train_seconds),
                f"{estimate.optimistic:.3f}",
            )
        )
    return _table("Areas under the frontiers", head, rows)


def pair_table(condition: Condition) -> str:
    """One row per pair of strategies; where there are many, those without the best strategy are folded away."""
    first = [d for d in condition.differences if d.strategy_a == condition.best.strategy]
    rest = [d for d in condition.differences if d.strategy_a != condition.best.strategy]
    if len(condition.differences) <= 10:
        return _pairs("Paired differences", first + rest, condition.level)
    folded = _pairs("Other paired differences", rest, condition.level)
    return (
        _pairs("Paired differences to the largest area", first, condition.level)
        + f"<details><summary>The other {len(rest)} pairs</summary>{folded}</details>"
    )


def _pairs(name: str, differences: Iterable[Difference], level: float) -> str:
    head = ("Pair", "Difference of areas", f"{level:.0%} interval", "p, adjusted", "")
    rows = [
        (
            f"<span>{escape(d.strategy_a)} − {escape(d.strategy_b)}</span>",
            f"<strong>{_signed(d.difference)}</strong>",
            f"{_signed(d.low)} to {_signed(d.high)}",
            f"{d.p_value:.3f}" if d.p_value >= 0.001 else "&lt; 0.001",
            "told apart" if d.p_value < 1 - level else "not told apart",
        )
        for d in differences
    ]
    return _table(name, head, rows)


def overview_table(comparison: Comparison) -> str:
    """One row per condition, with a link to its section."""
    head = ("Condition", "Recommendation", "Largest area", "Interval", "Tied")
    names = condition_names([(c.task, c.threat, c.epsilon, c.attack) for c in comparison.conditions])
    rows = [
        (
            f'<a href="#condition-{number}">{escape(names[number])}</a>',
            f"{advice_text(c)} <strong>{escape(c.recommended.strategy)}</strong>",
            f"{escape(c.best.strategy)} {c.best.area:.3f}",
            f"{c.best.low:.3f} – {c.best.high:.3f}",
            escape(", ".join(c.tied)),
        )
        for number, c in enumerate(comparison.conditions)
    ]
    return f'<section class="card"><h2>Overview</h2>{_table("Conditions", head, rows)}</section>'


def advice_text(condition: Condition) -> str:
    """What goes before the name of the recommended strategy; it does not recommend what the data do not decide."""
    return "Cannot tell; cheapest:" if condition.certainty == "cannot tell" else "Use"


def run_table(runs: list[Run], points: pd.DataFrame) -> str:
    """One row per run: where it is and what made it; at most 200."""
    head = ("Run", "Key", "Configuration", "Seed", "Points", "Finished")
    counts = points.groupby("run_index").size()
    rows = [
        (
            f"<span>{escape(run.path.name)}</span>",
            f"<code>{run.key}</code>",
            f"<code>{escape(str(run.config.get('strategy_config', '')))}</code>",
            escape(str(run.config.get("seed", ""))),
            str(counts.get(index, 0)),
            "yes" if run.done else "no",
        )
        for index, run in enumerate(runs[:200])
    ]
    more = f"<p>… and {len(runs) - 200} more.</p>" if len(runs) > 200 else ""
    return _table("Runs", head, rows) + more


def duration(seconds: float) -> str:
    """``24 s``, ``3.2 min``, ``5.1 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _table(name: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of HTML cells that scrolls by itself where the page is narrow; the first cell heads its row."""
    columns = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = []
    for first, *cells in rows:
        body.append(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    return (
        f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0"><table>'
        f"<caption>{escape(name)}</caption><thead><tr>{columns}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
