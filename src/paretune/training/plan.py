"""What a run is to do, worked out of the arguments of :func:`~paretune.train` and checked before anything is written."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from paretune._values import check_whole
from paretune.attacks import PGD, Attack
from paretune.attacks.copy.options import CopyOptions, Engine
from paretune.attacks.copy.precision import Precision
from paretune.backbones.backbone import Backbone, Task, fingerprint, inside, tensor_digests
from paretune.data.augmenting import Augmented
from paretune.data.images import ImageData, check_same_classes
from paretune.shifts import Shift, Shifts, shifted
from paretune.strategies.mechanics.adapting import require_adaptation, trainable_parameters
from paretune.training.balance import Balance, check_balance, example_weights
from paretune.training.chosen import check_confirm
from paretune.training.freezing import Freezing, NoFreezing, check_course
from paretune.training.keeping import Keep, Rule
from paretune.training.learning import Learning, learnings, seed_of
from paretune.training.objectives import Objective
from paretune.training.optimizers import AdamW
from paretune.training.schedules import EpsilonSchedule, Moment, TwoHinge
from paretune.training.tasks import Tasks, described_data, shared_view

Mixed = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A run before its first step; nothing here changes while it trains.

    Args:
        objective: what a batch minimises.
        optimizer: how the parameters move.
        epsilon: strength of the training attack over time.
        freezing: what trains when.
        attacks: what to measure with.
        attack_elsewhere: whether to measure with them what is elsewhere too.
        confirm: what measures the points that are chosen once more.
        reuse: whether evaluation points try what broke the model at the one before first.
        options: of the attacked copy.
        seed: of batches and attacks.
        tasks: what is learnt.
        together: whether that is several tasks, each with a model and a run directory of its own.
        accumulate: parts that the share of a process is to be learnt in.
        divide: how many times more parts there are, for lack of memory; no part of what identifies a run.
        checkpointing: whether activations are computed again instead of kept.
        mixed_precision: of the forward and backward passes that train.
        ema: decay of the average of the weights that is measured and saved, if any.
        awp: size of the perturbation of the weights that the gradient is taken at, if any.
        keep: which point the run ends with.
        total: optimizer steps.
        per_epoch: steps of an epoch, of the task that has the most.
        stop_on_failure: whether a failure that is noticed ends the run.
        measured_at: the steps after which the model is measured.
        lr: peak learning rate.
        noted: classes and data, which the model remembers.
        identity: makes what identifies the run of each task, as JSON; it reads all weights, for which one process is enough.
    """

    objective: Objective
    optimizer: AdamW
    epsilon: EpsilonSchedule
    freezing: Freezing
    attacks: tuple[Attack, ...]
    attack_elsewhere: bool
    confirm: Attack | None
    reuse: bool
    options: CopyOptions
    seed: int
    tasks: tuple[Learning, ...]
    together: bool
    accumulate: int
    divide: int
    checkpointing: bool
    mixed_precision: str
    ema: float | None
    awp: float | None
    keep: Keep
    total: int
    per_epoch: int
    stop_on_failure: bool
    measured_at: frozenset[int]
    lr: float
    noted: Task
    identity: Callable[[], list[dict[str, Any]]]

    @classmethod
    def of(
        cls,
        model: Backbone,
        data: ImageData | Tasks,
        objective: Objective,
        *,
        epochs: float | None,
        steps: int | None,
        batch_size: int,
        accumulate: int = 1,
        divide: int = 1,
        checkpointing: bool = False,
        mixed_precision: Mixed | None = None,
        ema: float | None = None,
        awp: float | None = None,
        keep: Rule = "last",
        patience: int | None = None,
        optimizer: AdamW | None,
        epsilon: EpsilonSchedule | None,
        freezing: Freezing | None = None,
        attacks: Sequence[Attack] | None,
        attack_elsewhere: bool = False,
        shifts: Sequence[Shift] = (),
        shift_limit: int | None = 500,
        eval_every: int | None,
        points: int | None,
        seed: int,
        augmentation: Any = None,
        precision: Literal["auto"] | Precision = "fp32",
        engine: Engine = "auto",
        balance: Balance = "none",
        stop_on_failure: bool = False,
        reuse: bool = False,
        confirm: Attack | None = None,
    ) -> Self:
        """The plan of these arguments, which are those of :func:`~paretune.train`.

        Raises:
            ValueError: one is out of range, the model was trained for other classes than those of ``data``, or the
                augmentation fails.
        """
        options = CopyOptions(precision=precision, engine=engine)
        strategy = require_adaptation(model).strategy
        if objective.lacks_attack:
            raise ValueError(
                f"{objective!r} names no attack to train against; name it, e.g. inner=PGD(Linf(4/255), steps=7)"
            )
        check_balance(balance)
        optimizer, epsilon, freezing = optimizer or AdamW(), epsilon or TwoHinge(), freezing or NoFreezing()
        if optimizer.head_lr is not None and getattr(freezing, "lr", None) is not None:
            raise ValueError(
                f"give head_lr={optimizer.head_lr} or {freezing!r}, not both: each sets the rate of the head"
            )
        attacks = _evaluation_attacks(objective) if attacks is None else tuple(attacks)
        tasks = learnings(data, batch_size, seed, augmentation, balance)
        for task in tasks:
            objective.check_augmentation(task.train.augmentation)
        task_configs = [
            {
                "task": task.name,
                "data": task.data.fingerprint,
                "batch_size": task.batch_size,
                "augmentation": repr(task.train.augmentation),
                "augmentation_fields": [part.to_dict() for part in task.train.augmentation.parts],
            }
            for task in tasks
        ]
        shifts = Shifts.read(shifts)
        tasks = tuple(replace(task, data=shifted(task.data, shifts, shift_limit)) for task in tasks)
        smallest = min(task.batch_size for task in tasks)
        check_whole("accumulate", accumulate, 1, smallest, hint=": parts of at least one image")
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
        trained = trainable_parameters(model)
        heads = [name for name, value in trained.items() if value.requires_grad and inside(name, model.head)]
        if heads and not objective.trains_head:
            raise ValueError(
                f"{objective!r} gives no gradient to the head ({', '.join(heads)}), which would stay as it began: add it to "
                f"an objective with labels, Natural() + {objective!r}, or give the backbone a head that is not trained, "
                "paretune.backbones.prototype_head, before adapt"
            )
        per_epoch = max(task.per_epoch for task in tasks)
        total = _total_steps(epochs, steps, per_epoch)
        measured_at, measured = measuring_steps(total, per_epoch, eval_every, points)
        check_course(freezing, epsilon, total, per_epoch, attacked=objective.attack is not None)
        freezing.depth(model)  # or the model has none
        if not attacks:
            raise ValueError("attacks is empty; name at least one, e.g. attacks=[PGD(Linf(4/255), steps=20)]")
        if isinstance(data, Tasks):
            noted = data.noted()
            if precision == "auto":
                raise ValueError(
                    "precision='auto' may end otherwise for each task; name one for all: precision='fp32' or 'bf16'"
                )
        else:
            noted = Task(data.train.classes, described_data(data.name, data))
        if model.num_classes != len(data.classes):
            raise ValueError(
                f"the model has {model.num_classes} classes, data {data.name!r} has {len(data.classes)}"
            )
        check_same_classes(model.num_classes, model.classes, noted.classes)
        if attack_elsewhere and not any(task.data.elsewhere for task in tasks):
            raise ValueError(
                f"attack_elsewhere: data {data.name!r} has nothing elsewhere; load it with train_domains, or give shifts"
            )
        for task in tasks:
            together = isinstance(data, Tasks)
            objective.check(shared_view(model, task.name, noted) if together else model, task.data)
        lr = optimizer.lr or strategy.learning_rate
        optimizer.factors(model, lr)  # refuses a model whose blocks are not known
        config = {
            "strategy": repr(strategy).removesuffix("()"),
            "strategy_config": repr(strategy),
            "strategy_fields": strategy.to_dict(),
            "seed": seed,
            "backbone": model.architecture,
            "image_size": model.image_size,
            "objective": objective.to_dict(),
            "epsilon_schedule": epsilon.to_dict(),
            "freezing": freezing.to_dict(),
            "optimizer": optimizer.to_dict() | {"lr": lr},
            "steps": total,
            "accumulate": accumulate,
            "checkpointing": checkpointing,
            "mixed_precision": mixed_precision,
            "ema": ema,
            "awp": awp,
            "keep": keep,
            "patience": patience,
            **measured,
            "stop_on_failure": stop_on_failure,
            "attacks": [attack.to_dict() for attack in attacks],
            "attack_precision": options.precision,
        }
        if balance != "none":
            config["balance"] = balance
        if options.engine == "compiled":  # which rounds otherwise; the others give the same bits
            config["attack_engine"] = options.engine
        if attack_elsewhere:
            config["attack_elsewhere"] = True
        if reuse:
            config["reuse"] = True
        if confirm is not None:
            check_confirm(confirm, attacks)
            config["confirm"] = confirm.to_dict()
        if shifts:
            config["shifts"] = [shift.to_dict() for shift in shifts]
            config["shift_limit"] = shift_limit
        if isinstance(data, Tasks):
            config["together"] = {
                task.name: task_config | {"weight": task.share}
                for task, task_config in zip(tasks, task_configs, strict=True)
            }

        def identity() -> list[dict[str, Any]]:
            digests = tensor_digests(model.module.state_dict())
            weights = fingerprint(model.architecture, digests)
            return [task_config | config | {"weights": weights} for task_config in task_configs]

        return cls(
            objective=objective,
            optimizer=optimizer,
            epsilon=epsilon,
            freezing=freezing,
            attacks=attacks,
            attack_elsewhere=attack_elsewhere,
            confirm=confirm,
            reuse=reuse,
            options=options,
            seed=seed,
            tasks=tasks,
            together=isinstance(data, Tasks),
            accumulate=accumulate,
            divide=divide,
            checkpointing=checkpointing,
            mixed_precision=mixed_precision,
            ema=ema,
            awp=awp,
            keep=Keep(keep, patience),
            total=total,
            per_epoch=per_epoch,
            stop_on_failure=stop_on_failure,
            measured_at=frozenset(measured_at),
            lr=lr,
            noted=noted,
            identity=identity,
        )

    def at(self, step: int, clean: Sequence[float]) -> tuple[float, float, int]:
        """Epsilon of the training attack, learning rate and seed of ``step``, of which the first is 1.

        Args:
            step: to take.
            clean: accuracy on the select split after each epoch in which the schedule has asked for it.
        """
        phase = self.freezing.phase(step, self.total)
        rate = (phase.lr or self.lr) * self.optimizer.factor((phase.step - 0.5) / phase.total)
        return self.strength(step, clean), rate, seed_of(self.seed, step)

    def strength(self, step: int, clean: Sequence[float]) -> float:
        """Epsilon of the training attack at ``step``; see :meth:`at`."""
        attack = self.objective.attack
        now = Moment(step=step, total=self.total, per_epoch=self.per_epoch, seed=self.seed, clean=clean)
        return attack.threat.epsilon * self.freezing.factor(self.epsilon, now) if attack else 0.0

    @property
    def names(self) -> list[str]:
        """Of the tasks, if they are several; none otherwise."""
        return [task.name for task in self.tasks] if self.together else []

    @property
    def parts(self) -> int:
        """How many parts the share of a process is learnt in."""
        return min(self.accumulate * self.divide, *(task.batch_size for task in self.tasks))

    @property
    def early(self) -> int:
        """The step that ends the first tenth, after which an attack that is on must have let the model learn something."""
        return -(-self.total // 10)

    def adapts(self, step: int) -> bool:
        """Whether all that is trainable trains in ``step``."""
        return self.freezing.shallowest(step, self.total, 1) == 0

    def asks(self, step: int, clean: Sequence[float]) -> bool:
        """Whether the schedule of epsilon waits for the clean accuracy after ``step``."""
        phase = self.freezing.phase(step, self.total)
        if self.objective.attack is None or phase.epsilon is not None or phase.step == phase.total:
            return False
        return phase.step % self.per_epoch == 0 and self.epsilon.waits(clean)

    def gradient_evaluations(self, step: int, clean: Sequence[float]) -> int:
        """Times that training goes forward and backward with one image, attacks included, up to ``step``; see :meth:`at`."""
        attacked = sum(self.strength(done, clean) > 0 for done in range(1, step + 1))
        return sum(
            task.batch_size
            * evaluations_of_image(self.objective, len(task.data.classes), step, attacked, self.awp)
            for task in self.tasks
        )


def evaluations_of_image(
    objective: Objective, classes: int, steps: int, attacked: int, awp: float | None
) -> int:
    """Times that ``steps``, of which so many are ``attacked``, go forward and backward with an image in each batch."""
    alone = objective.gradient_evaluations(classes, attacked=False)
    perturbing = steps * alone if awp is not None else 0
    return attacked * objective.gradient_evaluations(classes) + (steps - attacked) * alone + perturbing


Rows = tuple[
    int, list[int], list[int]
]  # the epoch, rows of the split, and their places in the batch of all processes


class Batches:
    """Epoch and index list of each batch of a task after step ``start``, epoch after epoch of that task.

    An epoch's order follows from (seed, epoch, task) alone.

    Args:
        plan: of the run.
        start: steps that are done.
        rank: the process, which takes its share of every batch.
        world: how many processes there are.
        number: of the task.
    """

    def __init__(self, plan: Plan, start: int, rank: int, world: int, *, number: int = 0) -> None:
        self.task, self.start, self.total = plan.tasks[number], start, plan.total
        self.rank, self.world = rank, world

    def loader(self, workers: int, device: torch.device) -> DataLoader[Any]:
        """Gives these batches, from memory that a copy to ``device`` is not waited for."""
        pinned = device.type == "cuda"
        weights = example_weights(self.task.labels) if self.task.balance == "weights" else None
        images = _Numbered(self.task.train, weights)
        return DataLoader(images, sampler=self, batch_size=None, num_workers=workers, pin_memory=pinned)

    def __iter__(self) -> Iterator[Rows]:
        task = self.task
        order, current = np.arange(0), -1
        for step in range(self.start, self.total):
            epoch, number = divmod(step, task.per_epoch)
            if epoch != current:
                order, current = task.order(epoch), epoch
            batch = order[number * task.batch_size : (number + 1) * task.batch_size]
            places = range(self.rank, task.batch_size, self.world)
            yield epoch, batch[places].tolist(), list(places)


class _Numbered(Dataset[tuple[Tensor, ...]]):
    """Images and labels by index, which examples they are, and, if there are any, their weights."""

    def __init__(self, train: Augmented, weights: Tensor | None) -> None:
        self.train, self.weights = train, weights

    def __getitem__(self, index: Rows) -> tuple[Tensor, ...]:
        epoch, rows, places = index
        images, labels = self.train[epoch, rows]
        weights = () if self.weights is None else (self.weights[rows],)
        return images, labels, self.train.split.ids[rows], torch.tensor(places), *weights


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
