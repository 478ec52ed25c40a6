"""The command line: each command is a dataclass whose fields are its options. Errors are one line and exit code 2."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, Protocol

from paretune._values import parse, parse_many
from paretune.config import CompareConfig, RunConfig, Seeds, Strategies

if TYPE_CHECKING:
    from paretune.backbones import Backbone
    from paretune.results import Run


class Command(Protocol):
    """What each command is: a frozen dataclass of options that can be run."""

    HELP: ClassVar[str]

    def __call__(self) -> None:
        """Do it, and print what a person wants to know."""


@dataclass(frozen=True, kw_only=True)
class Compare(CompareConfig):
    """Train every strategy on one task and report which has the best frontier.

    Args:
        out: directory of the runs and the report.
        workers: processes; null takes one a core, or one in all with a GPU.
        resume: go on with stopped runs; false starts them over.
    """

    HELP: ClassVar[str] = "train every strategy on one task and report which has the best frontier"
    out: str = "paretune-runs"
    workers: int | None = None
    resume: bool = True

    def __call__(self) -> None:
        """Sweep, table, report."""
        from paretune.report import write_report
        from paretune.stats import compare
        from paretune.sweep import sweep
        from paretune.verdict import threat_text

        runs = sweep(self.runs(), self.out, workers=self.workers, resume=self.resume)
        for condition in compare(runs).conditions:
            steps = f"PGD with {self.eval_steps} steps"
            print(
                f"\n{condition.task}, {threat_text(condition.threat, condition.epsilon)}, {steps}, {self.backbone}"
            )
            _table(
                [
                    "strategy",
                    "area",
                    "95 % interval",
                    "per seed",
                    "best clean",
                    "best robust",
                    "trainable",
                ],
                [
                    [
                        each.strategy,
                        f"{each.area:.3f}",
                        f"{each.low:.3f} to {each.high:.3f}",
                        " ".join(f"{area:.3f}" for area in each.per_seed),
                        f"{each.best_clean:.3f}",
                        f"{each.best_robust:.3f}",
                        f"{each.trainable_parameters:,}",
                    ]
                    for each in condition.areas
                ],
            )
            print(condition.verdict)
            for note in condition.notes:
                print(f"note: {note}")
        for run in runs:
            _print_findings(run)
        print(f"\nreport: {write_report(runs, Path(self.out) / 'report.html').resolve()}")


@dataclass(frozen=True, kw_only=True)
class Train(RunConfig):
    """Train one strategy on one task; the run directory holds its points and its adapter.

    Args:
        out: the run directory.
        resume: go on if it was stopped; false starts it over.
    """

    HELP: ClassVar[str] = "train one strategy and write a run directory with its adapter"
    out: str = "paretune-run"
    resume: bool = True

    def __call__(self) -> None:
        """Train and print the points."""
        run = self.run(self.out, resume=self.resume)
        columns = ["step", "epoch", "attack", "clean", "robust"]
        _table(
            columns, [[_cell(value) for value in row] for row in run.points[columns].itertuples(index=False)]
        )
        _print_findings(run)
        print(f"\nadapter: {(Path(self.out) / 'adapter').resolve()}")


@dataclass(frozen=True)
class Evaluate:
    """Measure a saved adapter, clean and under PGD at several radii or any other attacks.

    Args:
        adapter: directory of an adapter, or of a run that has one.
        backbone: name for load_backbone, if the adapter does not have it.
        weights: a .safetensors or .pth file for that architecture.
        data: digits, fashion-mnist, cifar10, cifar100, a folder of class folders, or hf:NAME.
        data_root: where torchvision keeps its data sets.
        limit: use this many images only, over all splits.
        split_seed: seeds the splits; the report split is measured.
        norm: norm of the threat model.
        epsilons: comma-separated radii in units of the pixel range.
        steps: PGD steps.
        restarts: PGD restarts.
        attacks: other attacks instead, as calls separated by commas: "AutoAttack(Linf(4/255)), APGD(L2(0.5), steps=50)".
            Then norm, epsilons, steps and restarts are not used.
        precision: of the gradients of attacks: fp32, bf16, or auto, which measures.
        seed: seeds the attack.
    """

    HELP: ClassVar[str] = "measure a saved adapter, clean and under attack"
    adapter: str
    backbone: str | None = None
    weights: str | None = None
    data: str = "digits"
    data_root: str | None = None
    limit: int | None = None
    split_seed: int = 0
    norm: Literal["Linf", "L2"] = "Linf"
    epsilons: str = "1/255,2/255,4/255"
    steps: int = 20
    restarts: int = 1
    attacks: str | None = None
    precision: Literal["fp32", "auto", "bf16"] = "fp32"
    seed: int = 0

    def __call__(self) -> None:
        """Load, attack, print one row an attack."""
        from paretune.attacks import ATTACKS, PGD, THREATS, Attack, attack_copy
        from paretune.data import load_data
        from paretune.evaluation import evaluate

        model = _load(self.adapter, self.backbone, self.weights)
        data = load_data(
            self.data, img_size=model.image_size, seed=self.split_seed, limit=self.limit, root=self.data_root
        )
        attacks: list[Attack]
        if self.attacks is not None:
            attacks = list(parse_many(self.attacks, {**ATTACKS, **THREATS}))
        else:
            radii = [float(parse(text, {})) for text in self.epsilons.split(",")]
            attacks = [PGD(THREATS[self.norm](at), steps=self.steps, restarts=self.restarts) for at in radii]
        victim = attack_copy(model, precision=self.precision)
        scores = evaluate(model, data.report, attacks, seed=self.seed, victim=victim, progress=True)
        frame = scores.to_frame()
        _table(
            list(frame.columns), [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
        )


@dataclass(frozen=True)
class Report:
    """Write the report of finished runs: one HTML file, and beside it the figure as SVG and PNG and the areas as CSV.

    Args:
        runs: a run directory, or a directory of them.
        out: the HTML file; report.html in that directory when null.
    """

    HELP: ClassVar[str] = "write the HTML report, SVG, PNG and CSV of finished runs"
    runs: str
    out: str | None = None

    def __call__(self) -> None:
        """Write and say where."""
        from paretune.report import write_report

        out = Path(self.out) if self.out else Path(self.runs) / "report.html"
        print(f"report: {write_report(self.runs, out).resolve()}")


@dataclass(frozen=True)
class Adapters:
    """Look at a saved adapter, check it against its base, or merge it into plain weights.

    Args:
        action: show prints what it is; verify loads it onto its base; merge writes a plain checkpoint.
        adapter: directory of an adapter, or of a run that has one.
        backbone: name for load_backbone, if the adapter does not have it.
        weights: a .safetensors or .pth file for that architecture.
        out: merge: the .safetensors file to write, which timm and transformers load without paretune.
    """

    HELP: ClassVar[str] = "show, verify or merge a saved adapter"
    action: Literal["show", "verify", "merge"]
    adapter: str
    backbone: str | None = None
    weights: str | None = None
    out: str | None = None

    def __call__(self) -> None:
        """Do ``action``."""
        import yaml

        from paretune.interchange.files import read_adapter, save_merged

        if self.action == "show":
            config, tensors = read_adapter(_adapter_directory(self.adapter))
            config["base"].pop("tensors")
            config["tensors"] = (
                f"{len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers"
            )
            print(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), end="")
            return
        if self.action == "merge" and self.out is None:
            raise ValueError("merge needs --out FILE.safetensors")
        model = _load(self.adapter, self.backbone, self.weights)
        if self.out is not None and self.action == "merge":
            print(f"checkpoint: {save_merged(model, self.out).resolve()}")
        else:
            print(f"{self.adapter} fits {model.architecture}")


@dataclass(frozen=True, kw_only=True)
class Info:
    """Print versions, devices and what is installed for use without a network."""

    HELP: ClassVar[str] = "print versions, devices and what is installed for offline use"

    def __call__(self) -> None:
        """Print two columns."""
        import importlib.util
        from importlib.metadata import PackageNotFoundError, version

        import torch

        from paretune.weights import OFFLINE

        def versioned(name: str) -> str:
            try:
                return version(name)
            except PackageNotFoundError:
                return "not installed"

        rows = [
            [name, versioned(name)] for name in ("paretune", "torch", "timm", "transformers", "accelerate")
        ]
        rows.append(["python", sys.version.split()[0]])
        rows.append(["CPU threads", str(torch.get_num_threads())])
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        rows.append(["GPU", gpu])
        for name, record in OFFLINE.items():
            there = importlib.util.find_spec(record.package) is not None
            rows.append([f"weights {name}", "installed" if there else record.install])
        for name, extra in (("vl_convert", "report"), ("matplotlib", "plot"), ("datasets", "datasets")):
            there = importlib.util.find_spec(name) is not None
            rows.append([name, "installed" if there else f'pip install "paretune[{extra}]"'])
        _table(["what", "state"], rows)


@dataclass(frozen=True, kw_only=True)
class Selftest:
    """Check the attack kernels on this machine and print a report to paste into an issue.

    Args:
        gpu: also run them on the GPU, compare with plain PyTorch, and time them.
    """

    HELP: ClassVar[str] = "check the attack kernels on this machine and print a report"
    gpu: bool = False

    def __call__(self) -> None:
        """Run the checks and print one line each."""
        from paretune.selftest import report, selftest

        checks = selftest(gpu=self.gpu)
        print(report(checks))
        if any(check.passed is False for check in checks):
            raise RuntimeError("the self-test failed; please open an issue with the lines above")


COMMANDS: dict[str, type[Command]] = {
    "compare": Compare,
    "train": Train,
    "evaluate": Evaluate,
    "report": Report,
    "adapters": Adapters,
    "info": Info,
    "selftest": Selftest,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``paretune``; returns the exit code."""
    arguments = [_underscored(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    logging.basicConfig(level=logging.ERROR, format="paretune: %(message)s")
    try:
        parser = build_parser()
        options = parser.parse_args(arguments)
        if options.subcommand is None:
            parser.print_help()
            return 0
        command, chosen = COMMANDS[options.subcommand], parser.instantiate(options)[options.subcommand]
        command(**{field.name: chosen[field.name] for field in fields(command)})()  # type: ignore[arg-type]
    except KeyboardInterrupt:
        print("paretune: stopped; the same command goes on from the last evaluation point", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        logging.getLogger(__name__).debug("details", exc_info=True)
        print(f"paretune: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> Any:
    """The parser of the whole command line; ``--config FILE`` and ``--print-config`` come with each command."""
    from jsonargparse import ArgumentParser
    from jsonargparse.typing import register_type

    from paretune.strategies import STRATEGIES, Strategy

    class Parser(ArgumentParser):  # type: ignore[misc]  # jsonargparse is not type-checked here
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise ValueError(message) from ex

    register_type(
        Strategy,
        serializer=repr,
        deserializer=lambda value: value if isinstance(value, Strategy) else parse(str(value), STRATEGIES),
        fail_already_registered=False,
    )
    for several in (Strategies, Seeds):
        register_type(
            several,
            serializer=lambda value: ", ".join(map(repr, value)),
            deserializer=lambda value, several=several: (
                value if isinstance(value, several) else several.read(value)
            ),
            fail_already_registered=False,
        )

    parser = Parser(prog="paretune", description="Robust, parameter-efficient fine-tuning of vision models.")
    parser.add_argument("--version", action="version", version=f"paretune {_version()}")
    commands = parser.add_subcommands(required=False)
    for name, command in COMMANDS.items():
        one = Parser(description=(command.__doc__ or "").partition("\n\n")[0])
        one.add_argument("--config", action="config", help="YAML file with any of these options")
        one.add_class_arguments(command, None, as_positional=True)
        for action in one._actions:
            if action.dest == "gpu":  # --gpu alone means --gpu true
                action.nargs, action.const = "?", True
        commands.add_subcommand(name, one, help=command.HELP)
    return parser


def _version() -> str:
    import paretune

    return paretune.__version__


def _underscored(argument: str) -> str:
    """``--print-config`` is ``--print_config``: options may be spelt with hyphens."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _adapter_directory(path: str) -> Path:
    inside = Path(path) / "adapter"
    return inside if inside.is_dir() else Path(path)


def _load(path: str, backbone: str | None, weights: str | None) -> "Backbone":
    """The backbone that an adapter names, with the adapter on it."""
    from paretune.backbones import load_backbone
    from paretune.interchange.files import load_adapter, read_adapter

    directory = _adapter_directory(path)
    config, _ = read_adapter(directory)
    name = backbone or config["base"].get("source")
    if not name:
        raise ValueError(
            f"{directory} does not name its backbone; pass --backbone timm:NAME, hf:NAME or an offline name"
        )
    size = (config["preprocessing"] or {}).get("image_size")
    model = load_backbone(name, num_classes=config["num_classes"], img_size=size, weights=weights)
    load_adapter(model, directory)
    return model


def _print_findings(run: "Run") -> None:
    import json

    for finding in json.loads((run.path / "DONE").read_text())["findings"]:
        print(f"{run.path.name}, step {finding['step']}: {finding['finding']}")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = 140  # a file or a pipe has no width; do not squeeze the columns
    console.print(table)
