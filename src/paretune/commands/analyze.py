"""``paretune analyze``: areas and ranks of anybody's table of results."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paretune.commands._printing import print_table

if TYPE_CHECKING:
    from paretune.frontiers.ranking import Area
    from paretune.frontiers.tables.ranking import TaskRanking


@dataclass(frozen=True)
class Analyze:
    """Compare the frontiers in a table of accuracies, whoever made it, and say how certain the order is.

    Args:
        file: a .csv, .tsv or .parquet file with a row for each evaluated model.
        group: column of what is compared; several with commas between them name it together.
        clean: column of clean accuracies.
        robust: column of robust accuracies under one attack.
        task: column or columns whose values are analysed apart, such as data set, attack and epsilon.
        seed: column that tells repeated trainings apart; from three on there are intervals.
        select: two columns, clean and robust accuracies on other examples, which then choose the frontiers.
        shifted: column of accuracies on shifted images; there are volumes then beside areas.
        reference: clean and robust accuracy where areas start, such as 0.1,0; fix it before looking.
        min_clean: the least clean accuracy that you would deploy; areas are partial.
        min_robust: the least robust accuracy that you would deploy.
        percent: accuracies are percentages.
        equal_budgets: count equally many points of every frontier, evenly spaced in the order of the rows; false counts all.
        level: of intervals and tests.
        margin: areas closer than this are equal for practical purposes.
        out: directory of areas.csv and report.html.
        tables: also write the areas and differences there for papers, as tables.tex (LaTeX with booktabs) and tables.md.
    """

    file: str
    group: str = "strategy"
    clean: str = "clean"
    robust: str = "robust"
    task: str | None = None
    seed: str | None = None
    select: str | None = None
    shifted: str | None = None
    reference: str = "0,0"
    min_clean: float = 0.0
    min_robust: float = 0.0
    percent: bool = False
    equal_budgets: bool = True
    level: float = 0.95
    margin: float = 0.005
    out: str = "paretune-analysis"
    tables: bool = False

    def __post_init__(self) -> None:
        if not self.out:
            raise ValueError("out is empty; name a directory")

    def __call__(self) -> None:
        """Table, words, files."""
        from paretune.frontiers.tables.analysis import analyze
        from paretune.report import write_analysis, write_tables

        select = None if self.select is None else _pair("select", self.select)
        try:
            start = [float(value) for value in _pair("reference", self.reference)]
        except ValueError:
            raise ValueError(f"reference must be two numbers such as 0.1,0; got {self.reference!r}") from None
        analysis = analyze(
            self.file,
            group=self.group,
            clean=self.clean,
            robust=self.robust,
            task=self.task,
            seed=self.seed,
            select=select,
            shifted=self.shifted,
            reference=(start[0], start[1]),
            min_clean=self.min_clean,
            min_robust=self.min_robust,
            percent=self.percent,
            equal_budgets=self.equal_budgets,
            level=self.level,
            margin=self.margin,
        )
        for task in analysis.tasks:
            named = f"{task.task}: " if task.task else ""
            print(f"\n{named}areas from ({analysis.reference[0]:g}, {analysis.reference[1]:g})")
            interval = f"{task.level * 100:g} % interval"
            volumes = task.volume_of
            rows = [
                [
                    f"{rank:g}",
                    group.strategy,
                    *_estimate(group),
                    *(_estimate(volumes[group.strategy]) if volumes else ()),
                    str(group.k),
                    str(len(group.seeds)),
                ]
                for rank, group in zip(task.ranks, task.areas, strict=True)
            ]
            of_volume = ["volume", interval] if volumes else []
            print_table(["rank", "group", "area", interval, *of_volume, "points counted", "seeds"], rows)
            print(task.sentence)
            if task.volumes is not None:
                print(task.volumes.sentence)
        if analysis.across is not None:
            print(f"\nover all tasks: {analysis.across.verdict}")
        print()
        for text, tasks in _said(analysis.tasks).items():
            where = "" if len(tasks) == len(analysis.tasks) else f" ({', '.join(tasks)})"
            print(f"note{where}: {text}")
        page = write_analysis(analysis, Path(self.out), title=Path(self.file).name)
        print(f"\nareas: {page.with_name('areas.csv').resolve()}")
        print(f"report: {page.resolve()}")
        if self.tables:
            for path in write_tables(analysis, page.parent):
                print(f"tables: {path.resolve()}")


def _estimate(area: "Area") -> tuple[str, str]:
    """An area or a volume, and its interval where there is one."""
    return f"{area.area:.3f}", "" if area.low is None else f"{area.low:.3f} to {area.high:.3f}"


def _said(tasks: "tuple[TaskRanking, ...]") -> dict[str, list[str]]:
    """Each note once, and the tasks that it is about."""
    tasks_of: dict[str, list[str]] = {}
    for task in tasks:
        for text in (task.covers, *task.notes):
            tasks_of.setdefault(text, []).append(task.task)
    return tasks_of


def _pair(name: str, text: str) -> tuple[str, str]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2:
        raise ValueError(f"{name} must be two values with a comma between them; got {text!r}")
    return parts[0], parts[1]
