"""Which of the runs in some directories a command is about: shared by the commands that read several."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paretune.runs.store import Run


@dataclass(frozen=True, kw_only=True)
class Selecting:
    """Which runs.

    Args:
        where: only runs whose configuration meets all of these, such as "strategy=LoRA,BitFit; seed!=0"; a strategy without
            brackets stands for it with any options.
    """

    where: str | None = None

    def select(self, runs: "list[Run]") -> "list[Run]":
        """Those of the runs.

        Raises:
            ValueError: as :func:`paretune.runs.fields.select`.
        """
        from paretune.runs.fields import select

        return select(runs, self.where)
