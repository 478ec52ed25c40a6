"""Pictures of a few report images before and after the attack, taken while they are evaluated."""

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from paretune.attacks import Attack
from paretune.attacks.inputs import predicted
from paretune.data.image_split import ImageSplit
from paretune.runs.examples import Pictures
from paretune.training.processes import Processes

IMAGES = 6
MOST_BYTES = 5 * 2**20  # of the pictures of a run: at 224 pixels, 4 images and what became of them


class Album:
    """What :func:`~paretune.evaluate` is to call as ``seen``, so that pictures of :func:`first_of_classes` are kept.

    Args:
        split: that is evaluated.
        attack: the one that is shown.
    """

    def __init__(self, split: ImageSplit, attack: Attack) -> None:
        self._attack = attack
        self._among = None if split.among is None else torch.tensor(split.among)  # what the logits are of
        places = first_of_classes(split.labels, IMAGES)
        clean, labels = split[places]
        count = MOST_BYTES // (2 * clean[0].numel() * clean.element_size())
        self._places, self._clean, self._labels = places[:count], clean[:count], labels[:count]
        # Each process fills in what it sees; elsewhere there are zeros, so that the sum is all of it.
        self._attacked = torch.zeros_like(self._clean)
        self._predicted = torch.zeros(2, len(self._labels), dtype=torch.int64)
        self._confidence = torch.zeros(2, len(self._labels))

    def __call__(self, attack: Attack | None, places: Tensor, images: Tensor, logits: Tensor) -> None:
        """Take what is judged, as :func:`~paretune.evaluate` says."""
        if attack not in (None, self._attack):
            return
        when = int(attack is not None)
        for number, place in enumerate(self._places):
            for row in (places == place).nonzero().flatten().tolist():
                answer = predicted(logits[row : row + 1]).cpu()
                self._predicted[when, number] = answer if self._among is None else self._among[answer]
                self._confidence[when, number] = logits[row].float().softmax(0).max()
                if when:
                    self._attacked[number] = images[row]

    def pictures(self, step: int, attack: str, processes: Processes) -> Pictures | None:
        """What all processes saw; None if the images are too large to keep one.

        Args:
            step: of the evaluation point.
            attack: the call of the attack as it ran.
            processes: that evaluated.
        """
        if not self._places:
            return None
        attacked, guesses, sure = map(processes.total, (self._attacked, self._predicted, self._confidence))
        spared = guesses[0] != self._labels  # wrong when clean, and not attacked
        attacked[spared] = self._clean[spared]
        guesses[1, spared], sure[1, spared] = guesses[0, spared], sure[0, spared]
        return Pictures(
            step,
            attack,
            places=np.array(self._places, dtype=np.int64),
            clean=self._clean.numpy(),
            attacked=attacked.numpy(),
            predicted=guesses.numpy(),
            confidence=sure.numpy(),
        )


def first_of_classes(labels: Tensor, count: int) -> list[int]:
    """Places of the first example of each class, as they come, then of the second of each, and so on: ``count`` in all.

    >>> first_of_classes(torch.tensor([2, 2, 0, 1, 0]), 4)
    [0, 2, 3, 1]
    """
    before: Counter[int] = Counter()
    ranked = []
    for place, label in enumerate(labels.tolist()):
        ranked.append((before[label], place))
        before[label] += 1
    return [place for _, place in sorted(ranked)[:count]]
