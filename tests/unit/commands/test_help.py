"""Help says what there is, and imports no more than it says."""

import subprocess
import sys
from inspect import getdoc

import pytest

from paretune.commands import COMMANDS, GROUPS
from paretune.commands.cli import main
from paretune.commands.parser import build_parser, command_parser
from tests.unit.test_import import modules_after

HEAVY = {"torch", "timm", "transformers", "torchvision", "peft", "accelerate", "pandas", "scipy", "numpy"}


def loaded(arguments: list[str]) -> set[str]:
    """Modules that are there after the command line was called."""
    silent = "import io, contextlib; from paretune.commands.cli import main\n"
    silent += "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
    silent += f"  with contextlib.suppress(SystemExit): main({arguments!r})\n"
    return modules_after(f"exec({silent!r})")


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            [],
            ["--help"],
            ["--version"],
            ["trian"],
            ["adapters"],
            ["adapters", "--help"],
            ["adapters", "eat"],
        ),
        *(
            [*words.split(), "--help"]
            for words in COMMANDS
            if words.split()[0] not in ("train", "compare", "plan", "inherit", "adapters")
        ),
        ["report"],
    ],
    ids=" ".join,
)
def test_help_and_misspelt_names_import_nothing_heavy(arguments: list[str]) -> None:
    assert not loaded(arguments) & HEAVY


@pytest.mark.parametrize("action", ["show", "push"])
def test_help_of_an_action_needs_no_torch(action: str) -> None:
    assert not loaded(["adapters", action, "--help"]) & (HEAVY - {"numpy"})  # which sizes of images need


def test_the_help_of_paretune_is_quick_as_a_process_too() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "paretune", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"argparse", "paretune.commands.cli"} <= imported  # they are read from the output
    assert not imported & HEAVY


def test_the_table_of_commands_is_what_is_parsed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line of the quick help has a command behind it, and each command a line."""
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    top = {words.partition(" ")[0] for words in COMMANDS}
    assert f"{{{','.join(dict.fromkeys(words.partition(' ')[0] for words in COMMANDS))}}}" in told
    for words in top:
        assert f"{words} {GROUPS.get(words) or COMMANDS.listed[words].help}" in told
    whole = build_parser()
    (commands,) = (action.choices for action in whole._actions if isinstance(action.choices, dict))
    assert set(commands) == top
    for words, command in COMMANDS.items():
        assert COMMANDS.listed[words].name == command.__name__
        assert COMMANDS.listed[words].help[0].islower()
        assert getdoc(command)
        assert set(command.__dataclass_fields__) <= {action.dest for action in command_parser(words)._actions}


def test_the_help_of_an_action_has_its_options_alone(capsys: pytest.CaptureFixture[str]) -> None:
    own = {
        "show": {"format"},
        "verify": {"format"},
        "import": {"format", "out"},
        "export": {"format", "out"},
        "merge": {"format", "out"},
        "push": {"to", "license", "runs", "public", "dry_run"},
    }
    base = {"backbone", "weights", "weights_key", "num_classes", "image_size", "alpha", "enable_lora"}
    assert {f"adapters {action}" for action in own} == {
        words for words in COMMANDS if words.startswith("adapters ")
    }
    for action, options in own.items():
        with pytest.raises(SystemExit, match="0"):
            main(["adapters", action, "--help"])
        told = capsys.readouterr().out
        listed = {line.split()[0][2:] for line in told.splitlines() if line.startswith("  --")}
        also = set() if action in ("show", "push") else base
        assert listed == options | also | {"config", "print_config", "log_level"}
        said = (getdoc(COMMANDS[f"adapters {action}"]) or "").partition("\n\n")[0]
        assert " ".join(said.split()) in " ".join(told.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "there is no command 'trian'; did you mean train? There are: compare, plan, train"),
        (["adapters", "shwo"], "adapters has no action 'shwo'; did you mean show? There are: show, verify"),
        (["adapters", "eat"], "adapters has no action 'eat'. There are: show, verify"),
        (["adapters", "show"], "adapters show needs ADAPTER; see paretune adapters show --help"),
        (
            ["adapters", "show", "x", "--out", "y"],
            "--out belongs to adapters import and adapters export and adapters merge",
        ),
        (
            ["adapters", "export", "x", "--format", "adapters", "--out", "y"],
            "--format must be one of peft, loralib",
        ),
        (["--seed", "1", "train"], "--seed is no option of paretune itself; write it after the command"),
        (["-x"], "'-x' is no argument of paretune; see --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_misspelt_is_told(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    complained = capsys.readouterr().err
    assert message in complained
    assert complained.count("\n") == 1
