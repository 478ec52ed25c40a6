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
# # The study: does epsilon scheduling rescue parameter-efficient fine-tuning?
#
# `benchmarks/study` trains eight strategies under attack, cell by cell, and keeps which example every checkpoint got
# right. Here its questions are asked of the cells that are whole so far; nothing is trained, and every number can be
# recomputed from the rows. What is asked, and how it is tested, was written down before the runs, in
# `benchmarks/study/README.md`.

# %%
import sys
import tempfile
from pathlib import Path

from IPython.display import Image

sys.path[:0] = [str(Path("../benchmarks").resolve()), str(Path("../benchmarks/study").resolve())]

import _figures
import answers

import paretune as pt

place = Path(tempfile.mkdtemp())
study = answers.Study(answers.read_all(place))
for cell in study.cells:
    print(cell.named())

# %% [markdown]
# ## Scheduled against fixed
#
# The area of each strategy under two hinges minus that under a fixed epsilon, paired over examples and seeds; `p` is
# Holm's over all rows. A strategy is rescued if its fixed runs fail in at least two of three seeds, and its scheduled ones
# in none.

# %%
gains = answers.scheduling(study)
gains.drop(columns="by_seed").round(3)

# %%
file = place / "scheduling.png"
_figures.save(_figures.gains(gains), file)
Image(file)

# %% [markdown]
# The authors of epsilon scheduling chose learning rates under a fixed epsilon. With these, scheduling rescues less:

# %%
answers.scheduling(study, answers.UNDER_FIXED).drop(columns="by_seed").round(3)

# %% [markdown]
# ## The order of strategies
#
# Whether the published winners, BitFit and Compacter, may be best, and how the order in each cell follows that after
# natural training.

# %%
answers.orders(study).round(3)

# %% [markdown]
# A cell is runs like any others: the comparison says what can be said of it.

# %%
print(pt.compare(study.cell(task="digits", epsilon="2/255", schedule="two_hinge").runs[answers.TUNED]))

# %% [markdown]
# ## Shifted and clean accuracy
#
# Slopes of shifted on clean accuracy along training; where a strategy learns, the interval is above 0 in all cells but one.

# %%
slopes = answers.tracking(study)
slopes.round(3)

# %%
file = place / "tracking.png"
_figures.save(_figures.tracking(slopes), file)
Image(file)

# %% [markdown]
# ## Runs that fail
#
# How many of the runs under attack ended at chance, how many of these without a finding that says so, and after which
# share of training the others were told.

# %%
failures = answers.failures(study)
failures.round(3)

# %%
file = place / "failures.png"
_figures.save(_figures.failures(failures), file)
Image(file)

# %% [markdown]
# ## Cheaper ways to the same answer
#
# Whether the last checkpoint chooses as the area does, and what a race over the same runs would have spent.

# %%
answers.winners(study).round(3)

# %%
answers.races(study).round(3)

# %% [markdown]
# Of the runs of seed 0, the points that count were measured once more by a small AutoAttack: areas under PGD, and of the
# same points under that.

# %%
answers.strict(study).round(3)

# %% [markdown]
# Accuracy at the end of training over epsilon, and its mean up to 8/255, the expected robustness, in the cells where it
# was measured.

# %%
answers.over_epsilon(study).round(3)
