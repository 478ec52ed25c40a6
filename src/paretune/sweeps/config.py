"""What a run is made from, as plain values: the command line, YAML files and sweeps all build these.

A run is a pure function of its :class:`RunConfig`, so it can be retried, resumed or moved to another process.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from paretune._values import LAST_SEED, MOST, check_whole, from_dict, parse_many, parse_number, shown, told
from paretune.attacks import PGD, THREATS, Engine, Threat
from paretune.backbones.backbone import Backbone
from paretune.backbones.loading import load_backbone
from paretune.data.images import ImageData, load_data
from paretune.data.sizes import ImageSize, Sides, checked_size
from paretune.runs.progress import Status
from paretune.runs.sinks.base import Openable
from paretune.runs.store import Run
from paretune.strategies import STRATEGIES, BitFit, Compacter, FullFineTune, LoRA, Strategy, adapt
from paretune.training.keeping import Keep
from paretune.training.loop import train
from paretune.training.objectives import AdversarialTraining, Natural, Objective
from paretune.training.optimizers import AdamW
from paretune.training.schedules import EpsilonSchedule

_AS_IN_TRAIN = (
    *("batch_size", "accumulate", "checkpointing", "mixed_precision", "ema", "awp", "keep", "patience"),
    *("attack_elsewhere", "optimizer", "points", "seed", "precision", "engine"),
)
# The demo takes two minutes on a CPU: few images, and small ones.
_DEMO_LIMIT = 1000
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


class Domains(tuple[str, ...]):
    """Several domains of a data set; reads ``"photo,art"`` or a list of names."""

    @classmethod
    def read(cls, value: object) -> Self:
        """From a string, or a list of strings.

        Raises:
            ValueError: a name is empty, or there is none.
        """
        items = value if isinstance(value, list | tuple) else str(value).split(",")
        names = [str(item).strip() for item in items]
        if not names or not all(names):
            raise ValueError(
                f"train_domains must be names, separated by commas as in photo,art; got {shown(value)}"
            )
        return cls(names)


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The task and the training budget that compared runs share.

    Args:
        backbone: pretrained model: efficientnet-lite0, dinov2-small, timm:NAME or hf:NAME_OR_DIRECTORY.
        weights: a .safetensors or .pth file for that architecture; nothing is downloaded then.
        weights_key: which state dict of that file, such as state_dict; null takes the averaged one (EMA) if there is one.
        img_size: side of the square images in pixels, or height and width as in 32,48. null takes the model's own, 224 for
            dinov2-small; of digits, the demo, 24 for efficientnet-lite0 and 28 for dinov2-small, which suit a CPU.
        data: digits, fashion-mnist, cifar10, cifar100, a folder of class folders, a .csv, .tsv or .parquet file of paths and
            labels, or hf:NAME.
        data_root: where torchvision keeps its data sets, for cifar10 and the like, or where the paths of a table start.
        train_domains: domains of data to train on, separated by commas as in photo,art; the others are only measured. data
            is then a folder of domains of class folders, or a table with a column domain.
        attack_elsewhere: attack the images of the other domains too; false measures clean accuracy alone there.
        skip_bad: leave out images that cannot be read, and say how many; false names all of them and stops.
        limit: use this many images only, over all splits, or "all"; null is all, but 1000 of digits, the demo.
        split_seed: seeds the train, select and report splits, which all runs share.
        norm: norm of the threat model.
        epsilon: radius of the threat model in units of the pixel range, e.g. 4/255.
        train_steps: PGD steps a training batch is attacked with; 0 trains on clean images.
        eval_steps: PGD steps of the evaluation.
        schedule: strength of the training attack over time.
        epochs: passes over the train split.
        batch_size: images a step.
        accumulate: parts in which a batch is learnt, for less memory; the gradient is that of the whole batch.
        checkpointing: compute activations again in the backward pass instead of keeping them, for less memory.
        mixed_precision: of the passes that train; fp16 needs CUDA. null takes what accelerate launch was told, else no.
        ema: decay of an average of the weights, such as 0.99, that is measured and saved in their place.
        awp: size of an adversarial perturbation of the weights, such as 0.005, at which each step takes its gradient.
        keep: the point that a run ends with: the last, or the best on the select split by clean or robust accuracy, their
            harmonic mean, or the area that it dominates.
        patience: stop a run after so many points without a better one.
        optimizer: AdamW() takes the strategy's own learning rate.
        points: evaluation points, spread evenly over the steps of training; each is one point of the frontier.
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
    data: str = "digits"
    data_root: str | None = None
    train_domains: Domains | None = None
    attack_elsewhere: bool = False
    skip_bad: bool = False
    limit: int | Literal["all"] | None = None
    split_seed: int = 0
    norm: Literal["Linf", "L2", "L1"] = "Linf"
    epsilon: str = "2/255"
    train_steps: int = 3
    eval_steps: int = 10
    schedule: EpsilonSchedule = field(default_factory=EpsilonSchedule)
    epochs: float = 5.0
    batch_size: int = 32
    accumulate: int = 1
    checkpointing: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    ema: float | None = None
    awp: float | None = None
    keep: Literal["last", "clean", "robust", "harmonic", "area"] = "last"
    patience: int | None = None
    optimizer: AdamW = field(default_factory=AdamW)
    points: int = 4
    precision: Literal["fp32", "auto", "bf16"] = "fp32"
    engine: Engine = "auto"

    def __post_init__(self) -> None:
        for name, least in (("train_steps", 0), ("eval_steps", 1), ("points", 1), ("batch_size", 1)):
            check_whole(name, getattr(self, name), least)
        if self.img_size is not None:
            object.__setattr__(self, "img_size", checked_size("img_size", self.img_size))
        if self.train_domains is not None:
            object.__setattr__(self, "train_domains", Domains.read(self.train_domains))
        if self.limit is not None and self.limit != "all":
            check_whole("limit", self.limit, 1)
        check_whole("accumulate", self.accumulate, 1, self.batch_size)
        Keep(self.keep, self.patience)
        check_whole("split_seed", self.split_seed, 0, LAST_SEED)
        if not 0 < self.epochs <= MOST:
            raise ValueError(f"epochs must be above 0 and at most {MOST}, got {self.epochs}")
        if self.norm not in THREATS:
            raise ValueError(f"norm must be one of {', '.join(THREATS)}, got {self.norm!r}")
        _ = self.threat

    @property
    def threat(self) -> Threat:
        """The threat model that ``norm`` and ``epsilon`` name."""
        with told("epsilon", self.epsilon):
            return THREATS[self.norm](parse_number("epsilon", self.epsilon))

    @property
    def objective(self) -> Objective:
        """What training minimises."""
        return (
            AdversarialTraining(PGD(self.threat, steps=self.train_steps)) if self.train_steps else Natural()
        )

    @property
    def attack(self) -> PGD:
        """What the models are measured with."""
        return PGD(self.threat, steps=self.eval_steps)

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

    def load_data(self) -> ImageData:
        """The data at the backbone's size."""
        size = self.load_backbone(2, 0).image_size if self.size is None else self.size
        with told("data", self.data):
            data = self.read(self.data, size)
        return self.checked(data)

    def read(self, data: Any, size: ImageSize) -> ImageData:
        """What :func:`paretune.load_data` makes of ``data`` at this size, with the options of this task."""
        return load_data(
            data,
            img_size=size,
            seed=self.split_seed,
            limit=self.most,
            root=self.data_root,
            skip_bad=self.skip_bad,
            train_domains=self.train_domains,
        )

    def checked(self, data: ImageData) -> ImageData:
        """``data``, of which a batch must fit into the train split."""
        if self.batch_size > len(data.train):
            raise ValueError(
                f"batch_size={self.batch_size} is more than the {len(data.train)} images of the train split; give at most "
                "that many, or a larger limit"
            )
        return data

    def check(self) -> ImageData:
        """Load data and backbone once, for the errors that this brings to light; returns the data."""
        data = self.load_data()
        steps = self.steps(data)
        check_whole("points", self.points, 1, steps, hint=f": {self.epochs:g} epochs have {steps} steps")
        self.load_backbone(len(data.classes), 0)
        return data

    def steps(self, data: ImageData) -> int:
        """Optimizer steps of a run."""
        return max(1, round(self.epochs * (len(data.train) // self.batch_size)))

    @property
    def is_demo(self) -> bool:
        """Whether the data is that of the demo, whose defaults are small."""
        return self.data == "digits"

    @property
    def size(self) -> ImageSize | None:
        """Of the images; None for the backbone's own."""
        demo, own = _SIZES.get(self.backbone, (None, None))
        return self.img_size or (demo if self.is_demo else own)

    @property
    def most(self) -> int | None:
        """The images to keep over all splits; None for all."""
        if self.limit is None:
            return _DEMO_LIMIT if self.is_demo else None
        return None if self.limit == "all" else self.limit


@dataclass(frozen=True, kw_only=True)
class RunConfig(TaskConfig):
    """One run: a task, a strategy and a seed.

    Args:
        strategy: a strategy by its name, such as BitFit, with its options as in LoRA(rank=4).
        seed: seeds the head, the strategy's parameters, the batches and the attacks.
    """

    strategy: Strategy = field(default_factory=LoRA)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("seed", self.seed, 0, LAST_SEED)
        if not isinstance(self.strategy, Strategy):
            raise TypeError(f"strategy must be a strategy such as LoRA(rank=4), got {shown(self.strategy)}")

    def run(
        self,
        out: str | Path,
        *,
        resume: bool = True,
        progress: bool | Callable[[Status], None] = True,
        sinks: Sequence[Openable] = (),
    ) -> Run:
        """Train and measure; see :func:`paretune.train`."""
        data = self.load_data()
        backbone = self.load_backbone(len(data.classes), self.seed)
        adapt(backbone, self.strategy, seed=self.seed)
        return train(
            backbone,
            data,
            self.objective,
            out=out,
            steps=self.steps(data),
            epsilon=self.schedule,
            attacks=[self.attack],
            **{name: getattr(self, name) for name in _AS_IN_TRAIN},
            resume=resume,
            progress=progress,
            sinks=sinks,
        )


@dataclass(frozen=True, kw_only=True)
class CompareConfig(TaskConfig):
    """A comparison: the same task for every strategy and seed.

    Args:
        strategies: comma-separated, with options as in "bitfit,LoRA(rank=4)".
        seeds: comma-separated; five or more give intervals that cover training, not only the test images.
    """

    strategies: Strategies = field(
        default_factory=lambda: Strategies((FullFineTune(), LoRA(), BitFit(), Compacter()))
    )
    seeds: Seeds = field(default_factory=lambda: Seeds((0, 1)))

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
