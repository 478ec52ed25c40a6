"""What the numbers of published tables say when they are computed again. Nothing is trained.

    python benchmarks/published.py                                  # from benchmarks/published_given.csv
    python benchmarks/published.py --results results_dataset.csv    # and with the third table measured anew

Both write benchmarks/published.csv, of which a row is one number: ``published`` as its authors have it, ``value`` as it is
here, ``low`` and ``high`` over what ``covers`` names, ``p`` of a difference, Holm-adjusted, and whether the two ``agree`` as
far as rounding goes.

1. **Above average**: areas (``number``) of seven strategies on five data sets, and the percentages of the abstract, of which
   two are "over 75" (Li et al. 2025, "On the Robustness Tradeoff in Fine-Tuning", https://arxiv.org/abs/2503.14836). The
   areas are as others cite them. Their two digits stand for a range, and so does all that follows from them.
2. **PPT** of V-PETL Bench (Xin et al. 2024): score * exp(-log10(M / 10 + 1)), with M million trained parameters. Scores in
   percent (``number``), ``millions`` and PPT are those of the README of
   https://github.com/synbol/Parameter-Efficient-Transfer-Learning-Benchmark, commit c188fad.
3. **1,440 results**: 40 backbones on six data sets, with two losses and three protocols (Heuillet et al., "A Guide to
   Robust Generalization", https://arxiv.org/abs/2508.14079). Its repository has no licence, so the table is not here:
   download results_dataset.csv from https://github.com/MaxHeuillet/robust_training. It has no seeds. What repeats are
   backbones and data sets, and intervals are over one or the other. Given are the first three places of each protocol,
   from results_analysis/latex_tables there.
"""

import argparse
import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import paretune as pt
from paretune.frontiers.inference import holm
from paretune.frontiers.repeats import Spread, gap

ROWS = Path(__file__).with_suffix(".csv")
GIVEN = pd.read_csv(ROWS.with_name("published_given.csv"))
COLUMNS = ["table", "task", "group", "published", "value", "low", "high", "covers", "p", "agree", "source"]
ABOVE, PPT, RESULTS = "above average", "PPT", "1,440 results"
HALF = 0.005  # what two digits may hide
BLOB, COMMIT = "996b0af679652e3f799d007c646a027da13e6677", "4c886c1"  # of the third table
MEANING = {"clean": "clean_acc", "robust": "Linf_acc", "task": "dataset"}  # of its columns
ACCURACIES = ("clean_acc", "Linf_acc", "L2_acc", "L1_acc", "common_acc")
CLAIMED = "convolutional, supervised, on more than ImageNet-1k"
IMAGENET_1K = 1_281_167  # images
BEST = "not told apart from the best"
Row = dict[str, Any]


def above_average(area: float, others: Sequence[float]) -> float:
    """By how many percent an area lies above the mean of all."""
    return 100 * (area / float(np.mean([area, *others])) - 1)


def above_averages() -> Iterator[Row]:
    """Each area above the mean of its data set. It rises with the area and falls with the others: so do the extremes."""
    shared = {"covers": "rounding", "source": "arXiv 2503.14836"}
    given = GIVEN[GIVEN["table"] == ABOVE]
    for _, of_task in given.groupby("task", sort=False):
        areas = of_task["number"].tolist()
        for place, row in enumerate(of_task[["table", "task", "group", "published"]].to_dict("records")):
            area, others = areas[place], areas[:place] + areas[place + 1 :]
            low = above_average(area - HALF, [other + HALF for other in others])
            high = above_average(area + HALF, [other - HALF for other in others])
            value, claim = above_average(area, others), row["published"]
            agree = None if math.isnan(claim) else low <= claim <= high
            yield shared | row | {"value": value, "low": low, "high": high, "agree": agree}
    areas = given.rename(columns={"group": "strategy", "number": "area"})
    yield from differences("areas", areas, "arXiv 2503.14836")


def ppt(score: float, millions: float) -> float:
    """Of a score in [0, 1] that was reached with so many million trained parameters."""
    return score * math.exp(-math.log10(millions / 10 + 1))


def ppts() -> Iterator[Row]:
    """PPT of each row; scores are rounded to 0.01 % or coarser, parameters to 0.01 million, and PPT to two digits."""
    shared = {"covers": "rounding", "source": "V-PETL Bench@c188fad"}
    for row in GIVEN[GIVEN["table"] == PPT].to_dict("records"):
        score, millions = row.pop("number") / 100, row.pop("millions")
        low, high = ppt(score - 5e-5, millions + HALF), ppt(score + 5e-5, max(0.0, millions - HALF))
        agree = low <= row["published"] + HALF and high >= row["published"] - HALF
        yield shared | row | {"value": ppt(score, millions), "low": low, "high": high, "agree": agree}


def differences(table: str, areas: pd.DataFrame, source: str) -> Iterator[Row]:
    """Mean differences of areas, from columns strategy, task, area and perhaps backbone.

    Over data sets, with the mean over backbones in each, they are as paretune has them without seeds; over backbones they
    are of means over data sets. Given as seeds, one backbone on six data sets would count as six trainings.
    """
    means = areas.groupby(["strategy", "task"], as_index=False)["area"].mean()
    # The area under a single point of clean accuracy 1 is its robust accuracy.
    across = pt.analyze(means.assign(clean=1.0), robust="area", task="task").across
    assert across is not None
    spreads: list[Spread | None] = [None] * len(across.pairs)
    if "backbone" in areas:
        by_backbone = areas.groupby(["strategy", "backbone"])["area"].mean()
        of = {name: by_backbone[name].to_dict() for name in across.ranked}
        spreads = [gap(of[pair.strategy_a], of[pair.strategy_b]) for pair in across.pairs]
    adjusted = iter(holm([spread.p_value for spread in spreads if spread is not None]))
    shared = {"table": table, "task": f"{len(across.tasks)} data sets", "source": source}
    for pair, spread in zip(across.pairs, spreads, strict=True):
        row = shared | {"group": f"{pair.strategy_a} − {pair.strategy_b}", "value": pair.mean_difference}
        yield row | {"low": pair.low, "high": pair.high, "covers": "data sets", "p": pair.p_value}
        if spread is not None:
            low, high = spread.interval(across.level)
            yield row | {"low": low, "high": high, "covers": "backbones", "p": next(adjusted)}


def measured(path: Path) -> Iterator[Row]:
    """The third table: who is best where, which differences intervals allow, and the authors' own ranking."""
    across = pt.analyze(path, group="backbone", **MEANING).across  # also checks the file
    assert across is not None
    frame, content = pd.read_csv(path), path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    source = f"robust_training@{COMMIT}" if blob == BLOB else f"{path.name}, git blob {blob[:7]}"
    shared = {"table": RESULTS, "source": source}
    for winner in across.winners:
        yield shared | {"task": winner.task, "group": winner.strategy, "value": winner.area}
    several = shared | {"task": f"{len(across.tasks)} data sets", "covers": "data sets"}
    yield several | {"group": f"{BEST}, of {len(across.ranked)} backbones", "value": len(across.tied)}
    ends = (across.ranked[0], across.ranked[-1])
    (pair,) = (pair for pair in across.pairs if (pair.strategy_a, pair.strategy_b) == ends)
    interval = {"value": pair.mean_difference, "low": pair.low, "high": pair.high, "p": pair.p_value}
    yield several | {"group": " − ".join(ends)} | interval

    supervised = frame["pre_training_strategy"].isin(["supervised", "supervised (multistep)"])
    claimed = supervised & (frame["model_type"] == "fully convolutional")
    claimed &= frame["volume_pre_training_data"] > IMAGENET_1K
    count = frame["backbone"][claimed].nunique()
    frame["claim"] = np.where(claimed, f"{CLAIMED} ({count})", f"others ({len(across.ranked) - count})")
    for group in ("ft_strategy", "loss_function", "model_type", "claim"):
        areas = [
            {"strategy": area.strategy, "task": area.task, "backbone": backbone, "area": value}
            for area in pt.analyze(frame, group=group, seed="backbone", **MEANING).areas
            for backbone, value in zip(area.seeds, area.per_seed, strict=True)
        ]
        yield from differences(RESULTS, pd.DataFrame(areas), source)

    frame["group"] = frame["backbone_name"] + " / " + frame["loss_function"]
    given = GIVEN[GIVEN["table"] == RESULTS]
    for protocol, podium in given.groupby("task", sort=False):
        of = frame[frame["ft_strategy"] == protocol]
        ranks = [of.groupby("dataset")[name].rank(method="min") for name in ACCURACIES]
        summed = of.assign(ranks=sum(ranks)).groupby(["backbone", "group"])["ranks"].sum()
        places = summed.rank(ascending=False, method="min").groupby("group").min()
        for row in podium[["task", "group", "published"]].to_dict("records"):
            place = places.get(row["group"], math.nan)  # names are not unique, but those given are
            yield shared | row | {"value": place, "agree": place == row["published"]}


def percent(row: Row) -> str:
    """With what rounding allows."""
    return f"{row['value']:.1f} ({row['low']:.0f} to {row['high']:.0f})".replace("-", "−")


def summary(rows: pd.DataFrame) -> Iterator[str]:
    """The tables of docs/concepts/published.md."""
    above = rows[rows["table"] == ABOVE]
    sets = above["task"].unique()
    yield f"| strategy | {' | '.join(sets)} |\n" + "|---" * (1 + len(sets)) + "|"
    for strategy, of in above.groupby("group", sort=False):
        yield f"| {strategy} | {' | '.join(map(percent, of.to_dict('records')))} |"
    yield "\n| abstract | published | from the table | rounding allows it |\n|---|---|---|---|"
    for row in above[above["published"].notna()].to_dict("records"):
        allowed = "yes" if row["agree"] else "no"
        yield f"| {row['group']}, {row['task']} | {row['published']:g} | {percent(row)} | {allowed} |"
    yield "\n| table | method | PPT published | from score and parameters |\n|---|---|---|---|"
    for row in rows[(rows["table"] == PPT) & rows["agree"].eq(False)].to_dict("records"):
        yield f"| {row['task']} | {row['group']} | {row['published']:.2f} | {row['value']:.4f} |"
    yield "\n| data set | largest area | |\n|---|---|---|"
    results = rows[(rows["table"] == RESULTS) & rows["published"].isna()]
    for row in results[results["covers"].isna()].to_dict("records"):
        yield f"| {row['task']} | `{row['group']}` | {row['value']:.3f} |"
    yield (
        "\n| difference of mean areas | | data sets like these | p | backbones like these | p |\n"
        + "|---" * 6
        + "|"
    )
    for group, both in results[results["low"].notna()].groupby("group", sort=False):
        cells = [str(group), f"{both['value'].iloc[0]:.3f}"]
        for row in both.to_dict("records"):  # that over data sets is always there, and the first
            cells.append(f"{row['low']:.3f} to {row['high']:.3f}".replace("-", "−"))
            cells.append(f"{row['p']:.3f}" if row["p"] >= 0.001 else "below 0.001")
        yield f"| {' | '.join(cells + [''] * (6 - len(cells)))} |"


def main() -> None:
    """Compute, write the rows, print what they say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, help="results_dataset.csv; without it its rows stay as they are"
    )
    parser.add_argument("--rows", type=Path, default=ROWS, help="the CSV file of the rows")
    chosen = parser.parse_args()
    if chosen.results is not None:
        results = pd.DataFrame([*measured(chosen.results)])
    else:
        known = pd.read_csv(chosen.rows)
        results = known[known["table"] == RESULTS]
    computed = pd.DataFrame([*above_averages(), *ppts()])
    rows = pd.concat([computed, results], ignore_index=True).reindex(columns=COLUMNS)
    rows = rows.round(dict.fromkeys(["value", "low", "high"], 9))  # differences of equals are 0
    rows.to_csv(chosen.rows, index=False, float_format="%.6g", lineterminator="\n")
    print(*summary(rows), sep="\n")


if __name__ == "__main__":
    main()
