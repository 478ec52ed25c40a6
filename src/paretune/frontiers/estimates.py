"""Areas and volumes with their intervals, and the differences of all pairs, from what was resampled."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from paretune.frontiers.bootstrap import acceleration, basic_interval, bca_interval
from paretune.frontiers.deciding import Floats
from paretune.frontiers.inference import shares_around, tell_apart
from paretune.frontiers.repeats import combined
from paretune.frontiers.resampling import SEEDS_TO_RESAMPLE, Resampled
from paretune.frontiers.settings import Settings
from paretune.frontiers.verdict import AreaEstimate, Difference, with_p_best

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
