"""What an adapter says of itself beyond its training: under which license it is, and how its strategy did among others."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.interchange.cards import CARD, call_on, card
from paretune.interchange.files import CONFIG, read_adapter
from paretune.runs.disk import write_json, write_text

if TYPE_CHECKING:
    from paretune.runs.store import Run


def update_card(
    directory: str | Path,
    *,
    license: str | None = None,
    runs: "str | Path | Run | Sequence[Run | str | Path] | None" = None,
) -> str:
    """Add to what an adapter says of itself, and write its card anew.

    Args:
        directory: of the adapter.
        license: identifier as the hub lists them, such as "apache-2.0".
        runs: the comparison that the adapter's run was part of: the areas of its strategy, with intervals, go into the card.

    Returns:
        The card.

    Raises:
        FileNotFoundError: ``directory`` is no adapter, or there are no runs.
        ValueError: the adapter is damaged, ``license`` is no identifier, or no run has the adapter's strategy and backbone.
    """
    directory = Path(directory)
    read_adapter(directory)  # raises unless it is one, and whole
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    notes = config.setdefault("notes", {})
    if license is not None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
            raise ValueError(
                f"license must be an identifier in lower case such as apache-2.0 or mit, got {license!r}"
            )
        notes["license"] = license
    if runs is not None:
        notes["areas"] = _areas_of(config, runs)
    text = card(config)
    write_json(directory / CONFIG, config)
    write_text(directory / CARD, text)
    return text


def _areas_of(config: Mapping[str, Any], runs: Any) -> list[dict[str, Any]]:
    from paretune.frontiers.comparing import compare, labelled_points
    from paretune.runs.store import as_runs

    loaded = as_runs(runs)
    points = labelled_points(loaded)
    same = (points["config"] == config["call"]) & points["backbone"].isin(
        ["null", config["base"]["architecture"]]  # null: brought from elsewhere, and does not say
    )
    ours = {*zip(points.loc[same, "task"], points.loc[same, "label"], strict=True)}
    if not ours:
        known = ", ".join(sorted({*points["config"] + " on " + points["backbone"]}))
        raise ValueError(f"the runs hold no {call_on(config)}; they hold {known}")
    return [
        {
            "task": area.task,
            "attack": area.attack,
            "threat": area.threat,
            "epsilon": area.epsilon,
            "area": round(area.area, 4),
            "low": round(area.low, 4),
            "high": round(area.high, 4),
            "level": condition.level,
            "points": area.k,
            "seeds": len(area.seeds),
            "rank": rank,
            "of": len(condition.areas),
        }
        for condition in compare(loaded).conditions
        for rank, area in enumerate(condition.areas, start=1)
        if (area.task, area.strategy) in ours
    ]
