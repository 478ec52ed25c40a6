"""The third axis: clean, robust and shifted accuracy together, of the strategies that were measured on the same.

Shifted accuracy is clean accuracy on all images elsewhere (other domains, corrupted images, any shift) taken together, each
image once. It chooses nothing: checkpoints are chosen by clean and robust accuracy on the select split, as for areas. Their
volume (:mod:`paretune.frontiers.volumes`) starts where areas do, and on the third axis at the clean reference, as shifted
accuracy is a clean one. Budgets, seeds, intervals and tests are those of areas, with the same resamples of the report
images. Volumes decide only where :func:`paretune.compare` is asked to go ``by="volume"``.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from paretune.frontiers.cells import Cell, Samples, Trained, spaced_subsets
from paretune.frontiers.deciding import listed
from paretune.frontiers.estimates import estimated
from paretune.frontiers.notes import EXAMPLES_ENOUGH
from paretune.frontiers.solids import Course, Places, Solid, load_course, mean_of, places_of
from paretune.frontiers.tracking import slopes
from paretune.frontiers.verdict import Condition
from paretune.frontiers.volumes import volume
from paretune.runs.store import Run


def with_third_axis(
    condition: Condition,
    rows: pd.DataFrame,
    runs: list[Run],
    cells: Mapping[str, Sequence[Trained[Cell]]],
    samples: Samples,
) -> Condition:
    """The condition with volumes and slopes, where there are shifted accuracies.

    Args:
        condition: judged by areas.
        rows: its points.
        runs: that they index.
        cells: of each strategy, one for each seed.
        samples: that areas are measured with.

    Raises:
        ValueError: volumes are to decide, and a strategy has none.
    """
    settings = condition.settings
    ranked = [area.strategy for area in condition.areas]
    places, labels = places_of(rows, ranked) or (Places({}, {}), [])
    tiny = [name for name, size in places.apart.items() if size < 2]
    lacking = [label for label in ranked if tiny or label not in labels]
    if settings.by == "volume" and lacking:
        why = (
            f"{tiny[0]!r} has a single image, which cannot be resampled"
            if tiny
            else f"{listed(lacking)} {'was' if len(lacking) == 1 else 'were'} not measured on the same ones at every point"
        )
        raise ValueError(
            f"by='volume' needs accuracies on shifted images, but of task {condition.task!r} {why}; train with shifts or "
            "domains, leave these strategies out, or go by='area'"
        )
    if not labels or tiny:
        return condition
    drawn = samples.with_apart(places.apart, settings.seed)
    courses: dict[str, list[Course]] = {}
    solids: dict[str, list[Trained[Solid]]] = {}
    for label in labels:
        of_seeds = [of_seed for _, of_seed in rows[rows["label"] == label].groupby("seed", sort=True)]
        courses[label] = [load_course(of_seed, runs, places, drawn) for of_seed in of_seeds]
        solids[label] = [
            _solid(course, trained, condition, drawn)
            for course, trained in zip(courses[label], cells[label], strict=True)
        ]
    judged = estimated(solids, drawn, settings.corner, rows, condition.k, settings)
    volumes = dataclasses.replace(
        condition,
        areas=judged.areas,
        differences=judged.differences,
        seeds_resampled=judged.seeds_resampled,
        notes=tuple(_notes(lacking, places)),
        elsewhere=(),
        corner=settings.corner,
        shifted=places.examples,
    )
    return dataclasses.replace(condition, volumes=volumes, slopes=slopes(courses, drawn, settings))


def _solid(course: Course, trained: Trained[Cell], condition: Condition, samples: Samples) -> Trained[Solid]:
    settings = condition.settings
    subsets = spaced_subsets(course.runs, condition.k, condition.runs_per_seed, settings.seed)
    clean, robust, shifted = (mean_of(accuracy) for accuracy in course.accuracies)
    return Trained(
        Solid.of(course, subsets, settings.corner, samples),
        trained.seed,
        float(np.mean([volume(clean[s], robust[s], shifted[s], settings.corner) for s in subsets])),
        trained.best_clean,
        trained.best_robust,
        trained.train_seconds,
    )


def _notes(lacking: Sequence[str], places: Places) -> Iterator[str]:
    if lacking:
        yield f"Not measured on the same shifted images at every point, and without a volume: {listed(lacking)}."
    for name, size in places.apart.items():
        if size < EXAMPLES_ENOUGH:
            yield f"There are {size} images of {name}; intervals were not verified below {EXAMPLES_ENOUGH}."
