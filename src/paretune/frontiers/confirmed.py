"""What stricter attacks say of the points that were chosen, beside the attack that chose them.

Areas are those of the attack that measured every point. The stricter one has measured the frontiers alone, so that its
numbers stand beside: of each point on a frontier both robust accuracies, and of each frontier the area of these same points
under either attack. No area takes numbers of both.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from paretune.frontiers.comparing import labelled_points
from paretune.frontiers.pareto import Reference, ordered_area
from paretune.runs.naming import attack_text, threat_text
from paretune.runs.store import Run


@dataclass(frozen=True)
class ConfirmedPoint:
    """A checkpoint under two attacks, on the report split.

    Args:
        strategy: its label.
        seed: of its training.
        step: of the checkpoint.
        on_front: whether the area of its run counts it: the select split chose it, and it lies beyond the reference.
        last: whether it is the last point of its run.
        clean_select: accuracy on the select split, by which points on a frontier are ordered.
        clean: accuracy.
        robust: under the attack of the condition.
        confirmed: under the stricter one.
    """

    strategy: str
    seed: int
    step: int
    on_front: bool
    last: bool
    clean_select: float
    clean: float
    robust: float
    confirmed: float

    @property
    def chosen_as(self) -> str:
        """Why it was confirmed."""
        if self.on_front:
            return "frontier"
        return "last point" if self.last else "frontier, without area"


@dataclass(frozen=True)
class Confirmation:
    """The points of a condition that a stricter attack has measured.

    Args:
        task: of the condition.
        threat: of both attacks.
        epsilon: of both.
        attack: of the condition.
        by: the stricter one.
        points: on the frontiers by falling clean accuracy, and last ones.
        whole: the strategies of which all frontiers are confirmed; only these have areas.
        reference: where areas start.
    """

    task: str
    threat: str
    epsilon: float
    attack: str
    by: str
    points: tuple[ConfirmedPoint, ...]
    whole: frozenset[str]
    reference: Reference = (0.0, 0.0)

    @property
    def title(self) -> str:
        """What was confirmed, by what."""
        where = f"{self.task}, {threat_text(self.threat, self.epsilon)}"
        return f"{where}: frontiers of {attack_text(self.attack)}, confirmed by {attack_text(self.by)}"

    def areas(self, strategy: str) -> tuple[float, float]:
        """The area of the frontier of one of ``whole`` under the attack that chose it, and of the same points under the
        stricter one; means over seeds."""
        by_seed: dict[int, list[ConfirmedPoint]] = {}
        for point in self.points:
            if point.strategy == strategy:
                by_seed.setdefault(point.seed, []).extend([point] * point.on_front)
        areas = []
        for front in by_seed.values():
            clean = np.array([point.clean for point in front])
            both = np.array([[point.robust for point in front], [point.confirmed for point in front]])
            areas.append(ordered_area(clean, both, self.reference))
        chosen, confirmed = np.mean(areas, axis=0).tolist()
        return chosen, confirmed

    def tables(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        """Title, heading and rows: the areas, if there are any, then the points."""
        under = [f"under {attack_text(name)}" for name in (self.attack, self.by)]
        areas = {strategy: self.areas(strategy) for strategy in sorted(self.whole)}
        counts = Counter(point.strategy for point in self.points if point.on_front)
        if areas:
            yield (
                f"{self.title}: areas of these points",
                ["strategy", *(f"area {name}" for name in under), "points"],
                [
                    [strategy, *(f"{area:.3f}" for area in areas[strategy]), str(counts[strategy])]
                    for strategy in sorted(areas, key=lambda strategy: -areas[strategy][1])
                ],
            )
        yield (
            f"{self.title}: points",
            ["strategy", "seed", "step", "clean", *(f"robust {name}" for name in under), "chosen as"],
            [
                [
                    point.strategy,
                    str(point.seed),
                    str(point.step),
                    *(f"{accuracy:.3f}" for accuracy in (point.clean, point.robust, point.confirmed)),
                    point.chosen_as,
                ]
                for point in self.points
            ],
        )


def confirmations(runs: Sequence[Run], reference: Reference = (0.0, 0.0)) -> list[Confirmation]:
    """One for each condition and stricter attack of which there are points.

    Args:
        runs: that are compared.
        reference: where areas start.

    Raises:
        FileNotFoundError, ValueError: a confirmation is gone, or damaged.
    """
    confirmed = [{of_step.step: of_step for of_step in run.confirmed()} for run in runs]
    if not any(confirmed):
        return []
    points = labelled_points([*runs])
    told = []
    for (task, threat, epsilon, attack), rows in points.groupby(
        ["task", "threat", "epsilon", "attack"], sort=True
    ):
        front = rows[
            rows["chosen"] & (rows["clean_select"] > reference[0]) & (rows["robust_select"] > reference[1])
        ]
        last = rows.groupby("run_index")["step"].max()
        by_attack: dict[str, list[ConfirmedPoint]] = {}
        for index, row in rows.iterrows():
            of_step = confirmed[row["run_index"]].get(row["step"])
            if of_step is None or (of_step.threat, of_step.epsilon) != (threat, epsilon):
                continue
            by_attack.setdefault(of_step.attack, []).append(
                ConfirmedPoint(
                    str(row["label"]),
                    int(row["seed"]),
                    int(row["step"]),
                    index in front.index,
                    row["step"] == last[row["run_index"]],
                    float(row["clean_select"]),
                    float(row["clean"]),
                    float(row["robust"]),
                    of_step.robust,
                )
            )
        chosen = front["label"].value_counts()
        for by, of_attack in by_attack.items():
            counted = Counter(point.strategy for point in of_attack if point.on_front)
            whole = {str(label) for label, count in chosen.items() if counted[str(label)] == count}
            ordered = sorted(of_attack, key=lambda point: (point.strategy, point.seed, -point.clean_select))
            told.append(
                Confirmation(
                    str(task),
                    str(threat),
                    float(rows["epsilon"].iloc[0]),
                    str(attack),
                    by,
                    tuple(ordered),
                    frozenset(whole),
                    reference,
                )
            )
    return told
