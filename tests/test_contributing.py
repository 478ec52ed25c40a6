"""The examples of CONTRIBUTING.md do what is said of them, with nothing else added."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import paretune as pt
from paretune import strategies
from paretune._values import parse
from paretune.attacks import ATTACKS, THREATS
from paretune.commands.parser import command_parser
from paretune.data.image_split import ImageSplit
from paretune.strategies import STRATEGIES, Strategy
from tests import tiny
from tests.contracts.backbones import make
from tests.contracts.contract import outcome
from tests.contracts.test_attacks import BALLS, predictions, victim, world
from tests.contracts.tied import make_tied

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)


def example(name: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class ``name``, imported from a file that holds its example and nothing else."""
    (source,) = [source for source in EXAMPLES if f"class {name}(" in source]
    (directory / f"contributed_{name.lower()}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(directory))
    return getattr(importlib.import_module(f"contributed_{name.lower()}"), name)


def add_strategy(directory: Path, monkeypatch: pytest.MonkeyPatch) -> type[Strategy]:
    """``Gain`` as its example has it, in the library by the one line that stands below it."""
    source, line = (source for source in EXAMPLES if "Gain" in source)
    (directory / "gain.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(directory)])
    monkeypatch.setattr(strategies, "gain", None, raising=False)  # so that both go again
    monkeypatch.setitem(sys.modules, "paretune.strategies.gain", None)  # type: ignore[arg-type]
    del sys.modules["paretune.strategies.gain"]
    lines = Path(str(strategies.__file__)).read_text(encoding="utf-8")
    assert lines.count("# isort: on\n") == 1
    package: dict[str, Any] = {"__name__": "paretune.strategies"}
    exec(lines.replace("# isort: on\n", line), package)
    assert [*package["STRATEGIES"]] == [*STRATEGIES, "Gain"]
    assert {*package["__all__"]} == {*strategies.__all__, "Gain"}
    kind: type[Strategy] = package["STRATEGIES"]["Gain"]
    monkeypatch.setitem(STRATEGIES, "Gain", kind)
    return kind


def test_the_strategy_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = add_strategy(tmp_path, monkeypatch)
    for base in (make("test_vit"), make("mobilenetv3_small_050"), make_tied("weight")):
        assert outcome(base, strategy(), tmp_path / "adapter") == ("works", "")
    with pytest.raises(ValueError, match="Gain: no Linear or Conv2d layer lies in where="):
        pt.adapt(make("test_vit"), strategy(where="head"))


def test_the_command_line_and_runs_take_the_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = add_strategy(tmp_path, monkeypatch)
    read = command_parser("train").parse_args(["--out", "run", "--strategy", "gain"])
    assert read.strategy == strategy()
    many = command_parser("compare").parse_args(["--strategies", "gain,lora"])
    assert many.strategies == (strategy(), pt.LoRA())
    with pytest.raises(ValueError, match="did you mean Gain"):
        parse("gian", STRATEGIES)
    run = tiny.run(tmp_path / "run", strategy=strategy(), steps=2, eval_every=2)
    assert run.config["strategy"] == "Gain"
    assert set(pt.load_points(tmp_path / "run").strategy) == {"Gain"}
    report = pt.write_report(tmp_path / "run", tmp_path / "report.html")
    assert "Gain" in Path(report).read_text(encoding="utf-8")


def test_the_attack_keeps_its_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = example("Brightness", tmp_path, monkeypatch)
    monkeypatch.setitem(ATTACKS, "Brightness", kind)
    assert parse("brightness(linf(4/255))", ATTACKS | THREATS) == kind(pt.Linf(4 / 255))
    model = victim()
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = predictions(model, images)
    before = world(model)
    for threat in BALLS:
        attack = kind(threat.with_epsilon(30 * threat.epsilon))
        found = attack(model, images, labels)
        inside = attack.threat.project(found, images)
        torch.testing.assert_close(inside, found, rtol=0, atol=1e-6)
        assert 0 <= found.min() <= found.max() <= 1
        moved = (found != images).flatten(1).any(dim=1)
        assert torch.equal(predictions(model, found) != labels, moved)
        assert moved.any()
        assert attack(model, images[:0], labels[:0]).shape == (0, 3, 32, 32)
    after = world(model)
    assert all(torch.equal(before["state"][name], after["state"][name]) for name in before["state"])
    assert {name: after[name] for name in ("modes", "trainable", "hooks")} == {
        name: before[name] for name in ("modes", "trainable", "hooks")
    }
    split = ImageSplit(labels, torch.arange(8), lambda rows: images[rows], "fingerprint")
    assert pt.evaluate(model, split, [attack]).robust[attack].tolist() == (~moved).tolist()


def test_the_objective_is_trained_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = example("Mixed", tmp_path, monkeypatch)
    run = tiny.run(tmp_path / "run", objective=kind(pt.PGD(pt.Linf(4 / 255), steps=2)), steps=3, eval_every=3)
    assert run.config["objective"]["name"] == "Mixed"
    assert len(pt.load_points(tmp_path / "run")) >= 1


def test_what_it_names_is_there() -> None:
    assert len(EXAMPLES) == 4
    for path in set(re.findall(r"(?<![\w/])((?:src|tests|benchmarks|docs)/[\w/.]*\w)", TEXT)):
        assert (ROOT / path).exists(), path
