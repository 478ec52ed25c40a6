"""``paretune compare``: every strategy on one task, the table, the report; ``paretune plan``: what that would take."""

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paretune.commands._judging import Judging, print_condition, print_confirmations
from paretune.commands._printing import print_findings, print_table
from paretune.sweeps.budgets import Budget
from paretune.sweeps.config import CompareConfig
from paretune.sweeps.executors import Executor, Workers, read_executor

if TYPE_CHECKING:
    from paretune.runs.store import Run
    from paretune.sweeps.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Comparing(Judging, CompareConfig):
    """The options of a comparison.

    Args:
        out: directory of the runs and the report, or its URL, such as s3://bucket/runs.
        workers: runs at once; null takes one a core, or one in all with a GPU, and elsewhere what there is place for. auto
            takes as many as memory here has place for.
        resume: go on with stopped runs; false starts them over.
        sinks: dashboards that receive the rows too, separated by commas: tensorboard, mlflow, wandb, trackio, with options
            as in "MLflow(experiment='digits')".
    """

    out: str = "paretune-runs"
    workers: Workers = None
    resume: bool = True
    sinks: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out:
            raise ValueError("out is empty; name a directory")
        self.check_judged(self.by)


@dataclass(frozen=True, kw_only=True)
class Compare(Comparing):
    """Train every strategy on one task and report which has the best frontier.

    Args:
        on: where the runs are made: local, ray, ray:HOST:PORT, slurm, or a call such as "Ray(cpus_per_run=4)".
        gpus_per_run: share of one GPU that a run takes; 0.5 puts two runs on each.
        until: certain puts strategies that cannot be best any more out of the race, so that they get no more seeds; null
            runs every seed of all.
        budget: of a race, at most; as in 2h, or "3e6 gradients", which are passes of one image forward and back.
    """

    on: str = "local"
    gpus_per_run: float | None = None
    until: Literal["certain"] | None = None
    budget: Budget | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        read_executor(self.on, gpus_per_run=self.gpus_per_run)
        if self.until is None:
            if self.budget is not None:
                raise ValueError("budget is that of a race; give until certain too (--until certain)")
            return
        for name in ("max_trainable", "max_seconds"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is a limit on finished runs; in a race (until certain), name the strategies that are within it "
                    "in strategies (--strategies)"
                )
        from paretune.frontiers.settings import Settings
        from paretune.sweeps.racing import check

        check(self.runs(), Settings(**self.options))

    def __call__(self) -> None:
        """Sweep, table, report."""
        from paretune.frontiers.comparing import compare
        from paretune.report import write_report
        from paretune.runs.lock import alone
        from paretune.runs.naming import threat_text
        from paretune.runs.storage import below, opened, written
        from paretune.sweeps.searching import with_rates

        on = read_executor(self.on, gpus_per_run=self.gpus_per_run)
        with opened(self.out) as out:
            configs = with_rates(self.runs(), self, out, on=on, workers=self.workers, resume=self.resume)
            runs = self.trained(configs, out, on)
        judged = self.within(runs)
        for condition in compare(judged, **self.options).conditions:
            threat = threat_text(condition.threat, condition.epsilon)
            print_condition(
                condition, f"{condition.task}, {threat}, PGD with {self.eval_steps} steps, {self.backbone}"
            )
        print_confirmations(judged, self.start)
        print_findings(runs)
        place = below(self.out, "report.html")
        with alone(out, patience=60), written(place) as page:
            write_report(judged, page, **self.options)
        print(f"\nreport: {place}")

    def trained(self, configs: "list[RunConfig]", out: Path, on: Executor) -> "list[Run]":
        """The runs of all configurations; of a race, of those that it needs."""
        from paretune.frontiers.settings import Settings
        from paretune.runs.sinks import read_sinks
        from paretune.sweeps.grid import run_all
        from paretune.sweeps.racing import race

        making: dict[str, Any] = {
            "on": on,
            "workers": self.workers,
            "resume": self.resume,
            "sinks": read_sinks(self.sinks),
            "tell": partial(print, flush=True),
        }
        if self.until is None:
            return run_all(configs, out, **making)
        runs, _ = race(configs, out, Settings(**self.options), budget=self.budget, **making)
        return runs


@dataclass(frozen=True, kw_only=True)
class Plan(Comparing):
    """Say what compare would run with the same options, and what that takes, from a few steps of every strategy.

    Nothing is written. Gradient evaluations are passes of one image forward and back, those of attacks included; evaluation
    needs fewer than is said, as attacked images that are solved leave. Memory is the largest of a process, on a GPU that
    of the GPU.

    Args:
        json: print JSON instead, with seconds and bytes.
    """

    json: bool = False

    def __call__(self) -> None:
        """Measure and print the table."""
        from paretune.sweeps.announcing import minutes_text
        from paretune.sweeps.planning import plan

        sweep = plan(self, self.out, workers=self.workers, resume=self.resume)
        if self.json:
            print(json.dumps(sweep.to_dict(), indent=2))
            return
        print(sweep.data)
        rows, every = [], [planned.to_dict() for planned in sweep.strategies]
        for planned, told in zip(sweep.strategies, every, strict=True):
            finished = sum(run["finished"] for run in told["runs"])
            begun = [f"from step {run.done:,.0f}" for run in planned.runs if 0 < run.done < math.inf]
            state = [*([f"{finished} finished"] if finished else []), *begun]
            rows.append(
                [
                    told["strategy"].removesuffix("()") + " (learning rates)" * planned.trials,
                    f"{told['trainable_parameters']:,}",
                    f"{told['trainable_parameters'] / told['parameters']:.2%}",
                    f"{len(planned.runs)}" + (f", {', '.join(state)}" if state else ""),
                    *(f"{told[key]:,}" for key in _COUNTED),
                    f"{told['seconds'] / 60:.1f}",
                    f"{told['peak_memory_bytes'] / 1e9:.1f}",
                ]
            )
        totals = [f"{sum(told[key] for told in every):,}" for key in _COUNTED]
        runs = sum(len(planned.runs) for planned in sweep.strategies)
        minutes = sum(told["seconds"] for told in every) / 60
        memory = sweep.workers * max(told["peak_memory_bytes"] for told in every)
        rows.append(["all", "", "", f"{runs}", *totals, f"{minutes:.1f}", f"{memory / 1e9:.1f}"])
        columns = ["strategy", "trainable", "of model", "runs", "steps left", "training gradients"]
        print_table([*columns, "evaluation, at most", "minutes", "peak GB"], rows)
        at_once = f"{sweep.workers} runs at once" if sweep.workers > 1 else "one run at a time"
        print(f"{at_once}: about {minutes_text(sweep.seconds)}" if sweep.seconds else "all runs are finished")


_COUNTED = ("steps", "training_gradients", "evaluation_gradients_at_most")
