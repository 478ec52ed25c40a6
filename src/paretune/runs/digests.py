"""What the files of a finished run were when it finished: ``DONE`` has the SHA-256 of each, and of what it says itself.

Digests tell what happened to files afterwards: a byte that flipped on the way, a number that was edited, a file that went.
They are no signature. Who rewrites all of a run can rewrite its digests; the same configuration trains it again.

``examples.safetensors`` and ``log.jsonl`` are not among the files, as ``DONE`` has had a digest of each before.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paretune.runs.disk import regular
from paretune.runs.rows import OTHERWISE, left_out, read_json

FILES = "files"  # in DONE: path in the run directory -> SHA-256
_SEAL = "sha256"  # in DONE: of all the rest
_FIXED = ("config.json", "points.jsonl", "bits", "confirmed", "adapter")  # what nothing writes after DONE


def file_digest(path: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal digits."""
    with open(regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(directory: Path) -> dict[str, str]:
    """The SHA-256 of each file in a run ``directory`` that nothing writes after ``DONE``, by its path there."""
    return {name: file_digest(directory / name) for name in sorted(_fixed(directory))}


def _fixed(directory: Path) -> Iterator[str]:
    for name in _FIXED:
        place = directory / name
        for file in place.rglob("*") if place.is_dir() else [place]:
            if file.is_file() and not file.name.startswith("."):
                yield file.relative_to(directory).as_posix()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` of ``DONE`` with its own digest: SHA-256 of the rest as canonical JSON, sorted and without spaces."""
    rest = {key: value for key, value in content.items() if key != _SEAL}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return {**rest, _SEAL: hashlib.sha256(text.encode()).hexdigest()}


def changed_files(directory: Path, stated: Mapping[str, str]) -> list[str]:
    """One line for each file of ``stated``, by its path in ``directory``, that is gone or another than it was."""
    lines = []
    for name, digest in stated.items():
        file = directory / name
        if not file.resolve().is_relative_to(directory.resolve()):
            lines.append(f"{file} lies outside of {directory}")
        elif not file.exists():
            lines.append(f"{file} is missing")
        elif file_digest(file) != digest:
            lines.append(f"{file} is not the file that was written: its SHA-256 is another")
    return lines


def check_unchanged(directory: Path) -> None:
    """Raise ValueError if a file of a finished run is not what the run says; one that says nothing passes.

    Raises:
        ValueError: the first such file is named.
    """
    for line in changed_since_done(directory):
        raise ValueError(f"{line}; {OTHERWISE}")


def changed_since_done(directory: Path) -> list[str]:
    """One line for each file of a finished run that is not what its ``DONE`` says, ``DONE`` among them."""
    done = read_json(directory / "DONE")
    if not states_digests(done):
        return []
    lines = []
    if done != sealed(done):
        lines.append(f"{directory / 'DONE'} is not what was written: its own SHA-256 is another")
    files, behind = done.get(FILES), left_out(done)
    if not isinstance(files, dict):
        return [*lines, f"{directory / 'DONE'} has no digests of files"]
    there = {
        name: digest
        for name, digest in files.items()
        if name.partition("/")[0] not in behind or (directory / name).exists()
    }
    return lines + changed_files(directory, there)


def states_digests(done: Mapping[str, Any]) -> bool:
    """Whether ``DONE`` has digests; runs that an older paretune finished have none."""
    return FILES in done or _SEAL in done
