"""One thread: the models here are too small to share, and results do not depend on the machine's cores. No deadlines:
how long a test takes depends on what else the machine does.
"""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("paretune", deadline=None)
settings.load_profile("paretune")
