"""What a run is to do, worked out of the arguments of :func:`~paretune.train` and checked before anything is written."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from paretune._values import check_whole
from paretune.attacks import PGD, Attack
from paretune.attacks.copy.options import CopyOptions
from paretune.backbones.backbone import Backbone, Task, fingerprint, tensor_digests
from paretune.data.images import ImageData, ImageSplit, check_same_classes
from paretune.strategies.mechanics.adapting import require_adaptation
from paretune.training.keeping import Keep, Rule
from paretune.training.objectives import Objective
from paretune.training.optimizers import AdamW
from paretune.training.schedules import EpsilonSchedule

Mixed = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A run before its first step; nothing here changes while it trains.

    Args:
        objective: what a batch minimises.
        optimizer: how the parameters move.
        epsilon: strength of the training attack over time.
        attacks: what to measure with.
        attack_elsewhere: whether to measure with them what is elsewhere too.
        options: of the attacked copy.
        seed: of batches and attacks.
        batch_size: images a step, over all processes.
        accumulate: parts that the share of a process is learnt in.
        checkpointing: whether activations are computed again instead of kept.
        mixed_precision: of the forward and backward passes that train.
        ema: decay of the average of the weights that is measured and saved, if any.
        awp: size of the perturbation of the weights that the gradient is taken at, if any.
        keep: which point the run ends with.
        total: optimizer steps.
        per_epoch: steps of an epoch.
        measured_at: the steps after which the model is measured.
        lr: peak learning rate.
        examples: of the train split.
        chance: accuracy of the best constant answer on the select split.
        task: classes and data, which the model remembers.
        identity: makes what identifies the run, as JSON; it reads all weights, for which one process is enough.
    """

    objective: Objective
    optimizer: AdamW
    epsilon: EpsilonSchedule
    attacks: tuple[Attack, ...]
    attack_elsewhere: bool
    options: CopyOptions
    seed: int
    batch_size: int
    accumulate: int
    checkpointing: bool
    mixed_precision: str
    ema: float | None
    awp: float | None
    keep: Keep
    total: int
    per_epoch: int
    measured_at: frozenset[int]
    lr: float
    examples: int
    chance: float
    task: Task
    identity: Callable[[], dict[str, Any]]

    @classmethod
    def of(
        cls,
        model: Backbone,
        data: ImageData,
        objective: Objective,
        *,
        epochs: float | None,
        steps: int | None,
        batch_size: int,
        accumulate: int,
        checkpointing: bool,
        mixed_precision: Mixed | None,
        ema: float | None,
        awp: float | None,
        keep: Rule,
        patience: int | None,
        optimizer: AdamW | None,
        epsilon: EpsilonSchedule | None,
        attacks: Sequence[Attack] | None,
        attack_elsewhere: bool,
        eval_every: int | None,
        points: int | None,
        seed: int,
        options: CopyOptions,
    ) -> Self:
        """The plan of these arguments, which are those of :func:`~paretune.train`.

        Raises:
            ValueError: one is out of range, or the model was trained for other classes than those of ``data``.
        """
        strategy = require_adaptation(model).strategy
        optimizer, epsilon = optimizer or AdamW(), epsilon or EpsilonSchedule()
        attacks = _evaluation_attacks(objective) if attacks is None else tuple(attacks)
        examples = len(data.train)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size > examples:
            raise ValueError(
                f"batch_size={batch_size} is more than the {examples} images of the train split; give at most that many"
            )
        check_whole("accumulate", accumulate, 1, batch_size, hint=": parts of at least one image")
        mixed_precision = mixed_precision or cast(Mixed, os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))
        if mixed_precision not in get_args(Mixed):
            raise ValueError(
                f"mixed_precision must be one of {', '.join(get_args(Mixed))}, got {mixed_precision!r}"
            )
        if mixed_precision == "fp16" and not torch.cuda.is_available():
            raise ValueError("mixed_precision='fp16' needs a CUDA device; use 'bf16', or 'no' for float32")
        if ema is not None and not 0 <= ema < 1:
            raise ValueError(f"ema is the decay of an average in [0, 1), e.g. 0.999, got {ema}")
        if awp is not None and not 0 < awp < 1:
            raise ValueError(
                f"awp is the size of a perturbation in units of the weights, e.g. 0.005, got {awp}"
            )
        if awp is not None and mixed_precision == "fp16":
            raise ValueError(
                "awp perturbs along gradients, which float16 may overflow; use mixed_precision='bf16'"
            )
        if not objective.learns:
            raise ValueError(
                f"{objective!r} alone learns nothing; add it to an objective: Natural() + {objective!r}"
            )
        per_epoch = examples // batch_size
        total = _total_steps(epochs, steps, per_epoch)
        measured_at, measured = measuring_steps(total, per_epoch, eval_every, points)
        if not attacks:
            raise ValueError("attacks is empty; name at least one, e.g. attacks=[PGD(Linf(4/255), steps=20)]")
        if model.num_classes != len(data.classes):
            raise ValueError(
                f"the model has {model.num_classes} classes, data {data.name!r} has {len(data.classes)}"
            )
        check_same_classes(model.num_classes, model.classes, data.train.classes)
        if attack_elsewhere and not data.elsewhere:
            raise ValueError(
                f"attack_elsewhere: data {data.name!r} has nothing elsewhere; load it with train_domains"
            )
        lr = optimizer.lr or strategy.learning_rate
        optimizer.factors(model, lr)  # refuses a model whose blocks are not known
        config = {
            "task": data.name,
            "strategy": repr(strategy).removesuffix("()"),
            "strategy_config": repr(strategy),
            "strategy_fields": strategy.to_dict(),
            "seed": seed,
            "backbone": model.architecture,
            "image_size": model.image_size,
            "data": data.fingerprint,
            "objective": objective.to_dict(),
            "epsilon_schedule": epsilon.to_dict(),
            "optimizer": optimizer.to_dict() | {"lr": lr},
            "steps": total,
            "batch_size": batch_size,
            "accumulate": accumulate,
            "checkpointing": checkpointing,
            "mixed_precision": mixed_precision,
            "ema": ema,
            "awp": awp,
            "keep": keep,
            "patience": patience,
            **measured,
            "attacks": [attack.to_dict() for attack in attacks],
            "attack_precision": options.precision,
        }
        if options.engine == "compiled":  # which rounds otherwise; the others give the same bits
            config["attack_engine"] = options.engine
        if attack_elsewhere:
            config["attack_elsewhere"] = True

        def identity() -> dict[str, Any]:
            digests = tensor_digests(model.module.state_dict())
            return config | {"weights": fingerprint(model.architecture, digests)}

        described = {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "train": examples,
            "report": len(data.report),
            "loaded_with": data.loaded_with,
            "learnt": data.learnt,
        }
        return cls(
            objective=objective,
            optimizer=optimizer,
            epsilon=epsilon,
            attacks=attacks,
            attack_elsewhere=attack_elsewhere,
            options=options,
            seed=seed,
            batch_size=batch_size,
            accumulate=accumulate,
            checkpointing=checkpointing,
            mixed_precision=mixed_precision,
            ema=ema,
            awp=awp,
            keep=Keep(keep, patience),
            total=total,
            per_epoch=per_epoch,
            measured_at=frozenset(measured_at),
            lr=lr,
            examples=examples,
            chance=float(torch.bincount(data.select.labels).max()) / len(data.select),
            task=Task(data.train.classes, described),
            identity=identity,
        )

    def at(self, step: int) -> tuple[float, float, int]:
        """Epsilon of the training attack, learning rate and seed of ``step``, of which the first is 1."""
        done = (step - 0.5) / self.total
        attack = self.objective.attack
        strength = attack.threat.epsilon * self.epsilon.factor(done) if attack else 0.0
        seed = int(np.random.SeedSequence((self.seed, step, 0)).generate_state(1)[0])
        return strength, self.lr * self.optimizer.factor(done), seed


Rows = tuple[
    int, list[int], list[int]
]  # the epoch, rows of the split, and their places in the batch of all processes


class Batches:
    """Index lists of the batches after step ``start``; each epoch's order follows from (seed, epoch) alone.

    Args:
        plan: of the run.
        start: steps that are done.
        rank: the process, which takes its share of every batch.
        world: how many processes there are.
        over: whether there are none to come.
    """

    def __init__(self, plan: Plan, start: int, rank: int, world: int, *, over: bool = False) -> None:
        self.plan, self.start, self.rank, self.world = plan, start, rank, world
        self.end = start if over else plan.total

    def loader(self, split: ImageSplit, workers: int, device: torch.device) -> DataLoader[Any]:
        """Gives these batches of ``split``, from memory that a copy to ``device`` is not waited for."""
        pinned = device.type == "cuda"
        images = _Numbered(split)
        return DataLoader(images, sampler=self, batch_size=None, num_workers=workers, pin_memory=pinned)

    def __iter__(self) -> Iterator[Rows]:
        plan = self.plan
        order, current = np.arange(0), -1
        for step in range(self.start, self.end):
            epoch, number = divmod(step, plan.per_epoch)
            if epoch != current:
                order, current = np.random.default_rng([plan.seed, epoch]).permutation(plan.examples), epoch
            batch = order[number * plan.batch_size : (number + 1) * plan.batch_size]
            places = range(self.rank, plan.batch_size, self.world)
            yield epoch, batch[places].tolist(), list(places)


class _Numbered(Dataset[tuple[Tensor, ...]]):
    """Images and labels by index, and which examples they are."""

    def __init__(self, split: ImageSplit) -> None:
        self.split = split

    def __getitem__(self, index: Rows) -> tuple[Tensor, ...]:
        _, rows, places = index
        images, labels = self.split[rows]
        return images, labels, self.split.ids[rows], torch.tensor(places)


def measuring_steps(
    total: int, per_epoch: int, eval_every: int | None, points: int | None
) -> tuple[set[int], dict[str, int]]:
    """The steps after which the model is measured, and what the configuration of the run says of them.

    Raises:
        ValueError: both are given, or one is out of range.
    """
    if points is not None:
        if eval_every is not None:
            raise ValueError(
                f"give either eval_every or points; got eval_every={eval_every}, points={points}"
            )
        check_whole("points", points, 1, total, hint=": at most one a step of training")
        eval_every = -(-total // points)
        if -(-total // eval_every) < points:  # of 5 steps, 2 for 4 points make 3
            spread = {(2 * i * total + points) // (2 * points) for i in range(1, points + 1)}
            return spread, {"points": points}
    eval_every = min(per_epoch if eval_every is None else eval_every, total)
    if eval_every < 1:
        raise ValueError(f"eval_every must be at least 1 step, got {eval_every}")
    return {*range(eval_every, total, eval_every), total}, {"eval_every": eval_every}


def _evaluation_attacks(objective: Objective) -> tuple[Attack, ...]:
    if objective.attack is None:
        raise ValueError(
            f"{objective!r} names no threat; say what to evaluate with: attacks=[PGD(Linf(4/255), steps=20)]"
        )
    return (PGD(objective.attack.threat, steps=20),)


def _total_steps(epochs: float | None, steps: int | None, per_epoch: int) -> int:
    if (epochs is None) == (steps is None):
        raise ValueError(f"give either epochs or steps; got epochs={epochs}, steps={steps}")
    total = steps if steps is not None else round((epochs or 0) * per_epoch)
    if total < 1:
        raise ValueError(
            f"training needs at least one step; got epochs={epochs}, steps={steps}, {per_epoch} steps an epoch"
        )
    return total
