"""Stores for tests: one in the memory of this process, and an S3 server for several processes."""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

PATIENCE = 60  # seconds


def memory() -> str:
    """A URL that no other test has."""
    return f"memory://{uuid.uuid4().hex}/runs"


def machine(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Be the machine that keeps its working directories in ``cache``."""
    monkeypatch.setenv("PARETUNE_CACHE", str(cache))


def at(url: str, ending: str = "") -> dict[str, bytes]:
    """All files that there are, whose names end so; to be asked for those that nobody removes meanwhile."""
    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return {
        name.removeprefix(root).strip("/"): fs.cat_file(name)
        for name in fs.find(root)
        if name.endswith(ending)
    }


@contextlib.contextmanager
def s3() -> Iterator[dict[str, str]]:
    """The environment in which s3:// is a server of this machine, which has the bucket ``bucket``."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/moto-api/"):
                break
            assert server.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        known = {"endpoint_url": address, "key": "test", "secret": "test"}
        fsspec.filesystem("s3", **known, skip_instance_cache=True).mkdir("bucket")
        yield {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.kill()
        server.wait()
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # which know the address
