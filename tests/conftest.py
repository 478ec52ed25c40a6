"""One thread: the models here are too small to share, and results do not depend on the machine's cores."""

import torch

torch.set_num_threads(1)
