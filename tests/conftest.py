"""One thread, also in the processes that tests start: the models here are too small to share, threads of several processes
that wait for each other on few cores take many times as long, and results do not depend on the machine's cores. No
deadlines: how long a test takes depends on what else the machine does.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("paretune", deadline=None)
settings.load_profile("paretune")
