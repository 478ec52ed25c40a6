"""The pictures of a run are the images and the answers of its evaluation, and cost it nothing."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import paretune as pt
from paretune.backbones.backbone import answer
from paretune.evaluation.scores import Scores
from paretune.runs.examples import EXAMPLES, Examples
from paretune.runs.store import Run, load_runs
from paretune.training import pictures as module
from paretune.training.pictures import Album, first_of_classes
from paretune.training.processes import Processes
from tests import tiny
from tests.unit.training.test_processes import together  # noqa: F401  # a fixture

ATTACKS = [pt.PGD(pt.Linf(4 / 255), steps=3), pt.PGD(pt.L2(0.5), steps=3)]


def kept_of(run: Run) -> Examples:
    kept = run.examples()
    assert kept is not None
    return kept


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny.run(tmp_path_factory.mktemp("runs") / "run", steps=40, eval_every=20, attacks=ATTACKS)


def test_labels_and_names_are_those_of_the_report_split(run: Run) -> None:
    report, kept = tiny.data().report, kept_of(run)
    assert np.array_equal(kept.labels, report.labels.numpy())
    assert kept.classes == tiny.data().classes
    assert kept.report_id == report.fingerprint


def test_pixels_are_those_that_the_model_was_given_and_lie_in_the_ball(run: Run) -> None:
    shown = kept_of(run).pictures
    assert shown is not None
    assert np.array_equal(shown.clean, tiny.data().report[shown.places.tolist()][0].numpy())
    changed = np.abs(shown.attacked - shown.clean).max(axis=(1, 2, 3))
    assert changed.max() <= np.nextafter(np.float32(4 / 255), np.float32(1)) + np.finfo(np.float32).eps / 2
    assert changed.max() > 3 / 255
    assert 0 <= shown.attacked.min() <= shown.attacked.max() <= 1
    assert (shown.step, shown.attack) == (40, repr(ATTACKS[0]))


def test_answers_agree_with_the_bits_of_the_last_point(run: Run) -> None:
    kept = kept_of(run)
    shown = kept.pictures
    assert shown is not None
    last = run.points[run.points["step"] == 40]
    bits = run.bits(last[last["attack"] == shown.attack].iloc[0])
    right = shown.predicted == kept.labels[shown.places]
    assert right[0].tolist() == bits["report/clean"][shown.places].tolist()
    assert (right[0] & right[1]).tolist() == bits["report/robust"][shown.places].tolist()
    assert right[0].any()
    spared = ~right[0]
    assert np.array_equal(shown.attacked[spared], shown.clean[spared])


def test_the_saved_model_gives_these_answers_again(run: Run) -> None:
    shown = kept_of(run).pictures
    assert shown is not None
    model = tiny.backbone(pt.FullFineTune(bn="adapt"))
    pt.remove_adapter(model)
    pt.load_adapter(model, run.path / "adapter")
    for when, images in enumerate((shown.clean, shown.attacked)):
        with torch.no_grad():
            sure, classes = answer(model.eval(), torch.from_numpy(images)).softmax(1).max(1)
        assert classes.tolist() == shown.predicted[when].tolist()
        assert sure.numpy() == pytest.approx(shown.confidence[when], abs=1e-5)


def test_evaluating_them_changes_no_number() -> None:
    model, split = tiny.backbone(pt.FullFineTune()).eval(), tiny.data().report
    seen: list[tuple[object, list[int]]] = []
    alone = pt.evaluate(model, split, ATTACKS, batch_size=16)
    watched = pt.evaluate(
        model,
        split,
        ATTACKS,
        batch_size=16,
        seen=lambda attack, places, *_: seen.append((attack, places.tolist())),
    )
    assert np.array_equal(alone.clean, watched.clean)
    for attack in ATTACKS:
        assert np.array_equal(alone.robust[attack], watched.robust[attack])
        assert (
            sorted(p for a, places in seen if a == attack for p in places)
            == np.flatnonzero(alone.clean).tolist()
        )
    assert [p for attack, places in seen if attack is None for p in places] == list(range(len(split)))


def test_a_run_that_was_stopped_ends_with_the_same_pictures(tmp_path: Path) -> None:
    def stop(status: object) -> None:
        if getattr(status, "step", 0) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path / "stopped", progress=stop)
    half = kept_of(load_runs(tmp_path / "stopped")[0])
    assert half.pictures is None
    assert len(half.labels) == len(tiny.data().report)
    tiny.run(tmp_path / "stopped")
    tiny.run(tmp_path / "whole")
    stopped, whole = ((tmp_path / name / EXAMPLES).read_bytes() for name in ("stopped", "whole"))
    assert hashlib.sha256(stopped).digest() == hashlib.sha256(whole).digest()


def test_a_run_that_an_older_version_began_keeps_them_from_here_on(tmp_path: Path) -> None:
    def stop(status: object) -> None:
        if getattr(status, "step", 0) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path / "run", progress=stop)
    (tmp_path / "run" / EXAMPLES).unlink()
    assert kept_of(tiny.run(tmp_path / "run")).pictures is not None


def test_images_are_chosen_by_place_and_class_alone() -> None:
    labels = torch.tensor([1, 1, 0, 1, 2, 0])
    assert first_of_classes(labels, 2) == [0, 2]
    assert first_of_classes(labels, 5) == [0, 2, 4, 1, 5]
    assert first_of_classes(labels, 9) == [0, 2, 4, 1, 5, 3]


@pytest.mark.parametrize("fit", [0, 2, 6])
def test_their_size_is_limited(fit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", fit * 2 * 4 * 3 * 8 * 8 + 1)
    album = Album(tiny.data().report, ATTACKS[0])
    shown = album.pictures(1, "A", Processes())
    assert (0 if shown is None else len(shown.places)) == fit


@pytest.mark.slow
def test_several_processes_keep_what_they_saw_between_them(together: Path) -> None:  # noqa: F811
    (run,) = load_runs(together / "learning")
    kept = kept_of(run)
    shown = kept.pictures
    assert shown is not None
    bits = run.bits(run.points.iloc[-1])
    right = shown.predicted == kept.labels[shown.places]
    assert right[0].tolist() == bits["report/clean"][shown.places].tolist()
    assert (right[0] & right[1]).tolist() == bits["report/robust"][shown.places].tolist()
    assert ((shown.attacked != shown.clean).any(axis=(1, 2, 3)) == right[0]).all()
    assert (shown.confidence > 0.05).all()


def test_answers_among_some_classes_are_told_as_classes() -> None:
    split = tiny.data().report
    some = pt.data.ImageSplit(
        split.labels.clamp(min=7), split.ids, lambda rows: split[rows][0], "x", split.classes, among=(7, 8, 9)
    )
    album = Album(some, ATTACKS[0])
    places = torch.arange(len(some))
    logits = torch.nn.functional.one_hot(some.labels - 7, 3).float()
    album(None, places, some[:][0], logits)
    pictures = album.pictures(1, "none", Processes())
    assert pictures is not None
    assert pictures.predicted[0].tolist() == some.labels[pictures.places].tolist()


def test_every_class_that_labels_number_has_a_name() -> None:
    def scores(**changes: Any) -> Scores:
        bits = np.ones(2, dtype=bool)
        return Scores(bits, {}, "x", **{"classes": 3, "labels": np.array([1, 2])} | changes)

    assert scores().class_names == ("0", "1", "2")
    assert scores(names=("a", "b", "c")).class_names == ("a", "b", "c")
    # A model that answers among three of many has three logits.
    assert scores(labels=np.array([4, 9])).class_names == tuple(map(str, range(10)))
