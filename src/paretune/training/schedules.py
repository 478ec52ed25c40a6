"""How the strength of the attack changes while training."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np

from paretune._values import Value, check_choices, check_whole

Per = Literal["step", "epoch"]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where training is before a step.

    Args:
        step: the step to take; the first is 1.
        total: steps of training.
        per_epoch: steps of an epoch.
        seed: of the run.
        clean: clean accuracy on the select split after each epoch so far, for a schedule that waits for it.
    """

    step: int
    total: int
    per_epoch: int = 1
    seed: int = 0
    clean: Sequence[float] = ()

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return (self.step - 1) // self.per_epoch

    def done(self, per: Per) -> float:
        """Fraction of training that is done: in the middle of the step, or before the first step of its epoch."""
        return (self.step - 0.5 if per == "step" else self.epoch * self.per_epoch) / self.total


@dataclass(frozen=True)
class EpsilonSchedule(Value, ABC):
    """Factor on epsilon over training; :meth:`two_hinge` is the default, ``SCHEDULES`` has all.

    Epsilon-Scheduling of Ngnawe et al. 2026 (https://arxiv.org/abs/2509.23325): attacking at full epsilon from the first
    step can keep a pretrained backbone from learning the task at all. The paper's go epoch by epoch, ``per="epoch"``.
    """

    @abstractmethod
    def factor(self, moment: Moment) -> float:
        """Factor on epsilon in [0, 1], the same within an epoch if the schedule goes ``per`` epoch."""

    def waits(self, clean: Sequence[float]) -> bool:
        """Whether it must know the clean accuracy after the next epoch too, when it knows those of the epochs so far."""
        return False

    def check(self, total: int, per_epoch: int) -> None:
        """Raise ValueError if the attack cannot begin within ``total`` steps, of which an epoch has ``per_epoch``."""

    @staticmethod
    def two_hinge(start: float = 0.25, end: float = 0.75, *, per: Per = "step") -> "TwoHinge":
        """The paper's schedule. Its ablation (Swin-B, Stanford Cars) has (0.24, 0.6) slightly ahead."""
        return TwoHinge(start, end, per=per)

    @staticmethod
    def fixed() -> "Fixed":
        """Full epsilon from the first step."""
        return Fixed()

    @staticmethod
    def linear(end: float = 1.0, *, per: Per = "step") -> "Linear":
        """Linear warm-up from the first step to ``end``."""
        return Linear(end, per=per)

    @staticmethod
    def auto(patience: int = 5, tolerance: float = 0.02, *, per: Per = "step") -> "Auto":
        """No attack until clean accuracy stops improving, then linear to the end."""
        return Auto(patience, tolerance, per=per)

    @staticmethod
    def uniform(*, per: Per = "step") -> "Uniform":
        """A random factor, as a control."""
        return Uniform(per=per)


@dataclass(frozen=True)
class TwoHinge(EpsilonSchedule):
    """0 until ``start``, linear to ``end``, then 1: equation 3 of the paper, with T1 and T2 as fractions of training.

    Args:
        start: T1, fraction of training without attack, in [0, 1].
        end: T2, fraction of training from which on the attack is at full strength, in [start, 1].
        per: whether the factor changes with each step or each epoch.
    """

    start: float = 0.25
    end: float = 0.75
    _: KW_ONLY
    per: Per = "step"

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(
                f"need 0 <= start <= end <= 1 as fractions of training, got start={self.start}, end={self.end}"
            )

    def factor(self, moment: Moment) -> float:
        """alpha(t) = (t - T1) / (T2 - T1) between the hinges."""
        return _ramp(moment.done(self.per), self.start, self.end)


@dataclass(frozen=True)
class Linear(EpsilonSchedule):
    """Linear from 0 at the first step to 1 at ``end``: the two hinges with T1 = 0.

    Args:
        end: fraction of training from which on the attack is at full strength, in [0, 1].
        per: whether the factor changes with each step or each epoch.
    """

    end: float = 1.0
    _: KW_ONLY
    per: Per = "step"

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.end <= 1:
            raise ValueError(f"end must be a fraction of training in [0, 1], got {self.end}")

    def factor(self, moment: Moment) -> float:
        """alpha(t) = t / T2."""
        return _ramp(moment.done(self.per), 0.0, self.end)


@dataclass(frozen=True)
class Fixed(EpsilonSchedule):
    """Full epsilon from the first step."""

    def factor(self, moment: Moment) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class Auto(EpsilonSchedule):
    """0 until clean accuracy stops improving, then linear from 0 to 1 at the end of training: "auto" of the paper.

    Clean accuracy is that of the select split after each epoch. It stops improving when it has not been more than
    ``tolerance`` above the best for ``patience`` epochs in a row. The best is the first one, and after it each one that was
    more than ``tolerance`` above the best before. Training with too few epochs for that is refused; where clean accuracy
    improves to the end, the attack never begins, which a finding of the run says.

    Args:
        patience: epochs without improvement, at least 1.
        tolerance: what is no improvement, as a difference of accuracies in [0, 1): 0.02 is two in a hundred images.
        per: whether the factor changes with each step or each epoch.
    """

    patience: int = 5
    tolerance: float = 0.02
    _: KW_ONLY
    per: Per = "step"

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole("patience", self.patience, 1)
        if not 0 <= self.tolerance < 1:
            raise ValueError(
                f"tolerance must be a difference of accuracies in [0, 1), such as 0.02, got {self.tolerance}"
            )

    def check(self, total: int, per_epoch: int) -> None:
        """Raise ValueError if training has too few epochs for the attack to begin."""
        if (self.patience + 1) * per_epoch >= total:
            raise ValueError(
                f"with {self!r} the attack begins after {self.patience + 1} epochs at the earliest, and there are "
                f"{total / per_epoch:.3g}; train longer, or lower patience"
            )

    def waits(self, clean: Sequence[float]) -> bool:
        """Until clean accuracy has stopped improving."""
        return self._begun(clean) is None

    def factor(self, moment: Moment) -> float:
        """The second of two hinges is the end."""
        begun = self._begun(moment.clean)
        if begun is None:
            return 0.0
        return _ramp(moment.done(self.per), begun * moment.per_epoch / moment.total, 1.0)

    def _begun(self, clean: Sequence[float]) -> int | None:
        """The epochs without attack; None if there may be more."""
        best, since = -math.inf, 0
        for epoch, accuracy in enumerate(clean, start=1):
            best, since = (accuracy, 0) if accuracy > best + self.tolerance else (best, since + 1)
            if since == self.patience:
                return epoch
        return None


@dataclass(frozen=True)
class Uniform(EpsilonSchedule):
    """A factor that is uniform in [0, 1), drawn anew: the control of the paper, which draws each epoch.

    Args:
        per: whether it is drawn for each step or each epoch.
    """

    _: KW_ONLY
    per: Per = "step"

    def __post_init__(self) -> None:
        check_choices(self)

    def factor(self, moment: Moment) -> float:
        """Drawn from the seed and the number of the step or the epoch."""
        number = moment.step if self.per == "step" else moment.epoch
        return float(np.random.default_rng([moment.seed, number, 1]).random())


def _ramp(done: float, start: float, end: float) -> float:
    """0 until ``start``, 1 from ``end`` on, linear between them."""
    if done >= end:
        return 1.0
    return 0.0 if done <= start else (done - start) / (end - start)


#: The schedules by the names that the command line reads.
SCHEDULES: dict[str, type[EpsilonSchedule]] = {
    kind.__name__: kind for kind in (TwoHinge, Linear, Fixed, Auto, Uniform)
}
