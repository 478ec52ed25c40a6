"""``paretune inherit``: what fine-tuning on one of several related tasks leaves of a model on the others."""

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.commands._loading import load_adapted
from paretune.commands._printing import print_table
from paretune.commands._recorded import load_recorded
from paretune.sweeps.executors import Workers, read_executor
from paretune.sweeps.protocol import InheritConfig, study

if TYPE_CHECKING:
    from paretune.frontiers.inheritance import Inheritance


@dataclass(frozen=True, kw_only=True)
class Inherit(InheritConfig):
    """Fine-tune a model on each of several related tasks, measure it on all others, and rank methods by what is left.

    Args:
        start: a finished run, or an adapter, to begin with instead of the backbone's own head; the report split of its data
            measures what is lost of it.
        out: directory of the runs and the report.
        on: where the runs are made: local, ray, ray:HOST:PORT, slurm, or a call such as "Ray(cpus_per_run=4)".
        gpus_per_run: share of one GPU that a run takes; 0.5 puts two runs on each.
        workers: runs at once; null takes one a core, or one in all with a GPU, and elsewhere what there is place for. auto
            takes as many as memory here has place for.
        resume: go on with stopped runs; false starts them over.
        sinks: dashboards that receive the rows too, separated by commas: tensorboard, mlflow, wandb, trackio, with options
            as in "MLflow(experiment='digits')".
        level: of intervals and tests.
        margin: mRI closer than this are equal for practical purposes.
    """

    start: str | None = None
    out: str = "paretune-inherit"
    on: str = "local"
    gpus_per_run: float | None = None
    workers: Workers = None
    resume: bool = True
    sinks: str | None = None
    level: float = 0.95
    margin: float = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out:
            raise ValueError("out is empty; name a directory")
        read_executor(self.on, gpus_per_run=self.gpus_per_run)
        for name in ("pretrain", "pretrain_domain"):
            if self.start is not None and getattr(self, name) is not None:
                raise ValueError(f"start is pretrained already: give start or {name}, not both")

    def __call__(self) -> None:
        """Runs, tables, report."""
        from paretune.report.inheritance_page import write_inheritance
        from paretune.runs.lock import alone
        from paretune.runs.sinks import read_sinks

        sinks = read_sinks(self.sinks)
        backbone: Any = self.backbone
        pretraining: Any = self.pretraining
        if self.start is not None:
            default = next(option.default for option in fields(InheritConfig) if option.name == "backbone")
            name = None if self.backbone == default else self.backbone
            backbone, config = load_adapted(self.start, name, self.weights, self.weights_key)
            if pretraining is None:
                pretraining = load_recorded(self.start, config, backbone, root=self.data_root)
        answer = study(
            self,
            self.data,
            backbone,
            pretrain=self.pretrain,
            pretraining=pretraining,
            out=self.out,
            on=read_executor(self.on, gpus_per_run=self.gpus_per_run),
            workers=self.workers,
            resume=self.resume,
            sinks=sinks,
            tell=partial(print, flush=True),
            level=self.level,
            margin=self.margin,
        )
        for inheritance in answer.accuracies:
            _print(inheritance)
        for note in (answer.protocol, *answer.notes):
            print(f"note: {note}")
        with alone(Path(self.out), patience=60):
            page = write_inheritance(answer, self.out)
        print(f"\nmethods: {page.with_name('inheritance.csv').resolve()}")
        print(f"cells: {page.with_name('matrix.csv').resolve()}")
        print(f"report: {page.resolve()}")


def _print(inheritance: "Inheritance") -> None:
    """The ranking, and what was measured before."""
    print(f"\n{inheritance.accuracy} accuracy of the other tasks, after fine-tuning minus before")
    columns = [
        "method",
        "mRI",
        f"{100 * inheritance.settings.level:g} % interval",
        "per seed",
        "on the task itself",
    ]
    columns += [] if inheritance.pretraining is None else ["lost of pretraining"]
    rows = [
        [
            method.method,
            f"{method.mri.estimate:+.3f}",
            f"{method.mri.low:+.3f} to {method.mri.high:+.3f}",
            " ".join(f"{one:+.3f}" for one in method.per_seed),
            f"{method.gain.estimate:+.3f}",
            *([] if method.drop is None else [str(method.drop)]),
        ]
        for method in inheritance.methods
    ]
    print_table(columns, rows)
    print(inheritance.sentence)
    print(inheritance.covers)
    before = ", ".join(f"{name} {accuracy:.3f}" for name, accuracy in inheritance.before.items())
    print(f"before fine-tuning: {before}")
