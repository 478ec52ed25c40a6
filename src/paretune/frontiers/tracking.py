"""Does shifted accuracy track clean accuracy? Its slope along training, with an interval.

The points of a run are a course: as clean accuracy x changes from point to point, so does shifted accuracy y. Within runs,
and over all of them,

    slope = (Sxy - Cxy) / (Sxx - Cxx),

where S are sums of squares and products around the means of each run, and C is what the sampling of the examples adds to
them in expectation, known from the answers to each example. Without C, noise in x would flatten the slope, and noise that
paired images share would pull it to their own: Fuller, "Measurement Error Models" (1987), section 1.2,
https://doi.org/10.1002/9780470316665. Runs share the slope and have levels of their own.

Intervals are bootstrap intervals over the examples, with the resamples of volumes; from five training seeds on they cover
the spread between these too, as in clustered regression. Li et al. (ICCV 2025) find that over fine-tuning, robustness out of
distribution tracks clean accuracy; a slope near 1 with a correlation near 1 says so of one task. It does not say that the
one makes the other: both follow training. Nor does it compare strategies at one clean accuracy, or hold where the course
has not been.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.frontiers.bootstrap import basic_interval, expanded, seed_error, seed_luck
from paretune.frontiers.cells import Samples
from paretune.frontiers.deciding import Floats
from paretune.frontiers.resampling import SEEDS_TO_RESAMPLE
from paretune.frontiers.settings import Settings
from paretune.frontiers.solids import Accuracy, Course, mean_of, means_of

RELIABLE = 0.8  # of the variance of x along training, at least, must be more than the sampling of examples
LEAST_POINTS = 3  # of a run, on average


@dataclass(frozen=True)
class Slope:
    """How shifted accuracy changes with another one along the training of one strategy.

    Args:
        strategy: its label.
        accuracy: the other one, ``clean`` or ``robust``, on the report split.
        slope: points of shifted accuracy for each point of the other; None where this hardly moves, or points are few.
        low: end of the interval.
        high: end of the interval.
        correlation: of the two along training, without the noise of the examples; None where either hardly moves.
        moves: standard deviation of the other accuracy along training, around the mean of each run.
        points: of all runs.
        per_seed: slopes; empty where one of them is not known.
    """

    strategy: str
    accuracy: str
    slope: float | None
    low: float | None
    high: float | None
    correlation: float | None
    moves: float
    points: int
    per_seed: tuple[float, ...]


def slopes(
    courses: Mapping[str, Sequence[Course]], samples: Samples, settings: Settings
) -> tuple[Slope, ...]:
    """The slopes of each strategy, on clean and then on robust accuracy.

    Args:
        courses: of each strategy, one for each seed.
        samples: those that the courses were loaded with.
        settings: of the intervals.
    """
    drawn: dict[tuple[str, str], list[Floats]] = {}
    for counts in samples.drawn(settings.resamples, settings.seed):
        for label, of_label in courses.items():
            moments: dict[str, list[Floats]] = {"clean": [], "robust": []}
            for course in of_label:
                clean, robust, shifted = (means_of(accuracy, counts) for accuracy in course.accuracies)
                for name, of_points in (("clean", clean), ("robust", robust)):
                    moments[name].append(_moments(of_points, shifted, course.runs))
            for name, of_seeds in moments.items():
                drawn.setdefault((label, name), []).append(np.sum(of_seeds, axis=0))
    return tuple(
        _slope(label, name, of_label, np.concatenate(drawn[label, name], axis=1), samples, settings)
        for label, of_label in courses.items()
        for name in ("clean", "robust")
    )


def _slope(
    label: str, name: str, courses: Sequence[Course], drawn: Floats, samples: Samples, settings: Settings
) -> Slope:
    """Of one strategy; ``drawn`` are resampled moments, shape ``(3, resamples)``."""
    pairs = [(course.clean if name == "clean" else course.robust, course.shifted) for course in courses]
    both = [*zip(pairs, courses, strict=True)]
    whole = np.stack([_moments(mean_of(x), mean_of(y), course.runs) for (x, y), course in both])
    noise = np.array(
        [[_noise(*pair, course.runs) for pair in ((x, x), (x, y), (y, y))] for (x, y), course in both]
    )
    of_seeds = whole - noise  # (seeds, 3)
    runs = sum(len(np.unique(course.runs)) for course in courses)
    points = sum(len(course.runs) for course in courses)
    xx, xy, yy = of_seeds.sum(axis=0).tolist()
    moves = float(np.sqrt(max(0.0, xx) / max(1, points - runs)))
    if points < LEAST_POINTS * runs or xx <= 0 or xx < RELIABLE * whole[:, 0].sum():
        return Slope(label, name, None, None, None, None, moves, points, ())
    slope = xy / xx
    # A resample of a sample has the noise of both.
    resampled = (drawn[1] - 2 * noise[:, 1].sum()) / (drawn[0] - 2 * noise[:, 0].sum())
    resampled = expanded(resampled, samples.fewest, settings.level)
    if len(courses) >= SEEDS_TO_RESAMPLE:
        pulls = (of_seeds[:, 1] - slope * of_seeds[:, 0]) / of_seeds[:, 0].mean()
        error = seed_error(pulls)
        resampled = resampled + seed_luck(error, len(courses), settings.resamples, settings.seed, label)
    low, high = basic_interval(slope, resampled, settings.level)
    related = float(np.clip(xy / np.sqrt(xx * yy), -1, 1)) if yy > 0 else None
    per_seed = tuple((of_seeds[:, 1] / of_seeds[:, 0]).tolist()) if (of_seeds[:, 0] > 0).all() else ()
    return Slope(label, name, slope, min(low, slope), max(high, slope), related, moves, points, per_seed)


def _moments(x: Floats, y: Floats, runs: NDArray[Any]) -> Floats:
    """Sums of squares of x, of products, of squares of y, around the means of each run: shape ``(3, ...)``."""
    x, y = _within(x, runs), _within(y, runs)
    return np.stack([(x * x).sum(axis=-1), (x * y).sum(axis=-1), (y * y).sum(axis=-1)])


def _within(values: Floats, runs: NDArray[Any]) -> Floats:
    """The last axis around the means of each run."""
    centred = np.array(values, dtype=float)
    for run in np.unique(runs):
        of_run = runs == run
        centred[..., of_run] -= centred[..., of_run].mean(axis=-1, keepdims=True)
    return centred


def _noise(x: Accuracy, y: Accuracy, runs: NDArray[Any]) -> float:
    """What the sampling of the examples adds to the sum of products, in expectation."""
    total = 0.0
    for of_x in x:
        for of_y in y:
            if of_x.drawn == of_y.drawn:
                errors = [_within(share.errors.T, runs) for share in (of_x, of_y)]
                total += float((errors[0] * errors[1]).sum()) * len(of_x.sizes) / (len(of_x.sizes) - 1)
    return total


def slope_numbers(told: Sequence[Slope]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of a table: each strategy with its slope and correlation, on clean and on robust accuracy."""
    by_name = {(slope.strategy, slope.accuracy): slope for slope in told}
    rows = []
    for strategy in dict.fromkeys(slope.strategy for slope in told):
        both = [by_name[strategy, name] for name in ("clean", "robust")]
        cells = [text for slope in both for text in (slope_text(slope), correlation_text(slope))]
        rows.append([strategy, *cells, str(both[0].points)])
    head = ["strategy", "slope on clean", "correlation", "slope on robust", "correlation, robust", "points"]
    return head, rows


def slope_text(slope: Slope) -> str:
    """The slope with its interval, or why there is none."""
    if slope.slope is None:
        return f"{slope.points} points that move by {100 * slope.moves:.1f} % only"
    return f"{slope.slope:.2f} ({slope.low:.2f} to {slope.high:.2f})".replace("-", "−")


def correlation_text(slope: Slope) -> str:
    """The correlation with two digits, or a dash."""
    return "–" if slope.correlation is None else f"{slope.correlation:.2f}".replace("-", "−")
