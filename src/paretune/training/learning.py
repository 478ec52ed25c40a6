"""The tasks of a run, of which there is mostly one: what is learnt, in which order."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paretune._values import told
from paretune.data.augmenting import Augmented, read_augmentation
from paretune.data.images import ImageData
from paretune.training.balance import Balance, balanced_order
from paretune.training.tasks import Tasks


@dataclass(frozen=True, kw_only=True, eq=False)
class Learning:
    """A task of a run, which mostly has one.

    Args:
        name: of the task.
        number: of the task in the run, from 0 on.
        data: its splits.
        train: the examples to learn, augmented.
        share: weight of its loss in that of a step.
        batch_size: images a step, over all processes.
        seed: of the run.
        balance: what is done about classes of different sizes.
        chance: accuracy of the best constant answer on the select split.
    """

    name: str
    number: int
    data: ImageData
    train: Augmented
    share: float
    batch_size: int
    seed: int
    balance: Balance
    chance: float

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch of this task."""
        return len(self.labels) // self.batch_size

    @property
    def labels(self) -> NDArray[np.int64]:
        """(examples,) of the train split."""
        labels: NDArray[np.int64] = self.train.split.labels.numpy()
        return labels

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The rows of the train split in the order in which this epoch takes them, from (seed, epoch, number) alone."""
        generator = np.random.default_rng(
            [self.seed, epoch, self.number]
        )  # a zero at the end changes nothing
        if self.balance == "sampling":
            return balanced_order(self.labels, generator)
        return generator.permutation(len(self.labels))


def seed_of(seed: int, step: int, number: int = 0) -> int:
    """What seeds the attacks of task ``number`` at ``step`` of a run."""
    return int(np.random.SeedSequence((seed, step, number)).generate_state(1)[0])


def learnings(
    data: ImageData | Tasks, batch_size: int, seed: int, augmentation: Any, balance: Balance
) -> tuple[Learning, ...]:
    """The tasks in ``data``, with ``batch_size`` images a step of each that has no size of its own.

    Raises:
        ValueError: a batch is larger than its train split, or there is no such augmentation.
    """
    several = data if isinstance(data, Tasks) else None
    by_name = {data.name: data} if isinstance(data, ImageData) else data.data
    sizes = (several and several.batch_sizes) or dict.fromkeys(by_name, batch_size)
    shares = several.shares if several else (1.0,)
    tasks = []
    for number, (name, task_data) in enumerate(by_name.items()):
        size, examples = sizes[name], len(task_data.train)
        of_task = f" of the task {name!r}" if several else ""
        if size < 1:
            raise ValueError(f"batch_size must be at least 1, got {size}{of_task}")
        if size > examples:
            raise ValueError(
                f"batch_size={size} is more than the {examples} images of the train split{of_task}; give at most that many"
            )
        with told("augmentation", None if augmentation is None else str(augmentation)):
            chain = read_augmentation(task_data.augmentation if augmentation is None else augmentation)
        tasks.append(
            Learning(
                name=name,
                number=number,
                data=task_data,
                train=Augmented(task_data.train, chain, seed),
                share=shares[number],
                batch_size=size,
                seed=seed,
                balance=balance,
                chance=float(torch.bincount(task_data.select.labels).max()) / len(task_data.select),
            )
        )
    return tuple(tasks)
