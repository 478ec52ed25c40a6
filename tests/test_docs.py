"""The examples run as they stand: those of a page from top to bottom in an empty directory, and those of docstrings."""

import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from paretune.commands.cli import main
from paretune.sweeps.executors import Job
from tests.test_published import write as results_dataset
from tests.unit.data.test_emoji import write as emoji

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCES = sorted((ROOT / "src").rglob("*.py"))
# Those that train for long, or many runs.
SLOW = {
    *("planning", "racing", "inheritance", "clusters", "averaging", "several-tasks", "areas-and-intervals"),
    *("own-data", "distance", "reading-a-report", "shifts", "anchors"),
}
PAGES = [
    pytest.param(
        page,
        id=str(page.relative_to(DOCS)),
        marks=[pytest.mark.slow] if page.parent == DOCS or page.stem in SLOW else [],
    )
    for page in sorted(DOCS.rglob("*.md"))
    if re.search(r"^```(python|bash)$", page.read_text("utf-8"), re.M)
]
SHORT = {"--limit": 100, "--epochs": 1, "--points": 1, "--train-steps": 1, "--eval-steps": 1}
# Of each command, instead of the defaults.
FAST: dict[str, dict[str, int]] = {
    "compare": {**SHORT, "--seeds": 0},
    "plan": SHORT,
    "train": SHORT,
    "evaluate": {"--limit": 40, "--steps": 1},
}


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of each example."""
    yield from re.findall(r"^```(python|bash)\n(.*?)^```$", page.read_text("utf-8"), flags=re.M | re.S)


def flowers(folder: Path) -> None:
    """Three classes of small images, as the page on data assumes."""
    generator = np.random.default_rng(0)
    for name in ("daisy", "rose", "tulip"):
        (folder / name).mkdir(parents=True)
        for number in range(50):
            Image.fromarray(generator.integers(0, 256, (28, 24, 3), dtype=np.uint8)).save(
                folder / name / f"{number:03}.png"
            )


def run_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run one line of a console block as a shell would."""
    words = shlex.split(os.path.expandvars(line), comments=True)
    if name := re.fullmatch(r"(\w+)=(\w+)", line):
        os.environ[name[1]] = name[2]
    elif words[:1] == ["paretune"]:
        given = {word for word in words if word.startswith("--")}
        fast = FAST.get(words[1], {})
        if "--until" in given:  # which needs more than one
            fast = {option: value for option, value in fast.items() if option != "--seeds"}
        for option, value in fast.items():
            words += [] if option in given else [option, str(value)]
        try:
            code = main(words[1:])
        except SystemExit as stopped:  # --print-config
            code = stopped.code
        assert code == 0, f"{line}: {capsys.readouterr().err}"
    else:
        assert words[0] in ("python", "torchrun", "ray"), line  # installing, and what has a test of its own


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEED", "")
    monkeypatch.setattr(
        os, "sched_getaffinity", lambda _process: {0}, raising=False
    )  # one worker of one thread
    for picture in ("frontier_png", "frontier_pdf"):  # slow, and the same as everywhere
        monkeypatch.setattr(f"paretune.report.page.{picture}", lambda *_, **__: b"")
    if page.stem != "clusters":  # nor is there a process for each sweep
        monkeypatch.setattr(Job, "stays_here", lambda _job: "it is a test")
    if page.stem in ("own-data", "domains", "augmentation", "several-tasks"):
        flowers(tmp_path / "flowers")
    if page.stem == "domains":
        emoji(tmp_path)
    if page.stem == "results-from-elsewhere":
        results_dataset(tmp_path / "results_dataset.csv")
    names: dict[str, object] = {"__name__": "__main__"}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), names)
        else:
            for line in text.replace("\\\n", " ").splitlines():
                run_command(line, capsys)


@pytest.mark.parametrize(
    "file", [path for path in SOURCES if ">>> " in path.read_text("utf-8")], ids=lambda file: file.stem
)
def test_the_examples_of_a_docstring_run(file) -> None:
    name = ".".join(file.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    tried = doctest.testmod(importlib.import_module(name))
    assert tried.attempted
    assert not tried.failed


@pytest.mark.slow
def test_the_script_for_several_processes_runs_under_torchrun(tmp_path) -> None:
    (script,) = (text for _, text in blocks(DOCS / "how-to/clusters.md") if text.startswith("# train.py"))
    (launch,) = (
        text for _, text in blocks(DOCS / "how-to/clusters.md") if re.match(r"torchrun .*train\.py$", text)
    )
    (tmp_path / "train.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *launch.split()[1:]]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT / "src"),
    }
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "runs/one/DONE").exists()


def test_the_coverage_told_is_the_coverage_measured() -> None:
    rows = pd.read_csv(ROOT / "benchmarks/coverage.csv")
    by_method = {method: group["coverage"] for method, group in rows.groupby("method")}
    told = " ".join((DOCS / "concepts/areas-and-intervals.md").read_text("utf-8").split())
    basic, naive = by_method["basic"], by_method["naive"]
    assert f"In its {len(basic)} settings" in told
    for each in (basic, naive):
        assert f"in {100 * each.min():.1f} to {100 * each.max():.1f} of 100" in told


def test_the_correlations_told_are_those_of_the_rows(monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("distance")
    rows, told = benchmark.read(), (DOCS / "concepts/distance.md").read_text("utf-8")
    assert len({(row["proxy"], row["downstream"]) for row in rows}) == len(rows) >= 20
    assert f"\n{len(rows)} pairs" in told
    table = [*benchmark.summary(rows)]
    assert "\n".join(table) in told
    lows = {
        line.split("|")[1].strip(" `"): [float(low) for low in re.findall(r"\((\S+) to", line)]
        for line in table[2:]
    }
    assert all(low < 0 for kind, each in lows.items() if "pixels" in kind for low in each)
    assert min(lows["OTDD()"]) > 0.5


def test_the_savings_of_races_told_are_those_of_the_rows(monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "coverage", raising=False)  # that of ours, not that which measures tests
    benchmark = importlib.import_module("racing")
    rows, told = benchmark.read(), (DOCS / "how-to/racing.md").read_text("utf-8")
    assert "\n".join(benchmark.summary(rows)) in told
    (real,) = (row for row in rows if row["kind"] == "small 7x5")
    assert f"after {float(real['share']):.0%}".replace("%", " %") in told
    assert (real["left"], real["whole"], real["same"]) == ("FullFineTune", "FullFineTune", "True")
    simulated = [row for row in rows if row["kind"] == "simulated"]
    assert len(simulated) == len([*benchmark.grid()])
    worst = max(float(row["error"]) for row in simulated)
    assert f"In {1000 * worst:.0f} of 1000" in told
    assert all(float(row["error_high"]) < 0.05 for row in simulated)
    same = [float(row["share"]) for row in simulated if (row["lead"], row["ratio"]) == ("0.0", "1.0")]
    assert min(same) < 0.34


def test_what_is_told_of_shifts_is_in_the_rows(monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("shift")
    rows, told = pd.read_csv(benchmark.FILE), (DOCS / "concepts/shifts.md").read_text("utf-8")
    told = told.replace("\n", " ")
    answers = benchmark.answers(rows)
    assert " ".join(benchmark.table(answers)) in told
    assert set(answers["runs"]) == {7 * 3}
    assert len(answers) == 6
    assert "all six intervals of the slope lie above zero" in told
    assert answers["slope_low"].min() > 0
    assert "correlation within a run is 0.95 or more" in told
    assert answers["correlation"].min() >= 0.95
    same = int((answers["best_shifted"] == answers["best_area"]).sum())
    assert f"is the best by the other in {['none', 'one', 'two', 'three'][same]} of six cases" in told
    last = rows[(rows["task"] == "emoji") & (rows["step"] == rows["step"].max())]
    best = last.groupby(["training", "strategy"])["clean"].mean().max()
    assert f"no strategy ends above {best:.0%} there" in told


def test_the_bill_of_an_answer_and_of_reuse_are_in_the_rows(monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("answer")
    assert "\n".join(benchmark.bill()) in (DOCS / "how-to/racing.md").read_text("utf-8")
    rows = pd.read_csv(benchmark.WHERE)
    parts = rows.loc[rows["variant"] == "grid", "loading":"rest"]
    share = 100 * parts.div(parts.sum(axis=1), axis=0)
    share["outside"] = 100 - share[["attack", "descent", "evaluation"]].sum(axis=1)
    told = " ".join((DOCS / "how-to/racing.md").read_text("utf-8").split())
    texts = {name: f"{share[name].min():.0f} to {share[name].max():.0f} %" for name in share}
    assert f"{texts['evaluation']} are evaluation, {texts['attack']} attacks of training" in told
    assert (
        f"{texts['descent']} learning; bringing the attacked copy up to date takes {texts['refresh']}" in told
    )
    assert f"backbone {share['loading'].max():.1f} % at most" in told
    assert f"no pass of the model {texts['outside']}" in told
    rows = pd.read_csv(ROOT / "benchmarks/reuse.csv").set_index("way")
    told = " ".join((DOCS / "how-to/reuse.md").read_text("utf-8").split())
    scratch, reuse, one, several = (f"{count:,}" for count in rows["gradient_evaluations"])
    assert f"{scratch} from scratch, {reuse} with `--reuse`, with the same accuracies" in told
    assert f"Three radii took {one} one by one and {several} in one pass" in told
    assert rows["highest_above_scratch"].max() <= 0
    assert rows["lowest_below_scratch"].min() >= 0


def test_readme_and_pages_link_to_files_that_exist() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")):
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert "://" in link or (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("script", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda script: script.stem)
def test_a_notebook_shows_the_cells_of_its_script(script) -> None:
    import jupytext

    shown, written = jupytext.read(script.with_suffix(".ipynb")).cells, jupytext.read(script).cells
    assert [(cell.cell_type, cell.source) for cell in shown] == [
        (cell.cell_type, cell.source) for cell in written
    ]
    assert any(cell.get("outputs") for cell in shown), "run it: the site shows its output"


def test_broken_links_of_a_site_are_found(tmp_path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="here"></h1><a href="b.html#there">1</a><a href="#here">2</a><a href="https://example.org">3</a>'
        '<a href="b.html#nowhere">4</a><a href="c.html">5</a><a href="#nowhere">6</a><img src="d.png">'
        '<script src="https://example.org/x.js"></script><link href="//example.org/y.css"><img src="data:,">'
    )
    (tmp_path / "b.html").write_text('<a name="there" href="a.html">back</a>')
    checked = subprocess.run(
        [sys.executable, DOCS / "links.py", tmp_path], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 1
    told = [re.search(r"(?:refers to|loads) ([^,\s]+)", line)[1] for line in checked.stderr.splitlines()]  # type: ignore[index]
    elsewhere = ["https://example.org/x.js", "//example.org/y.css"]
    assert told == ["b.html#nowhere", "c.html", "#nowhere", "d.png", *elsewhere]


def test_what_many_runs_take_is_what_was_measured(monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("thousands")
    rows, told = benchmark.read(), (DOCS / "how-to/many-runs.md").read_text("utf-8")
    assert "\n".join(benchmark.summary(rows)) in told
    for work in ("load_runs", "recommend", "watch, first"):  # ten times the runs take about ten times as long
        few, many = (
            float(row["cpu_seconds"])
            for runs in ("500", "5000")
            for row in rows
            if (row["runs"], row["work"]) == (runs, work)
        )
        assert many < 15 * few
    pages = [int(row["answer"]) for row in rows if row["work"] == "write_report"]
    assert f"the page has {pages[-1] / 1e6:.1f} MB then" in told
    assert max(pages) < 3e6
