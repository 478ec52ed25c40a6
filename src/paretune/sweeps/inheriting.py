"""The inheritance protocol: fine-tune one model on each of several related tasks, and measure it on all others.

Protocol of ImageNet-RIB (Hwang et al. 2024, https://arxiv.org/abs/2410.21582); what is computed of the bits is in
:mod:`paretune.frontiers.inherited`.
"""

import copy
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import ArrayLike

from paretune.backbones.backbone import Backbone
from paretune.data.image_split import ImageSplit, joined
from paretune.data.images import ImageData
from paretune.frontiers.deciding import listed
from paretune.frontiers.inheritance import Inheritance, Study
from paretune.frontiers.inherited import inherited
from paretune.runs.rows import Bits
from paretune.runs.sinks.base import Openable
from paretune.runs.store import Run
from paretune.sweeps.before import identity
from paretune.sweeps.config import TaskConfig
from paretune.sweeps.entry import GivenRun
from paretune.sweeps.executors import Executor, Workers
from paretune.sweeps.grid import directory_name, run_all
from paretune.sweeps.methods import Method, Methods, Soup, labels, short_label
from paretune.training.averaging import soup, wise_ft
from paretune.training.freezing import NoFreezing
from paretune.training.objectives import AdversarialTraining, Natural, Objective
from paretune.training.untrained import Measuring, measured_run

PRETRAINING = "pretraining"  # what the set that measures the task of pretraining is called


@dataclass(frozen=True, eq=False)
class Related:
    """Tasks with one label space, and a model that answers with it.

    Args:
        tasks: by name.
        start: the model before fine-tuning, bare.
        pretraining: images that measure the task that ``start`` was pretrained on; None where there are none.
        held_out: learn the train split of a task and measure the report split; False learns and measures all of it, as
            ImageNet-RIB does.
        backbone: how results call the model.
        notes: what is to be known of the results.
    """

    tasks: Mapping[str, ImageData]
    start: Backbone
    pretraining: ImageSplit | None
    held_out: bool
    backbone: str
    notes: tuple[str, ...] = ()

    @cached_property
    def measured(self) -> dict[str, ImageSplit]:
        """What each task is measured on, and the task of pretraining."""
        sets = {name: data.report if self.held_out else whole(data) for name, data in self.tasks.items()}
        return sets if self.pretraining is None else {**sets, PRETRAINING: self.pretraining}

    def data_of(self, task: str) -> ImageData:
        """What a run on ``task`` learns and measures."""
        data, sets = self.tasks[task], self.measured
        others = {name: split for name, split in sets.items() if name != task}
        if self.held_out:
            return replace(data, elsewhere=others)
        return replace(
            data,
            name=f"{data.name} (all of it is learnt)",
            train=sets[task],
            report=sets[task],
            elsewhere=others,
        )

    @property
    def units(self) -> dict[str, ArrayLike]:
        """What stands or falls together in :func:`~paretune.frontiers.inherited.inherited`: groups, else identities."""
        return {
            name: (split.ids if split.groups is None else split.groups).numpy()
            for name, split in self.measured.items()
        }


def whole(data: ImageData) -> ImageSplit:
    """All of a task."""
    return joined([data.train, data.select, data.report])


def inherit(
    related: Related,
    methods: Methods,
    seeds: Sequence[int],
    task: TaskConfig,
    *,
    out: str | Path,
    on: str | Executor = "local",
    workers: Workers = None,
    resume: bool = True,
    progress: bool = True,
    sinks: Sequence[Openable] = (),
    tell: Callable[[str], object] | None = None,
    **judging: Any,
) -> Study:
    """Fine-tune, measure and judge; finished runs in ``out`` are not repeated.

    Args:
        related: the tasks and the model.
        methods: to compare.
        seeds: of training.
        task: how each run trains and measures.
        out: directory of the runs.
        on: as in :func:`~paretune.sweeps.grid.run_all`, and so are the arguments after it.
        workers: runs at once.
        resume: False starts all runs over.
        progress: show bars.
        sinks: who else receives the rows.
        tell: called with a line on what is about to be done.
        **judging: level, margin, resamples and seed of :func:`~paretune.frontiers.inherited.inherited`.
    """
    work = _Work(related, methods, tuple(seeds), task, Path(out), resume)
    if tell is not None:
        sizes = ", ".join(f"{name} ({len(split):,})" for name, split in related.measured.items())
        tell(f"measured: {sizes}")
        tell(
            f"{len(work.configs)} runs: {len(related.tasks)} tasks, {len(methods.trained)} ways to train, {len(seeds)} seeds"
        )
    before = work.before(progress=progress)
    trained = run_all(
        [*work.configs.values()], out, on=on, workers=workers, resume=resume, progress=progress, sinks=sinks
    )
    runs = work.with_means(dict(zip(work.configs, trained, strict=True)))
    called = labels(methods)
    bits = {cell: work.bits(run, cell.task) for cell, run in runs.items()}
    start = work.bits(before, PRETRAINING if related.pretraining is not None else next(iter(related.tasks)))

    def judged(accuracy: str) -> Inheritance:
        return inherited(
            {name: right[accuracy] for name, right in start.items()},
            {
                called[method]: {
                    name: {
                        seed: {of: right[accuracy] for of, right in bits[Cell(name, method, seed)].items()}
                        for seed in seeds
                    }
                    for name in related.tasks
                }
                for method in methods
            },
            accuracy=accuracy,
            pretraining=None if related.pretraining is None else PRETRAINING,
            units=related.units,
            **judging,
        )

    soups = [method for method in methods if isinstance(method, Soup)]
    return Study(
        clean=judged("clean"),
        robust=judged("robust") if task.attack_elsewhere else None,
        attack=repr(task.attack),
        held_out=related.held_out,
        backbone=related.backbone,
        notes=(*related.notes, *(f"{called[one]}: {_members(methods, one)}." for one in soups)),
    )


def _members(methods: Methods, soup: Soup) -> str:
    names = ["the model before"] * soup.pretrained + [short_label(method) for method in methods.members(soup)]
    return f"the mean of {listed(names, most=len(names))}"


def objective_of(task: TaskConfig, method: Method) -> Objective | None:
    """What ``method`` minimises: that of the task, with what is beside it; None for the task's own."""
    if method.beside is None:
        return task.objective
    if method.beside.learns:
        return method.beside
    return (task.objective or (AdversarialTraining() if task.train_steps else Natural())) + method.beside


class Cell(NamedTuple):
    """One model after fine-tuning."""

    task: str
    method: Method | Soup
    seed: int


@dataclass(frozen=True, eq=False)
class _Work:
    """The runs of one call of :func:`inherit`."""

    related: Related
    methods: Methods
    seeds: tuple[int, ...]
    task: TaskConfig
    out: Path
    resume: bool

    @cached_property
    def data(self) -> dict[str, ImageData]:
        """What a run on each task learns and measures."""
        return {name: self.related.data_of(name) for name in self.related.tasks}

    @cached_property
    def configs(self) -> dict[Cell, GivenRun]:
        """Of what is trained."""
        shared = {option.name: getattr(self.task, option.name) for option in fields(TaskConfig)}
        model = identity(self.related.start)
        return {
            Cell(name, method, seed): GivenRun(
                **shared
                | {
                    "data": f"{data.name} {data.fingerprint}",
                    "backbone": model,
                    "img_size": data.image_size,
                    "objective": objective_of(self.task, method),
                    "freezing": self.task.freezing if method.freezing == NoFreezing() else method.freezing,
                },
                strategy=method.strategy,
                seed=seed,
                objects=(data, self.related.start),
                called=_slug(name, method),
            )
            for name, data in self.data.items()
            for method in self.methods.trained
            for seed in self.seeds
        }

    def before(self, *, progress: bool) -> Run:
        """The model before fine-tuning, measured on every set, as a run of no steps."""
        known = self.related.pretraining
        measured = next(iter(self.data.values()))
        if known is not None:
            others = {name: split for name, split in self.related.measured.items() if name != PRETRAINING}
            measured = replace(measured, train=known, report=known, elsewhere=others)  # nothing is trained
        config = {
            "task": measured.name if known is None else PRETRAINING,
            "strategy": "before fine-tuning",
            "strategy_config": "before fine-tuning",
            "seed": 0,
            "weights": identity(self.related.start),
            "image_size": self.related.start.image_size,
            "data": measured.fingerprint,
            "attacks": [self.task.attack.to_dict()],
            "attack_precision": self.task.precision,
            "attack_elsewhere": self.task.attack_elsewhere,
        }
        if self.task.engine == "compiled":
            config["attack_engine"] = self.task.engine

        def write(measuring: Measuring) -> None:
            spent = {"train_seconds": 0.0, "cpu_seconds": 0.0, "trainable_parameters": 0, "epoch": 0.0}
            measuring.add(copy.deepcopy(self.related.start), {**spent, "step": 0, "precision": "fp32"})

        return measured_run(
            self.out / f"before-{_digest(config)}",
            config,
            measured,
            write,
            precision=self.task.precision,
            resume=self.resume,
            progress=progress,
        )

    def with_means(self, trained: Mapping[Cell, Run]) -> dict[Cell, Run]:
        """The run of each method that is compared; means are made of those that were trained."""
        every = [
            Cell(name, method, seed) for name in self.data for method in self.methods for seed in self.seeds
        ]
        return {cell: trained[cell] if cell in trained else self._mean(cell, trained) for cell in every}

    def _mean(self, cell: Cell, trained: Mapping[Cell, Run]) -> Run:
        method, data = cell.method, self.data[cell.task]
        members = self.methods.members(method) if isinstance(method, Soup) else [replace(method, wise=None)]
        cells = [cell._replace(method=member) for member in members]
        known = [repr(method), *(directory_name(self.configs[member]) for member in cells)]
        out = self.out / f"{_slug(cell.task, method)}-seed{cell.seed}-{_digest(known)}"
        if isinstance(method, Soup):
            runs = [trained[member] for member in cells]
            options: dict[str, Any] = {
                "recipe": "uniform",
                "pretrained": method.pretrained,
                "resume": self.resume,
            }
            return soup(self.related.start, runs, data, out=out, **options)
        assert method.wise is not None  # or it was trained
        start = self.configs[cells[0]].adapted(data)
        return wise_ft(
            start, trained[cells[0]], data, out=out, alphas=[method.wise.alpha], resume=self.resume
        )

    def bits(self, run: Run, report: str) -> dict[str, Bits]:
        """Clean and maybe robust bits of each measured set, of the weights that ``run`` ended with.

        Args:
            run: finished.
            report: the set that is its report split.

        Raises:
            ValueError: the run was measured on other examples.
        """
        row = run.points[run.points["step"] == run.kept_step].iloc[0]
        bits = run.bits(row)
        of_sets: dict[str, Bits] = {}
        for name, split in self.related.measured.items():
            place = "report" if name == report else f"elsewhere/{name}"
            if (row["report_id"] if name == report else row["elsewhere"][name]["id"]) != split.fingerprint:
                raise ValueError(
                    f"{run.path} was measured on other examples of {name!r}; give another out, or start it over"
                )
            of_sets[name] = {
                key: bits[f"{place}/{key}"] for key in ("clean", "robust") if f"{place}/{key}" in bits
            }
        return of_sets


def _slug(task: str, method: Method | Soup) -> str:
    texts = (task, short_label(method))
    return "-".join(re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:32] for text in texts)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
