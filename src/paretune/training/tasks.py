"""Several tasks that one model learns at once: an adapter that they share, and a block of the head for each.

The head is one layer, whose rows are blocks: the classes of the first task, then those of the second, and so on. The model
of a task is the network with the rows of its block, through which alone its loss, its attacks and its measurement go. So
each task has a head of its own.
"""

import copy
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, combinations
from typing import Any, Literal

import torch

from paretune.backbones.backbone import Backbone, Task, inside, note_task, task_of
from paretune.backbones.blocks import HeadBlock, check_divisible, cut_out
from paretune.backbones.modes import RECORD
from paretune.data.images import ImageData
from paretune.data.sources import digest
from paretune.strategies.mechanics.adapting import adaptation_of


@dataclass(frozen=True, eq=False)
class Tasks:
    """The data sets that one model learns, by the names of the tasks; see :func:`~paretune.training.train_tasks`.

    Args:
        data: of each task, in the order of the blocks of the head.
        weights: of the loss of each task, above 0; None for 1 / tasks each, ``"size"`` for the share of its train split in
            all of them.
        batch_sizes: images of each task a step; None for ``batch_size`` of each.

    Raises:
        ValueError: there are fewer than two; a name is not one of a directory, or one that a run uses itself; a task has one
            class; images have other sizes or channels; one task learns images that another is measured on; weights or batch
            sizes are not one for each task, or out of range.
    """

    data: Mapping[str, ImageData]
    weights: Mapping[str, float] | Literal["size"] | None = None
    batch_sizes: Mapping[str, int] | None = None
    shares: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.data) < 2:
            raise ValueError(
                f"name at least two tasks, got {', '.join(self.data) or 'none'}; paretune.train learns one"
            )
        check_names(self.data)
        for name, data in self.data.items():
            if len(data.classes) < 2:
                raise ValueError(
                    f"the task {name!r} has {len(data.classes)} class; there must be at least two"
                )
        shapes = {name: tuple(data.train[:1][0].shape[1:]) for name, data in self.data.items()}
        if len({*shapes.values()}) > 1:
            text = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise ValueError(
                f"all tasks must have images of one shape (channels, height, width), which the backbone takes; got {text}: "
                "load them with the same img_size"
            )
        for (one, data), (other, elsewhere) in combinations(self.data.items(), 2):
            if data.learnt is not None and data.learnt == elsewhere.learnt:
                _check_apart(one, data, other, elsewhere)
                _check_apart(other, elsewhere, one, data)
        for option, given in (("weights", self.weights), ("batch_sizes", self.batch_sizes)):
            if isinstance(given, Mapping) and {*given} != {*self.data}:
                raise ValueError(
                    f"{option} must name each task once: {', '.join(self.data)}; got {', '.join(given) or 'none'}"
                )
        object.__setattr__(self, "shares", self._shares())

    def _shares(self) -> tuple[float, ...]:
        if self.weights is None:
            return (1 / len(self.data),) * len(self.data)
        if self.weights == "size":
            sizes = [len(data.train) for data in self.data.values()]
            return tuple(size / sum(sizes) for size in sizes)
        if not isinstance(self.weights, Mapping):
            raise ValueError(f"weights must be a weight for each task, 'size' or None; got {self.weights!r}")
        for name, weight in self.weights.items():
            if (
                isinstance(weight, bool)
                or not isinstance(weight, int | float)
                or not 0 < weight < float("inf")
            ):
                raise ValueError(
                    f"the weight of {name!r} must be finite and above 0, got {weight!r}; leave out a task instead"
                )
        return tuple(float(self.weights[name]) for name in self.data)

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of all tasks, one for each logit of the model."""
        return tuple(f"{name}: {kind}" for name, data in self.data.items() for kind in data.classes)

    @property
    def name(self) -> str:
        """What all of them are called."""
        return " + ".join(self.data)

    @property
    def fingerprint(self) -> str:
        """Digest of the splits of all."""
        return digest(*(data.fingerprint for data in self.data.values()))

    def noted(self) -> Task:
        """What the model of all of them remembers."""
        datasets = self.data.values()
        described = {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "train": sum(len(data.train) for data in datasets),
            "report": sum(len(data.report) for data in datasets),
            "loaded_with": None,
            "learnt": None,
            "tasks": {
                name: described_data(name, data)
                | {"classes": data.train.classes, "num_classes": len(data.classes)}
                for name, data in self.data.items()
            },
        }
        named = all(data.train.classes is not None for data in datasets)
        return Task(self.classes if named else None, described)


def check_names(names: Collection[str]) -> None:
    """Raise ValueError unless each of ``names`` may be that of the directory of a task."""
    for name in names:
        if not re.fullmatch(r"\w[\w +-]*", name) or name.casefold() in ("adapter", "done", "bits"):
            raise ValueError(
                f"the name of a task is that of a directory, of letters, digits, -, + and _, and not 'adapter', 'done' "
                f"or 'bits'; got {name!r}"
            )
    if len({name.casefold() for name in names}) < len(names):
        raise ValueError(f"the names of tasks must differ by more than case: {', '.join(names)}")


def batches(data: ImageData | Tasks, batch_size: int) -> dict[str, tuple[ImageData, int]]:
    """What a step takes of each task of ``data``, by name: its images, and how many, ``batch_size`` if it does not say."""
    if isinstance(data, ImageData):
        return {data.name: (data, batch_size)}
    sizes = data.batch_sizes or dict.fromkeys(data.data, batch_size)
    return {name: (dataset, sizes[name]) for name, dataset in data.data.items()}


def described_data(name: str, data: ImageData) -> dict[str, Any]:
    """What adapter files say of the data of a task: plain JSON."""
    return {
        "name": name,
        "fingerprint": data.fingerprint,
        "train": len(data.train),
        "report": len(data.report),
        "loaded_with": data.loaded_with,
        "learnt": data.learnt,
    }


def _check_apart(learner: str, learnt: ImageData, measurer: str, measured: ImageData) -> None:
    """Raise ValueError if one task learns what another, of the same images, is measured on."""
    splits = measured.select, measured.report, *measured.elsewhere.values()
    held_out = torch.cat([split.ids for split in splits])
    both = int(torch.isin(held_out, learnt.train.ids).sum())
    if both:
        raise ValueError(
            f"the task {learner!r} learns {both} of the images that {measurer!r} is measured on, as both are of the same "
            "data; split them with the same seed and limit"
        )


def blocks(trained: Task) -> dict[str, tuple[slice, Task]]:
    """The rows of the head of each task that a model was ``trained`` for, and the task; empty if it is one alone."""
    noted: Mapping[str, Any] = (trained.data or {}).get("tasks") or {}
    stops = accumulate(note["num_classes"] for note in noted.values())
    return {
        name: (slice(stop - note["num_classes"], stop), _task(note))
        for (name, note), stop in zip(noted.items(), stops, strict=True)
    }


def _task(noted: Mapping[str, Any]) -> Task:
    data = {key: value for key, value in noted.items() if key not in ("classes", "num_classes")}
    return Task(None if noted["classes"] is None else tuple(noted["classes"]), data)


def shared_view(model: Backbone, name: str, trained: Task) -> Backbone:
    """The model of the task ``name`` while it trains: it shares all parameters and statistics with ``model``.

    Args:
        model: adapted.
        name: of one of the tasks that it is ``trained`` for.
        trained: see :meth:`Tasks.noted`.

    Raises:
        ValueError: the head cannot be divided.
    """
    rows, task = blocks(trained)[name]
    head = model.module.get_submodule(model.head)
    check_divisible(head, model.head)
    shown = model.beside(HeadBlock(head, rows))
    note_task(shown, task)
    return shown


def view(model: Backbone, name: str) -> Backbone:
    """The model of one task alone, as a Backbone of its own: save, merge, export or train it as any other.

    Its logits are those that the run of the task has measured. It is a copy: what happens to it does not change ``model``.

    Args:
        model: trained with :func:`~paretune.training.train_tasks`, or loaded from the adapter of such a run.
        name: of the task.

    Raises:
        ValueError: the model was not trained for a task of this name.
    """
    known = blocks(task_of(model))
    if name not in known:
        purpose = f"for the tasks {', '.join(known)}" if known else "for several tasks"
        raise ValueError(f"the model was {'' if known else 'not '}trained {purpose}; got {name!r}")
    rows, task = known[name]
    alone = copy.deepcopy(model.beside(cut_out(model.module.get_submodule(model.head), rows)))
    adaptation = adaptation_of(model)
    if adaptation is not None:
        base = {
            key: value[rows] if inside(key, adaptation.head) else value
            for key, value in adaptation.base.items()
        }
        alone.module.__dict__[RECORD] = replace(adaptation, base=base, task=Task())
    note_task(alone, task)
    return alone
