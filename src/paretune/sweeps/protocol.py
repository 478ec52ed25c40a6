"""``paretune inherit`` as a function, and its configuration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from paretune._values import MOST, told
from paretune.backbones.backbone import Backbone
from paretune.data.image_split import ImageSplit
from paretune.data.images import ImageData, as_data, check_same_classes, load_data
from paretune.data.related import load_related
from paretune.data.sizes import ImageSize
from paretune.data.sources import SOURCES
from paretune.frontiers.inheritance import Study
from paretune.frontiers.settings import Settings
from paretune.runs.sinks.base import Openable
from paretune.shifts import Shifts
from paretune.shifts.imagenet import wordnet_ids
from paretune.strategies import FullFineTune, LinearProbe, LoRA
from paretune.sweeps.before import plain, pretrained_on, pretraining_run, with_own_head
from paretune.sweeps.config import Seeds, TaskConfig
from paretune.sweeps.entry import as_written, check_known
from paretune.sweeps.executors import Executor, Workers
from paretune.sweeps.inheriting import PRETRAINING, Related, inherit
from paretune.sweeps.label_space import check_apart, common_classes, in_common, versions
from paretune.sweeps.methods import Method, Methods, Soup, WiSE
from paretune.sweeps.sources import Domains
from paretune.training.freezing import LPFT
from paretune.training.objectives import EWC, L2SP, LwF

# Those of ImageNet-RIB, but for the prompt, and with the Fisher information that its code leaves out of EWC.
METHODS = Methods(
    (
        Method(FullFineTune()),
        Method(LinearProbe()),
        Method(LoRA()),
        Method(FullFineTune(), beside=L2SP()),
        Method(FullFineTune(), beside=EWC()),
        Method(FullFineTune(), beside=LwF()),
        Method(FullFineTune(), freezing=LPFT()),
        Method(FullFineTune(), wise=WiSE()),
        Soup(("FullFineTune", "FullFineTune + EWC()", "FullFineTune + LwF()")),
    )
)
_EXAMPLE = "Corruption('fog', severity=3), Rotation(30)"
_JUDGING = ("level", "margin", "resamples")


@dataclass(frozen=True, kw_only=True)
class InheritConfig(TaskConfig):
    """The inheritance protocol: each task is fine-tuned on in turn, and all others are measured before and after.

    Args:
        data: tasks with the same classes, as domains: a folder of folders of class folders, or a table with a column domain;
            or, with tasks, any data set that these change.
        tasks: changes of the images of data that each make a task, by calls separated by commas, as --shifts takes them.
        domains: those of data to take, separated by commas; null is all of them.
        limit: use this many images of each task only, over all splits, or "all"; null is all, but 1000 of digits, the demo.
        methods: ways to fine-tune, separated by commas. Each is a strategy and, after plus signs, what is added: to the
            objective (L2SP(), EWC() or LwF(), with a weight as in 100*EWC()), to the course (LPFT()), or after training
            (WiSE(0.5), the mean with the model before). Soup() is the mean of several methods.
        seeds: of training, comma-separated; five or more give intervals that cover training, not only the test images.
        held_out: learn the train split of each task, and measure the report split; false learns and measures all of it, as
            ImageNet-RIB does.
        among: let tasks lack classes of the model, which answers with those of the task that is measured, as ImageNet-R and
            ImageNet-A need it.
        pretrain: data to train the backbone on first, all weights on clean images, with a fresh head. The report split of it
            measures what is lost of it. null takes the head that the weights come with.
        pretrain_domain: a domain of data to train the backbone on first, in place of pretrain; it is no task then, and split
            as they are.
        pretrain_epochs: passes over what the backbone is trained on first.
        pretraining: data of the task that the model was pretrained on, whose report split measures what is lost of it. null
            is pretrain.
        train_steps: PGD steps a training batch is attacked with; 0 trains on clean images, as ImageNet-RIB does.
        points: evaluation points of a run; the last one counts, or the one of keep.
    """

    tasks: Shifts | None = None
    domains: Domains | None = None
    methods: Methods = field(default_factory=lambda: METHODS)
    seeds: Seeds = field(default_factory=lambda: Seeds((0,)))
    held_out: bool = True
    among: bool = False
    pretrain: str | None = None
    pretrain_domain: str | None = None
    pretrain_epochs: float = 5.0
    pretraining: str | None = None
    train_steps: int = 0
    points: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in (("tasks", Shifts), ("domains", Domains), ("methods", Methods), ("seeds", Seeds)):
            if (value := getattr(self, name)) is not None:
                with told(name, str(value)):
                    object.__setattr__(self, name, kind.read(value))
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must name each one once, got {tuple(self.seeds)}")
        if self.train_domains is not None:
            raise ValueError(
                "every domain is trained on in turn: choose among them with domains, not with train_domains"
            )
        if self.sources:
            raise ValueError("data is one data set, whose domains or changes are the tasks; give --data once")
        if self.shifts is not None:
            raise ValueError(
                f"what is changed here are the tasks: give tasks={str(self.shifts)!r} instead of shifts"
            )
        if self.tasks is not None and self.domains is not None:
            raise ValueError("tasks are changes of data or its domains: give tasks or domains, not both")
        several = ("pretrain", "pretrain_domain", "pretraining")
        if len(given := [name for name in several if getattr(self, name) is not None]) > 1:
            raise ValueError(f"{' and '.join(given)} say what the model is pretrained on: give one of them")
        if self.pretrain_domain is not None and self.tasks is not None:
            raise ValueError(
                "pretrain_domain is one of the domains of data, and tasks are changes of it: give pretrain"
            )
        if not 0 < self.pretrain_epochs <= MOST:
            raise ValueError(
                f"pretrain_epochs must be above 0 and at most {MOST}, got {self.pretrain_epochs}"
            )

    def related(self, given: Any, size: ImageSize) -> dict[str, ImageData]:
        """The tasks in ``given``, by name; ``size`` is that of their images."""
        if isinstance(given, Mapping) and any(isinstance(task, ImageData) for task in given.values()):
            if self.tasks is not None or self.domains is not None:
                raise ValueError("data names the tasks already; leave tasks and domains out")
            return {str(name): as_data(task, size) for name, task in given.items()}
        if self.tasks is not None:
            data = given if isinstance(given, ImageData) else self.read(given, size)
            return versions(data, self.tasks)
        if isinstance(given, ImageData):
            raise ValueError(
                "data is one task; give tasks, changes of its images, or a mapping of several tasks"
            )
        if isinstance(given, str) and given in SOURCES:
            raise ValueError(
                f"data={given!r} is one task; give tasks, changes of its images such as {_EXAMPLE!r}, or data in domains"
            )
        domains = self.domains
        if domains is not None and self.pretrain_domain is not None:
            domains = Domains(dict.fromkeys((*domains, self.pretrain_domain)))
        return load_related(given, domains=domains, img_size=size, **self.reading)


def inheritance(
    data: Any,
    methods: str | Sequence[Any] | None = None,
    seeds: str | int | Sequence[int] = (0,),
    *,
    backbone: str | Backbone = "efficientnet-lite0",
    pretrain: Any = None,
    pretraining: Any = None,
    out: str | Path = "paretune-inherit",
    on: str | Executor = "local",
    workers: Workers = None,
    resume: bool = True,
    progress: bool = True,
    sinks: Sequence[Openable] = (),
    **options: Any,
) -> Study:
    """Fine-tune a model on each of several related tasks, and measure it on all others, before and after.

    The protocol of ImageNet-RIB (Hwang et al. 2024, https://arxiv.org/abs/2410.21582): RI_i is the mean change of accuracy
    on the tasks that were not learnt, mRI the mean of the RI_i. Called again, it goes on with stopped runs and repeats no
    finished ones. In a script, call it under ``if __name__ == "__main__":``, because workers are processes that import it.

    Args:
        data: tasks with the same classes: what :func:`paretune.load_data` takes with ``train_domains``, of which each domain
            is a task; or, with ``tasks=``, any data set, of which each shift makes a task; or a mapping of a task for each
            name, as :func:`paretune.load_data` returns them. What the report split of one shows must not be in the train
            split of another.
        methods: texts such as ``"FullFineTune + 100*EWC()"``, see :class:`~paretune.sweeps.methods.Methods`; None for those
            of ImageNet-RIB.
        seeds: of training.
        backbone: as for :func:`paretune.load_backbone`, with the head that its weights come with; or a Backbone that answers
            with the classes of the tasks, with an adapter that merges or without.
        pretrain: data to train ``backbone`` on first, with a fresh head: what :func:`paretune.load_data` takes or returns.
        pretraining: data whose report split measures the task that ``backbone`` was pretrained on, likewise, or a split.
        out: directory of the runs.
        on: where the runs are made, see :func:`paretune.sweep`.
        workers: runs at once, likewise.
        resume: False starts the runs over.
        progress: show bars on the terminal.
        sinks: who else receives the rows of each run, see :func:`paretune.train`.
        **options: the options of ``paretune inherit`` by their names, with underscores: ``tasks``, ``domains``,
            ``held_out``, ``among``, ``pretrain_epochs``, how each run trains and measures (``epochs``, ``batch_size``,
            ``optimizer``, ``attack_elsewhere``, … of :class:`~paretune.sweeps.config.TaskConfig`), and ``level``,
            ``margin`` and ``resamples`` of the judgement.

    Raises:
        TypeError: there is no such option.
        ValueError: an option is out of range, tasks have other classes than the model, a class is missing in one, or there
            are fewer than two tasks.
        RuntimeError: a worker ended abruptly.
    """
    known = [
        option.name
        for option in fields(InheritConfig)
        if option.name not in ("data", "backbone", "methods", "seeds")
    ]
    check_known("inheritance", options, [*known, *_JUDGING])
    judging = {name: options.pop(name) for name in _JUDGING if name in options}
    config = InheritConfig(
        data=data if isinstance(data, str) else "",
        backbone=backbone if isinstance(backbone, str) else backbone.architecture,
        methods=METHODS if methods is None else Methods.read(methods),
        seeds=Seeds.read(seeds),
        **as_written(options),
    )
    return study(
        config,
        data,
        backbone,
        pretrain=pretrain,
        pretraining=pretraining,
        out=out,
        on=on,
        workers=workers,
        resume=resume,
        progress=progress,
        sinks=sinks,
        **judging,
    )


def study(
    config: InheritConfig,
    data: Any,
    backbone: str | Backbone,
    *,
    pretrain: Any = None,
    pretraining: Any = None,
    out: str | Path,
    on: str | Executor = "local",
    workers: Workers = None,
    resume: bool = True,
    progress: bool = True,
    sinks: Sequence[Openable] = (),
    tell: Callable[[str], object] | None = None,
    **judging: Any,
) -> Study:
    """:func:`inheritance` with its options in ``config``; ``tell`` is called with lines on what is about to be done."""
    Settings(**judging)
    fresh = pretrain is not None or config.pretrain_domain is not None  # a model that is trained first
    if sum((pretrain is not None, pretraining is not None, config.pretrain_domain is not None)) > 1:
        raise ValueError(
            "pretrain, pretrain_domain and pretraining say what the model is pretrained on: give one of them"
        )
    given = backbone if isinstance(backbone, Backbone) else None
    model = None if fresh else plain(given) if given is not None else with_own_head(config)
    size = _size(config, model or given)
    tasks = config.related(data, size)
    learnt: ImageData | None = None
    if config.pretrain_domain is not None:
        if config.pretrain_domain not in tasks:
            raise ValueError(f"pretrain_domain={config.pretrain_domain!r} is none of {', '.join(tasks)}")
        learnt = config.checked(tasks.pop(config.pretrain_domain))
    if len(tasks) < 2:
        raise ValueError(f"inheritance needs two related tasks or more; got {', '.join(tasks) or 'none'}")
    if PRETRAINING in tasks:
        raise ValueError(
            f"{PRETRAINING!r} is what the task of pretraining is called; give the task another name"
        )
    if pretrain is not None:
        with told("pretrain", pretrain if isinstance(pretrain, str) else None):
            learnt = config.checked(
                pretrain if isinstance(pretrain, ImageData) else config.read(pretrain, size)
            )
    if learnt is not None:
        learnt = in_common(learnt.name, learnt, learnt.classes, among=False)
        classes = common_classes(tasks, learnt.classes, len(learnt.classes))
    else:
        assert model is not None
        classes = common_classes(tasks, model.classes, model.num_classes)
    tasks = {name: in_common(name, task, classes, among=config.among) for name, task in tasks.items()}
    for name, task in tasks.items():
        _check_batch(name, task, config)
    known = learnt if learnt is not None else _pretraining(pretraining, config, size, classes)
    if isinstance(known, ImageData):
        check_apart(tasks, known, held_out=config.held_out)
    if learnt is not None:
        run = pretraining_run(config, config.pretrain_epochs)
        if tell is not None:
            tell(
                f"pretraining: {learnt.name}, {config.pretrain_epochs:g} epochs of {len(learnt.train):,} images"
            )
        model = pretrained_on(run, learnt, given, Path(out), resume=resume, progress=progress)
    assert model is not None
    notes = _notes(config, tasks, model, learnt)
    model.classes = model.classes or (classes if _named(tasks) else None)
    related = Related(
        tasks,
        model,
        known.report if isinstance(known, ImageData) else known,
        config.held_out,
        f"{config.backbone}, pretrained on {learnt.name}" if learnt is not None else config.backbone,
        tuple(notes),
    )
    return inherit(
        related,
        config.methods,
        config.seeds,
        config,
        out=out,
        on=on,
        workers=workers,
        resume=resume,
        progress=progress,
        sinks=sinks,
        tell=tell,
        **judging,
    )


def _size(config: InheritConfig, model: Backbone | None) -> ImageSize:
    """Of the images: that of the model, unless the configuration says one."""
    if model is not None:
        return config.img_size or model.image_size
    return config.size or config.load_backbone(2, 0).image_size


def _pretraining(
    given: Any, config: InheritConfig, size: ImageSize, classes: tuple[str, ...]
) -> ImageData | ImageSplit | None:
    """What measures the task of pretraining, with labels that number ``classes``."""
    if given is None or isinstance(given, ImageSplit):
        return given
    with told("pretraining", given if isinstance(given, str) else None):
        data: ImageData = (
            given
            if isinstance(given, ImageData)
            else load_data(
                given,
                img_size=size,
                seed=config.split_seed,
                limit=config.most,
                root=config.data_root,
                skip_bad=config.skip_bad,
            )
        )
        if data.classes != classes and {*data.classes} <= {*classes}:
            return in_common("pretraining", data, classes, among=config.among)
        check_same_classes(len(classes), classes, data.classes)
    return data


def _check_batch(name: str, data: ImageData, config: InheritConfig) -> None:
    images = sum(map(len, (data.train, data.select, data.report))) if not config.held_out else len(data.train)
    if config.batch_size > images:
        raise ValueError(
            f"batch_size={config.batch_size} is more than the {images} images of the task {name!r} that are learnt; give at "
            "most that many, or a larger limit"
        )


def _named(tasks: Mapping[str, ImageData]) -> bool:
    return all(data.report.classes is not None for data in tasks.values())


def _notes(
    config: InheritConfig, tasks: Mapping[str, ImageData], model: Backbone, learnt: ImageData | None
) -> list[str]:
    notes = []
    classes = next(iter(tasks.values())).classes
    if model.classes is None and len(classes) == 1000 and classes == wordnet_ids():
        notes.append(
            "The 1,000 logits are taken for the classes of ImageNet-1k in the order of their WordNet ids."
        )
    for name, data in tasks.items():
        if data.report.among is not None:
            notes.append(
                f"On {name} the model answers with one of the {len(data.report.among)} classes of the task, of "
                f"{model.num_classes:,}."
            )
    if config.tasks is not None and not config.held_out:
        notes.append(
            "The tasks are versions of the same pictures, and all of them were learnt: what is measured on the others was "
            "learnt in another version."
        )
        if learnt is not None:
            notes.append("So was what measures the task of pretraining, if the pictures are the same.")
    return notes
