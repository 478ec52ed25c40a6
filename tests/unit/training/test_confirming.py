"""A stricter attack measures the chosen points of a run at its end."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paretune as pt
from paretune.attacks import APGD, AutoAttack, Linf
from paretune.attacks.autoattack_state import Journal
from paretune.commands.cli import main
from paretune.frontiers.confirmed import confirmations
from paretune.frontiers.pareto import area, frontier_mask
from paretune.report.page import report_html
from paretune.runs.store import load_runs
from paretune.sweeps.config import RunConfig
from paretune.sweeps.grid import directory_name
from paretune.training.chosen import chosen_steps
from tests import synthetic, tiny
from tests.unit.training.test_loop import same_run
from tests.unit.training.test_processes import together  # noqa: F401  # a fixture
from tests.unit.training.test_resuming import Stop

STRICT = AutoAttack(Linf(4 / 255), steps=4, queries=8, targets=2)
OPTIONS: dict[str, Any] = {"steps": 24, "optimizer": pt.training.AdamW(5e-3), "ema": 0.5}


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    tiny.run(out, **OPTIONS, confirm=STRICT)
    return out


def test_the_front_of_the_select_split_and_the_last_point_are_confirmed(
    confirmed: Path, tmp_path: Path
) -> None:
    (run,) = load_runs(confirmed)
    points = run.points
    chosen = {*points["step"][frontier_mask(points["clean_select"], points["robust_select"])]} | {24}
    assert {of_step.step for of_step in run.confirmed()} == chosen
    assert 1 < len(chosen) < len(points)
    for of_step in run.confirmed():
        (row,) = points[points["step"] == of_step.step].to_dict("records")
        bits = run.bits(row)
        # The weights are those that were measured then.
        assert np.array_equal(of_step.right_clean, bits["report/clean"])
        assert of_step.clean == row["clean"]
        assert of_step.robust <= row["robust"] + 0.03
    # The last point is that of the adapter, as an evaluation of it finds.
    model = tiny.backbone(pt.FullFineTune(bn="adapt"))
    pt.remove_adapter(model)
    pt.load_adapter(model, confirmed / "adapter")
    scores = pt.evaluate(model, tiny.data().report, [STRICT])
    assert np.array_equal(scores.robust[STRICT], run.confirmed()[-1].right_robust)
    assert run.confirmed()[-1].attack == repr(STRICT)
    # Nothing else is changed, or left.
    tiny.run(tmp_path / "plain", **OPTIONS)
    for file in (tmp_path / "plain/bits").iterdir():
        assert file.read_bytes() == (confirmed / "bits" / file.name).read_bytes()
    assert {path.name for path in confirmed.iterdir()} == {
        path.name for path in (tmp_path / "plain").iterdir()
    } | {"confirmed"}
    assert "confirm" not in load_runs(tmp_path / "plain")[0].config


def test_the_last_point_is_confirmed_although_it_is_worse_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = [(0.95, 0.2), (0.75, 0.6), (0.4, 0.1)]
    monkeypatch.setattr(synthetic, "trajectory", lambda strategy, points: course)
    run = synthetic.write_run(tmp_path / "run", synthetic.STRATEGIES[0])
    assert chosen_steps([run], pt.PGD(pt.Linf(4 / 255))) == [{20, 40, 60}]


@pytest.mark.parametrize("when", ["in the midst of training", "in the midst of an attack", "before the end"])
def test_a_run_that_is_killed_goes_on_and_confirms_the_same(
    when: str, confirmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = [0]
    whole = Journal.write

    def write(self: Journal, *arguments: Any) -> None:
        whole(self, *arguments)
        writes[0] += 1
        if writes[0] == 3:
            raise Stop

    def killed(*_: Any, **__: Any) -> None:
        raise Stop

    def end(status: Any) -> None:
        if status.step == 9:
            raise Stop

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        if when == "in the midst of an attack":
            patched.setattr(Journal, "write", write)
        elif when == "before the end":
            patched.setattr("paretune.training.record.save_adapter", killed)
        with pytest.raises(Stop):
            tiny.run(out, **OPTIONS, confirm=STRICT, progress=end if "training" in when else False)
    assert not (out / "DONE").exists()
    tiny.run(out, **OPTIONS, confirm=STRICT)
    same_run(confirmed, out)
    files = [
        {file.name: file.read_bytes() for file in (path / "confirmed").iterdir()} for path in (confirmed, out)
    ]
    assert files[0] == files[1]
    assert {path.name for path in confirmed.iterdir()} == {path.name for path in out.iterdir()}


@pytest.mark.slow
def test_several_processes_confirm_what_one_measures(together: Path) -> None:  # noqa: F811
    (run,) = load_runs(together / "confirming")
    assert [{of_step.step for of_step in run.confirmed()}] == chosen_steps([run.path], STRICT)
    model = tiny.backbone(pt.FullFineTune(bn="adapt"))
    pt.remove_adapter(model)
    pt.load_adapter(model, run.path / "adapter")
    scores = pt.evaluate(model, tiny.data().report, [STRICT])
    assert run.confirmed()[-1].step == 24
    assert np.array_equal(scores.clean, run.confirmed()[-1].right_clean)
    assert np.array_equal(scores.robust[STRICT], run.confirmed()[-1].right_robust)
    assert not {path.name for path in run.path.iterdir()} & {"confirming", "weights"}


def test_a_run_that_starts_over_keeps_no_confirmation(confirmed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    tiny.run(out, **OPTIONS, confirm=STRICT)

    def end(status: Any) -> None:
        if status.step == 9:
            raise Stop

    with pytest.raises(Stop):
        tiny.run(out, **OPTIONS, confirm=STRICT, resume=False, progress=end)
    (run,) = load_runs(out)
    assert [*run.points["step"]] == [4, 8]
    assert run.confirmed() == []


def test_a_confirmation_that_is_lost_or_damaged_is_seen(confirmed: Path, tmp_path: Path) -> None:
    for number, (change, message) in enumerate(
        (
            (lambda file: file.unlink(), r"step-000024\.safetensors is missing; restore it"),
            (lambda file: file.write_bytes(file.read_bytes()[:-3]), "is damaged"),
        )
    ):
        out = tmp_path / str(number)
        shutil.copytree(confirmed, out)
        change(out / "confirmed/step-000024.safetensors")
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_runs(out)[0].confirmed()


def test_the_tables_and_the_report_name_both_attacks_and_mix_them_in_no_area(confirmed: Path) -> None:
    (run,) = load_runs(confirmed)
    (told,) = confirmations([run])
    assert (told.attack, told.by) == ("PGD(Linf(4/255), steps=3)", repr(STRICT))
    front = [point for point in told.points if point.on_front]
    clean = [point.clean for point in front]
    if (np.diff(clean) <= 0).all():  # else an area in the order of the choice is no maximum
        (strategy,) = told.whole
        both = told.areas(strategy)
        for measured, robust in zip(both, ("robust", "confirmed"), strict=True):
            assert measured <= area(clean, [getattr(point, robust) for point in front]) + 1e-9
    (_, head, areas), (title, _, rows) = told.tables()
    assert head[1:3] == ["area under PGD(Linf(4/255), steps=3)", f"area under {STRICT!r}"]
    assert len(areas) == 1
    assert "confirmed by AutoAttack(Linf(4/255)" in title
    by_step = {of_step.step: of_step.robust for of_step in run.confirmed()}
    assert {int(row[2]): float(row[5]) for row in rows} == pytest.approx(by_step, abs=6e-4)
    assert [row[6] for row in rows].count("frontier") == len(front)
    page = report_html(confirmed, resamples=100)
    assert "Confirmed by a stricter attack" in page
    assert "robust under AutoAttack(Linf(4/255)" in page


def test_a_point_of_the_frontier_that_no_area_counts_is_not_called_the_last_one(confirmed: Path) -> None:
    (told,) = confirmations(load_runs(confirmed), reference=(0.0, 1.0))  # beyond which there is nothing
    names = {point.step: point.chosen_as for point in told.points}
    assert len(names) > 1
    assert names == dict.fromkeys(names, "frontier, without area") | {24: "last point"}


def test_strategies_that_are_confirmed_in_part_have_no_area(confirmed: Path, tmp_path: Path) -> None:
    tiny.run(tmp_path / "other", **OPTIONS, seed=1)
    (told,) = confirmations([*load_runs(confirmed), *load_runs(tmp_path / "other")])
    assert {point.seed for point in told.points} == {0}
    assert told.whole == frozenset()
    assert len([*told.tables()]) == 1
    assert confirmations(load_runs(tmp_path / "other")) == []


def test_what_cannot_confirm_is_refused(tmp_path: Path) -> None:
    for confirm, message in (
        (AutoAttack(Linf(8 / 255)), r"another threat than the points are measured under: Linf\(4/255\)"),
        (APGD(pt.L2(4 / 255)), "another threat"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny.run(tmp_path / "run", confirm=confirm)
    with pytest.raises(TypeError, match="confirm must be an attack"):
        tiny.run(tmp_path / "run", confirm="auto")
    assert not (tmp_path / "run").exists()


def test_the_option_names_an_attack_and_the_run() -> None:
    names = {
        text: directory_name(RunConfig(strategy=pt.LoRA(), confirm=text))
        for text in (None, "auto", "AutoAttack(Linf(2/255))", "APGD(Linf(2/255), steps=50)")
    }
    assert names[None] == "lora-seed0-cea9ba22"  # as before there was such an option
    assert names["auto"] == names["AutoAttack(Linf(2/255))"]
    assert len({*names.values()}) == 3
    config = RunConfig(confirm="APGD(Linf(2/255), steps=50)")
    assert config.confirming == APGD(Linf(2 / 255), steps=50)
    for text in ("APGD(Linf(4/255))", "Nothing()", "Linf(2/255)"):
        with pytest.raises((ValueError, TypeError), match="confirm"):
            RunConfig(confirm=text)


@pytest.mark.parametrize("last", [9, None])
def test_a_run_with_confirmations_is_removed_like_any_other(last: int | None, tmp_path: Path) -> None:
    def end(status: Any) -> None:
        if status.step == last:
            raise Stop

    out = tmp_path / "run"
    with contextlib.suppress(Stop):
        tiny.run(out, **OPTIONS, confirm=STRICT, progress=end)
    assert (out / ("weights" if last else "confirmed")).is_dir()
    main(["runs", "remove", str(out), "--yes"])
    assert not out.exists()


def test_done_says_which_steps_were_confirmed(confirmed: Path) -> None:
    stated = json.loads((confirmed / "DONE").read_text())["confirmed"]
    assert stated == [of_step.step for of_step in load_runs(confirmed)[0].confirmed()]
