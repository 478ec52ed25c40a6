"""Run directories of models that are not trained there: means of runs, or a model before it is fine-tuned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paretune._values import from_dict
from paretune.attacks import ATTACKS, THREATS, Attack, attack_copy
from paretune.data.image_split import ImageSplit
from paretune.data.images import ImageData
from paretune.evaluation.correctness import evaluate
from paretune.evaluation.points import point
from paretune.evaluation.scores import Scores
from paretune.runs.examples import Examples
from paretune.runs.lock import alone
from paretune.runs.progress import peak_memory_bytes
from paretune.runs.store import Run, RunWriter, load_runs


@dataclass(eq=False)
class Measuring:
    """A run directory whose points are models that somebody gives.

    Args:
        writer: of the run.
        data: what they are measured on.
        like: the configuration of the run that is measured so too: its attacks, and where they run.
        precision: of the gradients of attacks.
        progress: show bars on the terminal.
        steps: of the points that are there.
        summary: what the run says at its end.
    """

    writer: RunWriter
    data: ImageData
    like: Mapping[str, Any]
    precision: Any
    progress: bool
    steps: set[int]
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def attacks(self) -> list[Attack]:
        """Those of the run."""
        return [from_dict(attack, {**ATTACKS, **THREATS}) for attack in self.like["attacks"]]

    def scores(self, model: nn.Module, split: ImageSplit, *, attacked: bool = True) -> Scores:
        """What ``model`` gets right, with the seed of the run."""
        model.to(memory_format=torch.channels_last)  # as training measures
        victim = attack_copy(model, precision=self.precision, engine=self.like.get("attack_engine", "auto"))
        return evaluate(
            model,
            split,
            self.attacks if attacked else (),
            seed=self.writer.config["seed"],
            victim=victim,
            progress=self.progress,
        )

    def add(self, model: nn.Module, common: Mapping[str, Any]) -> None:
        """Measure a model and append its point, of which ``common`` says the rest."""
        report, select = self.scores(model, self.data.report), self.scores(model, self.data.select)
        attacked = bool(self.like.get("attack_elsewhere"))
        elsewhere = {
            name: self.scores(model, split, attacked=attacked) for name, split in self.data.elsewhere.items()
        }
        also = {
            "peak_memory_bytes": peak_memory_bytes(),
            "versions": {name: version(name) for name in ("paretune", "torch", "timm", "accelerate")},
        }
        assert report.labels is not None  # evaluate gives them
        self.writer.keep(Examples(report.split, report.class_names, report.labels, None))
        self.writer.append(*point(report, select, elsewhere, {**common, **also}))


def measured_run(
    out: str | Path,
    config: Mapping[str, Any],
    data: ImageData,
    write: Callable[[Measuring], None],
    *,
    like: Mapping[str, Any] | None = None,
    precision: str = "fp32",
    resume: bool,
    progress: bool,
) -> Run:
    """The run in ``out``, which ``write`` fills unless it is complete.

    Args:
        out: the directory.
        config: of the run.
        data: what its models are measured on.
        write: adds the points that are not there.
        like: the configuration of a run that was measured so too; None for its own.
        precision: of the gradients of attacks.
        resume: False forgets what is there.
        progress: show bars on the terminal.

    Raises:
        ValueError: the directory holds another run, or a damaged one.
        BlockingIOError: another process is at work there.
    """
    path = Path(out)
    with alone(path):
        writer = RunWriter(path, config, resume=resume)
        if not writer.done:
            there = {int(step) for step in load_runs(path)[0].points["step"]}
            measuring = Measuring(writer, data, like or config, precision, progress, there)
            write(measuring)
            writer.finish({"findings": [], **measuring.summary})
        return load_runs(path)[0]
