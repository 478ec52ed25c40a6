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
# # Out of distribution: what fine-tuning keeps, and what it costs
#
# A model meets other images than those it was tuned on: worse cameras, other seasons, other styles. Li et al. (ICCV 2025)
# find that over fine-tuning, accuracy on such images tracks accuracy on clean ones. Here that is measured on a small task:
# three strategies, digits, and the common corruptions of Hendrycks and Dietterich
# ([2019](https://arxiv.org/abs/1903.12261)), offline on a CPU in a few minutes.

# %%
import logging
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch

import paretune as pt
from paretune.runs import load_runs
from paretune.shifts import Corruption, Corruptions, Invert
from paretune.shifts.distances import OTDD, distance
from paretune.shifts.measures import Baseline, by_corruption, mean_corruption_error

torch.set_num_threads(1)  # the same numbers on any number of cores
logging.getLogger("paretune").setLevel(logging.ERROR)
place = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A shift is a value
#
# It makes other images of the same examples, which get the same pixels in any batch and any process.

# %%
data = pt.load_data("digits", img_size=24, limit=600)
shown = [
    Corruption("gaussian_noise", severity=5),
    Corruption("fog", severity=5),
    Corruption("glass_blur", severity=5),
    Invert(),
]
images = {"clean": data.report}
for shift in shown:
    images |= shift.of(data.report)
figure, axes = plt.subplots(len(images), 6, figsize=(6, 6))
for row, (name, split) in zip(axes, images.items(), strict=True):
    for place_of, image in zip(row, split[:6][0], strict=True):
        place_of.imshow(image.permute(1, 2, 0))
        place_of.set_axis_off()
    row[0].set_title(name, fontsize=9, loc="left")
figure.tight_layout()

# %% [markdown]
# ## Train, and measure shifted images at each point
#
# Training is natural here, as in the papers. Clean and robust accuracy choose the points on the select split; what is
# shifted chooses nothing.

# %%
comparison = pt.sweep(
    "digits",
    strategies="FullFineTune, LoRA, LinearProbe",
    seeds=(0, 1),
    limit=600,
    train_steps=0,
    epsilon="1/255",
    eval_steps=3,
    epochs=3,
    points=4,
    shifts=[Corruptions("common", severities=(3,))],
    shift_limit=40,
    out=place / "runs",
    workers=1,
    progress=False,
)
print(comparison)

# %% [markdown]
# The last two tables are the third axis: the volume below clean, robust and shifted accuracy, and how many points of
# shifted accuracy went with one point of clean accuracy along training. A slope near 1 with a high correlation says that
# the two moved together in these runs, not that the one makes the other.

# %%
points = pt.load_points(place / "runs")
figure, axis = plt.subplots(figsize=(5, 4))
for strategy, group in points.groupby("strategy", sort=False):
    axis.plot(group["clean"], group["clean_elsewhere"], "o", label=strategy)
axis.set(xlabel="clean accuracy", ylabel="accuracy on corrupted images")
axis.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# ## Mean corruption error
#
# A corruption error is relative to a model that is named: here the linear probe, which leaves the network as it was.


# %%
def measured(run) -> tuple[float, dict[str, float]]:
    """Clean accuracy of the adapter of a run, and its accuracy on all 75 sets of corrupted images."""
    model = pt.load_backbone("efficientnet-lite0", num_classes=10, img_size=24)
    pt.load_adapter(model, run.path / "adapter")
    scores = pt.evaluate(model, data.report.first(40), shifts=[Corruptions("common")])
    return scores.clean_accuracy, scores.shifted_accuracy


runs = {run.config["strategy"]: run for run in load_runs(place / "runs") if run.config["seed"] == 0}
clean, shifted = measured(runs["LinearProbe"])
probe = Baseline("linear probe", clean, by_corruption(shifted))
rows = []
for name in ("FullFineTune", "LoRA"):
    clean, shifted = measured(runs[name])
    rows.append((name, clean, mean_corruption_error(by_corruption(shifted), probe)))
pd.DataFrame(rows, columns=["strategy", "clean", "mCE against the probe"]).set_index("strategy").round(3)

# %% [markdown]
# ## How far away is a shift?
#
# The optimal-transport distance between labelled data sets (Alvarez-Melis and Fusi
# [2020](https://arxiv.org/abs/2002.02923)) needs no model that was tuned. Whether it predicts what is lost is an empirical
# question, which `benchmarks/distance.py` asks.

# %%
near = Corruption("fog", severity=1).of(data.report)["fog 1"]
far = next(iter(Invert().of(data.report).values()))
for name, split in {"fog 1": near, "inverted": far}.items():
    print(name, distance(data.train, split, OTDD(on="pixels"), limit=100, resamples=20))
