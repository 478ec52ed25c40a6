from pathlib import Path

import pytest

from paretune.report import write_report
from tests.synthetic import ATTACK, STRATEGIES, write_runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four strategies, two seeds, two attacks of one strength and a weaker one."""
    attacks = (
        (ATTACK, "Linf", 4 / 255, 1.0),
        ("AutoAttack(Linf(4/255))", "Linf", 4 / 255, 0.9),
        ("PGD(L2(0.5))", "L2", 0.5, 0.8),
    )
    return write_runs(tmp_path_factory.mktemp("runs"), STRATEGIES, attacks=attacks)


@pytest.fixture(scope="session")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(runs, tmp_path_factory.mktemp("report") / "deep" / "page.html", reference=(0.1, 0.0))
