"""Published tables: the script computes what can be computed otherwise, and the page tells what the rows have."""

import hashlib
import importlib
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import paretune as pt

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/concepts/published.md"
PROTOCOLS = {"FFT (50 epochs)": 1.0, "FFT (5 epochs)": 0.3, "LP (50 epochs)": 0.1}


@pytest.fixture
def published(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("published")


def write(path: Path) -> pd.DataFrame:
    """A table with the columns of results_dataset.csv: nine backbones, of which the first convolutional one is the best."""
    random, rows = np.random.default_rng(0), []
    for kind, model_type in enumerate(("fully convolutional", "hybrid", "fully attention")):
        for number, strategy in enumerate(("supervised", "supervised (robust)", "self-supervised")):
            for dataset in ("caltech101", "flowers-102", "stanford_cars"):
                for (protocol, share), loss in itertools.product(PROTOCOLS.items(), ("TRADES", "Classic AT")):
                    clean = 0.9 - 0.1 * kind - 0.03 * number - 0.02 * random.random()
                    robust = clean * share * (0.6 if loss == "TRADES" else 0.5)
                    rows.append(
                        {
                            "clean_acc": clean,
                            **dict.fromkeys(("Linf_acc", "L2_acc", "L1_acc"), robust),
                            "common_acc": 0.8 * clean,
                            "backbone": f"{model_type} {number}",
                            "dataset": dataset,
                            "loss_function": loss,
                            "pre_training_strategy": strategy,
                            "volume_pre_training_data": 1_281_167 if number else 14_197_122,
                            "backbone_name": "other" if kind or number else "convnext_b,sup,in22k",
                            "model_type": model_type,
                            "ft_strategy": protocol,
                        }
                    )
    pd.DataFrame(rows).to_csv(path)
    return pd.DataFrame(rows)


def run(*arguments: object) -> str:
    command = [sys.executable, ROOT / "benchmarks/published.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_downloaded_table_is_measured_and_its_version_is_told(tmp_path) -> None:
    table = write(tmp_path / "results_dataset.csv")
    run("--results", tmp_path / "results_dataset.csv", "--rows", tmp_path / "rows.csv")
    rows = pd.read_csv(tmp_path / "rows.csv")
    rows = rows[rows["table"] == "1,440 results"].set_index(["group", "covers"])
    content = (tmp_path / "results_dataset.csv").read_bytes()
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    assert set(rows["source"]) == {f"results_dataset.csv, git blob {blob[:7]}"}

    def areas(*keys: str) -> pd.Series:
        return table.groupby([*keys]).apply(lambda points: pt.area(points["clean_acc"], points["Linf_acc"]))

    best = dict(areas("dataset", "backbone").groupby("dataset").idxmax())
    told = rows[rows["task"].isin(best.keys())].reset_index("group")
    assert [*zip(told["task"], told["group"], strict=True)] == [*best.values()]
    of = areas("loss_function", "backbone", "dataset")
    for covers, unit in (("data sets", "dataset"), ("backbones", "backbone")):
        means = of.groupby(["loss_function", unit]).mean()
        paired = stats.ttest_rel(means["TRADES"], means["Classic AT"])
        row = rows.loc[("TRADES − Classic AT", covers)]
        np.testing.assert_allclose(
            [row["value"], row["low"], row["high"], row["p"]],
            [(means["TRADES"] - means["Classic AT"]).mean(), *paired.confidence_interval(), paired.pvalue],
            rtol=1e-4,
        )
    podium = rows[rows["task"] == "FFT (50 epochs)"].droplevel("covers")["agree"]
    assert podium["convnext_b,sup,in22k / TRADES"] == True  # noqa: E712
    assert podium["coatnet_2,sup,in12k / TRADES"] == False  # noqa: E712


def test_the_committed_rows_are_what_the_script_writes_and_the_page_shows(tmp_path) -> None:
    committed = ROOT / "benchmarks/published.csv"
    shutil.copy(committed, tmp_path / "rows.csv")
    printed = run("--rows", tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text("utf-8") == committed.read_text("utf-8")
    page = PAGE.read_text("utf-8")
    tables = [block for block in printed.split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    assert all(table in page for table in tables)


def test_what_rounding_allows_are_the_extremes_over_all_corners(published) -> None:
    rows = [row for row in published.above_averages() if row["task"] == "Stanford Dogs"]
    areas = published.GIVEN.query("task == 'Stanford Dogs'").head(len(rows))["number"].to_numpy()
    corners = areas + published.HALF * np.array([*itertools.product((-1, 1), repeat=len(areas))])
    above = 100 * (corners / corners.mean(axis=1, keepdims=True) - 1)
    np.testing.assert_allclose([row["low"] for row in rows], above.min(axis=0))
    np.testing.assert_allclose([row["high"] for row in rows], above.max(axis=0))


def test_the_sentences_of_the_page_are_those_of_the_rows(published) -> None:
    rows, told = pd.read_csv(published.ROWS), " ".join(PAGE.read_text("utf-8").split())
    above = rows[rows["table"] == "above average"].set_index(["group", "task"])
    dogs = above.loc[("Compacter", "Stanford Dogs"), "value"]
    assert f"{dogs:.1f} is what the same strategy has on Stanford Dogs" in told
    assert f"is {above.loc[('BitFit', 'CIFAR-100'), 'value']:.1f} on CIFAR-100 by the table" in told
    areas = rows[rows["table"] == "areas"]
    assert f"none of the {len(areas)} pairs of strategies" in told
    assert f"(smallest adjusted p {areas['p'].min():.2f})" in told
    assert areas["p"].min() > 0.05
    given = published.GIVEN[published.GIVEN["table"] == "above average"]
    leads = {}
    for task, of in given.groupby("task"):
        (first, most), (second, next_) = of.nlargest(2, "number")[["group", "number"]].to_numpy()
        leads[task] = first, second, round(100 * (most - next_))
    assert {leads.pop("CIFAR-10")[0], leads.pop("CIFAR-100")[0]} == {"BitFit"}
    assert {*leads.values()} == {("Compacter", "BitFit", 1)}
    ppt = rows[rows["table"] == "PPT"]
    assert f"{int(ppt['agree'].sum())} of {len(ppt)} values follow" in told
    others = ppt[~ppt["agree"].astype(bool)]
    assert (others["value"].round(2) - others["published"]).abs().to_list() == pytest.approx([0.01] * 6)
    vtab = ppt[ppt["task"] == "VTAB"].set_index("group")
    assert vtab["published"].nlargest(2).to_dict() == {"DTL": 0.75, "HST": 0.74}  # alone
    assert f"it has {vtab.loc['DTL', 'value']:.4f} and GPS {vtab.loc['GPS', 'value']:.4f}, a" in told
    assert vtab.loc["DTL", "high"] > vtab.loc["GPS", "low"]
    fgvc = ppt[ppt["task"] == "FGVC"].set_index("group")
    assert fgvc.loc["GPS", "published"] == fgvc.loc["SNF", "published"] == fgvc["published"].max()
    values = fgvc["value"].round(3)
    assert f"SNF, with {values['SNF']}, is ahead of GPS, with {values['GPS']}" in told
    results = rows[rows["table"] == "1,440 results"]
    assert {*results["source"]} == {f"robust_training@{published.COMMIT}"}
    assert f"commit {published.COMMIT}" in told
    podium = results[results["published"].notna()]
    assert f"all {len(podium)} places" in told
    assert podium["agree"].all()
    (tied,) = results[results["group"].str.startswith(published.BEST)].to_dict("records")
    assert f"{tied['value']:g} of 40 backbones" in told
    assert tied["group"].endswith(" 40 backbones")
    best = results[results["covers"].isna() & results["published"].isna()]["group"]
    assert best.str.contains("convnext").all()
    assert "three are robust, and two are CLIP's" in told
    assert (best.str.startswith("robust").sum(), best.str.startswith("CLIP").sum()) == (3, 2)
    told_apart = results[results["low"] > 0].groupby("group")["covers"].agg(set).to_dict()
    both, convolutional = {"data sets", "backbones"}, "fully convolutional"
    assert told_apart.pop(f"{published.CLAIMED} (4) − others (36)") == both
    assert told_apart.pop("CLIP-convnext_base_w-laion_aesthetic-s13B-b82K − efficientnet-b0") == {"data sets"}
    assert told_apart == {
        "FFT (50 epochs) − FFT (5 epochs)": both,
        "FFT (50 epochs) − LP (50 epochs)": both,
        "TRADES − Classic AT": {"backbones"},
        f"{convolutional} − fully attention": {"data sets"},
        "hybrid − fully attention": {"data sets"},
    }
