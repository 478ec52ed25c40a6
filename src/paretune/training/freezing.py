"""What trains when: the head alone before the rest, or one residual block after the other."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from paretune._values import Value
from paretune.backbones.backbone import Backbone, inside
from paretune.backbones.modes import batch_norms
from paretune.strategies.mechanics.adapting import require_adaptation, trainable_parameters
from paretune.training.depth import depths
from paretune.training.schedules import EpsilonSchedule, Moment


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Where a step is in its phase of training, which the learning rate warms up and decays over.

    Args:
        step: of the phase; the first is 1.
        total: steps of the phase.
        lr: peak learning rate; None is that of training.
        epsilon: factor on epsilon; None is that of the schedule, which runs over the phase.
    """

    step: int
    total: int
    lr: float | None = None
    epsilon: float | None = None


@dataclass(frozen=True)
class Freezing(Value, ABC):
    """What of the trainable parameters waits, and for how long; ``FREEZING`` has all.

    What is frozen gets no update: no step, no weight decay, no moments of AdamW. Batch norms that adapt stay as in
    evaluation as long as they are frozen. The gradient that is clipped is that of what trains.
    """

    @abstractmethod
    def shallowest(self, step: int, total: int, head: int) -> int:
        """The least depth that trains in ``step`` of ``total``, where ``head`` is the depth of the head. It never grows."""

    def depth(self, model: Backbone) -> dict[str, int]:
        """The depth of each parameter by name; those of the head have the largest.

        Raises:
            ValueError: that is not known of ``model``.
        """
        head = require_adaptation(model).head
        return {name: int(inside(name, head)) for name, _ in model.module.named_parameters()}

    def phase(self, step: int, total: int) -> Phase:
        """Where ``step`` of ``total`` is."""
        return Phase(step=step, total=total)

    def factor(self, schedule: EpsilonSchedule, moment: Moment) -> float:
        """Factor on epsilon, with ``schedule`` over the phases that leave it open."""
        phase = self.phase(moment.step, moment.total)
        if phase.epsilon is not None:
            return phase.epsilon
        return schedule.factor(replace(moment, step=phase.step, total=phase.total))

    def check(self, total: int, *, attacked: bool) -> None:
        """Raise ValueError if this cannot be done in ``total`` steps, or needs an attack where none is trained against."""


@dataclass(frozen=True)
class NoFreezing(Freezing):
    """Everything trains from the first step."""

    def shallowest(self, step: int, total: int, head: int) -> int:
        """0."""
        return 0


@dataclass(frozen=True)
class ProbeFirst(Freezing, ABC):
    """The head alone first, then everything, each with a warm-up and a decay of the learning rate of its own.

    The schedule of epsilon runs over the second phase.

    Args:
        probe: fraction of training in which the head alone trains, in (0, 1).
        lr: peak learning rate of that; None is the one of training. A fresh head takes more than a whole network, e.g. 1e-2.
    """

    probe: float = 0.25
    lr: float | None = None

    strength: ClassVar[float]  # factor on epsilon in the first phase

    def __post_init__(self) -> None:
        if not 0 < self.probe < 1:
            raise ValueError(f"probe must be a fraction of training in (0, 1), got {self.probe}")
        if self.lr is not None and not 0 < self.lr < 10:
            raise ValueError(f"lr must be above 0 and below 10, or None, got {self.lr}")

    def shallowest(self, step: int, total: int, head: int) -> int:
        """The head, then 0."""
        return head if step <= self._probing(total) else 0

    def phase(self, step: int, total: int) -> Phase:
        """The probe, or what follows it."""
        first = self._probing(total)
        if step <= first:
            return Phase(step=step, total=first, lr=self.lr, epsilon=self.strength)
        return Phase(step=step - first, total=total - first)

    def check(self, total: int, *, attacked: bool) -> None:
        """Raise ValueError if one of the phases has no step."""
        if not 0 < self._probing(total) < total:
            raise ValueError(
                f"of {total} steps {self!r} gives the head alone {self._probing(total)}; train longer, or change probe"
            )

    def _probing(self, total: int) -> int:
        return round(self.probe * total)


@dataclass(frozen=True)
class LPFT(ProbeFirst):
    """Linear probing on clean images, then fine-tuning (Kumar et al. 2022, https://arxiv.org/abs/2202.10054)."""

    strength: ClassVar[float] = 0.0


@dataclass(frozen=True)
class RoLI(ProbeFirst):
    """Linear probing under attack at full epsilon, then the rest (Hua et al. 2024, https://arxiv.org/abs/2312.05716).

    The paper attacks at full epsilon throughout, which is ``epsilon=EpsilonSchedule.fixed()``, and starts from a backbone
    that is robust.
    """

    strength: ClassVar[float] = 1.0

    def check(self, total: int, *, attacked: bool) -> None:
        """Raise ValueError if one of the phases has no step, or nothing attacks."""
        super().check(total, attacked=attacked)
        if not attacked:
            raise ValueError(
                f"{self!r} probes under attack, and the objective has none; take AdversarialTraining, or LPFT({self.probe})"
            )


@dataclass(frozen=True)
class GradualUnfreezing(Freezing):
    """The head first, then one residual block more at a time, from the last to the first (Howard & Ruder 2018,
    https://arxiv.org/abs/1801.06146, section 3.3); what comes before the first block joins last.

    With N blocks there are N + 2 stages, of which all but the last are equally long. Learning rate and epsilon go over the
    whole of training. What belongs to which block is what :func:`~paretune.training.depth.depths` says.

    Args:
        end: fraction of training from which on everything trains, in (0, 1].
    """

    end: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.end <= 1:
            raise ValueError(f"end must be a fraction of training in (0, 1], got {self.end}")

    def depth(self, model: Backbone) -> dict[str, int]:
        """By residual blocks."""
        return depths(model)

    def shallowest(self, step: int, total: int, head: int) -> int:
        """The head at first, and 0 from ``end`` on."""
        joined = math.floor((step - 1) / (self.end * total) * head + 1e-9)  # rounding holds no block back
        return max(0, head - joined)


def check_course(
    freezing: Freezing, epsilon: EpsilonSchedule, total: int, per_epoch: int, *, attacked: bool
) -> None:
    """Raise ValueError if the two cannot be followed in ``total`` steps, of which an epoch has ``per_epoch``."""
    freezing.check(total, attacked=attacked)
    if attacked:
        epsilon.check(freezing.phase(total, total).total, per_epoch)


class Frozen:
    """Holds back, step by step, what is frozen of a model.

    Args:
        model: adapted.
        freezing: what waits.
        total: steps of training.
    """

    def __init__(self, model: Backbone, freezing: Freezing, total: int) -> None:
        self.freezing, self.total = freezing, total
        depth, follows = freezing.depth(model), require_adaptation(model).follows
        self.head = max(depth.values())
        self._parameters = [(depth[name], tensor) for name, tensor in trainable_parameters(model).items()]
        self._norms = [
            (min((depth[inner] for inner in depth if inside(inner, name)), default=0), norm)
            for name, norm in batch_norms(model.module).items()
            if follows[name]
        ]

    def begin(self, step: int) -> None:
        """Before the passes of ``step``: the batch norms that are frozen are as in evaluation."""
        self.shallowest = self.freezing.shallowest(step, self.total, self.head)
        for depth, norm in self._norms:
            norm.train(depth >= self.shallowest)

    def drop_gradients(self) -> None:
        """After them: what is frozen has no gradient, so that nothing changes it."""
        for depth, parameter in self._parameters:
            if depth < self.shallowest:
                parameter.grad = None


#: The ways to freeze by the names that the command line reads.
FREEZING: dict[str, type[Freezing]] = {
    kind.__name__: kind for kind in (NoFreezing, LPFT, RoLI, GradualUnfreezing)
}
