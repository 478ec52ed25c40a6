"""One run is one directory: its configuration, its points, and which examples each point got right. Needs no torch."""

from paretune.runs.store import Run, load_points, load_runs

__all__ = ["Run", "load_points", "load_runs"]
