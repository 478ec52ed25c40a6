"""A grid of runs, on one machine or many, and the configuration that names each."""

from paretune.sweeps.entry import compare_until, sweep
from paretune.sweeps.protocol import inheritance

__all__ = ["compare_until", "inheritance", "sweep"]
