"""The README's examples run as they stand, in order."""

import re
import shlex
from pathlib import Path

import pytest

from paretune.commands.parser import read

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.slow
def test_the_examples_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(EXAMPLES) == 3
    names: dict[str, object] = {"__name__": "__main__"}
    for example in EXAMPLES:
        exec(compile(example, str(README), "exec"), names)
    frame = names["scores"].to_frame()  # type: ignore[attr-defined]
    assert frame.clean.iloc[0] > 0.85
    assert frame.robust.iloc[0] > 0.3
    assert (tmp_path / "my-adapter/paretune.json").exists()
    assert len(names["outcome"].areas) == 2  # type: ignore[attr-defined]


def test_every_command_shown_is_understood(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL))
    commands = re.findall(r"^paretune (.+?)\s*(?:#.*|> .*)?$", shell, flags=re.MULTILINE)
    assert len(commands) == 26
    for command in commands:
        if "--print-config" not in command:
            assert read(shlex.split(command)) is not None
