"""After training: points between a run and its start (WiSE-FT), and means of several runs (model soups).

Both measure weighted means of finished runs, see :mod:`paretune.interchange.averaging`, and write them as runs of their own:
directories with rows and bits that :func:`~paretune.load_points`, :func:`~paretune.recommend` and the report read as any
others. What their rows say of cost (parameters, seconds) is what it took to train the runs that they are made of; the means
themselves cost nothing but their measurement.
"""

import copy
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from paretune.backbones.backbone import Backbone, fingerprint, tensor_digests
from paretune.data.images import ImageData, as_data
from paretune.interchange.averaging import average, interpolate
from paretune.interchange.files import read_adapter, save_adapter
from paretune.interchange.loading import load_adapter
from paretune.runs.store import Run, RunWriter, as_runs, load_runs
from paretune.shifts import Shifts, shifted
from paretune.strategies.mechanics.adapting import remove_adapter, require_adaptation, require_bare
from paretune.training.keeping import Keep
from paretune.training.untrained import Measuring, measured_run

log = logging.getLogger(__name__)

Recipe = Literal["uniform", "greedy"]
By = Literal["clean", "robust", "harmonic"]

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
# What adds up over the runs of a mean.
_SPENT = ("train_seconds", "cpu_seconds", "attack_seconds", "gradient_evaluations")
# What a run says of itself that a mean of runs has not.
_OF_TRAINING = ("schema", "weights", "eval_every", "points")


def wise_ft(
    start: Backbone,
    run: Run | str | Path,
    data: ImageData | Any,
    *,
    out: str | Path,
    alphas: Sequence[float] = ALPHAS,
    resume: bool = True,
    progress: bool = False,
) -> Run:
    """Measure (1 - alpha) start + alpha trained for each alpha: WiSE-FT (https://arxiv.org/abs/2109.01903, Eq. 1).

    Each alpha is one point, with the attacks, the seed and the precision that measured the run: clean and robust on the
    select and on the report split, for no training at all. Rows have it as ``alpha``, and in thousandths as their ``step``,
    which the report shows. Called again after it was stopped, it goes on. With one alpha the directory has an ``adapter``
    too.

    What alpha=0 means depends on the head: it is the model that the run started with. The paper begins with a zero-shot
    classifier; a fresh head is random, so that alpha=0 is then at chance, whatever the pretrained features are worth.

    Args:
        start: the model as it was given to :func:`~paretune.train`: the same backbone, with the same head, adapted with the
            same seed. That its tensors are those that the run recorded is checked. It stays as it is.
        run: finished.
        data: of the run.
        out: the directory to write.
        alphas: in [0, 1], at least a thousandth apart.
        resume: False measures all again.
        progress: show bars on the terminal.

    Raises:
        ValueError: the run is not finished, ``start`` or ``data`` is not what it was trained from, ``alphas`` are out of
            range, or the strategy is one of peft.
        BlockingIOError: another process is at work in ``out``.
    """
    alphas = sorted(float(alpha) for alpha in alphas)
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"alphas must be numbers in [0, 1], at least one of them, got {alphas}")
    steps = {round(1000 * alpha): alpha for alpha in alphas}
    if len(steps) < len(alphas):
        raise ValueError(f"alphas must differ by a thousandth at least, got {alphas}")
    source = _Finished.of(run)
    strategy = require_adaptation(start).strategy
    weights = fingerprint(start.architecture, tensor_digests(start.module.state_dict()))
    if (source.config.get("weights"), source.config["strategy_config"]) != (weights, repr(strategy)):
        raise ValueError(
            f"start is not what {source.path} was trained from, {source.config['strategy_config']} with seed "
            f"{source.config['seed']}: make it as for that run, with the same weights, and seeds of load_backbone and adapt "
            "(on the command line that of the run is taken for both)"
        )
    data = _same_data([source], data, start.image_size)
    trained = load_adapter(remove_adapter(copy.deepcopy(start)), source.path / "adapter")
    interpolate(start, trained, 1.0)  # what has no mean is refused before anything is written
    config = source.config_of_mean | {
        name: f"WiSE-FT of {source.config[name]}" for name in ("strategy", "strategy_config")
    }
    config["wise_ft"] = {"run": source.key, "adapter": source.digest, "alphas": alphas}

    def write(measuring: Measuring) -> None:
        for step, alpha in steps.items():
            if step not in measuring.steps or len(alphas) == 1:  # a killed process may have left no adapter
                model = interpolate(start, trained, alpha)
                measuring.add(model, source.cost | {"step": step, "alpha": alpha})
                if len(alphas) == 1:
                    _keep(measuring.writer, model, config["wise_ft"])

    return _measured(out, config, source, data, write, resume=resume, progress=progress)


def soup(
    backbone: Backbone,
    runs: str | Path | Run | Iterable[Run | str | Path],
    data: ImageData | Any,
    *,
    out: str | Path,
    recipe: Recipe = "greedy",
    by: By = "clean",
    pretrained: bool = False,
    resume: bool = True,
    progress: bool = False,
) -> Run:
    """Average finished runs of one base, measure the mean, and keep it: a model soup (https://arxiv.org/abs/2203.05482).

    ``"uniform"`` takes all runs. ``"greedy"`` is Recipe 1 of the paper: from the run that is best on the select split on,
    in falling order, each run stays in the mean if with it the mean is no worse there. The report split chooses nothing.
    The runs may be of different strategies, of which effective weights are averaged, or of one that inserts modules; they
    should share their ``seed``, so that they start from the same values, as soups do.

    Args:
        backbone: the base of the runs, without an adapter; it stays as it is.
        runs: finished, measured with the same attacks on the same data.
        data: of the runs.
        out: the directory to write: one point, measured with the attacks of the runs, and the mean as ``adapter``.
        recipe: which runs are in the mean.
        by: what is best on the select split: clean accuracy, as in the paper; robust accuracy, the least of all attacks; or
            the harmonic mean of the two.
        pretrained: ``backbone`` itself, with the head that it has, is one more model of a uniform mean. The runs started
            from it, and not from a fresh head.
        resume: False starts over.
        progress: show bars on the terminal.

    Raises:
        ValueError: a run is not finished, or the runs differ in base weights, classes, data, attacks or inserted modules; or
            ``pretrained`` with a greedy soup.
        BlockingIOError: another process is at work in ``out``.
    """
    for name, value, choices in (("recipe", recipe, get_args(Recipe)), ("by", by, get_args(By))):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if pretrained and recipe != "uniform":
        raise ValueError("pretrained adds backbone to a uniform mean; give recipe='uniform'")
    require_bare(backbone)
    sources = [_Finished.of(run) for run in as_runs(runs)]
    for source in sources:
        source.check_like(sources[0])
        if source.base != backbone.fingerprint:
            raise ValueError(
                f"{source.path} was trained on other base weights than those of backbone; load those"
            )
    data = _same_data(sources, data, backbone.image_size)
    of = [
        *(["the pretrained model"] if pretrained else []),
        *sorted({source.config["strategy"] for source in sources}),
    ]
    what = f"{recipe} soup of {' and '.join(of)}"
    choosing = f" by {by} accuracy" if recipe == "greedy" else ""
    configs = [source.config_of_mean for source in sources]
    config = {
        name: value
        for name, value in configs[0].items()
        if all(name in other and other[name] == value for other in configs)
    }
    config |= {
        "seed": min(source.config["seed"] for source in sources),
        "strategy": what,
        "strategy_config": f"{what}: {len(sources)} runs{choosing}",
        "soup": {"recipe": recipe, "runs": [source.key for source in sources]}
        | {"adapters": [source.digest for source in sources]}
        | ({"by": by} if recipe == "greedy" else {})
        | ({"pretrained": True} if pretrained else {}),
    }
    costs = [source.cost for source in sources]
    cost = costs[0] | {
        "trainable_parameters": max(spent["trainable_parameters"] for spent in costs),
        **{name: sum(spent.get(name, 0) for spent in costs) for name in _SPENT},
    }

    def mean(numbers: Sequence[int]) -> nn.Module:
        paths = (sources[number].path / "adapter" for number in numbers)
        trained = (load_adapter(copy.deepcopy(backbone), path) for path in paths)
        before = copy.deepcopy(backbone)
        before.classes = before.classes or sources[0].adapter.get("classes")
        return average(itertools.chain([before] if pretrained else [], trained))

    mean(range(len(sources)))  # what has no mean is refused before anything is written

    def write(measuring: Measuring) -> None:
        chosen: Sequence[int] = range(len(sources))
        if recipe == "greedy":
            rule = Keep(by)
            accuracies = [rule.score(source.clean_select, source.robust_select) for source in sources]

            def score(numbers: Sequence[int]) -> float:
                scores = measuring.scores(mean(numbers), data.select)
                return rule.score(scores.clean_accuracy, min(map(scores.robust_accuracy, scores.robust)))

            chosen = greedy(accuracies, score)
        model = mean(chosen)
        members = [sources[number] for number in chosen]
        apart = len({source.config.get("weights") for source in members}) > 1
        if apart and require_adaptation(model).strategy.why_not_mergeable:
            finding = "the inserted modules of these runs started from different values; their mean may be of little use"
            log.warning("%s: %s", out, finding)
            measuring.summary["findings"] = [{"step": 1, "finding": finding}]
        measuring.add(model, cost | {"step": 1})
        log.info("%s: %d of %d runs", out, len(members), len(sources))
        measuring.summary["members"] = [source.key for source in members]
        _keep(measuring.writer, model, config["soup"] | {"runs": [source.key for source in members]})

    return _measured(out, config, sources[0], data, write, resume=resume, progress=progress)


def greedy(accuracies: Sequence[float], score: Callable[[Sequence[int]], float]) -> list[int]:
    """The numbers of the models in a greedy soup: Recipe 1 of https://arxiv.org/abs/2203.05482.

    Args:
        accuracies: the accuracy of each model alone; of equal ones the first is tried first.
        score: the accuracy of the mean of the models of these numbers.
    """
    best, *others = sorted(range(len(accuracies)), key=lambda number: -accuracies[number])
    chosen, accuracy = [best], accuracies[best]
    for number in others:
        if (tried := score([*chosen, number])) >= accuracy:
            chosen, accuracy = [*chosen, number], tried
    return chosen


@dataclass(frozen=True, eq=False)
class _Finished:
    """A finished run, and what its adapter says of itself."""

    path: Path
    key: str
    config: Mapping[str, Any]
    last: Any  # rows of its last point, which say what all of it has cost
    kept: Any  # rows of the point whose weights its adapter has
    adapter: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run | str | Path) -> "_Finished":
        runs = as_runs(run)
        if len(runs) != 1:
            raise ValueError(f"{run} holds {len(runs)} runs; name one of them")
        (read,) = runs
        if not read.done or not (read.path / "adapter").is_dir():
            raise ValueError(
                f"{read.path} has no adapter: the run is not finished, or is a curve of several models"
            )
        steps = read.points["step"]
        last, kept = (read.points[steps == step] for step in (steps.max(), read.kept_step))
        return cls(read.path, read.key, read.config, last, kept, read_adapter(read.path / "adapter")[0])

    @property
    def base(self) -> str:
        return str(self.adapter["base"]["fingerprint"])

    @property
    def digest(self) -> str:
        """Of the adapter."""
        return fingerprint("", {name: entry["digest"] for name, entry in self.adapter["tensors"].items()})

    @property
    def config_of_mean(self) -> dict[str, Any]:
        """The configuration, without what a mean of runs does not have."""
        return {name: value for name, value in self.config.items() if name not in _OF_TRAINING}

    @property
    def cost(self) -> dict[str, Any]:
        """What the rows of its last point say alike, and a mean of it says too."""
        told = ("epoch", "trainable_parameters", *_SPENT, "precision", "attack_precision")
        row = self.last.iloc[-1].to_dict()
        return {name: row[name] for name in told if name in row}

    @property
    def clean_select(self) -> float:
        return float(self.kept["clean_select"].iloc[0])

    @property
    def robust_select(self) -> float:
        return float(self.kept["robust_select"].min())

    def check_like(self, other: "_Finished") -> None:
        """Raise ValueError unless the two can be averaged and compared."""
        for name in ("task", "data", "shifts", "shift_limit", "attacks", "attack_engine", "attack_precision"):
            mine, theirs = self.config.get(name), other.config.get(name)
            if mine != theirs:
                raise ValueError(
                    f"{other.path} and {self.path} differ in {name}: {theirs} and {mine}; average runs of one task"
                )
        for name, mine, theirs in (
            ("base weights", self.base, other.base),
            ("classes", self.adapter.get("classes"), other.adapter.get("classes")),
            ("preprocessing", self.adapter.get("preprocessing"), other.adapter.get("preprocessing")),
        ):
            if mine != theirs:
                raise ValueError(
                    f"{other.path} and {self.path} differ in {name}: {theirs} and {mine}; they have no average"
                )


def _same_data(sources: Sequence[_Finished], given: Any, image_size: Any) -> ImageData:
    data: ImageData = as_data(given, image_size)
    for source in sources:
        if source.config.get("data") != data.fingerprint:
            raise ValueError(
                f"data {data.name!r} is not what {source.path} was trained and measured on; load it as for that run"
            )
    like = sources[0].config
    return shifted(data, Shifts.read(like.get("shifts", ())), like.get("shift_limit"))


def _measured(
    out: str | Path,
    config: Mapping[str, Any],
    like: _Finished,
    data: ImageData,
    write: Callable[[Measuring], None],
    *,
    resume: bool,
    progress: bool,
) -> Run:
    """The run in ``out``, which ``write`` fills as ``like`` was measured."""
    precision = like.cost.get("attack_precision", like.config.get("attack_precision", "fp32"))
    return measured_run(
        out, config, data, write, like=like.config, precision=precision, resume=resume, progress=progress
    )


def _keep(run: RunWriter, model: nn.Module, notes: Mapping[str, Any]) -> None:
    """Save a model as the adapter of the run."""
    columns = ["attack", "threat", "epsilon", "clean", "robust", "examples"]
    results = load_runs(run.path)[0].points[columns].to_dict("records")
    model.to(memory_format=torch.contiguous_format)
    save_adapter(model, run.path / "adapter", notes={"average": dict(notes), "results": results})
