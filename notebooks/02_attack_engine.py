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
# # The attack engine: cheap passes, strict numbers
#
# Adversarial training and evaluation are forward and backward passes, hundreds of them. At equal precision no attack loop
# beats another by much; the *model that it differentiates* decides. So paretune attacks a frozen twin of your model: the
# same function, in the form whose input gradient is cheapest. Your model is only ever read.
#
# This notebook takes a ConvNet apart, lets a ViT choose its precision, and compares attacks, on a CPU in a few minutes.

# %%
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch

import paretune as pt
from paretune.attacks import FGSM, Square, attack_copy, masking_findings

torch.set_num_threads(1)  # the same numbers on any number of cores
scratch = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A model that resists
#
# LoRA on EfficientNet-Lite0, adversarially trained on digits for five epochs at L∞ 2/255.

# %%
threat = pt.Linf(2 / 255)
data = pt.load_data("digits", img_size=24, limit=1000)
model = pt.adapt(pt.load_backbone("efficientnet-lite0", num_classes=10, img_size=24), pt.LoRA(rank=8))
objective = pt.AdversarialTraining(pt.PGD(threat, steps=3))
pt.train(model, data, objective, epochs=5, eval_every=10_000, out=scratch / "run", progress=False)
images, labels = data.report[:64]

# %% [markdown]
# ## What the copy does
#
# The adapters are merged into the weights, each batch norm is folded into the convolution before it, the layout is channels
# last. The answers stay the same up to rounding.

# %%
victim = attack_copy(model)
with torch.no_grad():
    difference = (victim(images) - model.eval()(images)).abs().max()
print(f"{len(victim.folded)} batch norms folded, channels last: {victim.channels_last}")
print(f"largest difference of a logit: {difference:.1e}, of logits up to {model(images).abs().max():.0f}")


# %%
def seconds(work, repeat=3):
    """CPU time, the median of a few after a warm-up."""
    taken = []
    for _ in range(repeat + 1):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return sorted(taken[1:])[repeat // 2]


def plain(model):
    """PGD-10 as most codes have it: loss.backward() on the model itself."""
    low, high = (images - threat.epsilon).clamp(0, 1), (images + threat.epsilon).clamp(0, 1)
    adv = images
    for _ in range(10):
        adv = adv.detach().requires_grad_()
        torch.nn.functional.cross_entropy(model(adv), labels).backward()
        adv = (adv + threat.epsilon / 4 * adv.grad.sign()).clamp(low, high)
    model.zero_grad()


attack = pt.PGD(threat, steps=10, keep="last")
times = {
    "backward() on the model": seconds(lambda: plain(model)),
    "attack copy": seconds(lambda: attack(victim, images, labels)),
}
figure, ax = plt.subplots(figsize=(6, 1.6))
ax.barh(list(times), list(times.values()), color=["#999999", "#0072B2"])
ax.set_xlabel("CPU seconds for PGD-10 on 64 images")
ax.invert_yaxis()

# %% [markdown]
# ## Precision is measured, not assumed
#
# bfloat16 makes a ViT cheaper where the processor has fast units for it, and can spoil the input gradient of a ConvNet with
# batch norms. `precision="auto"` compares both gradients and both times on the first batch, and says what it found. The
# default is float32, which gives the same numbers everywhere. Images, perturbations, losses and every verdict are always
# float32.

# %%
vit = pt.load_backbone("dinov2-small", num_classes=10, img_size=56)
larger = pt.load_data("digits", img_size=56, limit=1000).report[:16][0]
for name, network, batch in (("EfficientNet-Lite0", model, images), ("DINOv2 ViT-S", vit, larger)):
    choosing = attack_copy(network, precision="auto")
    pt.PGD(threat, steps=1, keep="last")(choosing, batch, torch.zeros(len(batch), dtype=torch.long))
    print(f"{name}: {choosing.precision}; {choosing.decision.reason}")

# %% [markdown]
# ## How strict is each attack?
#
# Each finds images that the model gets wrong within 2/255. Fewer survivors means a stricter attack. AutoAttack runs a
# sequence, each attack on what the earlier ones left; its defaults are the published ones, here they are shortened.

# %%
attacks = {
    "FGSM": FGSM(threat),
    "PGD-10": pt.PGD(threat, steps=10),
    "PGD-40": pt.PGD(threat, steps=40),
    "APGD-40": pt.attacks.APGD(threat, steps=40),
    "Square, 100 queries": Square(threat, queries=100),
    "AutoAttack, short": pt.AutoAttack(threat, steps=40, targets=2, queries=50),
}
rows = []
with torch.no_grad():
    right = model(images).argmax(1) == labels
for name, each in attacks.items():
    began = time.process_time()
    images_adv = each(victim, images, labels)
    taken = time.process_time() - began
    with torch.no_grad():  # the model itself judges, in float32
        robust = right & (model(images_adv).argmax(1) == labels)
    rows.append({"attack": name, "robust": float(robust.float().mean()), "seconds": taken})
strictness = pd.DataFrame(rows).set_index("attack")
print(f"clean accuracy {right.float().mean():.3f}")
strictness.round(3)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True)
left.barh(strictness.index, strictness.robust, color="#0072B2")
left.set_xlabel("robust accuracy (lower is stricter)")
right.barh(strictness.index, strictness.seconds, color="#D55E00")
right.set_xlabel("CPU seconds")
left.invert_yaxis()
figure.tight_layout()

# %% [markdown]
# ## AutoAttack, stage by stage
#
# `run` tells what each stage did. With `state=DIRECTORY` it goes on after a kill, and gives the same answer.

# %%
result = attacks["AutoAttack, short"].run(victim, images, labels, state=scratch / "autoattack")
for stage in result.stages:
    print(f"{stage.name:8s} attacked {stage.attacked:3d}, left {stage.robust:3d} of {len(images)}")

# %% [markdown]
# ## Too good to be true?
#
# A model whose gradients are useless resists gradient attacks without being robust. Scaling the logits of our model
# by a million does that: the softmax saturates. The checks notice, and stay quiet on the model itself.


# %%
class Masked(torch.nn.Module):
    """The same decisions, gradients gone."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return 1e6 * self.inner(images)


print("the model:", masking_findings(model, images, labels, threat) or "nothing found")
for finding in masking_findings(Masked(model), images, labels, threat):
    print("masked:", finding)

# %% [markdown]
# ## Against other libraries
#
# The committed rows of `benchmarks/strictness.py` (two adversarially fine-tuned models, the same images and budgets for
# every library) and `benchmarks/attacks.py` (CPU time of one thread, in turns, medians).

# %%
benchmarks = next(
    folder / "benchmarks" for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "benchmarks").is_dir()
)
rows = pd.read_csv(benchmarks / "strictness.csv")
rows["model"] = rows["model"].str.split().str[0]
rows.pivot_table(index=["model", "threat", "attack"], columns="library", values="robust").round(3)
