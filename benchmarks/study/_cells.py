"""The cells of the study: what each one trains, and the archive that keeps what came of it."""

import csv
import importlib.util
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from _radii import measure

from paretune._values import parse
from paretune.runs.disk import write_json
from paretune.runs.rows import SEARCH, read_json
from paretune.runs.store import Run, load_runs
from paretune.runs.submission import write_submission
from paretune.sweeps.config import CompareConfig, RunConfig, Seeds, Strategies
from paretune.sweeps.entry import as_written
from paretune.sweeps.executors import Workers
from paretune.sweeps.grid import directory_name, run_all
from paretune.sweeps.searching import configured, outcomes, search_directory, with_rates
from paretune.training.schedules import SCHEDULES

HERE = Path(__file__).parent
RESULTS, UNFINISHED = HERE / "results", HERE / "unfinished"
_BEHIND = (
    "adapter",
    "weights",
    "checkpoint.safetensors",
    "examples.safetensors",
    "log.jsonl",
    ".*",
)  # of a run that diverged
IDENTITY = ("task", "objective", "epsilon", "schedule")  # of a cell
RADII = ".radii"  # in the directory of a cell
TUNED, UNDER_FIXED = "tuned", "tuned under fixed"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Every strategy on one task, at one epsilon, with one objective and one schedule.

    Args:
        task: its name in study.yaml.
        objective: the name of a training objective, or ``natural``.
        schedule: the call of a schedule of epsilon.
        epsilon: as text, 4/255.
        options: of :class:`~paretune.sweeps.config.CompareConfig`.
        confirm: options of AutoAttack, with the threat of the cell.
        radii: at which the last model of every run is measured, as texts.
    """

    task: str
    objective: str
    schedule: str
    epsilon: str
    options: Mapping[str, Any] = field(repr=False)
    confirm: Mapping[str, int] = field(repr=False)
    radii: Sequence[str] = field(repr=False)

    @property
    def name(self) -> str:
        """Of its archive and its directory."""
        parts = (self.task, self.objective, self.schedule, self.epsilon.replace("/", "of"))
        return "-".join(re.sub(r"[^a-z0-9]+", "_", part.lower()).strip("_") for part in parts)

    @property
    def file(self) -> Path:
        """The archive of the cell, once it is whole."""
        return RESULTS / f"{self.name}.tar.xz"

    @property
    def unfinished(self) -> Path:
        """The archive of what is finished of it until then."""
        return UNFINISHED / f"{self.name}.tar.xz"

    @property
    def rival(self) -> "Cell | None":
        """The cell with the same objective at full epsilon, under which scheduled ones are tuned too."""
        if self.schedule == "fixed":
            return None
        return replace(self, schedule="fixed", options=self.options | {"schedule": SCHEDULES["Fixed"]()})

    def configs(self) -> tuple[CompareConfig, list[RunConfig]]:
        """The comparison, and its runs by seed and strategy."""
        comparison = CompareConfig(**as_written(dict(self.options)))
        return comparison, comparison.runs()

    def confirmed(self, config: RunConfig) -> RunConfig:
        """``config``, of which a run of seed 0 is measured by a stricter attack too."""
        if config.seed or not config.train_steps:
            return config
        options = ", ".join(f"{name}={value}" for name, value in self.confirm.items())
        return replace(config, confirm=f"AutoAttack(Linf({self.epsilon}), {options})")

    def make(self, out: Path, workers: Workers) -> dict[str, list[Run]]:
        """Tune, then train what is not there yet; the runs by the way that they were tuned."""
        place = out / self.name
        if self.unfinished.exists() and not place.exists():
            with tarfile.open(self.unfinished) as archive:
                archive.extractall(place, filter="data")
        asked = self.asked(out, workers)
        every = list(dict.fromkeys(config for some in asked.values() for config in some))
        runs = run_all(every, place, workers=workers, diverging=True)
        self.measure(every, runs, place)
        by_config = dict(zip(map(directory_name, every), runs, strict=True))
        return {how: [by_config[directory_name(config)] for config in some] for how, some in asked.items()}

    def asked(self, out: Path, workers: Workers) -> dict[str, list[RunConfig]]:
        """What is to be trained, by the way that it is tuned, after tuning what is not yet."""
        comparison, configs = self.configs()
        asked = {TUNED: with_rates(configs, comparison, out / self.name, workers=workers)}
        if self.rival is not None:
            rates = self.rival.rates(out)
            asked[UNDER_FIXED] = configured(
                configs, {strategy: rates[repr(strategy)] for strategy in comparison.strategies}
            )
        return {how: [self.confirmed(config) for config in some] for how, some in asked.items()}

    def measure(self, configs: Sequence[RunConfig], runs: Sequence[Run], place: Path) -> None:
        """Write what is right at each radius of the runs in ``place`` that are finished."""
        for config, run in zip(configs, runs, strict=True):
            file = self._radii(place, run)
            if run.done and not file.exists():
                write_json(file, measure(config, run, self.radii))

    def _radii(self, place: Path, run: Run) -> Path:
        return place / RADII / f"{run.path.name}.json"

    def set_aside(self, out: Path, about: Mapping[str, Any]) -> None:
        """Keep the finished runs and trials of a cell that is not whole, without weights: another machine goes on there."""
        place = out / self.name
        trials = search_directory(place)
        searched = trials / SEARCH
        if not searched.exists():
            return
        runs = _finished(place)
        if "chosen" in read_json(searched):
            configs = {directory_name(c): c for some in self.asked(out, 1).values() for c in some}
            self.measure([configs[run.path.name] for run in runs], runs, place)
        runs = [
            run for run in runs if self._radii(place, run).exists()
        ]  # the others need their weights again
        with tempfile.TemporaryDirectory() as scratch:
            there = Path(scratch) / "cell"
            write_submission([*runs, *_finished(trials)], there, by="paretune", machine=_machine(about))
            for file in (searched, *(place / RADII).glob("*.json")):
                copy = there / file.relative_to(place)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
            _pack(there, self.unfinished)

    def rates(self, out: Path) -> dict[str, float]:
        """The learning rate that was chosen for each strategy, by trials in ``out`` or by those of the archive.

        Raises:
            FileNotFoundError: the cell was not tuned yet.
        """
        searched = search_directory(out / self.name) / SEARCH
        rates: dict[str, float] = (
            read_json(searched)["chosen"] if searched.exists() else read_told(self.file)["rates"]
        )
        return rates

    def keep(self, out: Path, runs: Mapping[str, Sequence[Run]], about: Mapping[str, Any]) -> Path:
        """Write the archive: runs as a submission to the leaderboard has them, how they were tuned, the trials of rates.

        Runs that diverged are no part of the submission; they lie beside it.
        """
        every = [*{run.path: run for some in runs.values() for run in some}.values()]
        told = {name: getattr(self, name) for name in IDENTITY}
        told |= {how: [run.path.name for run in some] for how, some in runs.items()}
        done = [run for run in every if run.done]
        told["radii"] = {run.path.name: read_json(self._radii(out / self.name, run)) for run in done}
        told |= {"rates": self.rates(out), "trials": outcomes(out / self.name), "machine": dict(about)}
        with tempfile.TemporaryDirectory() as scratch:
            there = Path(scratch) / "runs"
            write_submission(done, there, by="paretune", machine=_machine(about))
            for run in every:
                if not run.done:
                    shutil.copytree(run.path, there / run.path.name, ignore=shutil.ignore_patterns(*_BEHIND))
            (there / "cell.json").write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
            _pack(there, self.file)
        self.unfinished.unlink(missing_ok=True)
        return self.file


def _finished(place: Path) -> list[Run]:
    """The runs in ``place`` that are, of none none."""
    try:
        return [run for run in load_runs(place) if run.done]
    except FileNotFoundError:
        return []


def _machine(about: Mapping[str, Any]) -> str:
    return f"{about['cores']} cores of {about['processor']}"


def _pack(directory: Path, file: Path) -> None:
    """Write all of ``directory`` to an archive, whole or not at all, the same for the same files."""
    file.parent.mkdir(exist_ok=True)
    partial = file.with_name(f".{file.name}.part")
    with tarfile.open(partial, "w:xz", preset=9) as archive:
        for part in sorted(directory.rglob("*")):
            if part.is_file():
                entry = tarfile.TarInfo(part.relative_to(directory).as_posix())
                entry.size = part.stat().st_size
                with part.open("rb") as content:
                    archive.addfile(entry, content)
    partial.replace(file)


def cells(study: Mapping[str, Any], root: Path, *, emoji: str | None = None) -> Iterator[Cell]:
    """The cells of ``study``, task by task, those that others need first.

    Args:
        study: the content of study.yaml.
        root: where files of data are that the study writes.
        emoji: where npm has installed the pictures.
    """
    for task, given in study["tasks"].items():
        options = {**study["shared"], **given}
        epsilons, more = options.pop("epsilons"), options.pop("more", [])
        if task == "emoji" and emoji is not None:
            options["data_root"] = emoji
        if task == "solar-cells":
            options["data"] = str(root / options["data"])
        wanted: list[dict[str, Any]] = [
            {"objective": "natural", "train_steps": 0, "schedules": ["fixed"], "epsilons": epsilons[:1]},
            {},
            *more,
        ]
        for which in wanted:
            which = dict(which)
            objective = which.pop("objective", "AdversarialTraining()")
            for epsilon in which.pop("epsilons", epsilons):
                for schedule in which.get("schedules", study["schedules"]):
                    chosen = options | {name: value for name, value in which.items() if name != "schedules"}
                    chosen |= {
                        "strategies": Strategies.read(chosen["strategies"]),
                        "seeds": Seeds.read(chosen["seeds"]),
                        "epsilon": epsilon,
                        "schedule": parse(schedule, SCHEDULES),
                    }
                    if objective != "natural":
                        chosen["objective"] = objective
                    yield Cell(
                        task=task,
                        objective=objective,
                        schedule=schedule,
                        epsilon=epsilon,
                        options=chosen,
                        confirm=study["confirm"],
                        radii=study["radii"],
                    )


def read_study() -> dict[str, Any]:
    """study.yaml."""
    study: dict[str, Any] = yaml.safe_load((HERE / "study.yaml").read_text())
    return study


def write_solar_cells(file: Path) -> None:
    """A table of the photographs of the package ``elpv-dataset``: those that are surely whole or surely broken.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the task solar-cells needs photographs for research use (CC BY-NC-SA 4.0): pip install --no-deps elpv-dataset"
        )
    folder = Path(spec.origin).parent / "data"
    with file.open("w", newline="") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["path", "label"])
        for line in (folder / "labels.csv").read_text().splitlines():
            path, broken, kind = line.split()
            if float(broken) in (0, 1):
                writer.writerow([folder / path, f"{kind} {'broken' if float(broken) else 'whole'}"])


@dataclass(frozen=True, eq=False)
class Kept:
    """A cell as its archive has it: what it was, and its runs by the way that they were tuned."""

    told: dict[str, Any]
    runs: dict[str, list[Run]]

    def named(self, *names: str) -> dict[str, str]:
        """What tells the cell from others, or some of that."""
        return {name: self.told[name] for name in names or IDENTITY}


def read_told(file: Path) -> dict[str, Any]:
    """What the archive of a cell says of it, without its runs."""
    with tarfile.open(file) as archive:
        content = archive.extractfile("cell.json")
        assert content is not None
        told: dict[str, Any] = json.load(content)
    return told


def read_kept(file: Path, into: Path) -> Kept:
    """Unpack the archive of a cell into a directory of its own in ``into``."""
    place = into / file.name.partition(".")[0]
    with tarfile.open(file) as archive:
        archive.extractall(place, filter="data")
    told = json.loads((place / "cell.json").read_text())
    ways = [how for how in (TUNED, UNDER_FIXED) if how in told]
    return Kept(told, {how: [load_runs(place / name)[0] for name in told[how]] for how in ways})


def read_all(into: Path, results: Path = RESULTS) -> list[Kept]:
    """All cells that are whole, unpacked in ``into``, where their bits are read from."""
    return [read_kept(file, into) for file in sorted(results.glob("*.tar.xz"))]
