"""One line says why something is slow, from what was measured, and none where nothing stands out."""

import logging
import queue
from pathlib import Path
from typing import Any

import pytest
import timm

import paretune as pt
from paretune.evaluation import speed
from paretune.evaluation.speed import slow_evaluation, slow_training
from paretune.sweeps.executors.display import shown
from tests import tiny

PGD, OTHER, AUTO = pt.PGD(pt.Linf(4 / 255)), pt.PGD(pt.L2(0.5)), pt.AutoAttack(pt.Linf(4 / 255))


def backbone(img_size: Any = None) -> pt.Backbone:
    """Of timm, made for 160 pixels."""
    module = timm.create_model("test_resnet", num_classes=2)
    return pt.Backbone(module, image_size=img_size)


@pytest.fixture(scope="module")
def usual() -> pt.Backbone:
    return backbone()


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        ({}, None),
        ({AUTO: 59}, None),
        ({PGD: 500}, None),  # one attack, and it has no cheaper relative
        ({PGD: 50, OTHER: 50}, None),
        (
            {PGD: 10, OTHER: 90},
            f"because {OTHER!r} takes 90% of the time, 90 s; fewer steps or restarts take less",
        ),
        ({PGD: 10, AUTO: 90}, f"because {AUTO!r} takes 90% of the time, 90 s; APGD alone takes a fraction"),
        ({AUTO: 240}, "takes 100% of the time, 240 s; APGD alone"),
    ],
)
def test_of_an_evaluation_the_attack_that_dominates_is_named(
    seconds: dict[Any, float], told: str | None, usual: pt.Backbone
) -> None:
    found = slow_evaluation(seconds, usual)
    assert (found is None) == (told is None)
    assert told is None or told in str(found)


@pytest.mark.parametrize(
    ("steps", "evaluation", "seconds", "told"),
    [
        (10, 9, {PGD: 8}, None),  # 46 s
        (100, 20, {PGD: 18}, None),  # 80 s of 180 s
        (
            100,
            30,
            {PGD: 28},
            "evaluation takes 55% of the time, 30.0 s at each of 4 points; fewer points (--points)",
        ),
        (
            10,
            300,
            {PGD: 8, AUTO: 290},
            "99% of the time, 300.0 s at each of 4 points; measure with PGD meanwhile",
        ),
    ],
)
def test_of_a_run_evaluation_is_named_where_it_takes_more_than_half(
    steps: float, evaluation: float, seconds: dict[Any, float], told: str | None, usual: pt.Backbone
) -> None:
    found = slow_training(steps, evaluation, 4, seconds, usual)
    assert (found is None) == (told is None)
    assert told is None or told in str(found)


def test_large_images_are_named_where_nothing_else_is() -> None:
    told = "because images have 320 x 160 pixels, 2.0 times those of 160 x 160 that the model was made for; train with "
    told += "--img-size 160"
    large = backbone((320, 160))
    assert told in str(slow_training(100, 1, 4, {PGD: 1}, large))
    assert told in str(slow_evaluation({PGD: 100}, large))
    assert "evaluation takes" in str(slow_training(100, 100, 4, {PGD: 1}, large))
    assert slow_training(50, 1, 4, {PGD: 1}, large) is None
    assert slow_training(100, 1, 4, {PGD: 1}, backbone(96)) is None
    assert slow_training(100, 1, 4, {PGD: 1}, tiny.backbone(pt.BitFit())) is None  # nobody knows its size


def test_a_run_says_it_once_from_its_own_seconds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []

    def listen(*given: Any) -> str:
        heard.append(given)
        return "it is slow because of the test"

    monkeypatch.setattr(speed, "slow_training", listen)
    with caplog.at_level(logging.INFO, "paretune.evaluation.speed"):
        tiny.run(tmp_path / "run", steps=4, eval_every=1)
    assert caplog.messages.count("it is slow because of the test") == 1
    ((steps, evaluation, points, seconds, _),) = heard
    first = pt.load_points(tmp_path / "run").iloc[0]
    assert steps == pytest.approx(4 * first["train_seconds"])
    assert points == 4
    assert 0 < sum(seconds.values()) < evaluation


def test_scores_have_the_seconds_of_each_attack(tmp_path: Path) -> None:
    model, attacks = (
        tiny.backbone(pt.BitFit()),
        [pt.PGD(pt.Linf(1 / 255), steps=1), pt.PGD(pt.Linf(2 / 255), steps=1)],
    )
    report = tiny.data(100).report
    scores = pt.evaluate(model, report, attacks, state=tmp_path / "state")
    assert [*scores.seconds] == attacks
    assert min(scores.seconds.values()) > 0
    assert pt.evaluate(model, report, attacks, state=tmp_path / "state").seconds == {}  # read


def test_a_sweep_tells_it_once_whatever_its_numbers_are(caplog: pytest.LogCaptureFixture) -> None:
    messages: Any = queue.Queue()
    for number in range(3):
        for name, once in (("paretune.evaluation.speed", True), ("paretune.other", False)):
            text = f"{name} {number}"
            record = logging.LogRecord(name, logging.INFO, __file__, 1, text, None, None)
            record.once = once
            messages.put(record)
    with shown(messages, ["run"], enabled=False):
        pass
    assert caplog.messages.count("paretune.evaluation.speed 0") == 1
    assert [text for text in caplog.messages if text.startswith("paretune.evaluation")] == [
        "paretune.evaluation.speed 0"
    ]
    assert sum(text.startswith("paretune.other") for text in caplog.messages) == 3
