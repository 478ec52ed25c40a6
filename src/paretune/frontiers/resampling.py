"""The errors of each strategy's area or volume, drawn jointly: from examples, from the choice, from training seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from paretune.frontiers.bootstrap import expanded, seed_error, seed_luck
from paretune.frontiers.cells import SELECTIONS, Counts, Samples, choice_errors
from paretune.frontiers.deciding import Floats

SEEDS_TO_RESAMPLE = 5  # of fewer, the spread between seeds is hardly known


R = TypeVar("R", contravariant=True)


class Resampling(Protocol[R]):
    """One strategy and seed: :class:`paretune.frontiers.cells.Cell`, or the like for volumes."""

    @property
    def chosen(self) -> Floats:
        """What resampled fronts give, on all and on half the examples."""

    def estimate(self, reference: R) -> float:
        """The area on the examples."""

    def resampled(self, counts: Counts, samples: Samples, reference: R) -> Floats:
        """The area on resampled examples, shape ``(block,)``."""

    def influence(self, samples: Samples, reference: R) -> Floats:
        """How much each unit moves the area, up to a factor."""


@dataclass(frozen=True, eq=False)
class Resampled:
    """One strategy: its area, and ``resamples`` draws of each of its errors, shape ``(resamples,)`` each."""

    area: float
    per_seed: tuple[float, ...]
    report: Floats  # resampled areas; the draws of all strategies share their examples
    choice: Floats
    luck: Floats  # of the training seeds; zeros where these are not resampled
    seed_error: float | None  # standard error; None from one seed
    influence: Floats  # of the units

    @property
    def all(self) -> Floats:
        """Resampled areas with every error that the interval covers."""
        total: Floats = self.report + self.choice + self.luck
        return total


def resample_strategies(
    cells: Mapping[str, Sequence[Resampling[R]]],
    samples: Samples,
    reference: R,
    resamples: int,
    seed: int,
    level: float,
) -> tuple[dict[str, Resampled], bool]:
    """The errors of each strategy, and whether they hold the luck of training seeds."""
    drawn: dict[str, list[Floats]] = {label: [] for label in cells}
    for counts in samples.drawn(resamples, seed):
        for label in cells:
            areas = [cell.resampled(counts, samples, reference) for cell in cells[label]]
            drawn[label].append(np.stack(areas))
    repeated = np.arange(resamples) % SELECTIONS  # with other report examples each time
    enough = all(len(of_label) >= SEEDS_TO_RESAMPLE for of_label in cells.values())
    result = {}
    for label, of_label in cells.items():
        per_seed = np.array([cell.estimate(reference) for cell in of_label])
        report = np.concatenate(drawn[label], axis=1)
        error = seed_error(per_seed) if len(of_label) > 1 else None
        result[label] = Resampled(
            area=float(per_seed.mean()),
            per_seed=tuple(per_seed.tolist()),
            report=expanded(report.mean(axis=0), samples.fewest, level),
            choice=choice_errors(np.mean([cell.chosen for cell in of_label], axis=0))[repeated],
            luck=seed_luck(error, len(of_label), resamples, seed, label)
            if enough and error is not None
            else np.zeros(resamples),
            seed_error=error,
            influence=np.mean([cell.influence(samples, reference) for cell in of_label], axis=0),
        )
    return result, enough
