"""Evaluations with AutoAttack, and evaluations that are killed and go on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import paretune as pt
from paretune.attacks import AutoAttack, Linf, attack_copy
from paretune.attacks.autoattack_state import Journal
from paretune.data.image_split import ImageSplit
from paretune.evaluation.scores import Scores
from tests.unit.attacks.test_autoattack import ATTACK, problem
from tests.unit.attacks.victims import exact_copy

PGD = pt.PGD(Linf(0.02), steps=3)


class Killed(BaseException):
    pass


def split(n: int = 40) -> tuple[nn.Module, ImageSplit]:
    model, images, labels = problem(n)
    return model, ImageSplit(labels, torch.arange(n), images.__getitem__, f"curved-{n}")


def same(one: Scores, other: Scores) -> bool:
    return (
        np.array_equal(one.clean, other.clean)
        and list(one.robust) == list(other.robust)
        and all(np.array_equal(bits, other.robust[attack]) for attack, bits in one.robust.items())
    )


def killed_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """End everything after this many finished batches of AutoAttack."""
    original, seen = Journal.write, [0]

    def write(self: Journal, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        seen[0] += 1
        if seen[0] == writes:
            raise Killed

    monkeypatch.setattr(Journal, "write", write)


@pytest.mark.some(2)
@pytest.mark.parametrize(("batch_size", "world"), [(40, 1), (3, 1), (3, 2), (7, 3)])
def test_autoattack_finds_what_its_own_run_on_the_whole_set_finds(batch_size: int, world: int) -> None:
    """Whatever the batches, also those that it gets at once, and the shards."""
    model, data = split()
    images, labels = data[torch.arange(len(data))]
    whole = ATTACK.run(exact_copy(model), images, labels, seed=3)
    parts = [
        pt.evaluate(model, data, [ATTACK], seed=3, batch_size=batch_size, shard=(rank, world))
        for rank in range(world)
    ]
    assert 0 < whole.robust.sum() < whole.clean.sum() < len(data)
    assert np.array_equal(sum(part.clean.astype(int) for part in parts), whole.clean.numpy().astype(int))
    robust = sum(part.robust[ATTACK].astype(int) for part in parts)
    assert np.array_equal(robust, whole.robust.numpy().astype(int))


@pytest.mark.some(2)
@pytest.mark.parametrize("writes", [1, 4, 9, 11])
def test_a_killed_evaluation_goes_on_and_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    model, data = split()
    attacks, where = [PGD, ATTACK], tmp_path / "state"
    expected = pt.evaluate(model, data, attacks, batch_size=3)
    with monkeypatch.context() as patched:
        killed_after(patched, writes)
        with pytest.raises(Killed):
            pt.evaluate(model.train(), data, attacks, batch_size=3, state=where)
    assert model.training
    before = {file: file.stat().st_mtime_ns for file in where.rglob("*") if file.is_file()}
    assert same(pt.evaluate(model, data, attacks, batch_size=3, state=where), expected)
    # What was finished is read, not written again; of AutoAttack's own state nothing is left.
    assert all(file.stat().st_mtime_ns == time for file, time in before.items() if file.exists())
    assert {file.name for file in where.iterdir()} == {
        "plan.json",
        *(f"{batch:06d}.safetensors" for batch in range(14)),
    }


def test_a_finished_evaluation_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = split()
    first = pt.evaluate(model, data, [PGD], batch_size=16, state=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    monkeypatch.setattr(pt.PGD, "__call__", lambda *_, **__: pytest.fail("attacked again"))
    assert same(pt.evaluate(model, data, [PGD], batch_size=16, state=tmp_path), first)


def test_the_state_of_another_evaluation_is_refused(tmp_path: Path) -> None:
    model, data = split()
    other, _ = split()
    with torch.no_grad():
        other.weight.neg_()
    pt.evaluate(model, data, [PGD], state=tmp_path / "state")
    for change, message in (
        ({"attacks": [PGD.with_epsilon(0.01)]}, "its attacks is"),
        ({"seed": 1}, "its seed is 0, now it is 1"),
        ({"batch_size": 5}, "its batch_size is 128, now it is 5"),
        ({"shard": (0, 2)}, "its shard is"),
        ({"data": split(39)[1]}, "its data is 'curved-40', now it is 'curved-39'"),
        ({"victim": attack_copy(model, precision="bf16")}, "its precision is 'fp32', now it is 'bf16'"),
        ({"model": other}, "is of another model"),
    ):
        call = {"model": model, "data": data, "attacks": [PGD], **change}
        with pytest.raises(ValueError, match=message):
            pt.evaluate(**call, state=tmp_path / "state")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="could choose another precision than the first"):
        pt.evaluate(model, data, [PGD], victim=attack_copy(model, precision="auto"), state=tmp_path / "new")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="name a new directory"):
        pt.evaluate(model, data, [PGD], state=tmp_path / "full")


def test_progress_of_autoattack_is_told_within_a_portion(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.progress import Progress, TaskID

    seen: list[tuple[float, str]] = []
    update = Progress.update

    def note(self: Progress, task: TaskID, *, completed: float, note: str = "") -> None:
        seen.append((completed, note))
        update(self, task, completed=completed, note=note)

    monkeypatch.setattr(Progress, "update", note)
    model, data = split()
    attack = AutoAttack(Linf(0.03), steps=6, queries=12, targets=2)
    pt.evaluate(model, data, [PGD, attack], batch_size=3, progress=True)
    amounts = [amount for amount, _ in seen]
    assert amounts[-1] == len(data)
    assert all(0 <= amount <= len(data) for amount in amounts)
    assert len(set(amounts)) > 50
    assert any("square  robust" in note for _, note in seen)


def test_only_an_engine_that_rounds_otherwise_makes_another_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = split()
    last = pt.PGD(pt.Linf(0.05), steps=3, keep="last")
    first = pt.evaluate(model, data, [last], state=tmp_path)
    for engine in ("eager", "graph"):
        assert same(pt.evaluate(model, data, [last], engine=engine, state=tmp_path), first)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="engine"):
        pt.evaluate(model, data, [last], engine="compiled", state=tmp_path)
    with pytest.raises(ValueError, match="engine='eager' is not for a victim that is given"):
        pt.evaluate(model, data, [last], victim=attack_copy(model), engine="eager")
