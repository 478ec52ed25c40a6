"""How finished runs are judged, and how the judgement reads in a terminal: shared by the commands that compare."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from paretune.commands._printing import print_table

if TYPE_CHECKING:
    from paretune.frontiers.verdict import Condition
    from paretune.runs.store import Run


@dataclass(frozen=True, kw_only=True)
class Judging:
    """What counts when frontiers are compared.

    Args:
        min_clean: the least clean accuracy that you would deploy; areas are partial.
        min_robust: the least robust accuracy that you would deploy.
        interval: of areas and differences: basic, or bca (bias-corrected and accelerated).
        margin: areas closer than this are equal for practical purposes.
        level: of intervals and tests.
        by: what decides: area, under clean and robust accuracy; or volume, with accuracy on shifted images as a third axis.
        max_trainable: leave out strategies with more trainable parameters.
        max_seconds: leave out strategies that trained longer, in seconds for one seed.
    """

    min_clean: float = 0.0
    min_robust: float = 0.0
    interval: Literal["basic", "bca"] = "basic"
    margin: float = 0.005
    level: float = 0.95
    by: Literal["area", "volume"] = "area"
    max_trainable: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        getattr(super(), "__post_init__", lambda: None)()
        from paretune.frontiers.settings import Settings

        Settings(**self.options)
        if self.max_trainable is not None and self.max_trainable < 1:
            raise ValueError(
                f"max_trainable must be at least 1, or null for no limit; got {self.max_trainable}"
            )
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise ValueError(f"max_seconds must be above 0, or null for no limit; got {self.max_seconds}")

    @property
    def options(self) -> dict[str, Any]:
        """Those of :func:`paretune.compare`."""
        names = ("min_clean", "min_robust", "interval", "margin", "level", "by")
        return {name: getattr(self, name) for name in names}

    @property
    def start(self) -> tuple[float, float]:
        """Where areas start."""
        from paretune.frontiers.settings import Settings

        return Settings(**self.options).start

    def within(self, runs: "list[Run]") -> "list[Run]":
        """The runs of strategies that the limits allow; limits are set before looking, so only these are tested.

        Raises:
            ValueError: no strategy of a task is within the limits.
        """
        from paretune.frontiers.comparing import compare, labelled_points

        if self.max_trainable is None and self.max_seconds is None:
            return runs
        allowed = {
            (area.task, area.strategy)
            for condition in compare(runs, resamples=100).conditions  # for what they cost, not for intervals
            for area in condition.within(max_trainable=self.max_trainable, max_seconds=self.max_seconds).areas
        }
        points = labelled_points(runs)
        names = zip(points["task"], points["label"], points["run_index"], strict=True)
        kept = {int(index) for task, label, index in names if (task, label) in allowed}
        out = sorted({f"{run.config['strategy_config']}" for i, run in enumerate(runs) if i not in kept})
        if out:
            print(f"beyond the limits, and left out: {', '.join(out)}")
        return [run for index, run in enumerate(runs) if index in kept]


def print_confirmations(runs: "list[Run]", reference: tuple[float, float] = (0.0, 0.0)) -> None:
    """What stricter attacks say of the points that were chosen, if any were asked."""
    from paretune.frontiers.confirmed import confirmations

    for confirmation in confirmations(runs, reference):
        for title, head, rows in confirmation.tables():
            print(f"\n{title}")
            print_table(head, rows)


def print_condition(condition: "Condition", heading: str) -> None:
    """The areas, what to use, how sure that is, and what would make it surer."""
    print(f"\n{heading}")
    columns = ["strategy", "area", f"{condition.level * 100:g} % interval", "per seed"]
    print_table(
        [*columns, "best clean", "best robust", "trainable", "train s"],
        [
            [
                estimate.strategy,
                f"{estimate.area:.3f}",
                f"{estimate.low:.3f} to {estimate.high:.3f}",
                " ".join(f"{area:.3f}" for area in estimate.per_seed),
                f"{estimate.best_clean:.3f}",
                f"{estimate.best_robust:.3f}",
                f"{estimate.trainable_parameters:,}",
                f"{estimate.train_seconds:.0f}",
            ]
            for estimate in condition.areas
        ],
    )
    judged = condition.judged
    advice = judged.recommendation
    if len(condition.areas) > 1:
        use = "cheapest, but the data do not decide" if advice.certainty == "cannot tell" else "use"
        print(f"{use}: {advice.strategy} ({advice.certainty})")
    print(advice.reason)
    if len(condition.areas) > 1:
        among = ", ".join(advice.confidence_set)
        print(
            f"with {condition.level * 100:g} % confidence the largest true {judged.quantity} is among: {among}"
        )
    for change in advice.would_change:
        print(f"needed: {change}")
    for note in (*condition.notes, *(condition.volumes.notes if condition.volumes else ())):
        print(f"note: {note}")
    for title, head, rows in condition.further_tables():
        print(f"\n{title}")
        print_table(head, rows)
