"""The inheritance protocol: fine-tune one model on each of several related tasks, and measure it on all others.

Protocol of ImageNet-RIB (Hwang et al. 2024, https://arxiv.org/abs/2410.21582); what is computed of the bits is in
:mod:`paretune.frontiers.inherited`.
"""

import copy
import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from paretune.backbones.backbone import Backbone
from paretune.data.image_split import ImageSplit, joined
from paretune.data.images import ImageData
from paretune.frontiers.inheritance import Inheritance, Study
from paretune.frontiers.inherited import inherited
from paretune.runs.rows import Bits
from paretune.runs.sinks.base import Openable
from paretune.runs.store import Run
from paretune.sweeps.before import identity
from paretune.sweeps.config import RunConfig, TaskConfig
from paretune.sweeps.entry import GivenRun
from paretune.sweeps.grid import directory_name, run_all
from paretune.sweeps.methods import Method, Methods, Soup, label
from paretune.training.averaging import soup, wise_ft
from paretune.training.freezing import NoFreezing
from paretune.training.objectives import AdversarialTraining, Natural, Objective
from paretune.training.untrained import Measuring, measured_run

log = logging.getLogger(__name__)

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

    def __post_init__(self) -> None:
        if len(self.tasks) < 2:
            raise ValueError(
                f"inheritance needs two related tasks or more; got {', '.join(self.tasks) or 'none'}"
            )
        if PRETRAINING in self.tasks:
            raise ValueError(
                f"{PRETRAINING!r} is what the task of pretraining is called; give the task another name"
            )

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
    workers: int | None = None,
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
        workers: as in :func:`~paretune.sweeps.grid.run_all`, and so are the arguments after it.
        resume: False starts all runs over.
        progress: show bars.
        sinks: who else receives the rows.
        tell: called with a line on what is about to be done.
        **judging: level, margin, resamples and seed of :func:`~paretune.frontiers.inherited.inherited`.
    """
    out = Path(out)
    data = {name: related.data_of(name) for name in related.tasks}
    cells = [(name, method, seed) for name in data for method in methods.trained for seed in seeds]
    configs = {cell: _config(task, related, data[cell[0]], *cell) for cell in cells}
    if tell is not None:
        sizes = ", ".join(f"{name} ({len(split):,})" for name, split in related.measured.items())
        tell(f"measured: {sizes}")
        tell(
            f"{len(cells)} runs: {len(data)} tasks, {len(methods.trained)} ways to train, {len(seeds)} seeds"
        )
    before = _before(related, data, task, out, resume=resume, progress=progress)
    done = run_all([*configs.values()], out, workers=workers, resume=resume, progress=progress, sinks=sinks)
    runs: dict[tuple[str, Method | Soup, int], Run] = dict(zip(cells, done, strict=True))
    for name in data:
        for seed in seeds:
            for method in methods:
                if (name, method, seed) not in runs:
                    made = _mean(
                        methods, method, name, seed, configs, runs, related, data[name], out, resume=resume
                    )
                    runs[name, method, seed] = made
    bits = _of_sets(before, related)
    after = {
        label(method): {
            name: {seed: _of_sets(runs[name, method, seed], related, name) for seed in seeds} for name in data
        }
        for method in methods
    }

    def judged(accuracy: str) -> Inheritance:
        return inherited(
            {name: of_set[accuracy] for name, of_set in bits.items()},
            {
                method: {
                    name: {
                        seed: {of_set: right[accuracy] for of_set, right in sets.items()}
                        for seed, sets in by_seed.items()
                    }
                    for name, by_seed in by_task.items()
                }
                for method, by_task in after.items()
            },
            accuracy=accuracy,
            pretraining=None if related.pretraining is None else PRETRAINING,
            units=related.units,
            **judging,
        )

    return Study(
        clean=judged("clean"),
        robust=judged("robust") if task.attack_elsewhere else None,
        attack=repr(task.attack),
        held_out=related.held_out,
        backbone=related.backbone,
        notes=related.notes,
    )


def objective_of(task: TaskConfig, method: Method) -> Objective | None:
    """What ``method`` minimises: that of the task, with what is beside it; None for the task's own."""
    if method.beside is None:
        return task.objective
    if method.beside.learns:
        return method.beside
    return (task.objective or (AdversarialTraining() if task.train_steps else Natural())) + method.beside


def _config(
    task: TaskConfig, related: Related, data: ImageData, name: str, method: Method, seed: int
) -> GivenRun:
    shared = {each.name: getattr(task, each.name) for each in fields(TaskConfig)}
    freezing = task.freezing if method.freezing == NoFreezing() else method.freezing
    given = {
        "data": f"{data.name} {data.fingerprint}",
        "backbone": identity(related.start),
        "img_size": data.image_size,
        "objective": objective_of(task, method),
        "freezing": freezing,
    }
    return GivenRun(
        **{**shared, **given},
        strategy=method.strategy,
        seed=seed,
        objects=(data, related.start),
        called=_slug(name, label(method)),
    )


def _before(
    related: Related,
    data: Mapping[str, ImageData],
    task: TaskConfig,
    out: Path,
    *,
    resume: bool,
    progress: bool,
) -> Run:
    """The model before fine-tuning, measured on every set, as a run of no steps."""
    first, *_ = data
    measured = data[first]
    if related.pretraining is not None:
        others = {name: split for name, split in related.measured.items() if name != PRETRAINING}
        known = related.pretraining
        measured = replace(measured, train=known, report=known, elsewhere=others)  # nothing is trained
    config = {
        "task": measured.name if related.pretraining is None else PRETRAINING,
        "strategy": "before fine-tuning",
        "strategy_config": "before fine-tuning",
        "seed": 0,
        "weights": identity(related.start),
        "image_size": related.start.image_size,
        "data": measured.fingerprint,
        "attacks": [task.attack.to_dict()],
        "attack_precision": task.precision,
        "attack_elsewhere": task.attack_elsewhere,
    }
    if task.engine == "compiled":
        config["attack_engine"] = task.engine

    def write(measuring: Measuring) -> None:
        spent = {"train_seconds": 0.0, "cpu_seconds": 0.0, "trainable_parameters": 0, "epoch": 0.0}
        measuring.add(copy.deepcopy(related.start), {**spent, "step": 0, "precision": "fp32"})

    return measured_run(
        out / f"before-{_digest(config)}",
        config,
        measured,
        write,
        precision=task.precision,
        resume=resume,
        progress=progress,
    )


def _mean(
    methods: Methods,
    method: Method | Soup,
    name: str,
    seed: int,
    configs: Mapping[tuple[str, Method, int], RunConfig],
    runs: Mapping[tuple[str, Method | Soup, int], Run],
    related: Related,
    data: ImageData,
    out: Path,
    *,
    resume: bool,
) -> Run:
    """What is made of finished runs: a mean with the model before, or of several."""
    if isinstance(method, Soup):
        members = [(name, member, seed) for member in methods.members(method)]
    else:
        members = [(name, replace(method, wise=None), seed)]
    known = [label(method), *(directory_name(configs[member]) for member in members)]
    path = out / f"{_slug(name, label(method))}-seed{seed}-{_digest(known)}"
    if isinstance(method, Soup):
        return soup(
            related.start,
            [runs[member] for member in members],
            data,
            out=path,
            recipe="uniform",
            pretrained=method.pretrained,
            resume=resume,
        )
    assert method.wise is not None  # or it was trained
    start = configs[members[0]].adapted(data)
    return wise_ft(start, runs[members[0]], data, out=path, alphas=[method.wise.alpha], resume=resume)


def _of_sets(run: Run, related: Related, task: str | None = None) -> dict[str, Bits]:
    """Clean and maybe robust bits of each measured set, of the weights that ``run`` ended with.

    Raises:
        ValueError: the run was measured on other examples.
    """
    row = run.points[run.points["step"] == run.kept_step].iloc[0]
    bits, sets = run.bits(row), related.measured
    own = task or (PRETRAINING if related.pretraining is not None else next(iter(sets)))
    found: dict[str, Bits] = {}
    for name, split in sets.items():
        place = "report" if name == own else f"elsewhere/{name}"
        said = row["report_id"] if name == own else row["elsewhere"][name]["id"]
        if said != split.fingerprint:
            raise ValueError(
                f"{run.path} was measured on other examples of {name!r}; give another out, or start it over"
            )
        found[name] = {key: bits[f"{place}/{key}"] for key in ("clean", "robust") if f"{place}/{key}" in bits}
    return found


def _slug(task: str, method: str) -> str:
    return "-".join(re.sub(r"[^a-z0-9]+", "-", each.lower()).strip("-")[:32] for each in (task, method))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
