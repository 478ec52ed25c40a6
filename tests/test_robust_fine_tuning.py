"""The page on robust fine-tuning: its command lines parse, its two columns say the same, and it leaves nothing out."""

import inspect
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

import paretune as pt
from paretune import training
from paretune.commands.parser import read
from paretune.commands.train import Train
from paretune.training import FREEZING, OBJECTIVES, SCHEDULES

PAGE = Path(__file__).parents[1] / "docs/concepts/robust-fine-tuning.md"
LINES = re.findall(r"^\| (?!name )(.*) \|$", PAGE.read_text("utf-8"), re.M)
ROWS = [tuple(cell.strip(" `") for cell in line.split("|")) for line in LINES]
RENAMED = {"objective": "minimised", "epsilon": "schedule"}  # by the command line


def of(*, training_over: bool) -> list:
    """(command line, Python) of the rows that have both."""
    return [
        pytest.param(command, python, id=name)
        for name, _, _, command, python in ROWS
        if command and python.startswith(("wise_ft(", "soup(")) == training_over
    ]


@pytest.mark.parametrize(("command", "python"), of(training_over=False))
def test_an_option_is_the_argument_beside_it(command, python) -> None:
    names = {**vars(training), "pt": pt, "attack": pt.PGD(pt.Linf(2 / 255), steps=3)}
    expected = eval(f"dict({python})", names)
    (given, _), usual = read(["train", *shlex.split(command)]), Train()

    assert {name: getattr(given, RENAMED.get(name, name)) for name in expected} == expected
    changed = {
        field.name for field in fields(Train) if getattr(given, field.name) != getattr(usual, field.name)
    }
    assert changed <= {*expected, *(RENAMED[name] for name in expected if name in RENAMED)}
    assert {*expected} <= {*inspect.signature(pt.train).parameters}


@pytest.mark.parametrize(("command", "python"), of(training_over=True))
def test_a_mean_is_called_as_written(command, python) -> None:
    names = {name: inspect.signature(getattr(training, name)).bind for name in ("wise_ft", "soup")}
    called = eval(python, {**names, "start": None, "backbone": None, "data": None}).arguments
    (given, _) = read(["average", *shlex.split(command)])

    runs = called.get("runs", [called.get("run")])
    assert (given.runs, given.soup) == (runs, called.get("recipe"))
    assert given.alphas == called.get("alphas", [])
    assert given.by == called.get("by", "clean")


def test_every_objective_schedule_and_freezing_is_on_the_page() -> None:
    shown = " ".join(python for *_, python in ROWS)
    there_are = {kind.__name__ for kinds in (OBJECTIVES, SCHEDULES, FREEZING) for kind in kinds.values()}
    absent = {name for name in there_are if f"{name}(" not in shown}
    assert absent == {"Sum", "NoFreezing"}  # written with +, and by leaving it out
