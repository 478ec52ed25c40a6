"""What a run is made from, as plain values: the command line, YAML files and sweeps all build these.

A run is a pure function of its :class:`RunConfig`, so it can be retried, resumed or moved to another process.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from paretune._values import LAST_SEED, MOST, check_whole, from_dict, parse_many, parse_number, shown, told
from paretune.attacks import PGD, THREATS, Attack, Engine, Threat
from paretune.backbones.backbone import Backbone
from paretune.backbones.loading import load_backbone
from paretune.data.augmentation import Augmentation
from paretune.data.augmenting import read_augmentation
from paretune.data.images import ImageData
from paretune.data.sizes import ImageSize, Sides, checked_size
from paretune.runs.progress import Status
from paretune.runs.sinks.base import Openable
from paretune.runs.store import Run, load_runs
from paretune.shifts import Shifts
from paretune.strategies import STRATEGIES, BitFit, Compacter, FullFineTune, LoRA, Strategy, adapt
from paretune.sweeps.sources import PerTask, SourceConfig
from paretune.training.balance import Balance, check_balance
from paretune.training.chosen import read_confirm
from paretune.training.freezing import Freezing, NoFreezing, check_course
from paretune.training.keeping import Keep
from paretune.training.loop import train
from paretune.training.memory import fitting
from paretune.training.objectives import AdversarialTraining, Natural, Objective
from paretune.training.optimizers import AdamW
from paretune.training.record import places
from paretune.training.schedules import EpsilonSchedule, TwoHinge
from paretune.training.tasks import Tasks, batches

T = TypeVar("T", bound=ImageData | Tasks)
_AS_IN_TRAIN = (
    *("batch_size", "accumulate", "checkpointing", "mixed_precision", "ema", "awp", "keep", "patience"),
    *("freezing", "augmentation", "balance", "optimizer", "points", "stop_on_failure"),
    *("shift_limit", "attack_elsewhere", "seed", "precision", "engine", "reuse"),
)
# Sizes of the offline backbones for the demo and for all other data; DINOv2 was mostly trained at 224, although its
# weights end at 518.
_SIZES = {"efficientnet-lite0": (24, 224), "dinov2-small": (28, 224)}


class Strategies(tuple[Strategy, ...]):
    """Several strategies; reads ``"lora,BitFit()"`` or a list of such calls."""

    @classmethod
    def read(cls, value: object) -> Self:
        """From a string, or a list of strings or of dictionaries as :meth:`Value.to_dict` makes them.

        Raises:
            ValueError: it names no strategy, or something else.
        """
        strategies: list[Strategy] = []
        for item in value if isinstance(value, list | tuple) else [value]:
            strategies += (
                [from_dict(item, STRATEGIES)]
                if isinstance(item, Mapping)
                else parse_many(str(item), STRATEGIES)
            )
        if not strategies:
            raise ValueError(f"{value!r} names nothing; name at least one of: {', '.join(STRATEGIES)}")
        return cls(strategies)


class Seeds(tuple[int, ...]):
    """Several seeds; reads ``"0,1,2"`` or a list of numbers."""

    @classmethod
    def read(cls, value: object) -> Self:
        """From a string, one number or a list of numbers.

        Raises:
            ValueError: it names no seed, or something else.
        """
        items = value if isinstance(value, list | tuple) else str(value).strip("[]()").split(",")
        texts = [str(item).strip() for item in items]
        if not texts or not all(text.isascii() and text.isdecimal() and len(text) < 20 for text in texts):
            raise ValueError(
                f"seeds must be whole numbers from 0 to {LAST_SEED}, separated by commas as in 0,1,2; got {shown(value)}"
            )
        seeds = cls(map(int, texts))
        for seed in seeds:
            check_whole("seeds", seed, 0, LAST_SEED)
        return seeds


@dataclass(frozen=True, kw_only=True)
class TaskConfig(SourceConfig):
    """The task and the training budget that compared runs share.

    Args:
        backbone: pretrained model: efficientnet-lite0, dinov2-small, timm:NAME or hf:NAME_OR_DIRECTORY.
        weights: a .safetensors or .pth file for that architecture; nothing is downloaded then.
        weights_key: which state dict of that file, such as state_dict; null takes the averaged one (EMA) if there is one.
        img_size: side of the square images in pixels, or height and width as in 32,48. null takes the model's own, 224 for
            dinov2-small; of digits, the demo, 24 for efficientnet-lite0 and 28 for dinov2-small, which suit a CPU.
        task_weights: of several tasks the weight of each in the loss, as in digits=1,flowers=0.5, or size for its share of
            the images; null weighs them alike.
        task_batch_sizes: of several tasks the images of each a step, as in digits=32,flowers=16; null is batch_size of each.
        shifts: what else to measure at each point: changed or other images of the same classes, by calls separated by commas
            as in "Corruptions('common'), Grey()".
        shift_limit: images of each shift at most; null is all of the report split.
        attack_elsewhere: attack the images of other domains and shifts too; false measures clean accuracy alone there.
        norm: norm of the threat model.
        epsilon: radius of the threat model in units of the pixel range, e.g. 4/255.
        train_steps: PGD steps a training batch is attacked with; 0 trains on clean images.
        objective: what training minimises, such as TRADES(beta=6), or AdversarialTraining() + 0.1*FARE(); without an attack
            of its own, each takes PGD with norm, epsilon and train_steps. null is AdversarialTraining(), or Natural() where
            train_steps is 0.
        eval_steps: PGD steps of the evaluation.
        schedule: strength of the training attack over time: two_hinge(start, end), linear(end), fixed, auto(patience,
            tolerance) or uniform. As in two_hinge(0.1, 0.5), start and end are fractions of training.
        freezing: what trains when: lpft(probe), the head alone on clean images for this fraction of training, then
            everything; roli(probe), the same under attack; gradual_unfreezing(end), block by block up to this fraction.
        augmentation: of the training images: flip, crop, randomresizedcrop, colorjitter, randaugment, autoaugment or augmix,
            with options as in "Flip() + RandAugment(9)", or timm's rand-m9-mstd0.5; + puts one after the other. null takes
            flip+crop, but crop where a mirror may change what is shown (Fashion-MNIST; classes that are digits, letters or
            numbers, or go left or right) and none of digits, the demo; none changes nothing.
        epochs: passes over the train split.
        batch_size: images a step, of each task if there are several.
        accumulate: parts in which a batch is learnt, for less memory; the gradient is that of the whole batch.
        checkpointing: compute activations again in the backward pass instead of keeping them, for less memory.
        mixed_precision: of the passes that train; fp16 needs CUDA. null takes what accelerate launch was told, else no.
        ema: decay of an average of the weights, such as 0.99, that is measured and saved in their place.
        awp: size of an adversarial perturbation of the weights, such as 0.005, at which each step takes its gradient.
        keep: the point that a run ends with: the last, or the best on the select split by clean or robust accuracy, their
            harmonic mean, or the area that it dominates.
        patience: stop a run after so many points without a better one.
        balance: of classes of different sizes; weights in the loss, or sampling each class equally often.
        optimizer: AdamW() takes the strategy's own learning rate.
        points: evaluation points, spread evenly over the steps of training; each is one point of the frontier.
        stop_on_failure: end a run where transfer failure, catastrophic overfitting, masked gradients or an adapter that does
            not move is noticed; its findings say so, and a comparison takes no more points of any run than it has.
        reuse: try the adversarial examples of the evaluation point before first, and attack what withstands them: fewer
            passes, and never a higher robust accuracy.
        confirm: a stricter attack with the same threat, as in "AutoAttack(Linf(2/255))", that measures the frontier and the
            last point of each run once more, on the report split; auto is AutoAttack. null confirms nothing.
        precision: of the gradients of attacks: fp32 gives the same numbers everywhere; auto takes bfloat16 where the first
            batch shows that it is faithful and faster; bf16 insists. Every example is judged in float32.
        engine: what takes the steps of attacks: eager, one by one; graph, CUDA graphs of them or of what they ask the model,
            with the same numbers; compiled, by torch.compile, which rounds otherwise. auto is a graph where
            it helps, else eager.
    """

    backbone: str = "efficientnet-lite0"
    weights: str | None = None
    weights_key: str | None = None
    img_size: ImageSize | Sides | None = None
    task_weights: PerTask | Literal["size"] | None = None
    task_batch_sizes: PerTask | None = None
    shifts: Shifts | None = None
    shift_limit: int | None = 500
    attack_elsewhere: bool = False
    norm: Literal["Linf", "L2", "L1"] = "Linf"
    epsilon: str = "2/255"
    train_steps: int = 3
    objective: Objective | None = None
    eval_steps: int = 10
    schedule: EpsilonSchedule = field(default_factory=TwoHinge)
    freezing: Freezing = field(default_factory=NoFreezing)
    augmentation: Augmentation | str | None = None
    epochs: float = 5.0
    batch_size: int = 32
    accumulate: int = 1
    checkpointing: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    ema: float | None = None
    awp: float | None = None
    keep: Literal["last", "clean", "robust", "harmonic", "area"] = "last"
    patience: int | None = None
    balance: Balance = "none"
    optimizer: AdamW = field(default_factory=AdamW)
    points: int = 4
    stop_on_failure: bool = False
    reuse: bool = False
    confirm: str | None = None
    precision: Literal["fp32", "auto", "bf16"] = "fp32"
    engine: Engine = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("train_steps", 0), ("eval_steps", 1), ("points", 1), ("batch_size", 1)):
            check_whole(name, getattr(self, name), least)
        if self.img_size is not None:
            object.__setattr__(self, "img_size", checked_size("img_size", self.img_size))
        if self.augmentation is not None:
            with told("augmentation", str(self.augmentation)):
                object.__setattr__(self, "augmentation", read_augmentation(self.augmentation))
        self._check_tasks()
        if self.shifts is not None:
            with told("shifts", str(self.shifts)):
                object.__setattr__(self, "shifts", Shifts.read(self.shifts))
        if self.shift_limit is not None:
            check_whole("shift_limit", self.shift_limit, 1)
        check_whole("accumulate", self.accumulate, 1, self.batch_size)
        Keep(self.keep, self.patience)
        if not 0 < self.epochs <= MOST:
            raise ValueError(f"epochs must be above 0 and at most {MOST}, got {self.epochs}")
        if self.norm not in THREATS:
            raise ValueError(f"norm must be one of {', '.join(THREATS)}, got {self.norm!r}")
        if self.objective is not None and not isinstance(self.objective, Objective):
            raise TypeError(f"objective must be an objective such as TRADES(), got {shown(self.objective)}")
        check_balance(self.balance)
        _ = self.minimised, self.confirming

    @property
    def threat(self) -> Threat:
        """The threat model that ``norm`` and ``epsilon`` name."""
        with told("epsilon", self.epsilon):
            return THREATS[self.norm](parse_number("epsilon", self.epsilon))

    @property
    def minimised(self) -> Objective:
        """What training minimises: ``objective`` with the attack of this task, if it lacks one."""
        objective = self.objective or (AdversarialTraining() if self.train_steps else Natural())
        if objective.lacks_attack and not self.train_steps:
            raise ValueError(
                f"objective={objective!r} trains against an attack, but train_steps is 0; give train_steps of at least 1, "
                "or an objective that names its attack"
            )
        threat = self.threat
        return objective.against(threat, self.train_steps) if objective.lacks_attack else objective

    @property
    def attack(self) -> PGD:
        """What the models are measured with."""
        return PGD(self.threat, steps=self.eval_steps)

    @property
    def confirming(self) -> Attack | None:
        """What ``confirm`` names."""
        return None if self.confirm is None else read_confirm(self.confirm, self.attack)

    def load_backbone(self, num_classes: int, seed: int) -> Backbone:
        """The backbone with a fresh head."""
        with told("backbone", self.backbone):
            return load_backbone(
                self.backbone,
                num_classes=num_classes,
                img_size=self.size,
                weights=self.weights,
                weights_key=self.weights_key,
                seed=seed,
            )

    def load_data(self) -> ImageData | Tasks:
        """The data at the backbone's size."""
        size = self.load_backbone(2, 0).image_size if self.size is None else self.size
        loaded = {name: source.load(size) for name, source in self.sources.items()}
        return self.checked(self.together(loaded) if loaded else self.load(size))

    def together(self, data: Mapping[str, ImageData]) -> Tasks:
        """These data sets as the tasks of a run, with its weights and batch sizes."""
        weights, sizes = self.task_weights, self.task_batch_sizes
        batch_sizes = None if sizes is None else {name: int(size) for name, size in sizes}
        return Tasks(data, dict(weights) if isinstance(weights, PerTask) else weights, batch_sizes)

    def checked(self, data: T) -> T:
        """``data``, of which a batch must fit into the train split."""
        for name, (dataset, size) in batches(data, self.batch_size).items():
            if size > len(dataset.train):
                of_task = f" of the task {name!r}" if isinstance(data, Tasks) else ""
                raise ValueError(
                    f"batch_size={size} is more than the {len(dataset.train)} images of the train split{of_task}; give at "
                    "most that many, or a larger limit"
                )
        return data

    def check(self) -> ImageData | Tasks:
        """Load data and backbone once, for the errors that this brings to light; returns the data."""
        data = self.load_data()
        steps = self.steps(data)
        check_whole("points", self.points, 1, steps, hint=f": {self.epochs:g} epochs have {steps} steps")
        attacked = self.minimised.attack is not None
        check_course(self.freezing, self.schedule, steps, self.per_epoch(data), attacked=attacked)
        self.load_backbone(len(data.classes), 0)
        return data

    def per_epoch(self, data: ImageData | Tasks) -> int:
        """Steps of an epoch, of the task that has the most."""
        return max(len(dataset.train) // size for dataset, size in batches(data, self.batch_size).values())

    def steps(self, data: ImageData | Tasks) -> int:
        """Optimizer steps of a run."""
        return max(1, round(self.epochs * self.per_epoch(data)))

    @property
    def size(self) -> ImageSize | None:
        """Of the images; None for the backbone's own."""
        demo, default = _SIZES.get(self.backbone, (None, None))
        return self.img_size or (demo if self.is_demo else default)

    def _check_tasks(self) -> None:
        for name in ("task_weights", "task_batch_sizes"):
            given = getattr(self, name)
            if given is None:
                continue
            if not self.sources:
                raise ValueError(
                    f"{name} is for several tasks, and data={shown(self.data)} is one; give it several times"
                )
            if given == "size" and name == "task_weights":
                continue
            numbers = PerTask.read(given)
            if {task for task, _ in numbers} != {*self.sources}:
                raise ValueError(
                    f"{name} must name each task once: {', '.join(self.sources)}; got {numbers.plain()}"
                )
            for task, number in numbers:
                if name == "task_batch_sizes":
                    check_whole(f"{name}: {task}", number, 1)
                elif not 0 < number < float("inf"):
                    raise ValueError(
                        f"{name}: {task} must be finite and above 0, got {number}; leave out a task instead"
                    )
            kind = int if name == "task_batch_sizes" else float
            ordered = PerTask((task, kind(dict(numbers)[task])) for task in self.sources)
            object.__setattr__(self, name, ordered)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(TaskConfig):
    """Whether learning rates are searched for before the runs, with the same budget for every strategy.

    Args:
        lr: peak learning rate of every strategy; auto tries several for each, around its own, on a seed of their own, and
            takes the one with the largest area on the select split. null is that of the optimizer.
        lr_trials: learning rates that auto tries for each strategy, an odd number: its own times 1/4, 1/2, 1, 2 and 4 are 5.
        lr_fraction: of the epochs, for which a trial trains.
    """

    lr: float | Literal["auto"] | None = None
    lr_trials: int = 5
    lr_fraction: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr is not None and self.optimizer.lr is not None:
            raise ValueError(
                f"give either lr or that of the optimizer; got lr={self.lr} and {self.optimizer}"
            )
        if isinstance(self.lr, str) and self.lr != "auto":
            raise ValueError(
                f"lr must be a number, 'auto', or null for that of the optimizer; got {self.lr!r}"
            )
        if isinstance(self.lr, float | int):
            dataclasses.replace(self.optimizer, lr=self.lr)
        check_whole("lr_trials", self.lr_trials, 3, 9)
        if self.lr_trials % 2 == 0:
            raise ValueError(
                f"lr_trials must be odd, so that the strategy's own rate is in the middle; got {self.lr_trials}"
            )
        if not 0 < self.lr_fraction <= 1:
            raise ValueError(f"lr_fraction must be above 0 and at most 1, got {self.lr_fraction}")


@dataclass(frozen=True, kw_only=True)
class RunConfig(TaskConfig):
    """One run: a task, a strategy and a seed.

    Args:
        strategy: a strategy by its name, such as BitFit, with its options as in LoRA(rank=4).
        seed: seeds the head, the strategy's parameters, the batches, the augmentation and the attacks.
    """

    strategy: Strategy = field(default_factory=LoRA)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("seed", self.seed, 0, LAST_SEED)
        if not isinstance(self.strategy, Strategy):
            raise TypeError(f"strategy must be a strategy such as LoRA(rank=4), got {shown(self.strategy)}")

    @property
    def slug(self) -> str:
        """What the directory of the run is called, before its seed."""
        return re.sub(r"[^a-z0-9]+", "-", repr(self.strategy).lower()).strip("-")[:40]

    def adapted(self, data: ImageData | Tasks) -> Backbone:
        """The backbone with the strategy on it, which chooses by the train split where it chooses by images.

        Under attack that is by PGD with the steps of training, or of evaluation if training has none. It is done on the CPU,
        so that a run that is resumed chooses the same.

        Raises:
            ValueError: it chooses by images, and there are several tasks.
        """
        backbone = self.load_backbone(len(data.classes), self.seed)
        attack = PGD(self.threat, steps=self.train_steps or self.eval_steps)
        train = data.train if isinstance(data, ImageData) else None
        return adapt(backbone, self.strategy, seed=self.seed, data=train, attack=attack)

    def planned(self, data: ImageData | Tasks) -> dict[str, Any]:
        """What makes the run what it is: arguments of :func:`paretune.train` by their names, and of its plan."""
        return {
            "objective": self.minimised,
            "steps": self.steps(data),
            "epsilon": self.schedule,
            "attacks": [self.attack],
            "shifts": self.shifts or (),
            "confirm": self.confirming,
            **{name: getattr(self, name) for name in _AS_IN_TRAIN},
        }

    def run(
        self,
        out: str | Path,
        *,
        data: ImageData | Tasks | None = None,
        resume: bool = True,
        progress: bool | Callable[[Status], None] = True,
        sinks: Sequence[Openable] = (),
    ) -> list[Run]:
        """Train and measure, see :func:`paretune.train`, on what :meth:`load_data` returns; returns the run of each task.

        Where memory ends, it goes on with batches that are divided further, see :func:`paretune.training.memory.fitting`.
        """
        data = self.load_data() if data is None else data

        def train_divided(divide: int) -> None:
            train(
                self.adapted(data),
                data,
                **self.planned(data),
                divide=divide,
                out=out,
                resume=resume or divide > 1,
                progress=progress,
                sinks=sinks,
            )

        smallest = min(size for _, size in batches(data, self.batch_size).values())
        fitting(train_divided, smallest // self.accumulate)
        return self.runs_in(out)

    def places(self, out: str | Path) -> list[Path]:
        """The run directories in ``out``, one for each task; see ``paretune.training.record.places``."""
        return places(Path(out), self.sources)

    def runs_in(self, out: str | Path) -> list[Run]:
        """The runs in :meth:`places`, read."""
        return [run for place in self.places(out) for run in load_runs(place)]


@dataclass(frozen=True, kw_only=True)
class CompareConfig(SearchConfig):
    """A comparison: the same task for every strategy and seed.

    Args:
        strategies: comma-separated, with options as in "bitfit,LoRA(rank=4)".
        seeds: comma-separated; five or more give intervals that cover training, not only the test images.
    """

    strategies: Strategies = field(
        default_factory=lambda: Strategies((FullFineTune(), LoRA(), BitFit(), Compacter()))
    )
    seeds: Seeds = field(default_factory=lambda: Seeds((0, 1)))

    def check_judged(self, by: str, *, elsewhere: bool = False) -> None:
        """Refuse to train for a judgement by what will not be measured.

        Args:
            by: as in :func:`paretune.compare`.
            elsewhere: whether the data has images elsewhere, whatever the options say.

        Raises:
            ValueError: volumes are to decide, and nothing shifted is measured.
        """
        if by == "volume" and not (elsewhere or self.shifts or self.train_domains):
            raise ValueError(
                "by='volume' needs accuracies on shifted images; name some in shifts (--shifts), or train_domains "
                "(--train-domains) of data that has several"
            )

    def runs(self) -> list[RunConfig]:
        """One configuration a run, the strategies of a seed next to each other.

        Raises:
            ValueError: a strategy or a seed is named twice, or none is.
        """
        for name in ("strategies", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must name each one once and at least one, got {tuple(values)}")
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(TaskConfig)}
        return [
            RunConfig(**shared, strategy=strategy, seed=seed)
            for seed in self.seeds
            for strategy in self.strategies
        ]
