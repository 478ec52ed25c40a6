"""Texts that say where runs are made."""

import pytest

from paretune.commands.cli import main
from paretune.sweeps.executors import Executor, read_executor
from paretune.sweeps.executors.local import Local
from paretune.sweeps.executors.ray import Ray
from paretune.sweeps.executors.slurm import Slurm


@pytest.mark.parametrize(
    ("text", "executor"),
    [
        ("local", Local()),
        ("ray", Ray()),
        ("ray:10.0.0.1:6379", Ray(address="10.0.0.1:6379")),
        ("Ray:auto", Ray(address="auto")),
        ("Ray(address='ray://head:10001', cpus_per_run=4)", Ray(address="ray://head:10001", cpus_per_run=4)),
        ("slurm", Slurm()),
        ("Slurm(partition='gpu', hours=8)", Slurm(partition="gpu", hours=8)),
    ],
)
def test_a_text_names_a_place(text: str, executor: Executor) -> None:
    assert read_executor(text) == executor
    assert read_executor(repr(executor)) == executor
    assert read_executor(executor) is executor


def test_a_share_of_a_gpu_takes_the_place_of_that_in_the_text() -> None:
    assert read_executor("Ray(gpus_per_run=1)", gpus_per_run=0.5) == Ray(gpus_per_run=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ray:", "on='ray:' has no address after its colon"),
        ("moon", "on='moon': .*unknown name 'moon'"),
        ("local:8", "on='local:8': "),
        ("Ray(gpus_per_run=2)", "gpus_per_run is the share of one GPU that a run takes"),
        ("Ray(retries=-1)", "retries must be a whole number from 0"),
        ("Ray(addres='x')", "did you mean address"),
    ],
)
def test_what_names_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_executor(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--on", "moon"], "unknown name 'moon'"),
        (["--on", "ray", "--gpus-per-run", "1.5"], "gpus_per_run is the share of one GPU"),
        (["--on", "ray", "--workers", "auto", "--limit", "100"], "workers='auto' measures this machine"),
        (["--workers", "0", "--limit", "100"], "workers must be at least 1"),
        (["--gpus-per-run", "0.5", "--limit", "100"], "gpus_per_run=0.5, but no GPU is visible here"),
    ],
)
def test_the_command_line_refuses_it_too(
    words: list[str],
    message: str,
    tmp_path: object,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["compare", "--out", f"{tmp_path}/runs", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_so_does_inherit(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inherit", "--data", "a=digits,b=digits", "--on", "moon", "--out", f"{tmp_path}/runs"]) == 2
    assert "unknown name 'moon'" in capsys.readouterr().err
    words = ["--on", "ray", "--gpus-per-run", "2"]
    assert main(["inherit", "--data", "a=digits,b=digits", *words, "--out", f"{tmp_path}/runs"]) == 2
    assert "gpus_per_run is the share of one GPU" in capsys.readouterr().err
