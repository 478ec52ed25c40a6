"""``paretune completion bash``, typed once into bash itself."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paretune.commands.cli import main

TYPED = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
$(complete -p paretune | sed 's/.*-F \\([^ ]*\\) .*/\\1/') paretune "${COMP_WORDS[COMP_CWORD]}"
echo "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("shtab", reason='pip install "paretune[completion]", which the test extra does')
    printed = subprocess.run(
        [sys.executable, "-m", "paretune", "completion", "bash"], capture_output=True, text=True, check=True
    )
    path = tmp_path_factory.mktemp("completion") / "paretune.bash"
    path.write_text(printed.stdout)
    return path


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("paretune tr", "train"),
        ("paretune adapters me", "merge"),
        ("paretune runs ", "list show diff verify export remove"),
        ("paretune train --strat", "--strategy"),
        ("paretune train --norm L", "Linf L2 L1"),
        ("paretune evaluate --log_level w", "warning"),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="needs bash")
def test_the_tab_key_completes(words: str, completed: str, script: Path) -> None:
    typed = ["bash", "-c", TYPED, "bash", str(script), *words.split(" ")]
    done = subprocess.run(typed, capture_output=True, text=True, check=True)
    assert done.stdout.split() == completed.split()


def test_it_says_what_to_install(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main(["completion", "bash"]) == 2
    assert 'completion needs shtab: pip install "paretune[completion]"' in capsys.readouterr().err


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "cmd"]) == 2
    assert "must be one of bash, zsh, tcsh, got 'cmd'" in capsys.readouterr().err
