"""Train every strategy on one task and judge them: ``paretune compare`` as a function, for objects too."""

import copy
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paretune._values import number_text, shown
from paretune.backbones.backbone import Backbone
from paretune.data.images import ImageData
from paretune.frontiers.comparing import compare
from paretune.frontiers.settings import Settings
from paretune.frontiers.verdict import Comparison
from paretune.runs.sinks.base import Openable
from paretune.runs.storage import opened
from paretune.strategies import Strategy, adaptation_of
from paretune.sweeps.budgets import Budget
from paretune.sweeps.config import CompareConfig, RunConfig, Seeds, Strategies
from paretune.sweeps.executors import Executor, Workers
from paretune.sweeps.grid import run_all
from paretune.sweeps.racing import check, race
from paretune.sweeps.searching import with_rates
from paretune.sweeps.sources import DataSets, SourceConfig, is_named, objects_by_task
from paretune.training.objectives import read_objective
from paretune.training.tasks import Tasks, batches

_JUDGING = [option.name for option in dataclasses.fields(Settings) if option.name != "seed"]
_TASK = [option.name for option in dataclasses.fields(CompareConfig)]


def sweep(
    data: Any = "digits",
    strategies: str | Sequence[str | Strategy] | None = None,
    seeds: str | Sequence[int] = (0, 1),
    *,
    backbone: str | Backbone = "efficientnet-lite0",
    out: str | Path = "paretune-runs",
    on: str | Executor = "local",
    workers: Workers = None,
    resume: bool = True,
    progress: bool = True,
    sinks: Sequence[Openable] = (),
    **options: Any,
) -> Comparison:
    """Train every strategy on one task with every seed, and say which has the best frontier.

    Called again, it goes on with stopped runs and repeats no finished ones. ``paretune.write_report(out)`` writes the page.
    In a script, call it under ``if __name__ == "__main__":``, because workers are processes that import the script.

    Args:
        data: what :func:`paretune.load_data` takes, or what it returns. A list of names, paths and what it returns, or a
            mapping of anything that it takes, are several tasks: each run learns them all at once, with one adapter and a
            head for each, and each has its own frontiers; see :func:`paretune.training.train_tasks`. A mapping of splits,
            or with ``train_domains`` one of domains, is one data set.
        strategies: strategies, or texts that name them; None for full fine-tuning, LoRA, BitFit and Compacter.
        seeds: of the heads, the strategies' parameters, the batches and the attacks.
        backbone: as for :func:`paretune.load_backbone`; or a Backbone, of which each run takes a copy with the head it
            has, so that its logits are those of the classes of ``data``.
        out: directory of the runs, or its URL in an object store, such as ``s3://bucket/runs``, which
            ``pip install 'paretune[storage]'`` makes possible: each run is made in a directory of the machine that makes it,
            and sent there at its evaluation points, see :mod:`paretune.runs.storage`.
        on: where the runs are made: ``"local"``, ``"ray"``, ``"ray:HOST:PORT"``, ``"slurm"``, or one of
            :mod:`paretune.sweeps.executors` with its options, as a value or as a text. Other machines must see
            the data under the same paths, and ``out`` too unless it is a URL.
        workers: runs at once; None takes one a core here, or one in all if there is a GPU, and elsewhere what there is place
            for; ``"auto"`` as many as memory here has place for. Data sets and models that cannot be sent to another
            process, such as those of classes that a notebook defines, are used in this one, run by run.
        resume: False starts the runs over.
        progress: show bars on the terminal.
        sinks: who else receives the rows of each run, see :func:`paretune.train`.
        **options: the options of ``paretune compare`` by their names, with underscores: the task (``epsilon``, ``norm``,
            ``epochs``, ``batch_size``, ``train_steps``, ``img_size``, ``augmentation``, … of
            :class:`~paretune.sweeps.config.TaskConfig`), its learning rates (``lr="auto"`` tries ``lr_trials`` for each
            strategy first), and how it is judged (``margin``, ``level``, ``min_clean``, … of :func:`paretune.compare`).
            ``epsilon`` may be a number, ``columns`` a dictionary, ``augmentation`` a function of one image, ``objective`` a
            text such as ``"TRADES(beta=6)"``.

    Raises:
        TypeError: there is no such option, or ``backbone`` carries an adapter already.
        ValueError: an option is out of range, the data is not what the backbone takes, or several ``workers`` are wanted
            for what cannot be sent to them.
        RuntimeError: a worker ended abruptly; elsewhere, several of one run in a row.
        ImportError, ConnectionError: ``on`` or the URL needs a package, or nothing answers there.
        BlockingIOError: another process hands out runs in ``out``, or is at work in one of them.
        OSError: the URL cannot be read or written; what was trained stays here, and the same call sends it.
    """
    runs, config, judging = _asked("sweep", data, strategies, seeds, backbone, options)
    making: dict[str, Any] = {"on": on, "workers": workers, "resume": resume, "progress": progress}
    with opened(out) as place:
        runs = with_rates(runs, config, place, **making)
        return compare(run_all(runs, place, sinks=sinks, **making), **judging)


def compare_until(
    data: Any = "digits",
    strategies: str | Sequence[str | Strategy] | None = None,
    seeds: str | Sequence[int] = (0, 1, 2, 3, 4),
    *,
    until: str = "certain",
    budget: str | Budget | None = None,
    backbone: str | Backbone = "efficientnet-lite0",
    out: str | Path = "paretune-runs",
    on: str | Executor = "local",
    workers: Workers = None,
    resume: bool = True,
    progress: bool = True,
    sinks: Sequence[Openable] = (),
    **options: Any,
) -> Comparison:
    """:func:`sweep`, but strategies that cannot be best any more get no more seeds.

    Strategies and seeds are run in rounds. After each, those that are behind another one for sure are out: decided on the
    select split alone, and with a probability of ``(1 - level) / 2`` over all rounds is a best one put out. It ends when one
    strategy is left, when those that are left differ by less than ``margin``, when more seeds would hardly tell more of them
    apart, when all ``seeds`` are used, or before ``budget`` is exceeded. Called again, it goes on; see
    :mod:`paretune.sweeps.racing`.

    Args:
        data: as for :func:`sweep`, like all that is not said here.
        strategies: at least two.
        seeds: at least two; each strategy gets as many of them as it needs, in their order.
        until: certain.
        budget: at most, as in "2h" or "3e6 gradients", which are passes of one image forward and back; None for no limit.
            The search of ``lr="auto"`` comes before the race and does not count.
        backbone: as for :func:`sweep`.
        out: directory of the runs and of ``race.json``, which says what was put out, when and why; or its URL, as for
            :func:`sweep`.
        on: as for :func:`sweep`.
        workers: as for :func:`sweep`.
        resume: False starts the race and its runs over.
        progress: show bars on the terminal.
        sinks: as for :func:`sweep`.
        **options: as for :func:`sweep`.

    Returns:
        The comparison of all that ran, on the report split; what the race put out is not among the best, and ``race`` of
        each condition is its record.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`sweep`; and ValueError if there is too little to race, the budget is
            too small for one round, or ``out`` has a race of other runs or settings.
    """
    if until != "certain":
        raise ValueError(f"until must be 'certain', got {shown(until)}")
    limit = None if budget is None else Budget.read(budget)
    runs, config, judging = _asked("compare_until", data, strategies, seeds, backbone, options)
    settings = Settings(**judging)
    check(runs, settings)
    making: dict[str, Any] = {"on": on, "workers": workers, "resume": resume, "progress": progress}
    with opened(out) as place:
        runs = with_rates(runs, config, place, **making)
        raced, _ = race(runs, place, settings, budget=limit, sinks=sinks, **making)
        return compare(raced, **judging)


def _asked(
    function: str,
    data: Any,
    strategies: str | Sequence[str | Strategy] | None,
    seeds: str | Sequence[int],
    backbone: str | Backbone,
    options: Mapping[str, Any],
) -> tuple[Sequence[RunConfig], CompareConfig, dict[str, Any]]:
    """The runs that arguments of ``function`` ask for, the comparison they are of, and how it is judged."""
    check_known(function, options, [*_TASK, *_JUDGING])
    judging = {name: options[name] for name in _JUDGING if name in options}
    Settings(**judging)
    options = as_written({name: value for name, value in options.items() if name not in judging})
    if strategies is not None:
        options["strategies"] = Strategies.read(strategies)
    tasks = objects_by_task(data, options.get("train_domains"))
    if tasks is None:
        named = isinstance(data, str | Path)
        texts: Any = str(data) if named else ""
    else:
        named = all(map(is_named, tasks.values()))
        texts = DataSets.read({name: value if is_named(value) else "" for name, value in tasks.items()})
    config = CompareConfig(
        data=texts,
        backbone=backbone if isinstance(backbone, str) else f"{backbone.architecture} {backbone.fingerprint}",
        seeds=Seeds.read(seeds),
        **options,
    )
    config.check_judged(judging.get("by", "area"), elsewhere=bool(getattr(data, "elsewhere", ())))
    runs: Sequence[RunConfig] = config.runs()
    if not named or isinstance(backbone, Backbone):
        runs = _given(runs, data if tasks is None else tasks, backbone)
    return runs, config, judging


def check_known(function: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise TypeError if ``function`` takes one of the ``options`` not at all."""
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise TypeError(f"{function} has no option {name!r}{hint} Options: {', '.join(known)}")


def as_written(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a task as configurations have them: a text for epsilon, a value for the objective."""
    options = dict(options)
    if isinstance(options.get("epsilon"), float):
        options["epsilon"] = number_text(options["epsilon"])
    if options.get("objective") is not None:
        options["objective"] = read_objective(options["objective"])
    return options


@dataclass(frozen=True, kw_only=True)
class GivenRun(RunConfig):
    """A run on data, and maybe on a backbone, that are objects; the texts in their place tell them apart.

    Args:
        objects: the data, and the backbone if it is one.
        called: begins the name of the directory instead of the strategy.
    """

    objects: tuple[ImageData | Tasks, Backbone | None] = field(compare=False, repr=False)
    called: str | None = field(default=None, compare=False, repr=False)

    @property
    def slug(self) -> str:
        """As it is called."""
        return super().slug if self.called is None else self.called

    def load_backbone(self, num_classes: int, seed: int) -> Backbone:
        """A copy of what was given."""
        given = self.objects[1]
        return super().load_backbone(num_classes, seed) if given is None else copy.deepcopy(given)

    def load_data(self) -> ImageData | Tasks:
        """What was given."""
        return self.checked(self.objects[0])


def _given(runs: Sequence[RunConfig], data: Any, backbone: str | Backbone) -> list[RunConfig]:
    """The runs on these objects."""
    model = backbone if isinstance(backbone, Backbone) else None
    if model is not None and adaptation_of(model) is not None:
        raise TypeError(
            "backbone carries an adapter already; give the one that it was made of, and strategies"
        )
    task = runs[0]

    def read(source: SourceConfig, given: Any) -> ImageData:
        if isinstance(given, ImageData):
            if source.train_domains is not None:
                raise ValueError("data is split already; give train_domains to load_data")
            return given
        size = task.img_size or (
            model.image_size if model else task.size or task.load_backbone(2, 0).image_size
        )
        return source.load(size) if is_named(given) else source.read(given, size)

    datasets: ImageData | Tasks
    if sources := task.sources:
        datasets = task.together({name: read(source, data[name]) for name, source in sources.items()})
    else:
        datasets = read(task, data)
    if model is not None and model.num_classes != len(datasets.classes):
        raise ValueError(
            f"backbone has {model.num_classes} logits, {datasets.name} {len(datasets.classes)} classes; give it a head of "
            "that many"
        )
    by_name = {name: dataset for name, (dataset, _) in batches(datasets, task.batch_size).items()}
    texts = {name: f"{dataset.name} {dataset.fingerprint}" for name, dataset in by_name.items()}
    shown = {
        "data": DataSets.read(texts) if sources else texts[datasets.name],
        "img_size": next(iter(by_name.values())).image_size,
    }
    return [GivenRun(**vars(run) | shown, objects=(datasets, model)) for run in runs]
