"""Which strategy has the best frontier, how sure that is, and what it costs.

For each (task, attack, epsilon):

1. The checkpoints of a frontier are *chosen* by their accuracies on the select split, and the area under
   their staircase is *measured* on the report split, in the order of the choice. Choosing and measuring on
   one split takes a maximum over noise, which inflates areas, the more so the more points there are.
2. Every strategy gets the same budget: K points from each of R runs per seed, the least that any has. Of a
   longer run K evenly spaced points are used, those that evaluating it K times would have given; of more runs,
   the area is the average over the choices of R.
3. The areas of a strategy's training seeds are averaged.
4. Intervals are basic bootstrap intervals over the report examples, with the same resamples for all
   strategies, so that differences are paired; p-values are Holm-adjusted over all pairs. From five seeds on,
   seeds are resampled too.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from paretune._bootstrap import (
    Floats,
    basic_interval,
    holm,
    p_value,
    pool_seeds,
    resample_counts,
    resampled_means,
)
from paretune.pareto import Reference, area, checked_reference, frontier_mask, ordered_area
from paretune.results import Run, as_runs
from paretune.verdict import AreaEstimate, Comparison, Condition, Difference, Recommendation

CHOICES = 64  # of R runs, at most; averaging over more would change areas by less than the examples do
SEEDS_TO_RESAMPLE = 5  # resampling fewer understates the spread between seeds badly


def compare(
    runs: str | Path | Run | Iterable[Run | str | Path],
    *,
    reference: Reference = (0.0, 0.0),
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    margin: float = 0.005,
) -> Comparison:
    """Compare the frontiers of all strategies among ``runs``, for each task, attack and epsilon on its own.

    A strategy is told from another by its configuration, and by the backbone where a task has several. Its
    runs of one training seed, with other learning rates say, are points of one frontier.

    Args:
        runs: a directory, runs from :func:`paretune.load_runs`, or several of either.
        reference: (clean, robust) where areas start; fix it before looking. (0, 0), or (chance, 0).
        level: of the intervals and tests, in (0, 1).
        resamples: of the report examples, at least 100.
        seed: of the resampling; the same seed gives the same numbers, whatever else is compared.
        margin: areas closer than this, in [0, 1), are equal for practical purposes in the recommendation.

    Raises:
        FileNotFoundError: there are no runs. ValueError: no run has points, runs of one task were measured on
        different examples, or an argument is out of range.
    """
    reference = checked_reference(reference)
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), such as 0.95; got {level}")
    if resamples < 100:
        raise ValueError(f"resamples must be at least 100 for an interval to mean something; got {resamples}")
    if not 0 <= margin < 1:
        raise ValueError(f"margin must lie in [0, 1), as a difference of areas; got {margin}")
    loaded = as_runs(runs)
    points = labelled_points(loaded)
    conditions = []
    for _, rows in points.groupby(["task", "threat", "epsilon", "attack"], sort=True):
        _check_same_examples(rows, loaded)
        made = _compare_one(rows, loaded, reference, level, resamples, seed)
        conditions.append(
            Condition(**made, reference=reference, level=level, resamples=resamples, margin=margin)
        )
    return Comparison(tuple(conditions))


def recommend(
    runs: str | Path | Run | Iterable[Run | str | Path], **options: Any
) -> tuple[Recommendation, ...]:
    """The strategy to use for each task, attack and epsilon, with its evidence and what would change it.

    It is the cheapest, by trainable parameters and then training time, of those that cannot be told apart
    from the largest area or come within ``margin`` of it.

    Args:
        runs: as in :func:`compare`.
        **options: those of :func:`compare`.

    Raises:
        FileNotFoundError, ValueError: as :func:`compare`.
    """
    return tuple(condition.recommendation for condition in compare(runs, **options).conditions)


def labelled_points(runs: list[Run]) -> pd.DataFrame:
    """All points with ``label``, a short name that tells strategies apart, ``run_index`` and ``chosen``.

    The label is the display name while that is unique in the task, else the configuration. ``chosen`` marks
    the points on the frontier of the select split, among those of one label, seed and condition.

    Raises:
        ValueError: no run has points.
    """
    tables = [
        run.points.assign(run_index=index, backbone=_text(run.config.get("backbone")))
        for index, run in enumerate(runs)
        if len(run.points)
    ]
    if not tables:
        raise ValueError(f"none of the {len(runs)} runs has a point yet; wait for the first evaluation")
    points = pd.concat(tables, ignore_index=True)
    configs = points.groupby(["task", "strategy"])["config"].transform("nunique")
    backbones = points.groupby("task")["backbone"].transform("nunique")
    label = points["strategy"].where(configs == 1, points["config"])
    points["label"] = label.where(backbones == 1, label + " on " + points["backbone"])
    chosen = np.zeros(len(points), dtype=bool)
    for rows in points.groupby(["task", "attack", "epsilon", "label", "seed"]).indices.values():
        group = points.iloc[rows]
        chosen[rows] = frontier_mask(group["clean_select"], group["robust_select"])
    return points.assign(chosen=chosen)


@dataclass
class _Cell:
    """One strategy and seed: its fronts, and the bits of the points on them."""

    seed: int
    fronts: list[NDArray[np.intp]]  # positions among the kept points, in order of the choice; one a subset
    clean: NDArray[np.bool_]  # (kept points, report examples)
    robust: NDArray[np.bool_]
    optimistic: float
    best_clean: float
    best_robust: float
    train_seconds: float

    def area(self, clean: Floats, robust: Floats, reference: Reference) -> Floats:
        """The area from accuracies of shape ``(..., kept points)``, averaged over the subsets."""
        areas = [ordered_area(clean[..., front], robust[..., front], reference) for front in self.fronts]
        return np.asarray(np.mean(areas, axis=0))

    def estimate(self, reference: Reference) -> float:
        return float(self.area(self.clean.mean(axis=1), self.robust.mean(axis=1), reference))

    def resampled(self, counts: NDArray[np.float32], reference: Reference) -> Floats:
        return self.area(resampled_means(counts, self.clean), resampled_means(counts, self.robust), reference)


def _compare_one(
    rows: pd.DataFrame, runs: list[Run], reference: Reference, level: float, resamples: int, seed: int
) -> dict[str, Any]:
    """The fields of a :class:`Condition` that depend on its points."""
    groups = [group for _, group in rows.groupby(["label", "seed"], sort=True)]
    budget = (
        int(rows.groupby("run_index").size().min()),
        min(int(group["run_index"].nunique()) for group in groups),
    )
    cells: dict[str, list[_Cell]] = {}
    for group in groups:
        cells.setdefault(str(group["label"].iloc[0]), []).append(_cell(group, runs, budget, reference, seed))
    per_seed = {label: tuple(cell.estimate(reference) for cell in cells[label]) for label in cells}
    estimate = {label: float(np.mean(per_seed[label])) for label in cells}
    resample_seeds = all(len(of_label) >= SEEDS_TO_RESAMPLE for of_label in cells.values())
    examples = int(rows["examples"].iloc[0])
    drawn: dict[str, list[Floats]] = {label: [] for label in cells}
    for counts in resample_counts(examples, resamples, seed):
        for label in cells:
            drawn[label].append(np.stack([cell.resampled(counts, reference) for cell in cells[label]]))
    pooled = {
        label: pool_seeds(
            np.concatenate(drawn[label], axis=1), resample=resample_seeds, seed=seed, name=label
        )
        for label in cells
    }

    ranked = sorted(cells, key=lambda label: (-estimate[label], label))
    shared: dict[str, Any] = {name: str(rows[name].iloc[0]) for name in ("task", "attack", "threat")}
    shared["epsilon"] = float(rows["epsilon"].iloc[0])
    areas = []
    for label in ranked:
        low, high = basic_interval(estimate[label], pooled[label], level)
        areas.append(
            AreaEstimate(
                **shared,
                strategy=label,
                area=estimate[label],
                low=max(0.0, low),
                high=min(1.0, high),
                optimistic=float(np.mean([cell.optimistic for cell in cells[label]])),
                k=budget[0],
                seeds=tuple(cell.seed for cell in cells[label]),
                per_seed=per_seed[label],
                trainable_parameters=int(rows.loc[rows["label"] == label, "trainable_parameters"].max()),
                train_seconds=float(np.mean([cell.train_seconds for cell in cells[label]])),
                best_clean=float(np.mean([cell.best_clean for cell in cells[label]])),
                best_robust=float(np.mean([cell.best_robust for cell in cells[label]])),
            )
        )
    pairs = list(combinations(ranked, 2))
    gaps = [(estimate[a] - estimate[b], pooled[a] - pooled[b]) for a, b in pairs]
    adjusted = holm([p_value(gap, spread) for gap, spread in gaps])
    differences = []
    for (a, b), (gap, spread), p in zip(pairs, gaps, adjusted, strict=True):
        low, high = basic_interval(gap, spread, level)
        differences.append(
            Difference(**shared, strategy_a=a, strategy_b=b, difference=gap, low=low, high=high, p_value=p)
        )
    return {
        **shared,
        "areas": tuple(areas),
        "differences": tuple(differences),
        "k": budget[0],
        "runs_per_seed": budget[1],
        "examples": examples,
        "examples_select": int(rows["examples_select"].iloc[0]),
        "seeds_resampled": resample_seeds,
        "notes": tuple(_notes(rows, runs, budget, len(pairs), level, resamples)),
    }


def _cell(
    rows: pd.DataFrame, runs: list[Run], budget: tuple[int, int], reference: Reference, seed: int
) -> _Cell:
    rows = rows.sort_values(["run_index", "step"])
    select = rows[["clean_select", "robust_select"]].to_numpy(dtype=float)
    report = rows[["clean", "robust"]].to_numpy(dtype=float)
    subsets = _subsets(rows["run_index"].to_numpy(), *budget, seed)
    fronts = [subset[_front(select[subset], reference)] for subset in subsets]
    kept, positions = np.unique(np.concatenate(fronts), return_inverse=True)
    bits = [runs[rows["run_index"].iloc[i]].bits(rows.iloc[i]) for i in kept]
    shape = (len(kept), int(rows["examples"].iloc[0]))
    return _Cell(
        seed=int(rows["seed"].iloc[0]),
        fronts=np.split(positions, np.cumsum([len(front) for front in fronts])[:-1]),
        clean=np.array([b["report/clean"] for b in bits], dtype=bool).reshape(shape),
        robust=np.array([b["report/robust"] for b in bits], dtype=bool).reshape(shape),
        optimistic=float(np.mean([area(report[s, 0], report[s, 1], reference) for s in subsets])),
        best_clean=float(report[np.argmax(select[:, 0]), 0]),
        best_robust=float(report[np.argmax(select[:, 1]), 1]),
        train_seconds=float(rows.groupby("run_index")["train_seconds"].max().sum()),
    )


def _subsets(run_index: NDArray[Any], points: int, runs: int, seed: int) -> list[NDArray[np.intp]]:
    """Positions of ``points`` evenly spaced points, the last included, from each of ``runs`` runs."""
    by_run = [np.flatnonzero(run_index == run) for run in np.unique(run_index)]
    spaced = [rows[np.arange(1, points + 1) * len(rows) // points - 1] for rows in by_run]
    if math.comb(len(spaced), runs) <= CHOICES:
        return [np.concatenate(chosen) for chosen in combinations(spaced, runs)]
    rng = np.random.default_rng((seed, len(spaced), runs))
    choices = [np.sort(rng.choice(len(spaced), size=runs, replace=False)) for _ in range(CHOICES)]
    return [np.concatenate([spaced[i] for i in choice]) for choice in choices]


def _front(select: Floats, reference: Reference) -> NDArray[np.intp]:
    """Positions of the points on the frontier and beyond the reference, by falling clean accuracy."""
    on_front = frontier_mask(select[:, 0], select[:, 1]) & (select > reference).all(axis=1)
    positions = np.flatnonzero(on_front)
    return positions[np.argsort(-select[positions, 0])]


def _check_same_examples(rows: pd.DataFrame, runs: list[Run]) -> None:
    one_each = rows.drop_duplicates("report_id")
    if len(one_each) > 1:
        ids = zip(one_each["run_index"], one_each["report_id"], strict=True)
        names = [f"{runs[index].path} ({report_id})" for index, report_id in ids]
        raise ValueError(
            f"runs of task {rows['task'].iloc[0]!r} were measured on different report examples: "
            f"{', '.join(names[:3])}. Use one data set and one split, or give the tasks different names"
        )


def _notes(
    rows: pd.DataFrame, runs: list[Run], budget: tuple[int, int], pairs: int, level: float, resamples: int
) -> Iterator[str]:
    """What a reader should know before believing the numbers."""
    points, runs_per_seed = budget
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
    unfinished = sorted({runs[index].path.name for index in rows["run_index"] if not runs[index].done})
    if unfinished:
        shown = ", ".join(unfinished[:5]) + (" …" if len(unfinished) > 5 else "")
        yield f"{len(unfinished)} of {rows['run_index'].nunique()} runs are not finished: {shown}."
    if (rows["report_id"] == rows["select_id"]).any():
        yield "Some runs choose and measure on the same examples: their areas are optimistic."
    if pairs * 2 / (resamples + 1) > 1 - level:
        yield f"{resamples} resamples cannot separate {pairs} pairs after Holm's adjustment; raise resamples."


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


__all__ = ["AreaEstimate", "Comparison", "Condition", "Difference", "Recommendation", "compare", "recommend"]
