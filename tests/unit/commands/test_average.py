"""``paretune average`` from a run of ``paretune train`` to a report, and what it refuses."""

from pathlib import Path

import pytest

import paretune as pt
from paretune.commands.cli import main
from paretune.interchange import read_adapter
from tests.unit.commands.test_cli import SMALL, weights  # noqa: F401  # a fixture


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    complained = capfd.readouterr().err
    assert complained.count("\n") == 1
    return complained


@pytest.mark.slow
def test_runs_of_the_command_line_are_averaged_from_their_directories_alone(
    tmp_path: Path,
    weights: str,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    runs = [str(tmp_path / name) for name in ("lora", "bitfit")]
    for run, strategy in zip(runs, ("LoRA(rank=2)", "BitFit"), strict=True):
        train = ["train", *SMALL, "--weights", weights, "--seed", "3", "--strategy", strategy, "--out", run]
        assert main(train) == 0
    capfd.readouterr()
    wise, soup = str(tmp_path / "wise"), str(tmp_path / "soup")
    arguments = ["average", runs[0], "--weights", weights, "--wise-ft", "1/2,0,1", "--out", wise]
    for _ in range(2):  # a finished one is not repeated
        assert main(arguments) == 0
        told = capfd.readouterr().out
        assert "alpha" in told
        assert f"run: {wise}" in told
    points = pt.load_points(tmp_path).set_index("path")
    assert points.loc[wise, "alpha"].tolist() == [0, 0.5, 1]
    assert points.loc[wise, "clean"].iloc[-1] == points.loc[runs[0], "clean"].iloc[-1]
    assert points.loc[wise, "robust"].iloc[-1] == points.loc[runs[0], "robust"].iloc[-1]
    assert main(["runs", "show", wise]) == 0
    assert "adapter: none\n" in capfd.readouterr().out

    assert main(["average", *runs, "--weights", weights, "--soup", "uniform", "--out", soup]) == 0
    assert f"adapter: {soup}" in capfd.readouterr().out
    assert len(read_adapter(Path(soup) / "adapter")[0]["notes"]["average"]["runs"]) == 2
    merged = str(tmp_path / "merged.safetensors")
    assert main(["adapters", "merge", soup, "--weights", weights, "--out", merged]) == 0
    capfd.readouterr()

    both = ["average", *runs, "--weights", weights, "--wise-ft", "0.5", "--out", str(tmp_path / "no")]
    assert "wise_ft is of one run, got 2" in refused(both, capfd)
    assert "is not an adapter" in refused([*both[:1], wise, *both[3:]], capfd)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either wise_ft, such as 0,0.25,0.5,0.75,1, or soup"),
        (["--soup", "uniform", "--wise-ft", "1"], "give either wise_ft"),
        (["--soup", "learned"], "--soup must be one of uniform, greedy"),
        (["--soup", "uniform", "--by", "robust"], "by='robust' is for greedy soups"),
        (["--wise-ft", "2"], "wise_ft must be numbers from 0 to 1"),
        (["--wise-ft", ","], "wise_ft must be numbers from 0 to 1"),
        (["--wise-ft", "half"], "wise_ft must be a number"),
        (["--soup", "greedy", "--out", ""], "out is empty"),
        (["--soup", "greedy"], "is not a directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_means_nothing_is_refused_before_anything_is_read(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(["average", "no-runs", *arguments], capfd)
    assert not list(tmp_path.iterdir())
