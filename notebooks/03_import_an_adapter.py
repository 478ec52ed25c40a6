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
# # Adapters that travel
#
# An adapter trained here goes into peft, timm and transformers, one trained with peft comes in, and so does a Compacter of
# the adapters library. In each case the question is the same: by how much does the largest logit change?
#
# Everything runs offline on a CPU; the weights (EfficientNet-Lite0, ImageNet) come with a pip package.

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import peft
import timm
import torch
import transformers
from safetensors.torch import load_file

import paretune as pt

torch.set_num_threads(1)  # the same numbers on any number of cores
transformers.utils.logging.disable_progress_bar()
scratch = Path(tempfile.mkdtemp())
differences = []


def logits(model, inputs):
    with torch.no_grad():
        output = model.eval()(inputs)
    return getattr(output, "logits", output)


def compare(where, found, expected):
    differences.append(
        {
            "where": where,
            "largest logit": float(expected.abs().max()),
            "largest difference": float((found - expected).abs().max()),
            "same class": float((found.argmax(1) == expected.argmax(1)).float().mean()),
        }
    )


# %% [markdown]
# ## Train here
#
# LoRA on the 1×1 convolutions, trained on digits under attack. (Depthwise convolutions would do for us, but not for peft.)

# %%
data = pt.load_data("digits", img_size=24, limit=800)
backbone = pt.load_backbone("efficientnet-lite0", num_classes=10, img_size=24)
model = pt.adapt(backbone, pt.LoRA(rank=4, targets=("*.conv_pw", "*.conv_pwl")))
objective = pt.AdversarialTraining(pt.PGD(pt.Linf(1 / 255), steps=2))
run = pt.train(
    model,
    data,
    objective,
    out=scratch / "run",
    epochs=4,
    attacks=[pt.PGD(pt.Linf(1 / 255), steps=10)],
    progress=False,
)
print(run.points[["epoch", "clean", "robust"]].tail(1).to_string(index=False))

images, labels = data.report[:64]
expected = logits(model, images)
normalised = (images - model.mean) / model.std  # what the network inside sees, and plain models take

# %% [markdown]
# ## Into peft
#
# The directory is one of ours and one of peft at once. `base()` is a plain timm model with the weights from which training
# began: nothing of paretune in it.


# %%
def base():
    plain = timm.create_model("tf_efficientnet_lite0", num_classes=10)
    weights = pt.backbones.offline_weights("efficientnet-lite0")
    plain.load_state_dict({k: v for k, v in weights.items() if "classifier" not in k}, strict=False)
    return plain


digits = [str(digit) for digit in range(10)]
pt.save_adapter(model, scratch / "adapter", classes=digits)
for file in sorted((scratch / "adapter").iterdir()):
    print(f"{file.name:30s} {file.stat().st_size / 1e3:8.1f} kB")

in_peft = peft.PeftModel.from_pretrained(base(), scratch / "adapter")
compare("peft, on a plain timm model", logits(in_peft, normalised), expected)

# %% [markdown]
# ## Into timm and transformers
#
# As an adapter on a model that already runs, or merged: plain weights in a directory that timm reads, and
# transformers too. `format="hf"` writes transformers models in their own layout, `format="onnx"` a graph for anything else.

# %%
compare("timm, adapter loaded", logits(pt.load_adapter(base(), scratch / "adapter"), normalised), expected)

pt.interchange.export_model(model, scratch / "plain", "timm", classes=digits)
in_timm = timm.create_model(f"local-dir:{scratch / 'plain'}", pretrained=True)
compare("timm, merged", logits(in_timm, normalised), expected)

in_transformers = transformers.AutoModelForImageClassification.from_pretrained(scratch / "plain")
compare("transformers, merged", logits(in_transformers, normalised), expected)
print(in_transformers.config.id2label)

# %% [markdown]
# ## Out of peft
#
# Now the other way: an adapter made by peft, with random values in place of a training.

# %%
torch.manual_seed(0)
config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=r".*\.conv_pwl?", init_lora_weights=False)
made_by_peft = peft.get_peft_model(base(), config)
made_by_peft.save_pretrained(scratch / "from_peft")

imported = pt.import_adapter(base(), scratch / "from_peft")
made_by_peft.base_model.model.classifier.load_state_dict(
    imported.classifier.state_dict()
)  # no head in the file
compare("from peft", logits(imported, normalised), logits(made_by_peft, normalised))

# %% [markdown]
# ## A Compacter of the adapters library
#
# That library needs an older transformers, so these files were recorded beforehand by `tests/fixtures/make_adapters.py`: a
# tiny ViT with random weights, a Compacter++ for it, an input, and the logits that the library computed in float64. Its
# bottlenecks read the sum of the branch and the residual stream, which is why `reads="sum"` appears.

# %%
fixtures = next(
    folder / "tests" / "fixtures" / "adapters"
    for folder in (Path.cwd(), *Path.cwd().parents)
    if (folder / "tests" / "fixtures" / "adapters").is_dir()
)
recorded = load_file(fixtures / "logits.safetensors")
vit = transformers.AutoModelForImageClassification.from_pretrained(fixtures / "base").double()
pt.import_adapter(vit, fixtures / "compacter_pp")
found = logits(vit, recorded["images"].double())
compare("from adapters: Compacter++ (float64)", found, recorded["compacter_pp"])
plain = recorded["base"]  # logits without the adapter
print(
    f"the adapter itself moves a logit by up to {float((recorded['compacter_pp'] - plain).abs().max()):.2f}"
)

# From here on it is an adapter of ours: it can be saved, trained further and attacked.
saved = pt.save_adapter(vit, scratch / "compacter")
print(json.loads((saved / "paretune.json").read_text())["call"])

# %% [markdown]
# ## The table
#
# Rounding and nothing else. Merging rounds each weight once; peft adds its difference to the output instead of the weight.

# %%
table = pd.DataFrame(differences).set_index("where")
table.style.format("{:.3g}")

# %% [markdown]
# ## What the exported model sees
#
# Digits and what the model in transformers says, without and with an attack. The attack takes any classifier of images
# in [0, 1].

# %%
victim = pt.Backbone(in_transformers, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), image_size=24)
attacked = pt.PGD(pt.Linf(1 / 255), steps=10)(victim, images, labels, seed=0)
figure, axes = plt.subplots(2, 10, figsize=(9, 2.4))
for row, (name, batch) in zip(axes, [("clean", images), ("attacked", attacked)], strict=True):
    said = logits(victim, batch).argmax(1)
    row[0].set_ylabel(name)
    for ax, image, answer, truth in zip(row, batch, said, labels, strict=False):
        ax.imshow(image.permute(1, 2, 0))
        ax.set_title(digits[answer], color="black" if answer == truth else "#D55E00", fontsize=10)
        ax.set_xticks([])
        ax.set_yticks([])
    print(f"{name}: {int((said == labels).sum())} of {len(labels)} right")
figure.tight_layout()
