"""What searches share: they work on each image until it is misclassified, run after run, and then leave it.

A solved image leaves its run. The batch shrinks only when what is left fits a smaller bucket, so that a few shapes repeat:
kernels are chosen, buffers allocated and graphs compiled per shape. Between two buckets the solved images stay as padding,
at most an eighth of the batch.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVarTuple

import torch
from torch import Tensor

from paretune.attacks.base import Attack, Call, Oracle
from paretune.attacks.streams import Streams

States = TypeVarTuple("States")


@dataclass(frozen=True, eq=False)
class Examples:
    """Images to search from, checked, in float32 and detached.

    Args:
        images: (batch, ...) in [0, 1].
        labels: (batch,) int64: the classes to leave, or to reach if ``targeted``.
        clean: (batch, classes) logits of ``images``, computed in float32.
        streams: the random numbers of each image.
        targeted: whether an image is solved where it is classified as its label, not where it is not.
    """

    images: Tensor
    labels: Tensor
    clean: Tensor
    streams: Streams
    targeted: bool = False

    def take(self, rows: Tensor) -> Self:
        """Some of the images."""
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            clean=self.clean[rows],
            streams=self.streams.take(rows),
        )


class Search:
    """What the runs of a search have found so far, and which images the present one still works on.

    A lane is an entry of whatever a run keeps for each image; :meth:`shrink` takes the lanes of solved images away.

    Args:
        oracle: the victim.
        examples: none of them solved.

    Attributes:
        images: (batch, ...) for each image the first point that solves it, else the one with the highest score, else the
            image itself.
        solved: (batch,) booleans.
        rows: (lanes,) position of each lane in the batch, padding included.
        left: how many lanes are no padding.
    """

    rows: Tensor
    left: int
    _searching: Tensor  # (lanes,) False for padding

    def __init__(self, oracle: Oracle, examples: Examples) -> None:
        self.oracle, self.examples = oracle, examples
        self.images = examples.images.clone()
        self.solved = torch.zeros_like(examples.labels, dtype=torch.bool)
        self._scores = torch.full_like(examples.clean[:, 0], -torch.inf)
        self._start_with(torch.arange(len(self.images), device=self.images.device))

    def runs(self, count: int) -> Iterator[tuple[int, Examples]]:
        """The number of each run, and its images, those that no earlier run has solved; ends where none is left."""
        for number in range(count):
            self._start_with((~self.solved).nonzero().flatten())
            if not self.left:
                return
            yield number, self.examples.take(self.rows)

    def note(self, points: Tensor, logits: Tensor, among: Tensor | None = None) -> None:
        """Keep the points that solve their images.

        Args:
            points: (lanes, ...).
            logits: what the search saw for them; only what it claims is verified.
            among: (lanes,) mask of the points that count; None for all.
        """
        counting = self._searching if among is None else self._searching & among
        examples = self.examples
        hit = self.oracle.hits(
            points, logits, examples.labels[self.rows], counting, targeted=examples.targeted
        )
        self.images[self.rows[hit]] = points[hit]
        self.solved[self.rows[hit]] = True
        self._searching &= ~hit
        self.left = int(self._searching.sum())

    def offer(self, points: Tensor, scores: Tensor) -> None:
        """Keep the points of unsolved images whose score is higher than any before."""
        better = self._searching & (scores > self._scores[self.rows])
        self.images[self.rows[better]] = points[better]
        self._scores[self.rows[better]] = scores[better]

    def shrink(self, *states: *States) -> tuple[*States]:
        """Tensors, or dataclasses of tensors, of one entry a lane: as they are, or less the lanes of solved images where
        the others fit a smaller bucket."""
        size = bucket(self.left)
        if size >= len(self.rows):
            return states
        # Searching lanes first, in their order, then as much padding as the bucket needs.
        keep = torch.argsort((~self._searching).to(torch.uint8), stable=True)[:size].sort().values
        self.rows, self._searching = self.rows[keep], self._searching[keep]
        return tuple(_take(state, keep) for state in states)

    def _start_with(self, rows: Tensor) -> None:
        self.rows, self.left = rows, len(rows)
        self._searching = torch.ones_like(rows, dtype=torch.bool)


@dataclass(frozen=True)
class SearchAttack(Attack):
    """Base of the attacks that search until each image is misclassified, and leave it then."""

    def perturb(self, call: Call) -> Tensor:
        """See :meth:`Attack.perturb`; an image that is misclassified already comes back as it is."""
        clean = call.oracle.exact(call.images)
        rows = ((call.oracle.classes(clean) == call.goals) != call.targeted).nonzero().flatten()
        examples = Examples(call.images, call.goals, clean, call.streams, call.targeted)
        search = Search(call.oracle, examples.take(rows))
        self.solve(search)
        return call.images.index_put((rows,), search.images)

    def for_training(self) -> Attack:
        """There is no such form, unless the attack has an option for it.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self!r} stops at the first success; train with PGD, APGD or FGSM")

    @abstractmethod
    def solve(self, search: Search) -> None:
        """Make the runs of ``search``, whose examples may be none: each point that it notes or is offered lies inside the
        ball and [0, 1]."""


def bucket(count: int) -> int:
    """The smallest allowed batch that holds ``count`` images: 0 to 16 exactly, then eight sizes per octave."""
    step = 1 << max(0, (count - 1).bit_length() - 4) if count > 16 else 1
    return -(-count // step) * step


def _take(state: Any, lanes: Tensor) -> Any:
    if isinstance(state, Tensor):
        return state[lanes]
    return replace(state, **{field.name: getattr(state, field.name)[lanes] for field in fields(state)})
