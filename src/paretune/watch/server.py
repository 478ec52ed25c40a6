"""A small server for the browser on this machine: five fixed routes, GET and HEAD, nothing else."""

import contextlib
import errno
import json
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

from paretune.runs.objects import as_url
from paretune.watch.progress import Watcher
from paretune.watch.reporting import Build, Reporter

log = logging.getLogger(__name__)

_ADDRESS = "127.0.0.1"
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/watch.js": ("watch.js", "text/javascript; charset=utf-8"),
    "/watch.css": ("watch.css", "text/css; charset=utf-8"),
}
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The report carries its scripts and styles in itself, and must reach nothing.
_REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'; sandbox allow-scripts allow-downloads"
)
_LOOK_SECONDS = 0.5  # several pages that ask at once get one answer
_MOST = 16  # requests that are answered at a time, each in its thread; a browser makes six
_PATIENCE = 1.0  # seconds that one more waits for room


class WatchServer(ThreadingHTTPServer):
    """Serves the progress and the report of ``directory`` on the loopback interface only."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64  # that wait for the loop; of more, the system makes each wait a second
    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers share a port

    def __init__(self, directory: Path, port: int, every: float, build: Build | None = None) -> None:
        super().__init__((_ADDRESS, port), _Handler)
        self.directory, self.every = directory, every
        self.watcher = Watcher(directory)
        self.reporter = Reporter(directory, every, build)
        self._looking, self._counting = threading.Lock(), threading.Lock()
        self._room = threading.Semaphore(_MOST)
        self._open: dict[Any, None] = {}  # sockets of the requests that are answered, the oldest first
        self._progress: dict[str, Any] = {}
        self._looked = float("-inf")

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{_ADDRESS}:{self.server_address[1]}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, of which there is a bounded number; the oldest request makes room for a new one."""
        if not self._room.acquire(blocking=False):
            with self._counting, contextlib.suppress(StopIteration, OSError):
                next(iter(self._open)).shutdown(socket.SHUT_RDWR)
            if not self._room.acquire(timeout=_PATIENCE):
                self.shutdown_request(request)
                return
        with self._counting:
            self._open[request] = None
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._leave(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As in the library, and makes room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def _leave(self, request: Any) -> None:
        with self._counting:
            self._open.pop(request, None)
        self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
        log.debug("a request failed", exc_info=True)

    def status(self) -> str:
        """What the page shows, as JSON."""
        with self._looking:
            if time.monotonic() - self._looked > _LOOK_SECONDS:
                self._progress, self._looked = self.watcher.look().to_dict(), time.monotonic()
            progress = self._progress
        about = {"directory": str(self.directory.resolve()), "every": self.every}
        report = {"version": self.reporter.version, "problem": self.reporter.problem}
        return json.dumps({**about, **progress, "report": report}, allow_nan=False)


@contextlib.contextmanager
def watching(
    directory: str | Path, *, port: int = 0, every: float = 5.0, build: Build | None = None
) -> Iterator[WatchServer]:
    """A server for ``directory``, with its thread for reports under way; call its ``serve_forever``.

    Args:
        directory: a run directory, or a directory of them; it may be empty still.
        port: to listen on; 0 takes a free one, see ``url``.
        every: seconds between two looks at the directory, above 0, and at least between two reports.
        build: makes the report of some runs; that of :func:`paretune.write_report` when None.

    Raises:
        NotADirectoryError: ``directory`` does not exist or is a file.
        ValueError: ``directory`` is a URL, or ``port`` or ``every`` is out of range.
        OSError: the port is in use.
    """
    if (url := as_url(directory)) is not None:
        raise ValueError(
            f"directory={url!r} is a URL: watch the directory of this machine that the log of the sweep names, or let "
            "paretune report read the URL"
        )
    directory = Path(directory)
    if not directory.is_dir():
        raise NotADirectoryError(
            f"{directory} is not a directory; name the --out of a sweep, or make it first"
        )
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be in [0, 65535], got {port}")
    if not 0 < every < math.inf:
        raise ValueError(f"every must be a finite number above 0, in seconds; got {every}")
    try:
        server = WatchServer(directory, port, every, build)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(
                f"port {port} is in use; choose another, or 0 for any that is free (--port 0)"
            ) from None
        raise
    server.reporter.start()
    try:
        yield server
    finally:
        server.server_close()
        server.reporter.stop()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: WatchServer
    timeout = 30  # seconds that a client may take to ask

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _refuse_method(self) -> None:
        self._send(405, b"only GET and HEAD\n", "text/plain", extra=("Allow", "GET, HEAD"))

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse_method

    def _answer(self, *, body: bool) -> None:
        route = self.path.partition("?")[0]
        if not self._for_us():
            self._send(403, b"this page is for localhost and 127.0.0.1 only\n", "text/plain", body=body)
        elif route in _FILES:
            name, kind = _FILES[route]
            self._send(200, _file(name), kind, body=body)
        elif route == "/status.json":
            try:
                status = self.server.status().encode()
            except Exception as error:
                log.exception("the directory cannot be looked at")
                self._send(500, f"{type(error).__name__}: {error}\n".encode(), "text/plain", body=body)
            else:
                self._send(200, status, "application/json", body=body)
        elif route == "/report.html" and (html := self.server.reporter.html) is not None:
            page, end, after = html.rpartition(b"</body>")
            script = b"<script>" + _file("frame.js") + b"</script>"
            content = page + script + end + after
            self._send(200, content, "text/html; charset=utf-8", body=body, policy=_REPORT_POLICY)
        else:
            self._send(404, b"nothing here\n", "text/plain", body=body)

    def _for_us(self) -> bool:
        """Whether the page was asked for by a name of this machine.

        A web site can let its own name point here to read what we serve (DNS rebinding); then the name is not ours. The
        port does not matter, so that one forwarded over SSH works.
        """
        return self.headers.get("Host", "").partition(":")[0].lower() in ("localhost", _ADDRESS)

    def _send(
        self,
        status: int,
        content: bytes,
        kind: str,
        *,
        body: bool = True,
        policy: str = _PAGE_POLICY,
        extra: tuple[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for name, value in [*headers.items(), *([extra] if extra else [])]:
            self.send_header(name, value)
        with contextlib.suppress(OSError):  # the page was closed meanwhile
            self.end_headers()
            if body:
                self.wfile.write(content)

    def version_string(self) -> str:
        return "paretune"

    def log_message(self, format: str, *args: object) -> None:
        log.debug("%s " + format, self.address_string(), *args)


def _file(name: str) -> bytes:
    return (files("paretune.watch") / name).read_bytes()
