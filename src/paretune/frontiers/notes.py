"""What a reader should know before believing the numbers of a condition."""

from collections.abc import Iterator

import pandas as pd

from paretune.frontiers.resampling import SEEDS_TO_RESAMPLE
from paretune.frontiers.settings import Settings
from paretune.runs.store import Run

# Where benchmarks/coverage.csv stops to find intervals that hold the truth in 93 to 97 of 100 cases.
GROUPS_ENOUGH, EXAMPLES_ENOUGH = 100, 60
_UNLIKE = ", so that strategies may differ in that too"


def check_same_examples(rows: pd.DataFrame, runs: list[Run]) -> None:
    """Refuse to compare what was measured on different report examples.

    Raises:
        ValueError: runs of one task have several.
    """
    one_each = rows.drop_duplicates("report_id")
    if len(one_each) > 1:
        ids = zip(one_each["run_index"], one_each["report_id"], strict=True)
        names = [f"{runs[index].path} ({report_id})" for index, report_id in ids]
        raise ValueError(
            f"runs of task {rows['task'].iloc[0]!r} were measured on different report examples: "
            f"{', '.join(names[:3])}. Use one data set and one split, or give the tasks different names"
        )


def notes(
    rows: pd.DataFrame,
    runs: list[Run],
    budget: tuple[int, int],
    pairs: int,
    settings: Settings,
    units: tuple[int, int],
    grouped: bool,
) -> Iterator[str]:
    """What a reader should know before believing the numbers.

    Args:
        rows: the points of the condition.
        runs: that they index.
        budget: (points, runs) of each strategy and seed that are used.
        pairs: of strategies, that are tested.
        settings: level and resamples of the tests.
        units: report and select units that are resampled.
        grouped: whether these are groups of examples.
    """
    points, runs_per_seed = budget
    yield from _beyond_what_was_measured(units, grouped)
    sizes = rows.groupby("run_index").size()
    if sizes.max() > points:
        shortest = runs[sizes.index[int(sizes.argmin())]].path.name
        yield (
            f"Runs have {points} ({shortest}) to {sizes.max()} points; {points} evenly spaced ones of each are used."
        )
    several = rows.groupby(["label", "seed"])["run_index"].nunique()
    if several.max() > runs_per_seed:
        yield (
            f"Strategies have {runs_per_seed} to {several.max()} runs per seed; areas are averages over choices "
            f"of {runs_per_seed}."
        )
    seeds = rows.groupby("label")["seed"].nunique()
    if seeds.min() < seeds.max():
        yield f"Strategies have between {seeds.min()} and {seeds.max()} training seeds."
    if seeds.min() < SEEDS_TO_RESAMPLE and pairs:
        yield (
            f"With fewer than {SEEDS_TO_RESAMPLE} training seeds, tests are about these trained models: strategies "
            "that are equal on average over trainings are told apart more often than the level promises."
        )
    augmented = sorted({str(runs[index].config.get("augmentation", "none")) for index in rows["run_index"]})
    if augmented != ["none"]:
        yield f"Training images were augmented: {', or '.join(augmented)}{_UNLIKE * (len(augmented) > 1)}."
    if len({bool(runs[index].config.get("reuse")) for index in rows["run_index"]}) > 1:
        yield (
            "Some runs tried the adversarial examples of earlier points before the attack, others did not, so that the "
            "robust accuracies of these may be a little higher."
        )
    together = {task for index in rows["run_index"] for task in runs[index].config.get("together", ())}
    if together:
        yield f"Learnt at once by one model: {', '.join(sorted(together))}; what a run costs is that of all of them."
    unfinished = sorted({runs[index].path.name for index in rows["run_index"] if not runs[index].done})
    if unfinished:
        shown = ", ".join(unfinished[:5]) + (" …" if len(unfinished) > 5 else "")
        verb = "is" if len(unfinished) == 1 else "are"
        yield f"{len(unfinished)} of {rows['run_index'].nunique()} runs {verb} not finished: {shown}."
    if (rows["report_id"] == rows["select_id"]).any():
        yield "Some runs choose and measure on the same examples: their areas are too high."
    if pairs and 1 / (settings.resamples + 1) >= 1 - settings.level:
        yield (
            f"{settings.resamples} resamples cannot tell anything apart at the level {settings.level:g}; raise resamples."
        )


def _beyond_what_was_measured(units: tuple[int, int], grouped: bool) -> Iterator[str]:
    for split, number in zip(("report", "select"), units, strict=True):
        if grouped and number < GROUPS_ENOUGH:
            yield (
                f"There are {number} groups of {split} examples; below {GROUPS_ENOUGH}, intervals are too narrow."
            )
        elif not grouped and number < EXAMPLES_ENOUGH:
            yield (
                f"There are {number} {split} examples; intervals were not verified below {EXAMPLES_ENOUGH}."
            )
