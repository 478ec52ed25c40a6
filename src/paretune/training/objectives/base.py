"""What a batch minimises: objectives, their weighted sums, and what a run keeps for them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from paretune._values import Value
from paretune.attacks import Attack, AttackCopy
from paretune.attacks.inputs import check_logits
from paretune.backbones.backbone import Backbone
from paretune.data.images import ImageData


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """What one optimizer step learns, or a part of it.

    Args:
        images: (batch, channels, height, width) in [0, 1].
        labels: (batch,).
        ids: (batch,) on the CPU: identity of each example in the data set.
        places: (batch,) on the CPU: the place of each example in the batch of all processes, by which attacks draw.
        epsilon: strength of the attack at this step; 0 means no attack.
        seed: seeds the attack, the same in all processes.
        highest_class: the largest label.
        lowest_class: the smallest.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    places: Tensor
    epsilon: float
    seed: int
    highest_class: int
    lowest_class: int = 0

    @classmethod
    def on(
        cls,
        device: torch.device,
        images: Tensor,
        labels: Tensor,
        ids: Tensor,
        places: Tensor,
        *,
        epsilon: float,
        seed: int,
    ) -> "TrainingBatch":
        """The batch on ``device``; what a check must know of the labels is read before they move there.

        Nothing waits for the device where the tensors are in pinned memory.
        """
        lowest, highest = int(labels.min()), int(labels.max())
        images, labels = (each.to(device, non_blocking=each.is_pinned()) for each in (images, labels))
        return cls(images, labels, ids, places, epsilon, seed, highest, lowest)

    def parts(self, count: int) -> Iterator["TrainingBatch"]:
        """The batch in ``count`` parts, of which each but the last has as many images."""
        if count == 1:
            yield self
            return
        tensors = (self.images, self.labels, self.ids, self.places)
        for part in zip(*(tensor.tensor_split(count) for tensor in tensors), strict=True):
            yield replace(self, **dict(zip(("images", "labels", "ids", "places"), part, strict=True)))

    def attack(self, attack: Attack, copy: Callable[[], AttackCopy]) -> Tensor:
        """The images as ``attack`` returns them at the strength of this step; the images themselves at 0."""
        if self.epsilon == 0:
            return self.images
        attack = attack.with_epsilon(self.epsilon)
        return attack(copy(), self.images, self.labels, seed=self.seed, places=self.places)

    def checked(self, logits: Tensor) -> Tensor:
        """``logits`` in float32.

        Raises:
            ValueError: they are no logits of this batch; see :func:`~paretune.attacks.inputs.check_logits`.
        """
        check_logits(logits, len(self.labels), self.highest_class)
        return logits.float()


class Term(ABC):
    """An objective at work in one run. Most keep nothing, and are the objective itself."""

    def attacked(self, copy: Callable[[], AttackCopy], batch: TrainingBatch) -> Any:
        """What the loss takes beside the batch, made with the weights as they are: the attacked images.

        Args:
            copy: gives the attack copy, brought up to date with the model.
            batch: what to learn.
        """
        return None

    @abstractmethod
    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Any) -> tuple[Tensor, Tensor | None]:
        """The loss, a mean over the examples, and the logits it was computed from, for the log; None if there are none.

        Args:
            model: in training mode.
            batch: what to learn.
            attacked: what :meth:`attacked` has made of the batch.
        """

    def tensors(self) -> dict[str, Tensor]:
        """What a stopped run must have again, beside what :meth:`Objective.begin` makes of the weights it began with."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027  # most have nothing to take
        """Take back what :meth:`tensors` has given."""


@dataclass(frozen=True)
class Objective(Value, Term, ABC):
    """A loss on a batch. They are weighted and added up: ``TRADES(PGD(Linf(4/255))) + 0.1 * L2SP()``."""

    @property
    @abstractmethod
    def attack(self) -> Attack | None:
        """What the loss trains against, at full epsilon; None if it does not."""

    @property
    def learns(self) -> bool:
        """Whether it learns the task. What does not, such as an anchor, is only added to what does."""
        return True

    def begin(self, model: Backbone, data: ImageData, seed: int) -> Term:
        """The objective at work, called once a run with the weights that training begins with, also in a resumed run.

        Args:
            model: adapted; only read.
            data: of the run.
            seed: of the run.
        """
        return self

    def __add__(self, other: "Objective") -> "Objective":
        """The sum of both losses."""
        return Sum(((1.0, self), (1.0, other))) if isinstance(other, Objective) else NotImplemented

    def __rmul__(self, weight: float) -> "Objective":
        """``weight`` times the loss."""
        if not isinstance(weight, int | float) or isinstance(weight, bool):
            return NotImplemented
        return Sum(((float(weight), self),))


@dataclass(frozen=True)
class Sum(Objective):
    """The weighted sum of several objectives; made by adding them up.

    Args:
        terms: pairs of a weight above 0 and an objective. What they train against has one epsilon.

    Raises:
        TypeError: they are no such pairs.
        ValueError: a weight is not above 0, or they train against several threats.
    """

    terms: tuple[tuple[float, Objective], ...]

    def __post_init__(self) -> None:
        flat: list[tuple[float, Objective]] = []
        for pair in self.terms:
            weight, objective = pair if isinstance(pair, tuple | list) and len(pair) == 2 else (None, pair)
            if not isinstance(objective, Objective) or not isinstance(weight, int | float):
                raise TypeError(f"terms must be pairs of a weight and an objective, got {pair!r}")
            if not 0 < weight < float("inf"):
                raise ValueError(f"the weight of {objective!r} must be finite and above 0, got {weight}")
            inner = objective.terms if isinstance(objective, Sum) else ((1.0, objective),)
            flat += [(weight * factor, term) for factor, term in inner]
        threats = {repr(term.attack.threat) for _, term in flat if term.attack is not None}
        if len(threats) > 1:
            raise ValueError(
                f"objectives of one sum train against one threat, got {', '.join(sorted(threats))}"
            )
        object.__setattr__(self, "terms", tuple(flat))

    def __repr__(self) -> str:
        return " + ".join(f"{'' if weight == 1 else f'{weight!r} * '}{term!r}" for weight, term in self.terms)

    @property
    def attack(self) -> Attack | None:
        """That of the first term that has one."""
        return next((term.attack for _, term in self.terms if term.attack is not None), None)

    @property
    def learns(self) -> bool:
        """Whether one of them does."""
        return any(term.learns for _, term in self.terms)

    def begin(self, model: Backbone, data: ImageData, seed: int) -> Term:
        """Each of them at work."""
        return _Sum([(weight, term.begin(model, data, seed)) for weight, term in self.terms])

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Any) -> tuple[Tensor, Tensor | None]:
        """Not of the value, which :meth:`begin` sets to work."""
        raise NotImplementedError("call begin() first")


class _Sum(Term):
    def __init__(self, terms: list[tuple[float, Term]]) -> None:
        self.terms = terms

    def attacked(self, copy: Callable[[], AttackCopy], batch: TrainingBatch) -> list[Any]:
        return [term.attacked(copy, batch) for _, term in self.terms]

    def loss(
        self, model: nn.Module, batch: TrainingBatch, attacked: list[Any]
    ) -> tuple[Tensor, Tensor | None]:
        total, shown = batch.images.new_zeros(()), None
        for (weight, term), made in zip(self.terms, attacked, strict=True):
            loss, logits = term.loss(model, batch, made)
            total, shown = total + weight * loss, logits if shown is None else shown
        return total, shown

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{number}/{name}": value
            for number, (_, term) in enumerate(self.terms)
            for name, value in term.tensors().items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for number, (_, term) in enumerate(self.terms):
            own = {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{number}/")}
            term.load(own)
