"""Which of the runs in some directories a command is about: shared by the commands that read several."""

from dataclasses import dataclass
from pathlib import Path
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


def read_runs(paths: list[str]) -> "tuple[list[Run], dict[str, str]]":
    """The runs below ``paths``, and what is wrong with those that cannot be read."""
    from paretune.runs.store import find_runs, load_runs

    runs, damaged = [], {}
    directories = [directory for path in paths for directory in find_runs(Path(path))]
    if not directories:
        load_runs(paths[0])  # says why
    for path in dict.fromkeys(directories):
        try:
            runs += load_runs(path)
        except (ValueError, OSError) as error:
            damaged[str(path)] = str(error)
    return runs, damaged
