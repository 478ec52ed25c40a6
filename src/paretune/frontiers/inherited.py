"""How much fine-tuning on one task costs or gives on related ones: the inheritance of ImageNet-RIB.

Hwang et al. 2024, "ImageNet-RIB Benchmark", https://arxiv.org/abs/2410.21582. A model is fine-tuned on each task D_i of
n with one label space, and measured on all others, before and after:

    RI_i = 1/(n - 1) sum_{j != i} (A_i^(j) - A_pre^(j)),    mRI = 1/n sum_i RI_i

with A_i^(j) the accuracy on D_j after training on D_i. Both are linear in the correctness of single examples, so that their
bootstrap is exact, and paired: all methods, all seeds and the model before are measured on the same resampled examples. What
is drawn are units: an example, or all that shows one picture where tasks are versions of the same ones, such as corruptions.
Units are drawn apart for each combination of tasks that they are in, which leaves every task its number of units.

The tasks are not drawn: what is said is about these tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paretune.frontiers.bootstrap import (
    Bits,
    Units,
    basic_interval,
    expanded,
    resample_counts,
    seed_error,
    seed_luck,
)
from paretune.frontiers.deciding import Floats
from paretune.frontiers.inference import tell_apart
from paretune.frontiers.inheritance import Inheritance, Inherited, Interval, MethodGap
from paretune.frontiers.resampling import SEEDS_TO_RESAMPLE
from paretune.frontiers.settings import Settings

BySet = Mapping[str, Bits]  # which examples of each measured set are right, shape (examples,)
BySeed = Mapping[int, BySet]


def robustness_inheritance(after: ArrayLike, before: ArrayLike) -> Floats:
    """RI of each task: ``after[i, j]`` is the accuracy on task j of what was fine-tuned on task i, ``before[j]`` before.

    Args:
        after: shape ``(..., tasks, tasks)``.
        before: shape ``(..., tasks)``.

    Returns:
        Shape ``(..., tasks)``, of which the mean is mRI.
    """
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)[..., None, :]
    tasks = change.shape[-1]
    others = np.where(np.eye(tasks, dtype=bool), 0.0, change)
    return np.asarray(others.sum(axis=-1) / (tasks - 1))


def inherited(
    before: BySet,
    after: Mapping[str, Mapping[str, BySeed]],
    *,
    accuracy: str = "clean",
    pretraining: str | None = None,
    units: Mapping[str, ArrayLike] | None = None,
    level: float = 0.95,
    margin: float = 0.005,
    resamples: int = 2000,
    seed: int = 0,
) -> Inheritance:
    """Rank methods by what is left, on related tasks, of the model that they fine-tune.

    Args:
        before: which examples the model gets right before fine-tuning, of each set.
        after: likewise of each method, of each task that it was fine-tuned on and of each seed.
        accuracy: what the bits are called.
        pretraining: name of the set of the pretraining task, which is measured and never fine-tuned on.
        units: a label for each example of each set; equal ones are drawn together, also in different sets. None draws each
            example alone.
        level: of intervals and tests.
        margin: mRI closer than this are equal for practical purposes.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: there are fewer than two tasks, methods differ in their tasks or seeds, or bits or units in their length.
    """
    settings = Settings(level=level, margin=margin, resamples=resamples, seed=seed)
    tasks, seeds = _checked(before, after, pretraining)
    labels = {name: np.asarray((units or {}).get(name, _apart(name, bits))) for name, bits in before.items()}
    for name, of_set in labels.items():
        if of_set.shape != before[name].shape:
            raise ValueError(
                f"units of {name!r} need one label an example, {len(before[name])}; got {of_set.shape}"
            )
    rows = {
        name: np.stack(
            [
                before[name],
                *(
                    bits[name]
                    for by_task in after.values()
                    for task in tasks
                    for bits in by_task[task].values()
                ),
            ]
        )
        for name in before
    }
    shape = (len(after), len(tasks), len(seeds))
    exact = _Table.of(
        {name: bits.mean(axis=1)[None] for name, bits in rows.items()}, shape, tasks, pretraining
    )
    drawn = _Table.of(_resampled(rows, labels, settings), shape, tasks, pretraining)
    fewest = min(len(np.unique(of_set)) for of_set in labels.values())

    def spread(name: str, estimates: Floats, draws: Floats) -> Floats:
        """Draws of the mean over seeds: ``estimates`` has the shape ``(seeds,)``, ``draws`` ``(resamples, seeds)``."""
        of_mean = expanded(draws.mean(axis=1), fewest, level) if fewest > 1 else draws.mean(axis=1)
        if len(seeds) >= SEEDS_TO_RESAMPLE:
            of_mean = of_mean + seed_luck(seed_error(estimates), len(seeds), resamples, seed, name)
        return of_mean

    def interval(name: str, estimates: Floats, draws: Floats) -> Interval:
        mean = float(estimates.mean())
        low, high = basic_interval(mean, spread(name, estimates, draws), level)
        return Interval(mean, max(-1.0, low), min(1.0, high))

    methods, errors = [], []
    for number, method in enumerate(after):
        means = exact.after[0, number].mean(axis=1)  # (tasks, sets)
        errors.append(spread(method, exact.mri[0, number], drawn.mri[:, number]))
        methods.append(
            Inherited(
                method=method,
                mri=interval(method, exact.mri[0, number], drawn.mri[:, number]),
                per_seed=tuple(exact.mri[0, number].tolist()),
                ri={
                    task: interval(f"{method}/{task}", exact.ri[0, number, place], drawn.ri[:, number, place])
                    for place, task in enumerate(tasks)
                },
                gain=interval(f"{method}/gain", exact.gain[0, number], drawn.gain[:, number]),
                drop=None
                if pretraining is None
                else interval(f"{method}/drop", exact.drop[0, number], drawn.drop[:, number]),
                after={
                    task: dict(zip(exact.sets, row.tolist(), strict=True))
                    for task, row in zip(tasks, means, strict=True)
                },
            )
        )
    order = np.argsort([-method.mri.estimate for method in methods], kind="stable").tolist()
    methods, errors = [methods[place] for place in order], [errors[place] for place in order]
    return Inheritance(
        accuracy=accuracy,
        tasks=tasks,
        pretraining=pretraining,
        before=dict(zip(exact.sets, exact.before[0].tolist(), strict=True)),
        examples={name: len(before[name]) for name in exact.sets},
        methods=tuple(methods),
        differences=_differences(methods, errors, level),
        seeds=seeds,
        settings=settings,
    )


def _differences(
    methods: Sequence[Inherited], errors: Sequence[Floats], level: float
) -> tuple[MethodGap, ...]:
    if len(methods) < 2:
        return ()
    estimates = np.array([method.mri.estimate for method in methods])
    adjusted, _, half = tell_apart(estimates, np.stack(errors), level)
    return tuple(
        MethodGap(a.method, b.method, gap, gap - float(width), gap + float(width), float(p_value))
        for (a, b), width, p_value in zip(combinations(methods, 2), half, adjusted, strict=True)
        for gap in [a.mri.estimate - b.mri.estimate]
    )


@dataclass(frozen=True, eq=False)
class _Table:
    """Accuracies, many times over: of one draw of the examples or of many.

    Args:
        sets: names of what is measured, the tasks first.
        before: shape ``(draws, sets)``.
        after: shape ``(draws, methods, tasks, seeds, sets)``.
    """

    sets: tuple[str, ...]
    before: Floats
    after: Floats

    @classmethod
    def of(
        cls,
        means: Mapping[str, Floats],
        shape: tuple[int, int, int],
        tasks: tuple[str, ...],
        pretraining: str | None,
    ) -> "_Table":
        sets = (*tasks, *([] if pretraining is None else [pretraining]))
        before = np.stack([means[name][:, 0] for name in sets], axis=-1)
        after = np.stack([means[name][:, 1:].reshape(-1, *shape) for name in sets], axis=-1)
        return cls(sets, before, after)

    @cached_property
    def ri(self) -> Floats:
        """``(draws, methods, tasks, seeds)``."""
        count = self.after.shape[2]
        square = np.moveaxis(self.after[..., :count], 2, 3)  # (draws, methods, seeds, tasks, tasks)
        return np.moveaxis(robustness_inheritance(square, self.before[:, None, None, :count]), -1, 2)

    @cached_property
    def mri(self) -> Floats:
        """``(draws, methods, seeds)``."""
        return np.asarray(self.ri.mean(axis=2))

    @cached_property
    def gain(self) -> Floats:
        """``(draws, methods, seeds)``."""
        count = self.after.shape[2]
        on_itself = np.diagonal(self.after[..., :count], axis1=2, axis2=4)  # (draws, methods, seeds, tasks)
        return np.asarray((on_itself - self.before[:, None, None, :count]).mean(axis=-1))

    @cached_property
    def drop(self) -> Floats:
        """``(draws, methods, seeds)``, of the last set."""
        return np.asarray(self.before[:, None, None, -1] - self.after[..., -1].mean(axis=2))


def _resampled(
    rows: Mapping[str, Bits], labels: Mapping[str, NDArray[np.generic]], settings: Settings
) -> dict[str, Floats]:
    """Accuracies on resampled examples, shape ``(resamples, rows)`` of each set.

    Args:
        rows: bits of each set, shape ``(rows, examples)``.
        labels: the unit of each example.
        settings: resamples and seed.
    """
    names = [*rows]
    _, codes = np.unique(np.concatenate([labels[name] for name in names]), return_inverse=True)
    by_set = np.split(codes, np.cumsum([len(labels[name]) for name in names])[:-1])
    present = np.zeros((int(codes.max()) + 1, len(names)), dtype=bool)
    for place, of_set in enumerate(by_set):
        present[of_set, place] = True
    kinds, kind_of = np.unique(present, axis=0, return_inverse=True)
    right = {name: np.zeros((settings.resamples, len(bits))) for name, bits in rows.items()}
    total = {name: np.zeros((settings.resamples, 1)) for name in names}
    for kind, among in enumerate(kinds):
        parts = {}
        for place in np.flatnonzero(among).tolist():
            inside = np.flatnonzero(kind_of[by_set[place]] == kind)
            # All sets of a kind have its units, in the order of their codes.
            parts[names[place]] = inside, Units.of(len(inside), by_set[place][inside])
        count, start = int((kind_of == kind).sum()), 0
        for counts in resample_counts(count, settings.resamples, settings.seed + kind):
            block = slice(start, start := start + len(counts))
            for name, (inside, units) in parts.items():
                right[name][block] += counts @ units.right(rows[name][:, inside]).T
                total[name][block] += (counts @ units.sizes)[:, None]
    return {name: right[name] / total[name] for name in names}


def _apart(name: str, bits: Bits) -> list[str]:
    """Labels that no other set has."""
    return [f"{name}/{place}" for place in range(len(bits))]


def _checked(
    before: BySet, after: Mapping[str, Mapping[str, BySeed]], pretraining: str | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Tasks and seeds."""
    tasks = tuple(name for name in before if name != pretraining)
    if pretraining is not None and pretraining not in before:
        raise ValueError(
            f"pretraining={pretraining!r} was not measured before; there are {', '.join(before)}"
        )
    if len(tasks) < 2:
        raise ValueError(
            f"inheritance is measured on the tasks that are not fine-tuned on: give at least two, got {tasks}"
        )
    if not after:
        raise ValueError("after is empty; give the bits of at least one method")
    seeds: tuple[int, ...] | None = None
    for method, by_task in after.items():
        if {*by_task} != {*tasks}:
            raise ValueError(
                f"{method} was fine-tuned on {', '.join(by_task)}; the tasks are {', '.join(tasks)}"
            )
        for task, by_seed in by_task.items():
            seeds = seeds or tuple(by_seed)
            if tuple(by_seed) != seeds or not by_seed:
                raise ValueError(
                    f"{method} has the seeds {[*by_seed]} on {task}, and others have {[*(seeds or ())]}"
                )
            for bits in by_seed.values():
                for name, seen in before.items():
                    if name not in bits or bits[name].shape != seen.shape:
                        got = bits[name].shape if name in bits else "nothing"
                        raise ValueError(
                            f"{method} fine-tuned on {task} was measured on other examples of {name!r} than before: "
                            f"{got} and {seen.shape}"
                        )
    assert seeds is not None
    return tasks, seeds
