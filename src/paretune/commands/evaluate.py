"""``paretune evaluate``: a saved adapter, clean and under attack."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from paretune._values import LAST_SEED, check_whole, number_text, parse_many, parse_number, told
from paretune.commands._loading import load_adapted
from paretune.commands._printing import cell, print_table
from paretune.commands._recorded import load_recorded

if TYPE_CHECKING:
    from paretune.attacks import Attack
    from paretune.data import ImageSplit
    from paretune.evaluation import Scores
    from paretune.shifts import Shift
    from paretune.shifts.measures import Baseline
    from paretune.training.processes import Processes


@dataclass(frozen=True)
class Evaluate:
    """Measure a saved adapter, clean and under PGD at several radii or any other attacks.

    Under ``torchrun --nproc-per-node N -m paretune evaluate`` N processes share the images, and the numbers are the same.

    Args:
        adapter: directory of an adapter, or of a run that has one.
        backbone: name for load_backbone, if the adapter does not have it.
        weights: a .safetensors or .pth file for that architecture.
        weights_key: which state dict of that file, such as state_dict; null takes the averaged one (EMA) if there is one.
        data: digits, fashion-mnist, cifar10, cifar100, emoji, a folder of class folders, a .csv, .tsv or .parquet file of
            paths and labels, or hf:NAME, with the classes of the adapter. null takes what the adapter was trained on, if it
            has not changed since, and likewise the options below up to split_seed.
        data_root: where torchvision keeps its data sets, npm the pictures of emoji, or where the paths of a table start.
        columns: names of columns of a table by what they hold, as in image=file,label=species; also split, group, domain and
            subset.
        skip_bad: leave out images that cannot be read, and say how many.
        limit: use this many images only, over all splits, or "all".
        split_seed: seeds the splits; the report split is measured. Images that the adapter was trained on are refused.
        domain: measure the images of this domain instead, which the adapter was not trained on.
        norm: norm of the threat model.
        epsilons: comma-separated radii in units of the pixel range.
        steps: PGD steps.
        restarts: PGD restarts.
        attacks: other attacks instead, as calls separated by commas: "AutoAttack(Linf(4/255)), APGD(L2(0.5), steps=50)".
            Then norm, epsilons, steps and restarts are not used.
        shifts: what else to measure: changed or other images of the same classes, by calls separated by commas as in
            "Corruptions('common'), Grey()".
        attack_elsewhere: attack these too; false measures clean accuracy alone there.
        baseline: adapter of another model of these classes, which is measured too: mean corruption errors (mCE), of shifts
            that hold Corruptions('common'), are relative to it. alexnet takes its published ones on ImageNet-C.
        precision: of the gradients of attacks: fp32, bf16, or auto, which measures.
        engine: how attacks ask the model on a CUDA device: eager; graph (CUDA graphs, with the same numbers); compiled (by
            torch.compile, which rounds otherwise, and only in attacks of a fixed number of steps); or auto: graphs where
            they help, else eager.
        batch_size: images at once.
        seed: seeds the attack.
        state: a directory to keep finished batches in; the same command, with as many processes, continues there after a
            kill.
    """

    adapter: str
    backbone: str | None = None
    weights: str | None = None
    weights_key: str | None = None
    data: str | None = None
    data_root: str | None = None
    columns: str | None = None
    skip_bad: bool = False
    limit: int | Literal["all"] | None = None
    split_seed: int | None = None
    domain: str | None = None
    norm: Literal["Linf", "L2", "L1"] = "Linf"
    epsilons: str = "1/255,2/255,4/255"
    steps: int = 20
    restarts: int = 1
    attacks: str | None = None
    shifts: str | None = None
    attack_elsewhere: bool = False
    baseline: str | None = None
    precision: Literal["fp32", "auto", "bf16"] = "fp32"
    engine: Literal["auto", "eager", "compiled", "graph"] = "auto"
    batch_size: int = 128
    seed: int = 0
    state: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("restarts", 1), ("batch_size", 1)):
            check_whole(name, getattr(self, name), least)
        check_whole("seed", self.seed, 0, LAST_SEED)
        if self.split_seed is not None:
            check_whole("split_seed", self.split_seed, 0, LAST_SEED)
        if self.domain is not None and self.split_seed is not None:
            raise ValueError("split_seed splits the domains that are trained on; leave it out with --domain")
        if self.limit is not None and self.limit != "all":
            check_whole("limit", self.limit, 1)
        if self.baseline is not None and self.shifts is None:
            raise ValueError(
                "baseline is what corruption errors are relative to; give shifts, such as Corruptions('common')"
            )

    def __call__(self) -> None:
        """Load, attack, print one row an attack."""
        from paretune.attacks import ATTACKS, PGD, THREATS, Attack, attack_copy
        from paretune.evaluation import speed
        from paretune.shifts import Shifts
        from paretune.shifts.measures import (
            by_corruption,
            mean_corruption_error,
            relative_mean_corruption_error,
        )
        from paretune.training.processes import Processes

        processes = Processes()
        if processes.world > 1 and self.precision == "auto":
            raise ValueError(
                "precision='auto' may end otherwise in each process; name one for all: --precision fp32 or bf16"
            )
        attacks: list[Attack]
        if self.attacks is not None:
            try:
                attacks = list(parse_many(self.attacks, {**ATTACKS, **THREATS}))
            except (ValueError, TypeError) as error:
                raise ValueError(f"attacks: {error}") from None
        else:
            if not self.epsilons.strip(" ,"):
                raise ValueError("epsilons names no radius; give at least one, such as 4/255")
            radii = [parse_number("epsilons", text) for text in self.epsilons.split(",")]
            with told("epsilons", self.epsilons):
                threats = [THREATS[self.norm](radius) for radius in radii]
            attacks = [PGD(threat, steps=self.steps, restarts=self.restarts) for threat in threats]
        with told("shifts", self.shifts):
            shifts = () if self.shifts is None else Shifts.read(self.shifts)
        model, config = load_adapted(self.adapter, self.backbone, self.weights, self.weights_key)
        data = load_recorded(
            self.adapter,
            config,
            model,
            data=self.data,
            root=self.data_root,
            columns=self.columns,
            skip_bad=self.skip_bad,
            limit=self.limit,
            seed=self.split_seed,
            domain=self.domain,
        )
        split = data.report if self.domain is None else data.elsewhere[self.domain]
        model.to(processes.device)
        scores = processes.evaluate(
            model,
            split,
            attacks,
            self.seed,
            attack_copy(model, precision=self.precision, engine=self.engine),
            shifts=shifts,
            attack_elsewhere=self.attack_elsewhere,
            batch_size=self.batch_size,
            progress=processes.rank == 0,
            state=self.state,
        )
        baseline = None if self.baseline is None else self._baseline(split, shifts, processes)
        if processes.rank:
            return
        if (why := speed.slow_evaluation(scores.seconds, model)) is not None:
            speed.log.info(why)
        frame = scores.to_frame()
        frame["epsilon"] = [number_text(epsilon) for epsilon in frame["epsilon"]]
        print_table(
            list(frame.columns), [[cell(value) for value in row] for row in frame.itertuples(index=False)]
        )
        for title, columns, rows in elsewhere_tables(scores):
            print(f"\n{title}")
            print_table(columns, rows)
        if baseline is not None:
            accuracies = by_corruption(scores.shifted_accuracy)
            with told("shifts", self.shifts):
                mce = mean_corruption_error(accuracies, baseline)
                relative = relative_mean_corruption_error(accuracies, scores.clean_accuracy, baseline)
            print(f"\nagainst {baseline.name}: mCE {mce:.3f}, relative mCE {relative:.3f}")

    def _baseline(self, split: "ImageSplit", shifts: "Sequence[Shift]", processes: "Processes") -> "Baseline":
        """What corruption errors are relative to."""
        from paretune.shifts.measures import ALEXNET, Baseline, by_corruption

        assert self.baseline is not None
        if self.baseline.casefold() == "alexnet":
            return ALEXNET
        with told("baseline", self.baseline):
            other, _ = load_adapted(self.baseline, None, None)
            other.to(processes.device)
            options = {"shifts": shifts, "batch_size": self.batch_size, "progress": processes.rank == 0}
            measured = processes.evaluate(other, split, (), self.seed, **options)
        return Baseline(self.baseline, measured.clean_accuracy, by_corruption(measured.shifted_accuracy))


def elsewhere_tables(scores: "Scores") -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and rows of tables of what shifts made: those of several severities have a column for each."""
    graded: dict[str, dict[str, Scores]] = {}
    plain = {}
    for name, there in scores.elsewhere.items():
        kind, _, severity = name.rpartition(" ")
        if kind and severity.isdecimal():
            graded.setdefault(kind, {})[severity] = there
        else:
            plain[name] = there
    under = [None, *next(iter(scores.elsewhere.values())).robust] if scores.elsewhere else []
    for attack in under:
        called = "clean accuracy" if attack is None else f"robust accuracy under {scores.ran(attack)}"

        def accuracy(there: "Scores", attack: "Attack | None" = attack) -> float:
            return there.clean_accuracy if attack is None else there.robust_accuracy(attack)

        if plain:
            rows = [[name, f"{len(there.clean):,}", cell(accuracy(there))] for name, there in plain.items()]
            yield f"shifted: {called}", ["shift", "examples", "accuracy"], rows
        if graded:
            levels = sorted({level for kind in graded.values() for level in kind}, key=int)
            rows = []
            for kind, by_level in graded.items():
                at = {level: accuracy(there) for level, there in by_level.items()}
                cells = [cell(at[level]) if level in at else "" for level in levels]
                rows.append([kind, *cells, cell(sum(at.values()) / len(at))])
            mean = sum(accuracy(there) for kind in graded.values() for there in kind.values())
            count = sum(map(len, graded.values()))
            rows.append(["all", *[""] * len(levels), cell(mean / count)])
            yield f"shifted, by severity: {called}", ["shift", *levels, "mean"], rows
