"""The numbers of a report as tables: plain text, and HTML made from it."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

import pandas as pd

from paretune.frontiers.across import AcrossTasks
from paretune.frontiers.deciding import Decision
from paretune.frontiers.verdict import Condition
from paretune.report.drawing import Style
from paretune.report.marks import symbol
from paretune.report.runs import run_names, run_settings
from paretune.runs.store import Run

SEEDS_LISTED = 24  # areas of a strategy; of more, the least and the largest are told


class Numbers(NamedTuple):
    """A table as plain text, which HTML, LaTeX and Markdown are made from."""

    name: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def area_numbers(condition: Condition) -> Numbers:
    """One row per strategy, best first."""
    head = (
        "Strategy",
        condition.quantity.capitalize(),
        f"{100 * condition.level:g}% interval",
        "May be best, p",
        "Per seed",
        "Best clean",
        "Best robust",
        "Trainable parameters",
        "Training time",
        "Chosen on test images",
    )
    rows = [
        (
            estimate.strategy,
            f"{estimate.area:.3f}",
            f"{estimate.low:.3f} – {estimate.high:.3f}",
            p_text(estimate.p_best),
            _per_seed(estimate.per_seed),
            f"{estimate.best_clean:.1%}",
            f"{estimate.best_robust:.1%}",
            f"{estimate.trainable_parameters:,}",
            duration(estimate.train_seconds),
            f"{estimate.optimistic:.3f}",
        )
        for estimate in condition.areas
    ]
    name = "Areas under the frontiers" if condition.quantity == "area" else "Volumes"
    return Numbers(name, head, rows)


def _per_seed(areas: Sequence[float]) -> str:
    if len(areas) <= SEEDS_LISTED:
        return " ".join(f"{area:.3f}" for area in areas)
    return f"{min(areas):.3f} – {max(areas):.3f} ({len(areas)} seeds)"


def pair_numbers(condition: Condition) -> Numbers:
    """One row per pair of the largest area and another strategy."""
    head = (
        "Pair",
        f"Difference of {condition.quantity}s",
        f"{100 * condition.level:g}% interval",
        "p, adjusted",
        "",
        "Ahead",
        "Equal",
        "Behind",
    )
    standings = [
        standing(condition.decision, 0, place, condition.margin) for place in range(len(condition.areas))
    ]
    words = dict(zip((area.strategy for area in condition.areas), standings, strict=True))
    rows = [
        (
            f"{d.strategy_a} − {d.strategy_b}",
            signed(d.difference),
            f"{signed(d.low)} to {signed(d.high)}",
            p_text(d.p_value),
            words[d.strategy_b],
            *(f"{share:.0%}" for share in (d.ahead, d.equivalent, d.behind)),
        )
        for d in condition.differences
        if d.strategy_a == condition.best.strategy
    ]
    return Numbers(f"Paired differences to the largest {condition.quantity}", head, rows)


def rank_numbers(across: AcrossTasks, most: int | None = None) -> Numbers:
    """One row per strategy that every task has, the largest mean area first; at most ``most``."""
    head = (
        "Strategy",
        f"Mean {across.quantity}",
        "Mean rank",
        "May be best in general",
        f"Tasks with the largest {across.quantity}",
        "Which",
    )
    won = {
        name: [winner.task for winner in across.winners if name in winner.sharing] for name in across.ranked
    }
    rows = [
        (
            name,
            f"{area:.3f}",
            f"{rank:.2f}",
            "yes" if name in across.tied else "no",
            str(len(won[name])),
            ", ".join(won[name]),
        )
        for name, area, rank in [*zip(across.ranked, across.mean_areas, across.mean_ranks, strict=True)][
            :most
        ]
    ]
    return Numbers(f"Mean {across.quantity}s and ranks", head, rows)


def rank_pair_numbers(across: AcrossTasks, most: int | None = None) -> Numbers:
    """One row per pair of strategies; of more than ``most`` strategies, only the pairs with the first."""
    level = f"{100 * across.level:g}% interval"
    head = (
        "Pair",
        "Tasks ahead : behind",
        "Mean difference",
        f"{level}, tasks like these",
        f"{level}, these tasks",
        "p, adjusted",
        "",
    )
    few = most is None or len(across.ranked) <= most
    places = {name: place for place, name in enumerate(across.ranked)}
    rows = [
        (
            f"{pair.strategy_a} − {pair.strategy_b}",
            f"{pair.wins} : {pair.losses}",
            signed(pair.mean_difference),
            "–" if pair.low is None or pair.high is None else f"{signed(pair.low)} to {signed(pair.high)}",
            "–" if pair.here is None else f"{signed(pair.here[0])} to {signed(pair.here[1])}",
            "–" if pair.p_value is None else p_text(pair.p_value),
            standing(across.decision, places[pair.strategy_a], places[pair.strategy_b], across.margin),
        )
        for pair in across.pairs
        if few or pair.strategy_a == across.ranked[0]
    ]
    return Numbers("Pairs over the tasks", head, rows)


def area_table(condition: Condition, looks: dict[str, Style], recommended: str | None = None) -> str:
    """The areas as HTML, with the marks of the strategies and a star at the recommended one.

    Args:
        condition: whose areas to show.
        looks: of its strategies.
        recommended: which one that is, where the condition is a part of another.
    """
    numbers = area_numbers(condition)
    recommended = recommended or condition.judged.recommended.strategy
    rows = []
    for name, area, *others in numbers.rows:
        star = "&nbsp;★" if name == recommended else ""
        first = f"{symbol(looks[name])}<span>{escape(name)}{star}</span>"
        rows.append((first, f"<strong>{area}</strong>", *map(escape, others)))
    return table(numbers.name, numbers.head, rows)


def pair_table(condition: Condition) -> str:
    """The pairs with the largest area as HTML; the rest stand behind the matrix."""
    numbers = pair_numbers(condition)
    rows = [
        (f"<span>{escape(pair)}</span>", f"<strong>{gap}</strong>", *map(escape, others))
        for pair, gap, *others in numbers.rows
    ]
    return table(numbers.name, numbers.head, rows)


def standing(decision: Decision, ahead: int, other: int, margin: float) -> str:
    """How one area stands to a larger one, in words that do not contradict the set of the best."""
    if decision.told[ahead, other]:
        how = "" if decision.direct[ahead, other] else " through others"
        near = "" if decision.behind[ahead, other] else f", by less than {margin:g}"
        return f"told apart{how}{near}"
    if decision.tested[ahead, other]:
        return "not told apart" if decision.tied[other] else "not told apart, but behind another"
    return "cannot say"


def run_table(runs: list[Run], points: pd.DataFrame) -> str:
    """One row per run: where it is and what made it; at most 200."""
    head = ("Run", "Key", "Configuration", "Seed", "Points", "Finished")
    counts = points.groupby("run_index").size()
    names, settings = run_names(runs), run_settings(runs)
    rows = [
        (
            f"<span>{escape(names[index])}</span>",
            f"<code>{run.key}</code>",
            f"<code>{escape(settings[index])}</code>",
            escape(str(run.config.get("seed", ""))),
            str(counts.get(index, 0)),
            "yes" if run.done else "no",
        )
        for index, run in enumerate(runs[:200])
    ]
    more = f"<p>… and {len(runs) - 200} more.</p>" if len(runs) > 200 else ""
    return table("Runs", head, rows) + more


def duration(seconds: float) -> str:
    """``24 s``, ``3.2 min``, ``5.1 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def p_text(p_value: float) -> str:
    """Three digits."""
    return f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001"


def signed(value: float) -> str:
    """Three digits with a sign."""
    return f"{value:+.3f}".replace("-", "−")


def table(name: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of HTML cells that scrolls by itself where the page is narrow; the first cell heads its row."""
    columns = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = []
    for first, *cells in rows:
        body.append(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    return (
        f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0"><table>'
        f"<caption>{escape(name)}</caption><thead><tr>{columns}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
