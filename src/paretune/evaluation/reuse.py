"""What is known of examples already, so that nobody looks for it again.

Of attacks that differ in their radius alone, a point that breaks an example at one radius breaks it at every larger one,
and at every smaller one whose ball it lies in. Of a model whose weights have changed a little, as from one evaluation point
of a run to the next, the adversarial examples of before are likely ones now. Both only ever break examples: what counts is
what the model says, in float32, of a point inside the ball. An example that withstands them is attacked as if nothing were
known, with the random numbers that it would have drawn.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from paretune.attacks import Attack, Threat
from paretune.data.image_split import ImageSplit
from paretune.kernels.reference import per_example

_LEVELS = 127  # of a change in either direction: eight bits a pixel and channel


@dataclass(frozen=True, eq=False)
class Breaks:
    """Points of one ball that the model gets wrong.

    Args:
        rows: (n,) which examples they break.
        points: (n, channels, height, width).
        logits: (n, classes) of the model for them.
    """

    rows: Tensor
    points: Tensor
    logits: Tensor

    def take(self, which: Tensor) -> Self:
        """Some of them, by a mask (n,)."""
        return type(self)(self.rows[which], self.points[which], self.logits[which])

    def inside(self, threat: Threat, images: Tensor) -> Self:
        """Those that the projection into the ball of ``threat`` around ``images`` (all examples) leaves as they are."""
        projected = threat.project(self.points, images[self.rows])
        return self.take((projected == self.points).flatten(1).all(dim=1))

    @classmethod
    def joined(cls, parts: "Sequence[Breaks]") -> "Breaks":
        """All of them, of at least one part."""
        return cls(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "points", "logits"))
        )


def rising(attacks: Sequence[Attack]) -> list[int]:
    """The numbers of ``attacks``, those with a smaller radius first."""
    return sorted(range(len(attacks)), key=lambda number: attacks[number].threat.epsilon)


def family(attack: Attack) -> Hashable:
    """What the attack is but for its radius; fixed step sizes in proportion to it, see :meth:`Attack.with_epsilon`.

    >>> from paretune.attacks import PGD, Linf
    >>> family(PGD(Linf(0.1), step_size=0.01)) == family(PGD(Linf(0.3), step_size=0.03))
    True
    """
    scaled = {}
    for field in fields(attack):
        value = getattr(attack, field.name)
        if field.name in attack.lengths and value is not None:
            value = f"{value / attack.threat.epsilon:.9g}"  # rounding makes no other attack
        scaled[field.name] = value
    return type(attack), *(scaled | {"threat": attack.threat.with_epsilon(0.5)}).values()


class Candidates:
    """The last point that broke each example of a split, under each attack: tried first when the weights have changed.

    Give the same one to every :func:`~paretune.evaluate` of a model on this split; it is brought up to date.

    A change is kept in eight bits a pixel and channel, in units of the largest change of its image. What this loses does no
    harm, as a point is brought into the ball and into [0, 1] again and the model is asked.

    Example:
        >>> candidates = Candidates()
        >>> for epoch in range(10):  # doctest: +SKIP
        ...     learn(model)
        ...     scores = pt.evaluate(model, data.select, [pt.PGD(pt.Linf(4 / 255))], candidates=candidates)
    """

    def __init__(self) -> None:
        self._split: str | None = None
        self._here = torch.arange(0)  # places of the examples that were measured last
        # By the call of the attack: changes (examples, channels, height, width) int8, and the largest change (examples,)
        # of each image, 0 where there is no candidate.
        self._changes: dict[str, Tensor] = {}
        self._largest: dict[str, Tensor] = {}

    def begin(self, data: ImageSplit, attacks: Sequence[Attack], places: Tensor) -> None:
        """Make room for what breaks the examples of ``data``, of which those at ``places`` will be attacked here.

        Raises:
            ValueError: the candidates are of another split.
        """
        shape = (len(data), *data[torch.tensor([0])][0].shape[1:])
        if self._split not in (None, data.fingerprint) or any(
            changes.shape != shape for changes in self._changes.values()
        ):
            raise ValueError(
                f"these candidates are of other examples ({self._split}) than data ({data.fingerprint}); every split has "
                "its own: give new Candidates()"
            )
        self._split, self._here = data.fingerprint, places
        for attack in map(repr, attacks):
            if attack not in self._changes:
                self._changes[attack] = torch.zeros(shape, dtype=torch.int8)
                self._largest[attack] = torch.zeros(len(data))

    def points(self, attack: Attack, places: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Which of ``images``, those of the examples at ``places`` (n,), have a candidate, and that inside the ball.

        Returns:
            Rows (m,) of the images, and points (m, channels, height, width).
        """
        name, places = repr(attack), places.cpu()
        rows = (self._largest[name][places] > 0).nonzero().flatten()
        some = images[rows.to(images.device)]
        unit = self._largest[name][places[rows]] / _LEVELS
        changes = self._changes[name][places[rows]].to(images.device, torch.float32)
        points = some + changes * per_example(unit.to(images.device), changes)
        return rows.to(images.device), attack.threat.project(points, some)

    def keep(self, attack: Attack, places: Tensor, images: Tensor, points: Tensor) -> None:
        """These ``points`` break the ``images`` at ``places``."""
        changes = (points - images).cpu()
        largest = changes.flatten(1).abs().amax(dim=1) if len(changes) else changes.new_zeros(0)
        levels = (changes / per_example(largest.clamp(min=1e-38), changes) * _LEVELS).round()
        self._changes[repr(attack)][places.cpu()] = levels.to(torch.int8)
        self._largest[repr(attack)][places.cpu()] = largest

    def share(self, total: Callable[[Tensor], Tensor]) -> None:
        """Where several processes have measured a shard each, let all know what all know.

        Args:
            total: the sum of a tensor over all processes.
        """
        for name, largest in self._largest.items():
            here = torch.zeros_like(largest, dtype=torch.bool).index_fill(0, self._here, True)
            self._largest[name] = total(largest.where(here, 0.0))
            known = (self._largest[name] > 0).nonzero().flatten()
            self._changes[name][~here] = 0
            self._changes[name][known] = total(self._changes[name][known])

    def tensors(self) -> Mapping[str, Tensor]:
        """What :meth:`load` takes, of the examples that have candidates."""
        kept: dict[str, Tensor] = {}
        for name, largest in self._largest.items():
            kept |= {f"{name}/largest": largest, f"{name}/changes": self._changes[name][largest > 0]}
        return kept

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`tensors` has given."""
        self.__init__()  # type: ignore[misc]
        for key, largest in tensors.items():
            name, _, kind = key.rpartition("/")
            if kind == "largest":
                changes = tensors[f"{name}/changes"]
                self._changes[name] = torch.zeros((len(largest), *changes.shape[1:]), dtype=torch.int8)
                self._changes[name][largest > 0] = changes
                self._largest[name] = largest.clone()
