"""What a batch minimises, and with which attack."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paretune._values import Value
from paretune.attacks import PGD, AttackCopy


@dataclass(frozen=True)
class Objective(Value, ABC):
    """A loss on a batch.

    ``attack`` is what the loss trains against, None if it does not; the training loop scales its epsilon and keeps
    an attack copy for it.
    """

    @property
    @abstractmethod
    def attack(self) -> PGD | None:
        """The attack at full epsilon."""

    @abstractmethod
    def loss(
        self,
        model: nn.Module,
        copy: Callable[[], AttackCopy],
        images: Tensor,
        labels: Tensor,
        epsilon: float,
        seed: int,
    ) -> tuple[Tensor, Tensor]:
        """The mean loss, and the logits it was computed from, for the log.

        Args:
            model: in training mode.
            copy: gives the attack copy, brought up to date with the model.
            images: (batch, channels, height, width) in [0, 1].
            labels: (batch,).
            epsilon: strength at this step; 0 means no attack.
            seed: seeds the attack.
        """


@dataclass(frozen=True)
class Natural(Objective):
    """Cross-entropy on clean images."""

    @property
    def attack(self) -> None:
        """There is none."""

    def loss(
        self,
        model: nn.Module,
        copy: Callable[[], AttackCopy],
        images: Tensor,
        labels: Tensor,
        epsilon: float,
        seed: int,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy."""
        logits = model(images)
        return cross_entropy(logits.float(), labels), logits.detach()


@dataclass(frozen=True)
class AdversarialTraining(Objective):
    """Cross-entropy on attacked images (Madry et al. 2018, https://arxiv.org/abs/1706.06083, equation 2.1).

    Args:
        inner: the attack, for example ``PGD(Linf(4/255), steps=7)``. Its last iterate is trained on, whether or not it
            fools the model.
    """

    inner: PGD

    def __post_init__(self) -> None:
        if self.inner.targeted:
            raise ValueError("adversarial training needs an untargeted attack; got targeted=True")
        object.__setattr__(self, "inner", dataclasses.replace(self.inner, keep="last"))

    @property
    def attack(self) -> PGD:
        """The attack at full epsilon."""
        return self.inner

    def loss(
        self,
        model: nn.Module,
        copy: Callable[[], AttackCopy],
        images: Tensor,
        labels: Tensor,
        epsilon: float,
        seed: int,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy on the images that the attack at ``epsilon`` returns."""
        if epsilon > 0:
            images = self.inner.with_epsilon(epsilon)(copy(), images, labels, seed=seed)
        logits = model(images)
        return cross_entropy(logits.float(), labels), logits.detach()


OBJECTIVES: dict[str, type[Objective]] = {"Natural": Natural, "AdversarialTraining": AdversarialTraining}
