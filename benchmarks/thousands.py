"""What thousands of runs take: seconds and memory to read, list, compare, report, export and watch them.

python benchmarks/thousands.py                                  # appends to benchmarks/thousands.csv; an hour or more
python benchmarks/thousands.py --runs 500 --shapes seeds        # a quick look
python benchmarks/thousands.py --works load_runs recommend

Runs are written without training (``tests/synthetic.py``), as training writes them: 10 points of 500 report and 200 select
examples, a log of 150 steps, labels, and pictures of the first seed. Each work runs in a process of its own, whose CPU time
and largest memory are told; its imports are not timed, but are in its memory. Set TMPDIR to a file system in memory, or
writing the runs takes longer than the rest.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
from tests.synthetic import ATTACK, Strategy, write_run  # noqa: E402

from _record import append, machine  # noqa: E402
from paretune.runs.examples import Examples, Pictures  # noqa: E402

FILE = Path(__file__).with_suffix(".csv")
RUNS = (500, 1000, 2000, 5000)
POINTS, EXAMPLES, EXAMPLES_SELECT, STEPS = 10, 500, 200, 150
# Strategies, tasks and seeds; None grows with the number of runs.
SHAPES: dict[str, tuple[int | None, int | None, int | None]] = {
    "seeds": (10, 5, None),  # 100 seeds at 5,000 runs
    "tasks": (10, None, 5),  # 100 tasks
    "both": (50, None, 5),  # 20 tasks of 50 strategies
}
Answer = dict[str, Any]


def sizes(shape: str, runs: int) -> tuple[int, int, int]:
    """Strategies, tasks and seeds of so many runs."""
    known = SHAPES[shape]
    rest = runs // int(np.prod([count for count in known if count]))
    strategies, tasks, seeds = (count or rest for count in known)
    if strategies * tasks * seeds != runs:
        raise ValueError(f"{runs} runs do not make whole {shape}: {strategies} x {tasks} x {seeds}")
    return strategies, tasks, seeds


def write(root: Path, strategies: int, tasks: int, seeds: int) -> None:
    """The runs, of strategies whose order differs from task to task."""
    rng = np.random.default_rng(0)
    line = json.dumps({"step": 0, "loss": 0.5, "epsilon": 4 / 255, "lr": 0.001, "images_per_second": 100.5})
    log = "".join(line.replace('"step": 0', f'"step": {step}') + "\n" for step in range(1, STEPS + 1))
    labels = np.arange(EXAMPLES) % 10
    for task in range(tasks):
        for number in range(strategies):
            gain = 0.06 * number / strategies + 0.02 * rng.standard_normal()
            name, rank = f"Method {number:02}", number + 1
            strategy = Strategy(name, f"LoRA(rank={rank})", gain, 1000 * rank)
            for repeat in range(seeds):
                seed = 1000 * task + repeat  # which the examples that are right follow from
                path = root / f"task{task:03}" / f"lora{rank:03}-seed{seed}"
                path.mkdir(parents=True)
                (path / "log.jsonl").write_text(log)
                pictures = None if repeat else _pictures(rng)
                Examples(f"report-{EXAMPLES}", tuple("0123456789"), labels, pictures).write(path)
                write_run(
                    path,
                    strategy,
                    seed,
                    points=POINTS,
                    examples=EXAMPLES,
                    examples_select=EXAMPLES_SELECT,
                    task=f"task{task:03}",
                    **_config(rank),
                )


def _pictures(rng: np.random.Generator) -> Pictures:
    """Ten colour images of 32 pixels, smooth as photographs are."""
    coarse = rng.random((10, 3, 4, 4), dtype=np.float32)
    clean = np.kron(coarse, np.ones((8, 8), dtype=np.float32))
    attacked = np.clip(clean + 4 / 255 * rng.choice([-1, 1], clean.shape), 0, 1).astype(np.float32)
    places = np.arange(10)
    confidence = np.full((2, 10), 0.75, dtype=np.float32)
    return Pictures(20 * POINTS, ATTACK, places, clean, attacked, np.stack([places, places]), confidence)


def _config(rank: int) -> dict[str, Any]:
    """Other fields that the configuration of a run has."""
    threat = {"name": "Linf", "epsilon": 4 / 255}
    pgd = {
        "name": "PGD",
        "keep": "last",
        "momentum": 0.0,
        "random_start": True,
        "restarts": 1,
        "step_size": None,
    }
    pgd |= {"steps": 20, "targeted": False, "threat": threat}
    return {
        "attack_precision": "fp32",
        "evaluation_attacks": [pgd],
        "backbone": "vit_tiny_patch16_224",
        "batch_size": 32,
        "data": "c87057b9ec38a31d9a31be324ff5994b97ed4d730d2b0d012c440f591c8936c7",
        "epsilon_schedule": {"name": "EpsilonSchedule", "start": 0.25, "end": 0.75},
        "eval_every": STEPS // POINTS,
        "image_size": 32,
        "objective": {"name": "AdversarialTraining", "inner": pgd},
        "optimizer": {"name": "AdamW", "clip": 1.0, "decay": "cosine", "lr": 0.005, "warmup": 0.1, "weight_decay": 0.01},
        "steps": STEPS,
        "strategy_fields": {"name": "LoRA", "rank": rank, "alpha": None, "where": ["all"]},
        "weights": "272a8e9894f47a9887aab89932fe9438",
    }  # fmt: skip


def _load_runs(root: Path) -> Callable[[], Answer]:
    from paretune.runs.store import load_runs

    return lambda: {"answer": len(load_runs(root))}


def _load_points(root: Path) -> Callable[[], Answer]:
    from paretune.runs.store import load_points

    return lambda: {"answer": len(load_points(root))}


def _list(root: Path) -> Callable[[], Answer]:
    return _command("runs", "list", str(root))


def _export(root: Path) -> Callable[[], Answer]:
    out = root / "points.csv"
    return _command("runs", "export", str(root), "--out", str(out), file=out)


def _command(*arguments: str, file: Path | None = None) -> Callable[[], Answer]:
    from paretune.commands.cli import main

    def work() -> Answer:
        with tempfile.TemporaryFile("w+") as printed:
            with redirect_stdout(printed):
                assert main([*arguments]) == 0
            return {"answer": printed.tell() if file is None else file.stat().st_size}

    return work


def _recommend(root: Path) -> Callable[[], Answer]:
    from paretune.frontiers.comparing import recommend

    return lambda: {"answer": len(recommend(root))}


def _report(root: Path) -> Callable[[], Answer]:
    from paretune.report.page import write_report

    return lambda: {"answer": write_report(root, root / "report.html").stat().st_size}


def _watched(root: Path, *, before: bool) -> Callable[[], Answer]:
    """What the server sends of its first look at the directory; or of a later one, after a file of one run was written."""
    from paretune.watch.progress import Watcher

    watcher = Watcher(root)

    def look() -> Answer:
        return {"answer": len(json.dumps(watcher.look().to_dict()))}

    if before:
        look()
        (next(root.glob("*/*/log.jsonl"))).touch()
    return look


WORKS: dict[str, Callable[[Path], Callable[[], Answer]]] = {
    "load_runs": _load_runs,
    "load_points": _load_points,
    "runs list": _list,
    "runs export": _export,
    "recommend": _recommend,
    "write_report": _report,
    "watch, first": lambda root: _watched(root, before=False),
    "watch, again": lambda root: _watched(root, before=True),
}


def measured(work: str, root: Path) -> Answer:
    """CPU seconds, peak memory and the answer of a work, in a process of its own."""
    arguments = [sys.executable, __file__, "--inside", work, "--root", str(root)]
    told = subprocess.run(
        arguments, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    answer: Answer = json.loads(told.stdout.splitlines()[-1])
    return answer


def inside(work: str, root: Path) -> None:
    """Do it and print what it took."""
    ready = WORKS[work](root)
    began = time.process_time()
    answer = ready()
    seconds = time.process_time() - began
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"cpu_seconds": round(seconds, 3), "peak_memory_bytes": peak, **answer}))


def read() -> list[dict[str, str]]:
    """The rows that were measured."""
    with FILE.open(newline="") as file:
        return [*csv.DictReader(file)]


def summary(rows: list[dict[str, str]]) -> Iterator[str]:
    """A table for a page: CPU seconds of each work at each number of runs, and its memory at the largest."""
    sizes = sorted({int(row["runs"]) for row in rows})
    yield f"| work | {' | '.join(f'{runs:,} runs' for runs in sizes)} | memory |"
    yield "|---|" + "---|" * (len(sizes) + 1)
    for work in dict.fromkeys(row["work"] for row in rows):
        of_work = {int(row["runs"]): row for row in rows if row["work"] == work}
        seconds = [
            f"{_rounded(float(of_work[runs]['cpu_seconds']))} s" if runs in of_work else "–" for runs in sizes
        ]
        memory = int(of_work[max(of_work)]["peak_memory_bytes"]) / 1e6
        yield f"| {work} | {' | '.join(seconds)} | {memory:.0f} MB |"


def _rounded(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.2g}"


def main() -> None:
    """Write the runs of each shape and number, and measure every work on them."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--runs", type=int, nargs="+", default=RUNS)
    options.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    options.add_argument("--works", nargs="+", choices=WORKS, default=[*WORKS])
    options.add_argument("--inside", choices=WORKS, help=argparse.SUPPRESS)
    options.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--out", type=Path, default=FILE, help="the CSV file")
    chosen = options.parse_args()
    if chosen.inside:
        inside(chosen.inside, chosen.root)
        return
    about = machine("vl-convert-python", "pandas")
    for shape in chosen.shapes:
        for runs in chosen.runs:
            strategies, tasks, seeds = sizes(shape, runs)
            with tempfile.TemporaryDirectory() as directory:
                write(Path(directory), strategies, tasks, seeds)
                for work in chosen.works:
                    row = {
                        "shape": shape,
                        "runs": runs,
                        "strategies": strategies,
                        "tasks": tasks,
                        "seeds": seeds,
                    }
                    row |= {"work": work, **measured(work, Path(directory))}
                    append(chosen.out, row | about)
                    print("  ".join(map(str, row.values())), flush=True)


if __name__ == "__main__":
    main()
