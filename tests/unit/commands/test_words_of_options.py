"""Errors about a value name the option that it was given for, in one line."""

from pathlib import Path

import pytest

from paretune.commands.cli import main
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.run(tmp_path_factory.mktemp("runs") / "run").path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evaluate", "RUN", "--backbone", ""], "backbone='': name must be timm:NAME"),
        (["evaluate", "RUN", "--epsilons", "1/255,-1"], "epsilons='1/255,-1': Linf: epsilon must be"),
        (["report", "RUN", "--out", ""], "out='' is empty; name the HTML file"),
        (["report", "RUN", "--out", "."], "out='.' is a directory; name the HTML file"),
        (["analyze", "table.csv", "--out", ""], "out is empty; name a directory"),
        (["train", "--sinks", "wandbb"], "sinks='wandbb': unknown name 'wandbb'"),
        (["train", "--weights", ""], "got the directory '.'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_option_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    code = main([str(run) if each == "RUN" else each for each in arguments])
    lines = capsys.readouterr().err.splitlines()

    assert (code, len(lines)) == (2, 1)
    assert told in lines[0]
