"""``paretune watch``: a sweep in the browser while it runs."""

import contextlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Watch:
    """Show a sweep in the browser while it runs: how far each run is, and the report of what there is so far.

    The page is served on this machine only (127.0.0.1) until Ctrl-C. It reads the directory and writes nothing there.

    Args:
        runs: a run directory, or a directory of them, such as the --out of compare; it may be empty still.
        port: to serve on; 0 takes a free one.
        every: seconds between two looks at the directory.
    """

    runs: str
    port: int = 0
    every: float = 5.0

    def __call__(self) -> None:
        """Serve until Ctrl-C."""
        from paretune.watch import watching

        with (
            watching(self.runs, port=self.port, every=self.every) as server,
            contextlib.suppress(KeyboardInterrupt),
        ):
            print(f"watching {self.runs}: {server.url} (Ctrl-C stops)", flush=True)
            server.serve_forever()
