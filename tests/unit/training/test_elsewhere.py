"""What is elsewhere, such as domains that are not trained on, is measured at each point, kept, and gone on with."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

import paretune as pt
from paretune.data.images import ImageData
from paretune.runs.progress import Status
from paretune.runs.rows import elsewhere_of
from paretune.runs.store import Run, RunWriter, load_runs
from paretune.training.averaging import wise_ft
from tests import tiny
from tests.unit.training.test_loop import same_run

ATTACK = pt.PGD(pt.Linf(4 / 255), steps=3)


def domains() -> ImageData:
    """Digits as they are, which are trained on; and inverted ones and faint ones, of other digits, 9 not among them."""
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float()[:, None]
    labels = torch.from_numpy(digits.target)
    later = torch.arange(200, len(labels))[labels[200:] < 9]
    parts = {
        "plain": (images[:200], labels[:200]),
        "inverted": (1 - images[later[:60]], labels[later[:60]]),
        "faint": (images[later[60:103]] / 4, labels[later[60:103]]),
    }
    return pt.load_data(
        {name: TensorDataset(*part) for name, part in parts.items()}, train_domains=["plain"], img_size=8
    )


def train(out: Path, data: ImageData | None = None, **changes: Any) -> Run:
    options: dict[str, Any] = {"steps": 10, "eval_every": 4, "attacks": [ATTACK], "progress": False} | changes
    model = options.pop("model", None) or tiny.backbone(pt.FullFineTune(bn="adapt"))
    objective = pt.AdversarialTraining(pt.PGD(pt.Linf(4 / 255), steps=2))
    options["optimizer"] = pt.training.AdamW(5e-3)
    return pt.train(model, data or domains(), objective, out=out, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("elsewhere")
    train(root / "clean")
    train(root / "attacked", attack_elsewhere=True)
    return root


def test_bits_are_those_of_an_evaluation_of_the_saved_adapter(finished: Path) -> None:
    (run,) = load_runs(finished / "attacked")
    data, model = domains(), pt.remove_adapter(tiny.backbone(pt.FullFineTune(bn="adapt"))).eval()
    pt.load_adapter(model, run.path / "adapter")
    last = run.points.iloc[-1]
    bits = run.bits(last)
    for name, split in data.elsewhere.items():
        scores = pt.evaluate(model, split, [ATTACK])
        np.testing.assert_array_equal(bits[f"elsewhere/{name}/clean"], scores.clean)
        np.testing.assert_array_equal(bits[f"elsewhere/{name}/robust"], scores.robust[ATTACK])
        assert last[f"clean_in_{name}"] == scores.clean_accuracy
        assert last[f"robust_in_{name}"] == scores.robust_accuracy(ATTACK)
        assert elsewhere_of(last)[name]["id"] == split.fingerprint
    for kind in ("clean", "robust"):
        pooled = np.concatenate([bits[f"elsewhere/{name}/{kind}"] for name in ("inverted", "faint")])
        assert last[f"{kind}_elsewhere"] == pytest.approx(pooled.mean(), abs=1e-12)
        assert len(pooled) == last["examples_elsewhere"] == 103
    assert last["clean_in_inverted"] != last["clean_in_faint"]


def test_elsewhere_is_clean_alone_unless_asked_and_changes_nothing_else(
    finished: Path, tmp_path: Path
) -> None:
    (clean,), (attacked,) = load_runs(finished / "clean"), load_runs(finished / "attacked")
    assert "robust_elsewhere" not in clean.points
    assert "elsewhere/faint/robust" not in clean.bits(clean.points.iloc[0])
    same = ["step", "clean", "robust", "clean_select", "robust_select", "clean_in_faint", "clean_in_inverted"]
    assert clean.points[same].equals(attacked.points[same])
    alone = train(tmp_path / "alone", replace(domains(), elsewhere={}))
    assert alone.points[same[:5]].equals(clean.points[same[:5]])
    assert not [column for column in alone.points if "elsewhere" in column]


def test_a_stopped_run_ends_as_if_it_had_not_been(finished: Path, tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    for last in (2, 5, 9):

        def stop(status: Status, last: int = last) -> None:
            if status.step == last:
                raise Stop

        with contextlib.suppress(Stop):
            train(tmp_path / "stopped", progress=stop, attack_elsewhere=True)
    train(tmp_path / "stopped", attack_elsewhere=True)
    same_run(finished / "attacked", tmp_path / "stopped")
    points = [load_runs(path)[0].points for path in (finished / "attacked", tmp_path / "stopped")]
    assert points[0]["elsewhere"].tolist() == points[1]["elsewhere"].tolist()


def test_other_examples_elsewhere_are_another_run(finished: Path) -> None:
    data = domains()
    with pytest.raises(ValueError, match="another configuration: data"):
        train(finished / "clean", replace(data, elsewhere={"faint": data.elsewhere["faint"]}))
    with pytest.raises(ValueError, match="attack_elsewhere: True there, nothing here"):
        train(finished / "attacked", data)


def test_attacking_elsewhere_needs_something_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="attack_elsewhere: data 'digits' has nothing elsewhere"):
        train(tmp_path / "run", tiny.data(), attack_elsewhere=True)
    assert not (tmp_path / "run").exists()


def test_runs_with_and_without_are_one_table(finished: Path, tmp_path: Path) -> None:
    tiny.run(tmp_path / "plain")
    points = pt.load_points(finished / "clean").assign(task="a")
    both = [*load_runs(finished / "clean"), *load_runs(tmp_path / "plain")]
    assert points["clean_elsewhere"].between(0, 1).all()
    for run in both:
        for _, row in run.points.iterrows():
            assert {"report/clean", "select/robust"} <= {*run.bits(row)}
    comparison = pt.compare(both)
    assert len(comparison.conditions) == 2


def test_damaged_rows_and_bits_are_refused(finished: Path, tmp_path: Path) -> None:
    (run,) = load_runs(finished / "attacked")
    line = json.loads((run.path / "points.jsonl").read_text().splitlines()[0])
    packed = run.bits(line)
    key = line["bits_key"]
    bits = {where.replace("/robust", f"/{key}"): right for where, right in packed.items()}
    RunWriter(tmp_path / "same", run.config).append(line, bits)
    faint = line["elsewhere"]["faint"]
    for changes, message in (
        ({"clean": 2.0}, "clean of faint is a fraction in"),
        ({"clean": "much"}, "clean of faint must be float"),
        ({"examples": 0}, "examples of faint must be a positive number"),
        ({"examples": 42}, "examples_in_faint = 42 > 0 values"),
        ({"clean": faint["clean"] / 2 + 0.001}, "clean_in_faint is"),
        ({"colour": 1}, "must have, by name, examples, id, clean and maybe robust"),
    ):
        wrong = line | {"elsewhere": line["elsewhere"] | {"faint": faint | changes}}
        with pytest.raises(ValueError, match=message):
            RunWriter(tmp_path / "wrong", run.config).append(wrong, bits)
    with pytest.raises(ValueError, match="must have, by name"):
        RunWriter(tmp_path / "wrong", run.config).append(line | {"elsewhere": 3}, bits)
    with pytest.raises(ValueError, match="bits lacks 'elsewhere/faint/clean'"):
        RunWriter(tmp_path / "wrong", run.config).append(
            line, {where: right for where, right in bits.items() if where != "elsewhere/faint/clean"}
        )
    never = bits | {"elsewhere/faint/clean": ~bits["elsewhere/faint/clean"] & False}
    never_said = line | {"elsewhere": line["elsewhere"] | {"faint": faint | {"clean": 0.0}}}
    if faint["robust"]:
        with pytest.raises(ValueError, match="robust implies clean"):
            RunWriter(tmp_path / "wrong", run.config).append(never_said, never)
    other = dict(line, elsewhere=line["elsewhere"] | {"faint": faint | {"id": "other"}})
    with pytest.raises(ValueError, match="is about other examples than the row"):
        run.bits(other)


def test_means_of_runs_are_measured_elsewhere_too(finished: Path, tmp_path: Path) -> None:
    start = tiny.backbone(pt.FullFineTune(bn="adapt"))
    run = wise_ft(
        start, finished / "clean", domains(), alphas=[0.0, 1.0], out=tmp_path / "path", progress=False
    )
    source = load_runs(finished / "clean")[0].points.iloc[-1]
    assert run.points.iloc[-1]["clean_in_faint"] == source["clean_in_faint"]
    assert run.points["clean_elsewhere"].between(0, 1).all()


def test_a_domain_that_was_trained_on_is_not_measured_as_new(tmp_path: Path) -> None:
    """One of several, all of them in one folder or table, or in the table that the training named."""
    pets, rows = tmp_path / "pets", []
    for number in range(120):
        domain, name = ("photo", "art", "sketch")[number % 3], str(number // 3 % 10)
        file = pets / domain / name / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
        rows.append({"path": str(file), "label": name, "domain": domain})
    pd.DataFrame(rows).to_csv(tmp_path / "pets.csv", index=False)
    for source in (pets, tmp_path / "pets.csv"):
        model = tiny.backbone(pt.LinearProbe())
        data = pt.load_data(source, train_domains=["photo", "art"])
        train(tmp_path / f"run{source.suffix}", data, model=model, steps=1, batch_size=4)
        with pytest.raises(ValueError, match="the model was trained on the domains photo, art of"):
            pt.evaluate(model, source)
        if source == pets:
            for trained in ("photo", "art"):
                with pytest.raises(ValueError, match="the model was trained on images of"):
                    pt.evaluate(model, pets / trained)
        assert len(pt.evaluate(model, pets / "sketch").clean) == 40
