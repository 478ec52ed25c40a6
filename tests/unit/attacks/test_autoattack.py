import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paretune._values import from_dict, parse
from paretune.attacks import (
    APGD,
    ATTACKS,
    FAB,
    L1,
    L2,
    THREATS,
    AutoAttack,
    AutoAttackResult,
    AutoAttackStatus,
    Linf,
    Square,
    Threat,
)
from paretune.attacks.autoattack_state import Journal
from paretune.attacks.copy.options import CopyOptions
from tests.unit.attacks.victims import Liar, Linear, RowByRow, batch, exact_copy, right

ATTACK = AutoAttack(Linf(0.03), steps=6, queries=12, targets=2)


class Curved(RowByRow):
    """Not linear, so that no attack alone finds everything; logits of an image do not depend on its batch."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.sin(3 * super().forward(images)) * 2 + super().forward(images)


def problem(n: int = 40) -> tuple[nn.Module, Tensor, Tensor]:
    model, (images, labels) = Curved(5, 3, 6, 6), batch(n, classes=5, side=6)
    # Most labels are right, some are wrong from the start.
    labels = torch.where(torch.arange(n) % 8 == 0, labels, model(images).argmax(dim=1))
    return model, images, labels


def test_stages_are_those_of_the_reference() -> None:
    threat = Linf(8 / 255)
    assert AutoAttack(threat).stages() == {
        "apgd-ce": APGD(threat),
        "apgd-t": APGD(threat, loss="dlr-targeted"),
        "fab-t": FAB(threat),
        "square": Square(threat),
    }
    assert AutoAttack(threat, version="plus").stages() == {
        "apgd-ce": APGD(threat, restarts=5),
        "apgd-dlr": APGD(threat, loss="dlr", restarts=5),
        "apgd-t": APGD(threat, loss="dlr-targeted"),
        "fab-t": FAB(threat),
        "fab": FAB(threat, restarts=5, targets=None),
        "square": Square(threat),
    }
    assert AutoAttack(threat, version="rand").stages() == {
        "apgd-ce": APGD(threat, eot=20),
        "apgd-dlr": APGD(threat, loss="dlr", eot=20),
    }
    assert AutoAttack(L1(12)).stages() == {
        "apgd-ce": APGD(L1(12), restarts=5),
        "apgd-t": APGD(L1(12), loss="dlr-targeted", targets=5),
        "fab-t": FAB(L1(12)),
        "square": Square(L1(12)),
    }


def test_prints_and_reads_back_as_the_call_that_makes_it() -> None:
    attack = AutoAttack(L2(0.5), version="plus", steps=20)
    assert repr(attack) == "AutoAttack(L2(0.5), version='plus', steps=20)"
    assert parse(repr(attack), {**ATTACKS, **THREATS}) == attack
    assert from_dict(attack.to_dict(), {**ATTACKS, **THREATS}) == attack
    assert attack.with_epsilon(1.0) == AutoAttack(L2(1.0), version="plus", steps=20)


def test_each_stage_attacks_what_the_earlier_ones_left() -> None:
    model, images, labels = problem()
    result = ATTACK.run(exact_copy(model), images, labels)
    assert torch.equal(result.clean, right(model, images, labels))
    assert [stage.name for stage in result.stages] == list(ATTACK.stages())
    lefts = [int(result.clean.sum()), *(stage.robust for stage in result.stages)]
    assert [stage.attacked for stage in result.stages] == lefts[:-1]
    assert lefts == sorted(lefts, reverse=True)
    assert lefts[0] > lefts[1]
    assert lefts[-1] == int(result.robust.sum()) > 0
    assert result.robust_accuracy == lefts[-1] / 40
    assert torch.equal(right(model, result.images, labels), result.robust)
    assert torch.equal(result.images[result.robust], images[result.robust])
    assert Linf(0.03).distance(result.images, images).max() <= 0.03 + 2**-24
    assert result.stages[-1].backwards == 0  # Square
    assert torch.equal(ATTACK(exact_copy(model), images, labels), result.images)


def same(one: AutoAttackResult, other: AutoAttackResult) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.robust, other.robust)


def test_the_answer_for_an_image_depends_neither_on_the_batch_size_nor_on_the_others() -> None:
    model, images, labels = problem()
    victim = exact_copy(model)
    whole = ATTACK.run(victim, images, labels, seed=3)
    assert same(whole, ATTACK.run(victim, images, labels, seed=3, batch_size=7))
    # Every second image is replaced by one that is misclassified at once.
    others = torch.arange(40) % 2 == 1
    wrong = torch.where(others, (model(images).argmax(dim=1) + 1) % 5, labels)
    half = ATTACK.run(victim, images, wrong, seed=3)
    assert torch.equal(half.images[~others], whole.images[~others])
    assert not same(whole, ATTACK.run(victim, images, labels, seed=4))


# ---- continuing -------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for the end of the process."""


def killed_after(passes: int) -> Any:
    """A progress function that raises in the given pass."""
    seen = 0

    def count(_status: AutoAttackStatus) -> None:
        nonlocal seen
        seen += 1
        if seen == passes:
            raise Killed

    return count


@pytest.mark.parametrize("passes", [1, 9, 20, 45, 70, 90])
def test_a_killed_run_goes_on_and_ends_as_an_uninterrupted_one(tmp_path: Path, passes: int) -> None:
    model, images, labels = problem()
    expected = ATTACK.run(exact_copy(model), images, labels, seed=1, batch_size=16)
    call: dict[str, Any] = {"seed": 1, "batch_size": 16, "state": tmp_path / "state"}
    with pytest.raises(Killed):
        ATTACK.run(exact_copy(model), images, labels, progress=killed_after(passes), **call)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "state").iterdir()}
    result = ATTACK.run(exact_copy(model), images, labels, **call)
    assert same(result, expected)
    for one, other in zip(result.stages, expected.stages, strict=True):
        assert (one.attacked, one.robust, one.forwards, one.backwards) == (
            other.attacked,
            other.robust,
            other.forwards,
            other.backwards,
        )
    # What was finished is read, not written again.
    assert all((tmp_path / "state" / name).stat().st_mtime_ns == time for name, time in before.items())


def test_a_finished_run_is_read_without_attacking(tmp_path: Path) -> None:
    model, images, labels = problem()
    first = ATTACK.run(model, images, labels, state=tmp_path)
    seen: list[AutoAttackStatus] = []
    assert same(first, ATTACK.run(model, images, labels, state=tmp_path, progress=seen.append))
    assert not seen
    assert not list(tmp_path.glob("*.tmp"))
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_a_continued_run_searches_in_the_precision_of_the_first(tmp_path: Path) -> None:
    model, images, labels = problem()
    ATTACK.run(exact_copy(model), images, labels, state=tmp_path)
    assert Journal.precision(tmp_path) == "fp32"
    assert Journal.precision(tmp_path / "nothing") is None


def test_a_model_that_draws_numbers_goes_on_with_the_same_ones(tmp_path: Path) -> None:
    class Noisy(Curved):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images + 0.01 * torch.randn_like(images))

    _, images, labels = problem()
    model, attack = Noisy(5, 3, 6, 6), AutoAttack(Linf(0.03), version="rand", steps=2)
    expected = attack.run(exact_copy(model), images, labels, batch_size=16)
    with pytest.raises(Killed):
        attack.run(
            exact_copy(model), images, labels, batch_size=16, state=tmp_path, progress=killed_after(150)
        )
    assert len(list(tmp_path.glob("*.safetensors"))) >= 1
    assert same(attack.run(exact_copy(model), images, labels, batch_size=16, state=tmp_path), expected)


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    model, images, labels = problem()
    ATTACK.run(model, images, labels, state=tmp_path / "state")
    cases: list[tuple[AutoAttack, nn.Module, Tensor, dict[str, Any], str]] = [
        (ATTACK.with_epsilon(0.02), model, images, {}, "its attack is"),
        (ATTACK, model, images, {"seed": 1}, "its seed is 0, now it is 1"),
        (ATTACK, model, images, {"batch_size": 5}, "its batch_size is 128, now it is 5"),
        (ATTACK, model, images.flip(0), {}, "its images is"),
        (ATTACK, Curved(5, 3, 6, 6, seed=1), images, {}, "is of another model"),
    ]
    for attack, victim, given, fields, message in cases:
        with pytest.raises(ValueError, match=message):
            attack.run(victim, given, labels, state=tmp_path / "state", **fields)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not the state of such a run; name a new directory"):
        ATTACK.run(model, images, labels, state=tmp_path / "full")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_parts_of_a_set_draw_as_the_whole_does() -> None:
    model, images, labels = problem()
    whole = ATTACK.run(exact_copy(model), images, labels, seed=2)
    for rows in (torch.arange(0, 40, 2), torch.arange(39, 0, -2)):
        part = ATTACK.run(exact_copy(model), images[rows], labels[rows], seed=2, places=rows)
        assert torch.equal(part.images, whole.images[rows])
    for places in (torch.arange(39), torch.arange(40.0)):
        with pytest.raises(ValueError, match="places must be 40 whole numbers, one for each image"):
            ATTACK.run(exact_copy(model), images, labels, places=places)


# ---- telling ----------------------------------------------------------------------------------------------------


def test_progress_rises_to_at_most_the_total_and_tells_the_time_left() -> None:
    model, images, labels = problem()
    seen: list[AutoAttackStatus] = []
    ATTACK.run(exact_copy(model), images, labels, progress=seen.append, batch_size=16)
    assert len(seen) > 50
    assert all(status.passes <= status.total and status.seconds_left >= 0 for status in seen)
    assert all(later.passes >= sooner.passes for sooner, later in itertools.pairwise(seen))
    assert {status.stage for status in seen} == set(ATTACK.stages())
    assert str(seen[0]).startswith("apgd-ce  robust ")


def test_the_bar_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    model, images, labels = problem(8)
    ATTACK.run(exact_copy(model), images, labels, progress=True)
    out, err = capsys.readouterr()
    assert not out
    assert "AutoAttack" in err
    assert "robust" in err


def test_each_stage_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model, images, labels = problem()
    with caplog.at_level(logging.INFO, logger="paretune"):
        result = ATTACK.run(exact_copy(model), images, labels)
    for stage in result.stages:
        assert f"{stage.name}: {stage.robust} of 40 images left" in caplog.text


def test_a_random_model_is_named_and_sent_to_the_rand_version(caplog: pytest.LogCaptureFixture) -> None:
    class Noisy(Linear):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images + 0.2 * torch.randn_like(images))

    images, labels = batch(8, classes=5)
    result = AutoAttack(Linf(0.1), steps=2, queries=2).run(Noisy(5, 3, 4, 4), images, labels)
    assert any("the forward pass is random" in finding for finding in result.findings)
    assert "version='rand'" in caplog.text
    quiet = AutoAttack(Linf(0.1), version="rand", steps=1).run(Noisy(5, 3, 4, 4), images, labels)
    assert not any("random" in finding for finding in quiet.findings)


def test_square_beating_the_gradient_attacks_is_named() -> None:
    class Rounded(Linear):
        """Rounds its input, so its gradient is zero almost everywhere; a black box does not mind."""

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(torch.round(images * 8) / 8 + 0 * images)

    model, (images, _) = Rounded(5, 3, 6, 6), batch(64, side=6)
    labels = model(images).argmax(dim=1)
    result = AutoAttack(Linf(0.2), steps=5, queries=100, targets=2).run(model, images, labels)
    assert any("zero gradients" in finding for finding in result.findings)
    assert any("black-box beats white-box" in finding for finding in result.findings)


def test_a_sound_model_gives_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    model, (images, _) = Linear(5, 3, 6, 6), batch(64, side=6)
    result = ATTACK.run(exact_copy(model), images, model(images).argmax(dim=1))
    assert result.findings == ()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# ---- borders ----------------------------------------------------------------------------------------------------


def test_what_float32_does_not_confirm_is_robust() -> None:
    model, (images, _) = Linear(5, 3, 4, 4), batch()
    labels = model(images).argmax(dim=1)
    result = AutoAttack(Linf(1e-6), steps=2, queries=2, targets=1).run(
        Liar(model, CopyOptions()), images, labels
    )
    assert result.robust.all()


@pytest.mark.parametrize("threat", [Linf(0.1), L2(1.0), L1(5.0)], ids=repr)
def test_when_nothing_is_left_no_further_stage_runs(threat: Threat) -> None:
    model, (images, _) = Linear(5, 3, 4, 4), batch()
    result = AutoAttack(threat, steps=20).run(model, images, model(images).argmin(dim=1))
    assert result.stages == ()
    assert torch.equal(result.images, images)
    assert not result.clean.any()
    assert result.robust_accuracy == 0


def test_a_variant_for_another_number_of_classes_is_named_before_anything_runs() -> None:
    images, labels = batch(classes=2)
    seen: list[AutoAttackStatus] = []
    with pytest.raises(
        ValueError, match="version='standard-2' is for models with 2 classes, got 3; use version='standard'"
    ):
        AutoAttack(Linf(0.1), version="standard-2").run(
            Linear(3, 3, 4, 4), images, labels, progress=seen.append
        )
    assert not seen


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": "custom"}, "version must be 'standard', 'plus', 'rand', .* or 'rand-2', got 'custom'"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"queries": 1.5}, "queries must be a whole number"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoAttack(Linf(0.1), **fields)
    model, images, labels = problem(2)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 0"):
        ATTACK.run(model, images, labels, batch_size=0)
