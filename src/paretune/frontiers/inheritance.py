"""What is left on related tasks of a model that is fine-tuned on one of them: the answer of the inheritance protocol.

:mod:`paretune.frontiers.inherited` computes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from paretune.frontiers.deciding import Certainty, Decision, decide, listed, p_matrix, within
from paretune.frontiers.resampling import SEEDS_TO_RESAMPLE
from paretune.frontiers.settings import Settings


class Interval(NamedTuple):
    """An estimate and the ends of its interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


@dataclass(frozen=True)
class Inherited:
    """What one method makes of the model that it begins with; differences of accuracies, averaged over seeds.

    Args:
        method: its label.
        mri: the mean of the RI.
        per_seed: mRI of each seed.
        ri: of each task that is fine-tuned on.
        gain: accuracy on the task that is fine-tuned on, after minus before, averaged over the tasks.
        drop: accuracy on the pretraining task, before minus after, averaged over the tasks; None where it was not measured.
        after: the task that was fine-tuned on, the set that was measured, and the accuracy.
    """

    method: str
    mri: Interval
    per_seed: tuple[float, ...]
    ri: Mapping[str, Interval]
    gain: Interval
    drop: Interval | None
    after: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class MethodGap:
    """mRI(method_a) - mRI(method_b), with the interval of this pair alone and a p-value adjusted over all pairs."""

    method_a: str
    method_b: str
    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Inheritance:
    """Methods by falling mRI, of one accuracy.

    Args:
        accuracy: which one: ``"clean"``, or ``"robust"`` under the attack of the runs.
        tasks: that are fine-tuned on and measured.
        pretraining: name of the set that measures the pretraining task; None where there is none.
        before: accuracy of the model before fine-tuning, on each set.
        examples: of each set.
        methods: the largest mRI first.
        differences: of all pairs.
        seeds: of training.
        settings: level, margin and resamples.
    """

    accuracy: str
    tasks: tuple[str, ...]
    pretraining: str | None
    before: Mapping[str, float]
    examples: Mapping[str, int]
    methods: tuple[Inherited, ...]
    differences: tuple[MethodGap, ...]
    seeds: tuple[int, ...]
    settings: Settings

    @property
    def best(self) -> Inherited:
        """The largest mRI."""
        return self.methods[0]

    @property
    def decision(self) -> Decision:
        """What the tests decide; everything that is said follows from it."""
        names = [inherited.method for inherited in self.methods]
        tests = ((gap.method_a, gap.method_b, gap.p_value) for gap in self.differences)
        sizes = [inherited.mri.estimate for inherited in self.methods]
        return decide(sizes, p_matrix(names, tests), level=self.settings.level, margin=self.settings.margin)

    @property
    def certainty(self) -> Certainty:
        """See :class:`paretune.frontiers.verdict.Recommendation`."""
        to_best = (gap for gap in self.differences if gap.method_a == self.best.method)
        near = within(((gap.low, gap.high) for gap in to_best), self.settings.margin)
        return self.decision.certainty(equivalent=near)

    @property
    def tied(self) -> tuple[str, ...]:
        """The largest mRI, and all that are not told to be behind another by the margin or more."""
        return tuple(
            inherited.method
            for inherited, one in zip(self.methods, self.decision.tied, strict=True)
            if bool(one)
        )

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        best, level = self.best, f"{100 * self.settings.level:g}% interval"
        said = f"{best.method} has an mRI of {best.mri.estimate:+.3f} ({level} {best.mri.low:+.3f} to {best.mri.high:+.3f})"
        others = [name for name in self.tied if name != best.method]
        verb = "is" if len(others) == 1 else "are"
        if len(self.methods) > 1:
            said += ", the largest"
        if self.certainty == "clear":
            said += "; every other method is told to be behind it"
        elif self.certainty == "equivalent":
            said += f"; all differ by less than {self.settings.margin:g} for practical purposes"
        elif others:
            said += f"; {listed(others)} {verb} not told to be behind"
        if best.mri.high < 0:
            said += "; even so fine-tuning on one task costs accuracy on the others"
        return f"{said}."

    @property
    def covers(self) -> str:
        """What the intervals are about."""
        trained = f"{len(self.seeds)} training seed" + ("s" if len(self.seeds) > 1 else "")
        if len(self.seeds) >= SEEDS_TO_RESAMPLE:
            return f"Intervals cover the draw of test images and the luck of {trained}, for these tasks."
        return (
            f"Intervals cover the draw of test images, for these tasks; with {trained} they do not cover the luck of "
            f"training, which takes {SEEDS_TO_RESAMPLE}."
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a method: mri, gain and drop with the ends of their intervals, and the RI of each task."""
        rows = []
        for inherited in self.methods:
            row: dict[str, object] = {"accuracy": self.accuracy, "method": inherited.method}
            values = {"mri": inherited.mri, "gain": inherited.gain, "drop": inherited.drop}
            values |= {f"ri {task}": inherited.ri[task] for task in self.tasks}
            for name, value in values.items():
                if value is not None:
                    row |= {name: value.estimate, f"{name} low": value.low, f"{name} high": value.high}
            rows.append(row)
        return pd.DataFrame(rows)

    def matrix(self) -> pd.DataFrame:
        """One row a cell: method, fine_tuned_on, measured_on, examples, before, after, change."""
        return pd.DataFrame(
            [
                {
                    "accuracy": self.accuracy,
                    "method": inherited.method,
                    "fine_tuned_on": task,
                    "measured_on": name,
                    "examples": self.examples[name],
                    "before": self.before[name],
                    "after": accuracy,
                    "change": accuracy - self.before[name],
                }
                for inherited in self.methods
                for task, row in inherited.after.items()
                for name, accuracy in row.items()
            ]
        )


@dataclass(frozen=True)
class Study:
    """The answer of the inheritance protocol.

    Args:
        clean: of clean accuracy.
        robust: of robust accuracy; None where the other tasks were not attacked.
        attack: that robust accuracy is about.
        held_out: whether a task is learnt on its train split and measured on its report split. If not, all of it is learnt
            and measured, as in ImageNet-RIB, and the gain on it is on images that were learnt.
        backbone: the model that is fine-tuned.
        notes: what is to be known of the results.
    """

    clean: Inheritance
    robust: Inheritance | None
    attack: str
    held_out: bool
    backbone: str
    notes: tuple[str, ...] = ()

    @property
    def accuracies(self) -> tuple[Inheritance, ...]:
        """Clean, and robust if it was measured."""
        return (self.clean,) if self.robust is None else (self.clean, self.robust)

    @property
    def protocol(self) -> str:
        """In a sentence."""
        if self.held_out:
            return "Fine-tuned on the train split of each task, measured on the report split of every task."
        return (
            "Fine-tuned on all of each task, as published, and measured on all of every task; what is measured on the task "
            "itself was learnt."
        )

    def to_frame(self) -> pd.DataFrame:
        """:meth:`Inheritance.to_frame` of each accuracy."""
        return pd.concat([answer.to_frame() for answer in self.accuracies], ignore_index=True)

    def matrix(self) -> pd.DataFrame:
        """:meth:`Inheritance.matrix` of each accuracy."""
        return pd.concat([answer.matrix() for answer in self.accuracies], ignore_index=True)
