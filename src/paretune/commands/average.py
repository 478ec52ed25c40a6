"""``paretune average``: model soups, and WiSE-FT between a run and its start."""

from dataclasses import dataclass
from typing import Any, Literal

from paretune._values import from_dict, parse_number
from paretune.commands._loading import load_base
from paretune.commands._printing import cell, print_findings, print_table
from paretune.commands._recorded import load_recorded
from paretune.commands._selecting import Selecting


@dataclass(frozen=True)
class Average(Selecting):
    """Measure means of finished runs of one base, and write them as a run: a model soup, or WiSE-FT of one run.

    Nothing is trained. Weights are averaged as they are with the adapters merged; a run directory with one mean has it as
    its adapter. Attacks, data and base are those of the runs, which must agree on them.

    Args:
        runs: finished runs, or directories of them; one for wise_ft.
        wise_ft: how much of what was trained, from 0 (the start) to 1 (the run): a number or several with commas between
            them, such as "0,0.25,0.5,0.75,1". Each is a point of the frontier.
        soup: uniform is the mean of all runs; greedy keeps in the mean, from the best run on, what makes it no worse.
        by: what is best in a greedy soup, always on the select split: clean or robust accuracy, or their harmonic mean.
        out: the directory to write.
        backbone: name for load_backbone, if the adapters do not have it.
        weights: a .safetensors or .pth file for that architecture.
        weights_key: which state dict of that file, such as state_dict; null takes the averaged one (EMA) if there is one.
        data_root: where torchvision keeps its data sets, npm the pictures of emoji, or where the paths of a table start.
        resume: go on if it was stopped; false starts it over.
    """

    runs: list[str]
    wise_ft: str | None = None
    soup: Literal["uniform", "greedy"] | None = None
    by: Literal["clean", "robust", "harmonic"] = "clean"
    out: str = "paretune-average"
    backbone: str | None = None
    weights: str | None = None
    weights_key: str | None = None
    data_root: str | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        if (self.wise_ft is None) == (self.soup is None):
            raise ValueError(
                f"give either wise_ft, such as 0,0.25,0.5,0.75,1, or soup, uniform or greedy; got wise_ft={self.wise_ft!r} "
                f"and soup={self.soup!r}"
            )
        if self.by != "clean" and self.soup != "greedy":
            raise ValueError(f"by={self.by!r} is for greedy soups; leave it out, or give soup=greedy")
        if not self.out:
            raise ValueError("out is empty; name a directory")
        _ = self.alphas

    @property
    def alphas(self) -> list[float]:
        """Of WiSE-FT."""
        alphas = [parse_number("wise_ft", text) for text in (self.wise_ft or "").split(",") if text.strip()]
        if self.wise_ft is not None and not (alphas and all(0 <= alpha <= 1 for alpha in alphas)):
            raise ValueError(
                f"wise_ft must be numbers from 0 to 1 with commas between them, got {self.wise_ft!r}"
            )
        return alphas

    def __call__(self) -> None:
        """Load, average, measure, print the points."""
        from paretune.runs.store import as_runs
        from paretune.strategies import STRATEGIES, adapt
        from paretune.training.averaging import soup, wise_ft

        runs = self.select(as_runs(self.runs))
        if self.wise_ft is not None and len(runs) != 1:
            raise ValueError(f"wise_ft is of one run, got {len(runs)}; give each a directory of its own")
        first = runs[0]
        seed = int(first.config["seed"])
        path = str(first.path / "adapter")
        model, config = load_base(path, self.backbone, self.weights, self.weights_key, seed=seed)
        data = load_recorded(str(first.path), config, model, root=self.data_root)
        options: Any = {"out": self.out, "resume": self.resume, "progress": True}
        if self.soup is not None:
            run = soup(model, runs, data, recipe=self.soup, by=self.by, **options)
        else:
            start = adapt(model, from_dict(config["strategy"], STRATEGIES), seed=seed)
            run = wise_ft(start, first, data, alphas=self.alphas, **options)
        columns = [name for name in ("alpha", "attack", "clean", "robust") if name in run.points]
        columns += ["clean_select", "robust_select"]
        rows = run.points[columns].itertuples(index=False)
        print_table(columns, [[cell(value) for value in row] for row in rows])
        print_findings([run])
        adapter = run.path / "adapter"
        print(f"adapter: {adapter.resolve()}" if adapter.is_dir() else f"run: {run.path.resolve()}")
