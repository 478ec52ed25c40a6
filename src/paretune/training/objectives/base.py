"""What a batch minimises: objectives, their weighted sums, and what a run keeps for them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paretune._values import Value
from paretune.attacks import Attack, AttackCopy, Threat
from paretune.attacks.inputs import check_logits
from paretune.backbones.backbone import Backbone
from paretune.data.augmentation import Chain
from paretune.data.augmenting import Augmented
from paretune.data.images import ImageData


class Copies(Protocol):
    """The attack copies of the model in training, made at their first use and up to date with it when they are asked for."""

    def __call__(self) -> AttackCopy:
        """Of the model."""

    def features(self) -> AttackCopy:
        """Of the model without its head: what enters the head."""


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
        weights: (batch,) of each example in the loss, which are 1 on average over the train split; None is 1 each.
        epoch: of training; the first is 0.
        train: where the images are from, and how they were augmented.
        task: number of the task that it is of, in a run of several.
        share: its weight in the loss of the step.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    places: Tensor
    epsilon: float
    seed: int
    highest_class: int
    lowest_class: int = 0
    weights: Tensor | None = None
    epoch: int = 0
    train: Augmented | None = None
    task: int = 0
    share: float = 1.0

    @classmethod
    def on(
        cls,
        device: torch.device,
        images: Tensor,
        labels: Tensor,
        ids: Tensor,
        places: Tensor,
        weights: Tensor | None = None,
        *,
        epsilon: float,
        seed: int,
        epoch: int = 0,
        train: Augmented | None = None,
        task: int = 0,
        share: float = 1.0,
    ) -> "TrainingBatch":
        """The batch on ``device``; what a check must know of the labels is read before they move there.

        Nothing waits for the device where the tensors are in pinned memory.
        """
        lowest, highest = int(labels.min()), int(labels.max())
        images, labels = (tensor.to(device, non_blocking=tensor.is_pinned()) for tensor in (images, labels))
        if weights is not None:
            weights = weights.to(device, non_blocking=weights.is_pinned())
        beside = weights, epoch, train, task, share
        return cls(images, labels, ids, places, epsilon, seed, highest, lowest, *beside)

    def parts(self, count: int) -> Iterator["TrainingBatch"]:
        """The batch in ``count`` parts, of which each but the last has as many images."""
        if count == 1:
            yield self
            return
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        for part in zip(*(tensor.tensor_split(count) for tensor in tensors.values()), strict=True):
            fields = dict(zip(tensors, part, strict=True))
            yield replace(self, share=self.share * (len(fields["labels"]) / len(self.labels)), **fields)

    def attack(self, attack: Attack, copy: Callable[[], AttackCopy], **beside: Tensor) -> Tensor:
        """The images as ``attack`` returns them at the strength of this step; the images themselves at 0.

        Args:
            attack: at any strength.
            copy: gives what it attacks.
            **beside: what it takes beside the images and their labels.
        """
        if self.epsilon == 0:
            return self.images
        attack = attack.with_epsilon(self.epsilon)
        return attack(copy(), self.images, self.labels, seed=self.seed, places=self.places, **beside)

    def mean(self, losses: Tensor) -> Tensor:
        """The mean over the examples of ``losses`` (batch,), each times its weight; the weights are not divided out.

        So the mean over the parts of a batch, or over the processes that share it, is that over the batch.
        """
        return (losses if self.weights is None else losses * self.weights).mean()

    def checked(self, logits: Tensor) -> Tensor:
        """``logits`` in float32.

        Raises:
            ValueError: they are no logits of this batch; see :func:`~paretune.attacks.inputs.check_logits`.
        """
        check_logits(logits, len(self.labels), self.highest_class)
        return logits.float()


class Term(ABC):
    """An objective at work in one run. Most keep nothing, and are the objective itself."""

    def attacked(self, copy: Copies, batch: TrainingBatch) -> Any:
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

    @property
    def trains_head(self) -> bool:
        """Whether the head gets a gradient of it; what matches features alone has none to give."""
        return True

    @property
    def lacks_attack(self) -> bool:
        """Whether it trains against an attack that nobody has named yet; :meth:`against` does."""
        return False

    def against(self, threat: Threat, steps: int) -> "Objective":
        """Where it :attr:`lacks_attack`, the same with PGD of so many steps in ``threat``; itself otherwise."""
        return self

    def gradient_evaluations(self, classes: int, *, attacked: bool = True) -> int:
        """How often a step goes forward and backward through the model with each image, in its attack and in the loss.

        Passes without a gradient, such as those of a frozen model, do not count.

        Args:
            classes: of the model.
            attacked: whether the attack is on; at epsilon 0 it is not.
        """
        inner = self.attack if attacked else None
        return int(self.learns) + (inner.passes(classes) // 2 if inner is not None else 0)

    def check_augmentation(self, augmentation: Chain) -> None:  # most take any
        """Raise ValueError if the objective cannot learn from images that are augmented so."""

    def set_number(self, name: str, below: float = float("inf")) -> None:
        """Make the field ``name`` a float, so that 6 and 6.0 are one value.

        Raises:
            ValueError: it is no number from 0 to less than ``below``.
        """
        value = getattr(self, name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < below:
            most = "finite" if below == float("inf") else f"below {below:g}"
            raise ValueError(
                f"{type(self).__name__}: {name} must be a number of at least 0 and {most}, got {value!r}"
            )
        object.__setattr__(self, name, float(value))

    @property
    def reaches_all(self) -> bool:
        """Whether its gradient reaches all that is trained, whether or not the network uses it."""
        return False

    @property
    def shardable(self) -> bool:
        """Whether nothing but calls of the model enters the loss, so that its weights may be in shards."""
        return type(self).begin is Objective.begin

    def check(self, model: Backbone, data: ImageData) -> None:  # most take any model
        """Raise ValueError if it cannot be at work on the adapted ``model``; called before anything is written."""

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

    @property
    def trains_head(self) -> bool:
        """Whether one that learns the task does."""
        return any(term.learns and term.trains_head for _, term in self.terms)

    @property
    def lacks_attack(self) -> bool:
        """Whether one of them does."""
        return any(term.lacks_attack for _, term in self.terms)

    def against(self, threat: Threat, steps: int) -> "Sum":
        """Of each of them."""
        return Sum(tuple((weight, term.against(threat, steps)) for weight, term in self.terms))

    def gradient_evaluations(self, classes: int, *, attacked: bool = True) -> int:
        """Of all of them."""
        return sum(term.gradient_evaluations(classes, attacked=attacked) for _, term in self.terms)

    def check_augmentation(self, augmentation: Chain) -> None:
        """Of each of them."""
        for _, term in self.terms:
            term.check_augmentation(augmentation)

    @property
    def reaches_all(self) -> bool:
        """Whether that of one of them does."""
        return any(term.reaches_all for _, term in self.terms)

    @property
    def shardable(self) -> bool:
        """Whether all of them are."""
        return all(term.shardable for _, term in self.terms)

    def check(self, model: Backbone, data: ImageData) -> None:
        """Each of them."""
        for _, term in self.terms:
            term.check(model, data)

    def begin(self, model: Backbone, data: ImageData, seed: int) -> Term:
        """Each of them at work; the log shows the logits of the first that trains against an attack, if one does."""
        attacks = [number for number, (_, term) in enumerate(self.terms) if term.attack is not None]
        return _Sum([(weight, term.begin(model, data, seed)) for weight, term in self.terms], *attacks[:1])

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Any) -> tuple[Tensor, Tensor | None]:
        """Not of the value, which :meth:`begin` sets to work."""
        raise NotImplementedError("call begin() first")


class _Sum(Term):
    def __init__(self, terms: list[tuple[float, Term]], watched: int = 0) -> None:
        self.terms, self.watched = terms, watched

    def attacked(self, copy: Copies, batch: TrainingBatch) -> list[Any]:
        return [term.attacked(copy, batch) for _, term in self.terms]

    def loss(
        self, model: nn.Module, batch: TrainingBatch, attacked: list[Any]
    ) -> tuple[Tensor, Tensor | None]:
        total, shown = batch.images.new_zeros(()), None
        for number, ((weight, term), attack_result) in enumerate(zip(self.terms, attacked, strict=True)):
            loss, logits = term.loss(model, batch, attack_result)
            total = total + weight * loss
            if shown is None or (number == self.watched and logits is not None):
                shown = logits
        return total, shown

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{number}/{name}": value
            for number, (_, term) in enumerate(self.terms)
            for name, value in term.tensors().items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for number, (_, term) in enumerate(self.terms):
            of_term = {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{number}/")}
            term.load(of_term)
