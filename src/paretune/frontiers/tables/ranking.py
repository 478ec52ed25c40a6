"""The areas of one task of a table with their ranks, and the sentences they allow."""

from dataclasses import dataclass

from paretune.frontiers.ranking import Area, Gap, Ranking, ranks
from paretune.frontiers.volumes import Corner


@dataclass(frozen=True)
class TaskRanking(Ranking[Area, Gap]):
    """All groups of one task."""

    points: tuple[tuple[int, int], ...]  # of ``areas``, the fewest and most that its frontiers have
    equal_budgets: bool  # every frontier counts with k points
    covers: str  # a sentence: what intervals are about, or why there are none
    volumes: "TaskRanking | None" = None  # the same by volume, if the table has shifted accuracies
    corner: Corner | None = None  # where volumes start, if ``areas`` and ``differences`` are of these

    @property
    def quantity(self) -> str:
        """What the numbers in ``areas`` are: areas, or volumes."""
        return "area" if self.corner is None else "volume"

    @property
    def volume_of(self) -> dict[str, Area]:
        """The volume of each group, if the table has shifted accuracies."""
        return {} if self.volumes is None else {volume.strategy: volume for volume in self.volumes.areas}

    @property
    def ranks(self) -> tuple[float, ...]:
        """Of ``areas``, 1 for the largest; equal areas share theirs."""
        return tuple(ranks([area.area for area in self.areas]).tolist())

    @property
    def sentence(self) -> str:
        """The verdict without what intervals are about."""
        size = f"{self.k} point{'s' * (self.k != 1)} a frontier" if self.equal_budgets else "all points"
        seeds = len(self.best.seeds)
        return self._said("group", size + (f", {seeds} seeds" if seeds > 1 else ""))

    @property
    def verdict(self) -> str:
        """What the numbers allow to say."""
        return f"{self.sentence} {self.covers}"
