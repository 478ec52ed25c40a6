"""Areas and volumes with their intervals, and the differences of all pairs, from what was resampled."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from paretune.frontiers.bootstrap import acceleration, basic_interval, bca_interval
from paretune.frontiers.cells import Samples, Trained
from paretune.frontiers.deciding import Floats
from paretune.frontiers.inference import shares_around, tell_apart
from paretune.frontiers.repeats import combined
from paretune.frontiers.resampling import SEEDS_TO_RESAMPLE, R, Resampled, Resampling, resample_strategies
from paretune.frontiers.settings import Settings
from paretune.frontiers.verdict import AreaEstimate, Difference, with_p_best


@dataclass(frozen=True)
class Estimated:
    """Areas or volumes, the largest first, and the differences of all pairs."""

    areas: tuple[AreaEstimate, ...]
    differences: tuple[Difference, ...]
    seeds_resampled: bool  # whether intervals and tests cover the luck of training


def estimated(
    cells: Mapping[str, Sequence[Trained[Resampling[R]]]],
    samples: Samples,
    reference: R,
    rows: pd.DataFrame,
    k: int,
    settings: Settings,
) -> Estimated:
    """Estimate and test all strategies.

    Args:
        cells: of each strategy, one for each seed.
        samples: that they share.
        reference: where areas or volumes start.
        rows: the points of the condition.
        k: points of each run that are used.
        settings: of the intervals and tests.
    """
    of_label = {label: [trained.cell for trained in cells[label]] for label in cells}
    resampled, seeds_resampled = resample_strategies(
        of_label, samples, reference, settings.resamples, settings.seed, settings.level
    )
    ranked = sorted(cells, key=lambda label: (-resampled[label].area, label))
    shared = condition_of(rows)
    areas = []
    for label in ranked:
        estimate, trained = resampled[label], cells[label]
        low, high = _interval(estimate.area, estimate.all, estimate.influence, settings)
        areas.append(
            AreaEstimate(
                **shared,
                strategy=label,
                area=estimate.area,
                low=min(estimate.area, max(0.0, low)),
                high=max(estimate.area, min(1.0, high)),
                optimistic=float(np.mean([one.optimistic for one in trained])),
                k=k,
                seeds=tuple(one.seed for one in trained),
                per_seed=estimate.per_seed,
                trainable_parameters=int(rows.loc[rows["label"] == label, "trainable_parameters"].max()),
                train_seconds=float(np.mean([one.train_seconds for one in trained])),
                best_clean=float(np.mean([one.best_clean for one in trained])),
                best_robust=float(np.mean([one.best_robust for one in trained])),
                p_best=1.0,
            )
        )
    differences = _differences(ranked, resampled, shared, settings)
    return Estimated(with_p_best(areas, differences), tuple(differences), seeds_resampled)


def condition_of(rows: pd.DataFrame) -> dict[str, Any]:
    """Task, attack, threat and epsilon that the rows share."""
    shared: dict[str, Any] = {name: str(rows[name].iloc[0]) for name in ("task", "attack", "threat")}
    return {**shared, "epsilon": float(rows["epsilon"].iloc[0])}


def _differences(
    ranked: list[str], resampled: dict[str, Resampled], shared: dict[str, Any], settings: Settings
) -> list[Difference]:
    tested = tell_apart(
        np.array([resampled[label].area for label in ranked]),
        np.stack([resampled[label].all for label in ranked]),
        settings.level,
    )
    differences = []
    seeds = min(len(estimate.per_seed) for estimate in resampled.values())
    for (a_name, b_name), adjusted, alone, half in zip(combinations(ranked, 2), *tested, strict=True):
        a, b = resampled[a_name], resampled[b_name]
        gap = a.area - b.area
        behind, equivalent, ahead = shares_around(gap, a.all - b.all, settings.margin)
        errors = (a.seed_error, b.seed_error)
        of_examples = float(np.sqrt(np.var(a.report - b.report) + np.var(a.choice - b.choice)))
        of_seeds = None if None in errors else math.hypot(*(e for e in errors if e is not None))
        sources = [(of_examples, len(a.influence) - 1)]
        if seeds >= SEEDS_TO_RESAMPLE and of_seeds is not None:
            sources.append((of_seeds, seeds - 1))
        differences.append(
            Difference(
                **shared,
                strategy_a=a_name,
                strategy_b=b_name,
                difference=gap,
                low=gap - float(half),
                high=gap + float(half),
                p_value=float(adjusted),
                p_unadjusted=float(alone),
                margin=settings.margin,
                ahead=ahead,
                equivalent=equivalent,
                behind=behind,
                spread=combined(gap, sources),
                error_examples=of_examples,
                error_seeds=of_seeds,
            )
        )
    return differences


def _interval(
    estimate: float, resampled: Floats, influence: Floats, settings: Settings
) -> tuple[float, float]:
    if settings.interval == "basic":
        return basic_interval(estimate, resampled, settings.level)
    return bca_interval(estimate, resampled, settings.level, acceleration(influence))
