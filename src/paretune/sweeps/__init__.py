"""A grid of runs, on one machine or many, and the configuration that names each."""

from paretune.sweeps.entry import sweep
from paretune.sweeps.protocol import inheritance

__all__ = ["inheritance", "sweep"]
