# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Select a strategy, and defend the choice
#
# "A is better than B on my task" has to survive three questions: were the checkpoints chosen on the images that measure
# them, did A get more tries, and would another test set or another seed say the same? First with runs of this library, which
# know which images were right, then with somebody's table, which knows less.
#
# Everything runs offline on a CPU.

# %%
import dataclasses
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import paretune as pt
from paretune.report.drawing import styles
from paretune.sweeps.config import CompareConfig, Seeds, Strategies
from paretune.sweeps.grid import run_all

place = Path(os.environ.get("PARETUNE_OUT") or tempfile.mkdtemp())  # runs that are there are not repeated

# %% [markdown]
# ## From runs
#
# Three strategies on digits at 24 px, EfficientNet-Lite0, measured under the same attack. Each is trained twice, under
# attack and on clean images, the two ends of a trade-off if there is one. All get the same budget.

# %%
config = CompareConfig(
    strategies=Strategies((pt.FullFineTune(), pt.LoRA(), pt.BitFit())),
    seeds=Seeds((0,)),
    limit=800,
    epochs=4,
    points=6,
)
natural = dataclasses.replace(config, train_steps=0)
runs = run_all([*config.runs(), *natural.runs()], place / "runs", progress=False)
points = pt.load_points(place / "runs")
print(f"{len(runs)} runs, {len(points)} points; {int(points['examples'].iloc[0])} images measure them")

# %% [markdown]
# ### What each strategy offers
#
# A point is a checkpoint. The frontier holds those that no other beats in both accuracies, and the area under its staircase
# is the mean best robust accuracy over all demands on clean accuracy. Its reference point is fixed before looking: (0, 0).
# Checkpoints are chosen on the select split and measured on the report split, or the area would be a maximum over noise.

# %%
comparison = pt.compare(runs)
(condition,) = comparison.conditions
comparison.to_frame()[["strategy", "area", "low", "high", "optimistic", "k", "trainable_parameters"]].round(3)

# %% [markdown]
# `optimistic` is what choosing and measuring on the same images would have said. The intervals resample the images, the
# same ones for every strategy, so differences are paired and sharper than two intervals that overlap suggest.

# %%
for d in condition.differences:
    print(
        f"{d.strategy_a} - {d.strategy_b}: {d.difference:+.3f} ({d.low:+.3f} to {d.high:+.3f}), "
        f"adjusted p = {d.p_value:.3f}"
    )

# %% [markdown]
# ### The choice
#
# Of those that may be the best, the cheapest: the tests and the margin leave these, and with 95 % confidence the largest
# true area is among them. The recommendation says how certain it is, and what would make it surer.

# %%
(advice,) = pt.recommend(runs)
print(f"{advice.strategy} ({advice.certainty})\n")
print(advice.reason, "\n")
print("may be the best:", ", ".join(advice.confidence_set))
print(*advice.would_change, sep="\n")

# %% [markdown]
# ### The picture to show
#
# Frontiers on the left: where robust training costs no clean accuracy they are corners. Areas with their intervals on the
# right.

# %%
looks = styles(each.strategy for each in condition.areas)
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 5.2), width_ratios=(1.5, 1), layout="constrained")
pt.report.plot_frontiers(runs, ax=left)
least = min(each.low for each in condition.areas)
for rank, each in enumerate(condition.areas):
    colour = looks[each.strategy].colour
    right.plot(
        [each.low, each.high], [rank, rank], color=colour, linewidth=3, alpha=0.55, solid_capstyle="round"
    )
    right.plot(each.area, rank, "o", color=colour, markersize=9, markeredgecolor="white")
    right.annotate(
        f"{each.strategy}  {each.area:.3f}  ({each.trainable_parameters:,} trained)",
        (least, rank - 0.22),
        fontsize=9,
    )
right.set(ylim=(len(condition.areas) - 0.6, -0.6), yticks=[], xlabel="Area under the frontier")
told = f"cheapest of {len(advice.tied)} tied" if len(advice.tied) > 1 else "told apart from the rest"
right.set_title(f"Use {advice.strategy}: {told}", loc="left")
right.spines[["top", "right", "left"]].set_visible(False)
right.grid(axis="x", alpha=0.2)
figure.savefig(place / "select.png", dpi=160)

# %% [markdown]
# Demands change the answer, so state them before looking: what one would not deploy below, and what one can afford. The
# area is then of the part of the plane above the floor.

# %%
(floored,) = pt.recommend(runs, min_clean=0.9)
print(floored.reason)

# %% [markdown]
# ## From somebody's table
#
# Simulated here: eight data sets, four methods, three seeds, accuracies in percent under column names of their own. The
# truth is known. `tuned` is as good as `plain`, but its author evaluated five times as many checkpoints.

# %%
rng = np.random.default_rng(0)
gains = {"plain": 0.0, "tuned": 0.0, "wide": 2.0, "late": -4.0}
rows = []
for number in range(8):
    for method, gain in gains.items():
        for seed in range(3):
            evaluations = 50 if method == "tuned" else 10
            progress = np.arange(1, evaluations + 1) / evaluations
            luck = rng.normal(0, 0.6)
            clean = 93 - 20 * progress**2 - 2 * number + rng.normal(0, 0.8, evaluations)
            robust = 10 + 35 * np.sqrt(progress) + gain + luck + rng.normal(0, 0.8, evaluations)
            rows += [
                {"dataset": f"set {number}", "method": method, "run": seed, "acc": c, "pgd_acc": r}
                for c, r in zip(clean.round(2), robust.round(2), strict=True)
            ]
pd.DataFrame(rows).to_csv(place / "results.csv", index=False)
columns = {"group": "method", "clean": "acc", "robust": "pgd_acc", "task": "dataset", "seed": "run"}

# %% [markdown]
# Nothing is guessed. Percentages have to be named as such:

# %%
try:
    pt.analyze(place / "results.csv", **columns)
except ValueError as error:
    print(str(error).replace(str(place), "…"))

# %%
analysis = pt.analyze(place / "results.csv", **columns, percent=True)
first = analysis.tasks[0]
print(first.verdict, "\n")
print(*first.notes, sep="\n")

# %% [markdown]
# The table says less than runs do: not which test images were right. So intervals come from the three repeats, and are about
# the luck of training only.
#
# Every method counts with ten evenly spaced points of each frontier. What the fifty of `tuned` would gain by their number
# alone:

# %%
unequal = pt.analyze(place / "results.csv", **columns, percent=True, equal_budgets=False)
mean = {
    name: each.to_frame().groupby("group")["area"].mean()
    for name, each in (("equal", analysis), ("all", unequal))
}
pd.DataFrame(mean).rename_axis(columns="points counted").round(4)

# %% [markdown]
# Over several data sets, each is one observation: Student's t over their differences, about data sets like these. The
# repeats say besides how sure the mean difference is on these alone. What is not settled says what more would settle it.

# %%
print(analysis.across.verdict, "\n")
for pair in analysis.across.pairs:
    print(
        f"{pair.strategy_a} - {pair.strategy_b}: {pair.mean_difference:+.3f} ({pair.low:+.3f} to {pair.high:+.3f}), ahead "
        f"on {pair.wins} of {len(analysis.tasks)}, behind on {pair.losses}, p = {pair.p_value:.3f} after Holm"
    )

# %% [markdown]
# The same from the command line, with `areas.csv` and a page that opens without a network:
#
# ```bash
# paretune analyze results.csv --group method --clean acc --robust pgd_acc --task dataset --seed run --percent --out analysis
# ```

# %%
page = pt.report.write_analysis(analysis, place / "analysis", title="Somebody's table")
print(f"{page.name}: {page.stat().st_size / 1e6:.2f} MB")
