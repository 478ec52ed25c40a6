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
# # Quickstart: which strategy is robust on my task?
#
# Two strategies fine-tune the same pretrained network under the same attack; the frontiers say which to use.
# Everything here runs offline on a CPU in about two minutes: the weights (EfficientNet-Lite0, ImageNet) come with a pip
# package, the images (digits) with scikit-learn.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import paretune as pt

torch.set_num_threads(1)  # the same numbers on any number of cores
runs = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Data and backbone
#
# Three splits: `train` is learnt, `select` chooses checkpoints, `report` measures them. Images are in [0, 1];
# the backbone normalises inside.

# %%
data = pt.load_data("digits", img_size=24, limit=800)
print(data)
images, labels = data.report[:8]
figure, axes = plt.subplots(1, 8, figsize=(8, 1.2))
for ax, image, label in zip(axes, images, labels, strict=True):
    ax.imshow(image.permute(1, 2, 0))
    ax.set_title(int(label), fontsize=9)
    ax.axis("off")

# %% [markdown]
# ## Train under attack
#
# The threat: every pixel may change by 2/255. Training attacks each batch with three PGD steps, whose strength grows over
# training (the epsilon schedule): at full strength from the start, the network would not learn the task.

# %%
threat = pt.Linf(2 / 255)
objective = pt.AdversarialTraining(pt.PGD(threat, steps=3))

for strategy in (pt.BitFit(), pt.LoRA(rank=8)):
    backbone = pt.load_backbone("efficientnet-lite0", num_classes=10, img_size=24)
    model = pt.adapt(backbone, strategy)
    trainable = sum(p.numel() for p in pt.strategies.trainable_parameters(model).values())
    run = pt.train(
        model,
        data,
        objective,
        out=runs / type(strategy).__name__,
        epochs=5,
        attacks=[pt.PGD(threat, steps=10)],
        progress=False,
    )
    print(f"{strategy}: {trainable:,} trainable parameters")
    print(run.points[["epoch", "clean", "robust"]].to_string(index=False))

# %% [markdown]
# ## Compare the frontiers
#
# The area under a staircase is the mean best robust accuracy over all demands on clean accuracy. Checkpoints are chosen on
# `select` and measured on `report`.

# %%
figure, ax = plt.subplots(figsize=(6, 5), layout="constrained")
pt.report.plot_frontiers(runs, ax=ax)

# %%
(condition,) = pt.compare(runs).conditions
print(condition.verdict)

# %% [markdown]
# ## Take the adapter along
#
# `model` carries the LoRA now. The file is small, and goes into a stock timm model with the same weights underneath.

# %%
import timm

pt.save_adapter(model, runs / "adapter")
size = sum(file.stat().st_size for file in (runs / "adapter").iterdir())
print(f"{size / 1e6:.1f} MB")

stock = timm.create_model("tf_efficientnet_lite0", num_classes=10)
weights = pt.backbones.offline_weights("efficientnet-lite0")
stock.load_state_dict({k: v for k, v in weights.items() if "classifier" not in k}, strict=False)
pt.load_adapter(stock, runs / "adapter")
with torch.no_grad():
    print("largest difference of a logit:", float((stock((images - 0.5) / 0.5) - model(images)).abs().max()))
