"""A grid of runs on one machine, and the configuration that names each."""

from paretune.sweeps.entry import sweep

__all__ = ["sweep"]
