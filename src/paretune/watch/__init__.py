"""A page on this machine that shows a sweep while it runs: how far each run is, and the report of what there is."""

from paretune.watch.server import WatchServer, watching

__all__ = ["WatchServer", "watching"]
