"""What the committed rows of the study say: a table for each question of README.md, and the figures.

python benchmarks/study/answers.py             # writes the tables into docs/concepts/study.md, draws figures/
"""

import functools
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

import _figures
from _cells import HERE, IDENTITY, TUNED, UNDER_FIXED, Kept, read_all
from _radii import unpack

import paretune as pt
from paretune.frontiers.classes import wilson
from paretune.frontiers.confirmed import confirmations
from paretune.frontiers.inference import holm
from paretune.frontiers.race import Race, Round
from paretune.frontiers.repeats import spread
from paretune.frontiers.rounds import after_round, next_round
from paretune.frontiers.settings import Settings
from paretune.frontiers.verdict import AreaEstimate, Condition
from paretune.report.robustness import expected_robustness
from paretune.runs.rows import read_findings
from paretune.runs.store import Run
from paretune.sweeps.racing import entrants
from paretune.training.guards import no_robustness

UNDER_ATTACK, NATURAL, FULL = "AdversarialTraining()", "natural", "FullFineTune"
PUBLISHED = ("BitFit", "Compacter")
LEVEL = 0.95
PAGE = HERE.parents[1] / "docs/concepts/study.md"
# How findings of failures begin.
ALARMS = ("transfer failure", "catastrophic overfitting", "zero gradients", "no robustness")
CLASSES = {"digits": 10, "fashion-mnist": 10, "emoji": 8, "elpv": 4}


class Study:
    """The cells that are whole, and what is asked of several questions' runs."""

    def __init__(self, cells: Sequence[Kept]) -> None:
        self.cells = cells
        self._conditions: dict[tuple[str, ...], Condition] = {}

    def cell(self, **wanted: str) -> Kept | None:
        """The one with these, if it is whole."""
        for cell in self.cells:
            if all(cell.told[name] == value for name, value in wanted.items()):
                return cell
        return None

    def condition(self, cell: Kept) -> Condition:
        """The comparison of the strategies of ``cell``, tuned in it."""
        key = tuple(cell.named().values())
        if key not in self._conditions:
            (self._conditions[key],) = pt.compare(cell.runs[TUNED]).conditions
        return self._conditions[key]

    def pairs(self) -> Iterator[tuple[Kept, Kept]]:
        """Fixed and scheduled cells of adversarial training that are alike otherwise."""
        for scheduled in self.cells:
            if scheduled.told["schedule"] != "fixed" and scheduled.told["objective"] == UNDER_ATTACK:
                alike = scheduled.named("task", "objective", "epsilon")
                if (fixed := self.cell(**alike, schedule="fixed")) is not None:
                    yield fixed, scheduled

    def full(self) -> Iterator[Kept]:
        """Cells that have all strategies."""
        most = max((len(strategies(cell.runs[TUNED])) for cell in self.cells), default=0)
        return (cell for cell in self.cells if len(strategies(cell.runs[TUNED])) == most)


def of(runs: Sequence[Run], strategy: str) -> list[Run]:
    """The runs of a strategy by its short name."""
    return [run for run in runs if run.config["strategy"] == strategy]


def strategies(runs: Sequence[Run]) -> list[str]:
    """Short names, in order."""
    return list(dict.fromkeys(run.config["strategy"] for run in runs))


def called(runs: Sequence[Run], name: str) -> list[Run]:
    """Runs that a comparison takes for those of a strategy of this name."""
    return [replace(run, points=run.points.assign(strategy=name, config=name)) for run in runs]


class Gain(NamedTuple):
    """The area of some runs minus that of others, paired over examples and seeds."""

    first: AreaEstimate
    second: AreaEstimate
    difference: float
    low: float
    high: float
    p_unadjusted: float


def paired(first: Sequence[Run], second: Sequence[Run]) -> Gain:
    """Areas of the first minus those of the second."""
    (condition,) = pt.compare([*called(first, "first"), *called(second, "second")]).conditions
    areas = {area.strategy: area for area in condition.areas}
    (pair,) = condition.differences
    sign = 1 if pair.strategy_a == "first" else -1
    low, high = sorted((sign * pair.low, sign * pair.high))
    return Gain(areas["first"], areas["second"], sign * pair.difference, low, high, pair.p_unadjusted)


def failed(run: Run) -> bool:
    """Whether it diverged, or ended where chance is, see Q4."""
    if not run.done or run.points.empty:
        return True
    last = run.points.loc[run.points["step"].idxmax()]
    chance = _chance(run)
    bounds = {name: float(wilson(last[name], last["examples"], LEVEL)[0]) for name in ("clean", "robust")}
    attacked = run.config["objective"]["name"] != "Natural"
    return bounds["clean"] <= chance or (attacked and bounds["robust"] <= chance / 2)


def _chance(run: Run) -> float:
    return 1 / CLASSES[str(run.config["task"]).partition(":")[0]]


@functools.cache
def scheduling(study: Study, how: str = TUNED) -> pd.DataFrame:
    """Q1: a row for each task, epsilon, schedule and strategy."""
    rows = []
    for fixed, scheduled in study.pairs():
        if how not in scheduled.runs:
            continue
        for name in strategies(scheduled.runs[how]):
            before, after = of(fixed.runs[TUNED], name), of(scheduled.runs[how], name)
            if any(run.points.empty for run in [*before, *after]):
                continue
            gain = paired(after, before)
            rows.append(
                {
                    **scheduled.named("task", "epsilon", "schedule"),
                    "strategy": name,
                    "fixed": gain.second.area,
                    "scheduled": gain.first.area,
                    "gain": gain.difference,
                    "low": gain.low,
                    "high": gain.high,
                    "p": gain.p_unadjusted,
                    "by_seed": tuple(np.subtract(gain.first.per_seed, gain.second.per_seed)),
                    "fixed_failed": sum(map(failed, before)),
                    "scheduled_failed": sum(map(failed, after)),
                    "seeds": len(before),
                }
            )
    frame = pd.DataFrame(rows)
    if len(frame):
        frame["p"] = holm(frame["p"].tolist())
        frame["rescued"] = (frame["fixed_failed"] * 3 >= frame["seeds"] * 2) & (
            frame["scheduled_failed"] == 0
        )
    return frame


def against_full(gains: pd.DataFrame) -> pd.DataFrame:
    """Q1: gain of each strategy minus that of full fine-tuning, over task, epsilon and seed, under two-hinge."""
    rows = []
    gains = gains[gains["schedule"] == "two_hinge"] if len(gains) else gains
    for name in dict.fromkeys(gains.get("strategy", [])):
        both = gains[gains["strategy"] == name].merge(
            gains[gains["strategy"] == FULL], on=["task", "epsilon"], suffixes=("", "_full")
        )
        if name == FULL or both.empty:
            continue
        values = np.concatenate([np.subtract(row.by_seed, row.by_seed_full) for row in both.itertuples()])
        of_all = spread(values)
        low, high = (np.nan, np.nan) if of_all is None else of_all.interval(LEVEL)
        rows.append(
            {"strategy": name, "gain_minus_full": values.mean(), "low": low, "high": high, "n": len(values)}
        )
    return pd.DataFrame(rows)


def orders(study: Study) -> pd.DataFrame:
    """Q2: a row for each cell with all strategies; how its order follows that under natural training."""
    rows = []
    for cell in study.full():
        if cell.told["objective"] not in (UNDER_ATTACK, NATURAL):
            continue
        condition = study.condition(cell)
        areas = {area.strategy: area.area for area in condition.areas}
        natural = study.cell(task=cell.told["task"], objective=NATURAL)
        rank = np.nan
        if natural is not None and natural is not cell and natural.told["epsilon"] == cell.told["epsilon"]:
            there = {area.strategy: area.area for area in study.condition(natural).areas}
            rank = stats.spearmanr([areas[name] for name in areas], [there[name] for name in areas])[0]
        best = set(condition.recommendation.confidence_set)
        rows.append(
            {
                **cell.named(),
                "best": condition.areas[0].strategy,
                "area": condition.areas[0].area,
                "may_be_best": ", ".join(area.strategy for area in condition.areas if area.strategy in best),
                **{name: name in best for name in PUBLISHED},
                "rank_with_natural": rank,
                "half_width": np.median([(d.high - d.low) / 2 for d in condition.differences]),
            }
        )
    return pd.DataFrame(rows)


def tracking(study: Study) -> pd.DataFrame:
    """Q3: a row for each cell and strategy."""

    def number(value: float | None) -> float:
        return np.nan if value is None else value

    return pd.DataFrame(
        [
            {
                **cell.named(),
                "strategy": slope.strategy,
                "slope": number(slope.slope),
                "low": number(slope.low),
                "high": number(slope.high),
            }
            for cell in study.cells
            if cell.told["objective"] in (UNDER_ATTACK, NATURAL)
            for slope in study.condition(cell).slopes
            if slope.accuracy == "clean"
        ]
    )


def failures(study: Study) -> pd.DataFrame:
    """Q4: how many runs failed, how many of these quietly, and when the others were told, under attack."""
    rows = []
    for cell in study.cells:
        if cell.told["objective"] == NATURAL:
            continue
        for run in cell.runs[TUNED]:
            told = alarms(run)
            rows.append(
                {
                    **cell.named("schedule"),
                    "strategy": run.config["strategy"],
                    "failed": failed(run),
                    "quiet": failed(run) and not told,
                    "first": min(told) / run.config["steps"] if told and failed(run) else np.nan,
                    "false_alarm": bool(told) and not failed(run),
                }
            )
    frame = pd.DataFrame(rows)
    table = []
    for (schedule, strategy), group in (
        frame.groupby(["schedule", "strategy"], sort=False) if len(frame) else ()
    ):
        count = int(group["failed"].sum())
        low, high = wilson(count / len(group), len(group), LEVEL)
        table.append(
            {
                "schedule": schedule,
                "strategy": strategy,
                "runs": len(group),
                "failed": count,
                "low": float(low),
                "high": float(high),
                "quiet": int(group["quiet"].sum()),
                "told_after": group["first"].median(),
                "told_but_well": int(group["false_alarm"].sum()),
            }
        )
    return pd.DataFrame(table)


def alarms(run: Run) -> list[int]:
    """Steps at which the run said that it failed; a diverged one ends with an error."""
    if not run.done:
        return [int(run.points["step"].max()) if len(run.points) else 0]
    return [noted["step"] for noted in read_findings(run.path) if noted["finding"].startswith(ALARMS)]


def not_robust(run: Run) -> bool:
    """Whether the guard that looks at robust accuracy, which came after the first runs, names this one from its rows."""
    last = run.points.loc[run.points["step"].idxmax()]
    accuracies = float(last["clean_select"]), float(last["robust_select"])
    return no_robustness(*accuracies, _chance(run), int(last["examples_select"]), last["attack"]) is not None


def winners(study: Study) -> pd.DataFrame:
    """Q5: a row for each cell."""
    rows = []
    for cell in study.cells:
        condition = study.condition(cell)
        areas = {area.strategy: area.area for area in condition.areas}
        last = {}
        for name in areas:
            ends = [run.points.loc[run.points["step"].idxmax()] for run in of(cell.runs[TUNED], name)]
            last[name] = float(np.mean([(end["clean"] + end["robust"]) / 2 for end in ends]))
        by_last = max(last, key=lambda name: last[name])
        rows.append(
            {
                **cell.named(),
                "by_area": condition.areas[0].strategy,
                "by_last": by_last,
                "agree": by_last == condition.areas[0].strategy,
                "tau": stats.kendalltau([areas[name] for name in areas], [last[name] for name in areas])[0],
            }
        )
    return pd.DataFrame(rows)


def races(study: Study) -> pd.DataFrame:
    """Q6: a race over the runs of each cell with all strategies, and whether it ends with those that all runs leave."""
    rows = []
    for cell in study.full():
        if not all(run.done for run in cell.runs[TUNED]):
            continue
        race = raced(cell.runs[TUNED])
        full = study.condition(cell).recommendation
        rows.append(
            {
                **cell.named(),
                "share": race.gradient_evaluations / race.grid,
                "stayed": len(race.stayed),
                "may_be_best": len(full.confidence_set),
                "best_stayed": study.condition(cell).areas[0].strategy in race.stayed,
            }
        )
    return pd.DataFrame(rows)


def raced(runs: Sequence[Run]) -> Race:
    """The race that would have been run instead of all of them."""
    by_key = {(str(run.config["strategy"]), int(run.config["seed"])): run for run in runs}
    spent = {key: int(run.points["gradient_evaluations"].max()) for key, run in by_key.items()}
    names, seeds = (tuple(dict.fromkeys(some)) for some in zip(*by_key, strict=True))
    settings = Settings()
    race = Race(names, seeds, settings.level, settings.margin, settings.start, grid=sum(spent.values()))
    ran: dict[tuple[str, int], list[Run]] = {}
    while race.ended is None and (keys := next_round(race)):
        ran |= {key: [by_key[key]] for key in keys}
        named = {by_key[key].path.name: key[0] for key in keys}
        evaluations = sum(spent[key] for key in keys)
        race = after_round(race, Round(named, None, evaluations, 0.0, (), ()), entrants(ran, settings))
    return race


def memory(study: Study) -> pd.DataFrame:
    """Q6: ATTA minus PGD with three steps, by strategy."""
    rows = []
    for cell in study.cells:
        usual = study.cell(**cell.named("task", "epsilon", "schedule"), objective=UNDER_ATTACK)
        if not cell.told["objective"].startswith("ATTA") or usual is None:
            continue
        for name in strategies(cell.runs[TUNED]):
            gain = paired(of(cell.runs[TUNED], name), of(usual.runs[TUNED], name))
            rows.append(
                {
                    **cell.named("task", "epsilon"),
                    "strategy": name,
                    "PGD": gain.second.area,
                    "ATTA": gain.first.area,
                    "difference": gain.difference,
                    "low": gain.low,
                    "high": gain.high,
                }
            )
    return pd.DataFrame(rows)


def strict(study: Study) -> pd.DataFrame:
    """The area of seed 0 under PGD, and that of the same points under AutoAttack, by cell under attack and strategy."""
    rows = []
    for cell in study.cells:
        first = [run for run in cell.runs[TUNED] if run.config["seed"] == 0]
        for confirmation in confirmations(first):
            for name in strategies(first):
                if name in confirmation.whole:
                    chosen, confirmed = confirmation.areas(name)
                    rows.append(
                        {
                            **cell.named(),
                            "strategy": name,
                            "PGD": chosen,
                            "AutoAttack": confirmed,
                            "gap": chosen - confirmed,
                        }
                    )
    return pd.DataFrame(rows)


def over_epsilon(study: Study) -> pd.DataFrame:
    """Accuracy at the end of runs over epsilon, and its mean with an interval over examples, by cell and strategy."""
    rows = []
    for cell in study.cells:
        for name in strategies(cell.runs[TUNED]) if "radii" in cell.told else ():
            runs = [run for run in of(cell.runs[TUNED], name) if run.done]
            if not runs:
                continue
            measured = [
                unpack(cell.told["radii"][run.path.name], int(run.points["examples"].iloc[0])) for run in runs
            ]
            values = np.mean([expected_robustness(*one) for one in measured], axis=0)
            of_all = spread(values)
            low, high = (np.nan, np.nan) if of_all is None else of_all.interval(LEVEL)
            accuracies = np.mean([right.mean(axis=0) for _, right in measured], axis=0)
            rows.append(
                {
                    **cell.named(),
                    "strategy": name,
                    **dict(zip(cell.told["radii"][runs[0].path.name], accuracies, strict=True)),
                    "expected": values.mean(),
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(rows)


def beside(frame: pd.DataFrame, text: Callable[[Any], str]) -> pd.DataFrame:
    """A row for each cell and a column for each strategy, of a frame with a row for both."""
    cells = frame.groupby([*IDENTITY], sort=False)
    return pd.DataFrame(
        [
            {
                **dict(zip(IDENTITY, cell, strict=True)),
                **{row.strategy: text(row) for row in rows.itertuples()},
            }
            for cell, rows in cells
        ]
    ).fillna("")


def with_interval(value: str) -> Callable[[Any], str]:
    """Of a row, this value and its interval; nothing if there is none."""

    def text(row: Any) -> str:
        told = getattr(row, value)
        return "" if np.isnan(told) else f"{told:.2f} [{row.low:.2f}, {row.high:.2f}]"

    return text


# Beside each question how its table is shown, where that is not as it is.
QUESTIONS: dict[str, tuple[Callable[[Study], pd.DataFrame], Callable[[Any], str] | None]] = {
    "Q1, tuned": (scheduling, None),
    "Q1, tuned under fixed": (lambda study: scheduling(study, UNDER_FIXED), None),
    "Q1, against full fine-tuning": (lambda study: against_full(scheduling(study)), None),
    "Q2": (orders, None),
    "Q3": (tracking, with_interval("slope")),
    "Q4": (failures, None),
    "Q5": (winners, None),
    "Q6, race": (races, None),
    "Q6, ATTA": (memory, None),
    "AutoAttack": (strict, lambda row: f"{row.PGD:.3f} → {row.AutoAttack:.3f}"),
    "Expected robustness": (over_epsilon, with_interval("expected")),
}


FIGURES = {
    "Q1, tuned": ("scheduling", _figures.gains),
    "Q3": ("tracking", _figures.tracking),
    "Q4": ("failures", _figures.failures),
}


def tables(study: Study) -> dict[str, list[str]]:
    """The table of each question, as lines of the documentation; none where no cell tells anything."""
    shown = {}
    for question, (answer, text) in QUESTIONS.items():
        frame = answer(study)
        shown[question] = (
            markdown(frame if text is None or frame.empty else beside(frame, text)) if len(frame) else []
        )
    return shown


def markdown(frame: pd.DataFrame) -> list[str]:
    """As the documentation has it."""

    def text(value: Any) -> str:
        if isinstance(value, bool | np.bool_):
            return "yes" if value else "no"
        if isinstance(value, float):
            return "" if np.isnan(value) else f"{value:.3f}"
        return str(value)

    shown = frame.drop(columns=[name for name in ("by_seed", "seeds") if name in frame])
    lines = [[str(name).replace("_", " ") for name in shown.columns], ["---"] * len(shown.columns)]
    lines += [[text(value) for value in row] for row in shown.itertuples(index=False)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def told(page: str, study: Study) -> str:
    """The text of ``page`` with the tables as they are now, each between two comments of which the first names it."""
    shown = tables(study)

    def table(found: re.Match[str]) -> str:
        lines = shown.pop(found[1]) or ["No cell yet."]
        return "\n".join([f"<!-- {found[1]} -->", "", *lines, "", "<!-- end -->"])

    page = re.sub(r"<!-- (?!end)([^>]+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)
    if shown:
        raise ValueError(f"the page has no place for {', '.join(shown)}")
    return page


def main() -> None:
    """Write the tables, and draw."""
    with tempfile.TemporaryDirectory() as place:
        study = Study(read_all(Path(place)))
        PAGE.write_text(told(PAGE.read_text("utf-8"), study), "utf-8")
        for question, (name, drawn) in FIGURES.items():
            frame = QUESTIONS[question][0](study)
            if len(frame):
                _figures.save(drawn(frame), HERE / "figures" / f"{name}.png")


if __name__ == "__main__":
    main()
