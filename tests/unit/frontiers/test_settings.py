"""What is out of range is refused in one way, whoever asks, and before any file is read."""

from collections.abc import Callable
from typing import Any

import pytest

from paretune.frontiers.budget import budget_curves
from paretune.frontiers.comparing import compare
from paretune.frontiers.settings import Settings
from paretune.frontiers.tables.analysis import analyze


@pytest.mark.parametrize("judge", [compare, analyze, budget_curves])
@pytest.mark.parametrize(
    ("level", "hint"), [(95, "; did you mean 0.95?"), (0.0, ""), (1.0, ""), (float("nan"), "")]
)
def test_levels_are_refused_alike(judge: Callable[..., Any], level: float, hint: str) -> None:
    with pytest.raises(ValueError, match="level must lie in") as found:
        judge("nowhere", level=level)
    assert str(found.value).endswith(f"such as 0.95; got {level:g}{hint}")


def test_areas_start_at_the_reference_or_the_floor_whichever_is_higher() -> None:
    settings = Settings(reference=(0.1, 0.2), min_clean=0.5)
    assert (settings.reference, settings.start) == ((0.1, 0.2), (0.5, 0.2))
    assert settings.corner == (0.5, 0.2, 0.1)  # shifted accuracy is a clean one, and no floor is about it


def test_what_decides_is_area_or_volume() -> None:
    with pytest.raises(ValueError, match="by must be 'area' or 'volume'; got 'hypervolume'"):
        compare("nowhere", by="hypervolume")  # type: ignore[arg-type]
