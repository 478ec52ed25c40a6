"""What the objectives share that train against an attack."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from paretune.attacks import PGD, Attack, Threat
from paretune.training.objectives.base import Copies, Objective, TrainingBatch


@dataclass(frozen=True)
class Attacked(Objective):
    """Base of the objectives that train against an attack.

    Args:
        inner: the attack. None is for texts of the command line and of sweeps, which fill in PGD with the threat and the
            steps of their task; see :meth:`against`.

    Raises:
        TypeError: ``inner`` is no attack.
        ValueError: it is targeted or stops at the first success, or is none that maximises what the objective needs.
    """

    inner: Attack | None = None

    maximises: ClassVar[Literal["ce", "kl", "l2"]] = "ce"
    """What the attack maximises; other than the cross-entropy, :class:`~paretune.PGD` alone does."""

    passes: ClassVar[int] = 1
    """Forward and backward passes of the loss with each image that is attacked; without an attack it is one."""

    def __post_init__(self) -> None:
        if self.inner is None:
            return
        name = type(self).__name__
        if not isinstance(self.inner, Attack):
            raise TypeError(
                f"{name}: inner must be an attack such as PGD(Linf(4/255), steps=7), got {self.inner!r}"
            )
        inner = self.inner.for_training()
        if self.maximises != "ce":
            if not isinstance(inner, PGD) or inner.loss not in ("ce", self.maximises):
                raise ValueError(
                    f"{name}: inner must be a PGD, which can maximise loss={self.maximises!r}; got {inner!r}"
                )
            inner = replace(inner, loss=self.maximises)
        object.__setattr__(self, "inner", inner)

    @property
    def attack(self) -> Attack | None:
        """The attack at full epsilon."""
        return self.inner

    @property
    def lacks_attack(self) -> bool:
        """Whether ``inner`` is None."""
        return self.inner is None

    def against(self, threat: Threat, steps: int) -> Self:
        """With ``PGD(threat, steps=steps)`` if ``inner`` is None."""
        return self if self.inner is not None else replace(self, inner=PGD(threat, steps=steps))

    def gradient_evaluations(self, classes: int, *, attacked: bool = True) -> int:
        """See :meth:`~paretune.training.Objective.gradient_evaluations`."""
        inner = super().gradient_evaluations(classes, attacked=attacked) - 1
        return inner + (self.passes if attacked else 1)

    def attacked(self, copy: Copies, batch: TrainingBatch) -> Any:
        """The images that the attack at the epsilon of the step returns; at 0 the images themselves."""
        assert self.inner is not None  # training refuses it
        return batch.attack(self.inner, copy)
