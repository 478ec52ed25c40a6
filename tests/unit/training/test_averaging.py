"""WiSE-FT and soups of finished runs: what is measured, chosen, refused, kept, and gone on with."""

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import paretune as pt
from paretune.commands.cli import main
from paretune.interchange import read_adapter
from paretune.interchange.averaging import effective_state
from paretune.runs.store import Run, RunWriter, load_runs
from paretune.strategies import Strategy
from paretune.training.averaging import _Finished, greedy, soup, wise_ft
from paretune.training.keeping import Keep
from paretune.training.objectives import Natural
from tests import tiny

FULL = pt.FullFineTune(bn="adapt")
# Of these, in one base: what merges, in place and by a delta, with statistics that follow; and what is inserted.
STRATEGIES: tuple[Strategy, ...] = (FULL, pt.LoRA(rank=2), pt.BitFit(bn="adapt"), pt.Adapter(reduction=2))


def start(strategy: Strategy, seed: int = 0, head: int | None = None) -> pt.Backbone:
    """As :func:`tests.tiny.backbone`, with a body that is always the same."""
    made = bare()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed if head is None else head)
        made.module[-1].reset_parameters()  # type: ignore[index, operator]
    return pt.adapt(made, strategy, seed=seed)


def bare() -> pt.Backbone:
    return pt.remove_adapter(tiny.backbone(pt.BitFit()))  # type: ignore[return-value]


def trained(out: Path, strategy: Strategy, seed: int = 0, **changes: Any) -> Run:
    options = {"objective": Natural(), "steps": 24, "eval_every": 12, "seed": seed, **changes}
    return tiny.run(out, model=start(strategy, seed, head=0), **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs 0, 1, … of the strategies, and a second one of LoRA."""
    root = tmp_path_factory.mktemp("runs")
    for number, strategy in enumerate(STRATEGIES):
        trained(root / str(number), strategy)
    trained(root / "4", pt.LoRA(rank=2), seed=1)
    return root


def last(run: Run) -> Any:
    return run.points.iloc[-1]


def same_bits(a: Run, row_a: Any, b: Run, row_b: Any) -> bool:
    first, second = a.bits(row_a), b.bits(row_b)
    return all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("number", range(len(STRATEGIES)))
def test_the_ends_of_wise_ft_are_the_start_and_the_run_bit_for_bit(
    number: int, runs: Path, tmp_path: Path
) -> None:
    strategy = STRATEGIES[number]
    (run,) = load_runs(runs / str(number))
    model = start(strategy, head=0)
    before = copy.deepcopy(model.state_dict())
    wise = wise_ft(model, run, tiny.data(), out=tmp_path / "wise", alphas=(1, 0, 0.5))
    assert wise.done
    assert wise.points["alpha"].tolist() == [0, 0.5, 1]
    assert wise.points["step"].tolist() == [0, 500, 1000]
    assert wise.points["attack"].unique().tolist() == run.points["attack"].unique().tolist()
    assert same_bits(wise, last(wise), run, last(run))
    scores = pt.evaluate(model, tiny.data().report, [pt.PGD(pt.Linf(4 / 255), steps=3)])
    bits = wise.bits(wise.points.iloc[0])
    assert np.array_equal(bits["report/clean"], scores.clean)
    assert np.array_equal(bits["report/robust"], next(iter(scores.robust.values())))
    assert not np.array_equal(bits["report/clean"], wise.bits(last(wise))["report/clean"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name in ("trainable_parameters", "train_seconds", "cpu_seconds"):  # it took the run to get there
        assert set(wise.points[name]) == {last(run)[name]}
    assert not (wise.path / "adapter").exists()


def test_its_points_are_read_as_those_of_any_run(runs: Path, tmp_path: Path) -> None:
    for number in ("1", "4"):
        shutil.copytree(runs / number, tmp_path / number)
        seed = int(number == "4")
        wise_ft(
            start(pt.LoRA(rank=2), seed, head=0),
            tmp_path / number,
            tiny.data(),
            out=tmp_path / f"{number}-wise",
        )
    points = pt.load_points(tmp_path)
    assert len(points) == 2 * 2 + 2 * 5
    (condition,) = pt.compare(tmp_path, resamples=100).conditions
    assert {area.strategy: area.seeds for area in condition.areas} == {
        "LoRA(rank=2)": (0, 1),
        "WiSE-FT of LoRA(rank=2)": (0, 1),
    }
    assert pt.recommend(tmp_path, resamples=100)
    assert pt.analyze(points, group="strategy", clean="clean", robust="robust")
    pt.write_report(tmp_path, tmp_path / "report.html", resamples=100)
    assert main(["runs", "show", str(tmp_path / "1-wise")]) == 0


def test_one_alpha_is_kept_as_an_adapter(runs: Path, tmp_path: Path) -> None:
    run = wise_ft(start(FULL, head=0), runs / "0", tiny.data(), out=tmp_path / "half", alphas=[0.5])
    config, _ = read_adapter(run.path / "adapter")
    assert config["notes"]["average"]["alphas"] == [0.5]
    assert config["notes"]["results"][0]["clean"] == last(run)["clean"]
    model = pt.load_adapter(bare(), run.path / "adapter")
    assert np.array_equal(pt.evaluate(model, tiny.data().report).clean, run.bits(last(run))["report/clean"])
    merged = pt.merge_adapter(model)
    assert np.array_equal(pt.evaluate(merged, tiny.data().report).clean, run.bits(last(run))["report/clean"])


def test_stopped_it_goes_on_and_ends_with_the_same_points(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(out: Path) -> Run:
        return wise_ft(start(FULL, head=0), runs / "0", tiny.data(), out=out, alphas=(0, 0.5, 1))

    whole = measured(tmp_path / "whole")
    append, calls = RunWriter.append, 0

    def killed(self: RunWriter, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        append(self, *arguments)

    monkeypatch.setattr(RunWriter, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path / "stopped")
    (stopped,) = load_runs(tmp_path / "stopped")
    assert (len(stopped.points), stopped.done) == (2, False)
    monkeypatch.setattr(RunWriter, "append", append)
    resumed = measured(tmp_path / "stopped")
    assert resumed.done
    assert resumed.key == whole.key
    for name in ("alpha", "step", "clean", "robust", "clean_select", "robust_select"):
        assert resumed.points[name].tolist() == whole.points[name].tolist()
    content = (tmp_path / "stopped/points.jsonl").read_bytes()
    measured(tmp_path / "stopped")
    assert (tmp_path / "stopped/points.jsonl").read_bytes() == content


def test_an_adapter_that_a_killed_process_did_not_keep_is_kept_the_next_time(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def measured(which: str) -> Run:
        if which == "soup":
            return soup(bare(), [runs / "0", runs / "1"], tiny.data(), out=tmp_path / which)
        return wise_ft(start(FULL, head=0), runs / "0", tiny.data(), out=tmp_path / which, alphas=[0.5])

    for which in ("soup", "wise"):
        with monkeypatch.context() as patched:
            patched.setattr("paretune.training.averaging.save_adapter", killed)
            with pytest.raises(KeyboardInterrupt):
                measured(which)
        assert not load_runs(tmp_path / which)[0].done
        assert (measured(which).path / "adapter").is_dir()


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (lambda: start(pt.LoRA(rank=2), seed=1, head=0), {}, "start is not what .* was trained from, LoRA"),
        (lambda: start(pt.LoRA(rank=2), head=1), {}, "start is not what"),
        (lambda: start(pt.LoRA(rank=2, alpha=4.0), head=0), {}, "start is not what"),
        (
            lambda: start(pt.LoRA(rank=2), head=0),
            {"data": tiny.data(200)},
            "is not what .* was trained and measured on",
        ),
        (lambda: start(pt.LoRA(rank=2), head=0), {"alphas": (0, 1.5)}, r"alphas must be numbers in \[0, 1\]"),
        (lambda: start(pt.LoRA(rank=2), head=0), {"alphas": (0.5, 0.5001)}, "differ by a thousandth"),
        (lambda: start(pt.LoRA(rank=2), head=0), {"alphas": ()}, "at least one"),
        (bare, {}, "carries no adapter"),
    ],
)
def test_wise_ft_refuses_what_is_not_of_the_run(
    model: Any, changes: dict[str, Any], message: str, runs: Path, tmp_path: Path
) -> None:
    arguments = {"data": tiny.data()} | changes
    with pytest.raises(ValueError, match=message):
        wise_ft(model(), runs / "1", out=tmp_path / "wise", **arguments)
    assert not (tmp_path / "wise").exists()


def recipe_1(own: Sequence[float], score: Any) -> set[int]:
    """Written after the paper: the best first; each next one is added if ValAcc of the average does not fall."""
    ingredients: set[int] = set()
    value = -1.0
    for model in sorted(range(len(own)), key=own.__getitem__, reverse=True):
        candidate = ingredients | {model}
        accuracy = own[model] if not ingredients else score(sorted(candidate))
        if accuracy >= value:
            ingredients, value = candidate, accuracy
    return ingredients


def test_greedy_is_recipe_1_on_toys() -> None:
    """Models are weight vectors of a linear classifier, whose average is that of the vectors."""
    kept = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(60, 4))
        y = x @ [1, 1, 0, 0] + rng.normal(size=60) > 0
        models = rng.normal([0.7, 0.7, 0, 0], size=(6, 4))

        def score(numbers: Sequence[int], x: Any = x, y: Any = y, models: Any = models) -> float:
            return float(((x @ models[[*numbers]].mean(0) > 0) == y).mean())

        own = [score([number]) for number in range(6)]
        found = greedy(own, score)
        assert set(found) == recipe_1(own, score)
        assert own[found[0]] == max(own)
        kept.add(len(found))
    assert {1, 3} <= kept  # some are left out, some stay


def test_what_is_best_is_clean_or_robust_accuracy_or_their_harmonic_mean() -> None:
    assert [Keep(by).score(0.6, 0.3) for by in ("clean", "robust", "harmonic")] == [
        0.6,
        0.3,
        pytest.approx(0.4),
    ]
    assert Keep("harmonic").score(0.0, 0.0) == 0


def test_greedy_keeps_what_changes_nothing_and_tries_the_first_of_equals_first() -> None:
    tried: list[list[int]] = []

    def score(numbers: Sequence[int]) -> float:
        tried.append([*numbers])
        return 0.5

    assert greedy([0.5, 0.4, 0.5], score) == [0, 2, 1]
    assert tried == [[0, 2], [0, 2, 1]]


@pytest.mark.parametrize("by", ["clean", "robust", "harmonic"])
def test_the_greedy_soup_of_runs_is_recipe_1_on_the_select_split(by: Any, runs: Path, tmp_path: Path) -> None:
    data, attack = tiny.data(), pt.PGD(pt.Linf(4 / 255), steps=3)
    paths = [runs / number for number in "0124"]
    states = []
    for path in paths:
        model = pt.merge_adapter(pt.load_adapter(bare(), path / "adapter"))
        states.append({name: value.double() for name, value in model.module.state_dict().items()})

    def score(numbers: Sequence[int]) -> float:
        plain = bare()
        mean = {name: sum(states[n][name] for n in numbers) / len(numbers) for name in states[0]}
        plain.module.load_state_dict(mean)
        scores = pt.evaluate(plain, data.select, [attack])
        clean, robust = scores.clean_accuracy, scores.robust_accuracy(attack)
        return {
            "clean": clean,
            "robust": robust,
            "harmonic": 2 / (1 / max(clean, 1e-9) + 1 / max(robust, 1e-9)),
        }[by]

    expected = recipe_1([score([number]) for number in range(4)], score)
    run = soup(bare(), paths, data, out=tmp_path / "soup", by=by)
    members = json.loads((run.path / "DONE").read_text())["members"]
    assert {load_runs(path)[0].key for path in paths} >= {*members}
    assert {number for number, path in enumerate(paths) if load_runs(path)[0].key in members} == expected
    assert read_adapter(run.path / "adapter")[0]["notes"]["average"]["runs"] == members


def test_a_run_that_ended_with_its_best_point_is_ranked_by_that(tmp_path: Path) -> None:
    falls = {"optimizer": pt.training.AdamW(2.0, warmup=0.99), "steps": 24, "eval_every": 2}
    kept = tiny.run(tmp_path / "kept", keep="clean", **falls)
    assert kept.kept_step < 24
    best = kept.points.set_index("step").clean_select
    source = _Finished.of(kept)
    assert source.clean_select == best[kept.kept_step] > best[24]
    assert source.cost["gradient_evaluations"] == kept.points.gradient_evaluations.max()


def test_the_report_split_chooses_nothing(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import paretune.training.untrained as module

    measured: list[str] = []
    evaluate = module.evaluate

    def watched(model: Any, split: Any, *arguments: Any, **options: Any) -> Any:
        measured.append("report" if split.fingerprint == tiny.data().report.fingerprint else "select")
        return evaluate(model, split, *arguments, **options)

    monkeypatch.setattr(module, "evaluate", watched)
    run = soup(bare(), [runs / number for number in "0124"], tiny.data(), out=tmp_path / "soup")
    assert measured == ["select"] * 3 + ["report", "select"]
    assert len(run.points) == 1


def test_a_uniform_soup_is_the_mean_of_all_and_costs_what_they_cost(runs: Path, tmp_path: Path) -> None:
    members = [load_runs(runs / number)[0] for number in "124"]
    run = soup(bare(), members, tiny.data(), out=tmp_path / "soup", recipe="uniform")
    models = [pt.load_adapter(bare(), each.path / "adapter") for each in members]
    expected = pt.interchange.average(models)
    found = pt.load_adapter(bare(), run.path / "adapter")
    for name, value in expected.module.state_dict().items():  # type: ignore[union-attr, operator]
        assert torch.equal(found.module.state_dict()[name], value)  # type: ignore[union-attr, operator]
    row = last(run)
    assert row["strategy"] == "uniform soup of BitFit(bn='adapt') and LoRA(rank=2)"
    assert row["train_seconds"] == pytest.approx(sum(last(each)["train_seconds"] for each in members))
    assert row["trainable_parameters"] == max(last(each)["trainable_parameters"] for each in members)
    assert row["seed"] == 0


def test_the_pretrained_model_is_one_of_a_uniform_soup(runs: Path, tmp_path: Path) -> None:
    members = [load_runs(runs / number)[0] for number in "12"]
    base = pt.remove_adapter(start(pt.BitFit(), head=0))
    run = soup(base, members, tiny.data(), out=tmp_path / "soup", recipe="uniform", pretrained=True)
    models = [pt.load_adapter(bare(), each.path / "adapter") for each in members]
    states = [effective_state(model) for model in (base, *models)]
    found = effective_state(pt.load_adapter(bare(), run.path / "adapter"))
    for name, value in found.items():
        if value.is_floating_point():
            mean = torch.stack([state[name].double() for state in states]).mean(0)
            torch.testing.assert_close(value, mean.float())
    assert base.classes is None
    assert (
        last(run)["strategy"]
        == "uniform soup of the pretrained model and BitFit(bn='adapt') and LoRA(rank=2)"
    )
    with pytest.raises(ValueError, match="recipe='uniform'"):
        soup(base, members, tiny.data(), out=tmp_path / "greedy", pretrained=True)


@pytest.mark.parametrize("number", range(len(STRATEGIES)))
@pytest.mark.parametrize("recipe", ["uniform", "greedy"])
def test_a_soup_of_one_run_is_the_run(number: int, recipe: Any, runs: Path, tmp_path: Path) -> None:
    (run,) = load_runs(runs / str(number))
    found = soup(bare(), run, tiny.data(), out=tmp_path / "soup", recipe=recipe)
    assert same_bits(found, last(found), run, last(run))


def test_inserted_modules_that_started_apart_are_averaged_with_a_finding(tmp_path: Path) -> None:
    paths = [tmp_path / "0", tmp_path / "1"]
    for seed, path in enumerate(paths):
        trained(path, pt.Adapter(reduction=2), seed=seed, steps=2)
    trained(tmp_path / "2", pt.Adapter(reduction=2), steps=3)
    apart = soup(bare(), paths, tiny.data(), out=tmp_path / "apart", recipe="uniform")
    together = soup(
        bare(), [paths[0], tmp_path / "2"], tiny.data(), out=tmp_path / "together", recipe="uniform"
    )
    findings = [json.loads((run.path / "DONE").read_text())["findings"] for run in (apart, together)]
    assert "started from different values" in findings[0][0]["finding"]
    assert findings[1] == []


def test_a_soup_refuses_runs_that_have_no_average(runs: Path, tmp_path: Path) -> None:
    trained(tmp_path / "attacked", FULL, steps=2, attacks=[pt.PGD(pt.Linf(2 / 255), steps=1)])
    other = start(pt.FullFineTune(), head=0)
    other = pt.remove_adapter(other)  # type: ignore[assignment]
    with torch.no_grad():
        other.module[0].weight.mul_(1.01)  # type: ignore[index, operator, union-attr]
    pt.adapt(other, FULL)
    tiny.run(tmp_path / "base", model=other, objective=Natural(), steps=2)
    tiny.run(tmp_path / "base2", model=copy.deepcopy(other), objective=Natural(), steps=3)
    shutil.copytree(runs / "0", tmp_path / "unfinished")
    (tmp_path / "unfinished/DONE").unlink()
    for paths, message in (
        ([runs / "0", tmp_path / "attacked"], "differ in attacks"),
        ([runs / "0", tmp_path / "base"], "differ in base weights"),
        ([tmp_path / "base", tmp_path / "base2"], "other base weights than those of backbone"),
        ([runs / "1", runs / "3"], "insert different modules, whose tensors have no average"),
        ([runs / "0", runs / "0"], "is named twice"),
        ([tmp_path / "unfinished"], "has no adapter: the run is not finished"),
    ):
        with pytest.raises(ValueError, match=message):
            soup(bare(), paths, tiny.data(), out=tmp_path / "soup", recipe="uniform")
    with pytest.raises(ValueError, match=r"is not what .* was trained and measured on"):
        soup(bare(), runs / "0", tiny.data(200), out=tmp_path / "soup")
    with pytest.raises(ValueError, match="recipe must be one of uniform, greedy, got 'learned'"):
        soup(bare(), runs / "0", tiny.data(), out=tmp_path / "soup", recipe="learned")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another configuration"):
        soup(bare(), runs / "0", tiny.data(), out=runs / "0")
    with pytest.raises(ValueError, match="already carries"):
        soup(start(FULL), runs / "0", tiny.data(), out=tmp_path / "soup")
    assert not (tmp_path / "soup").exists()
