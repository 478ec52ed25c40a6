"""Adapters on the Hugging Face hub: exactly our files go up, and exactly these come down.

No file that could hold code is ever transferred: descriptions are JSON, tensors are safetensors.
"""

import contextlib
import errno
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paretune
from paretune.interchange.cards import CARD, PLACEHOLDER
from paretune.interchange.files import read_adapter

log = logging.getLogger(__name__)

PREFIX = "hf:"
FILES = (CARD, "paretune.json", "adapter_config.json", "adapter_model.safetensors")
_REFERENCE = re.compile(
    r"hf:(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[A-Za-z0-9][\w./-]*))?"
)


@dataclass(frozen=True)
class Upload:
    """What :func:`push_to_hub` sent, or would have sent.

    Args:
        repo_id: "user/repo".
        files: name and size in bytes of each file.
        url: of the commit; None after a dry run.
    """

    repo_id: str
    files: tuple[tuple[str, int], ...]
    url: str | None


def push_to_hub(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
    message: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
) -> Upload:
    """Upload an adapter as one commit; the repository is made if there is none.

    The card then names the repository in the lines that load it. Files of an earlier adapter that this one does not have
    are removed from the repository; files that are not ours stay.

    Args:
        directory: written by :func:`paretune.save_adapter`. It is read completely first: a damaged one is not uploaded.
        repo_id: "user/repo".
        private: of a repository that is made; one that exists stays as it is.
        token: of the hub; None takes the one that ``hf auth login`` stored, or HF_TOKEN.
        revision: branch to commit to, made from main if there is none; None is main.
        message: of the commit.
        create_pr: open a pull request instead.
        dry_run: check everything and contact nobody.

    Raises:
        FileNotFoundError: ``directory`` is no adapter.
        ValueError: it is damaged, or ``repo_id`` is no name of a repository.
        OSError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    if not _REFERENCE.fullmatch(PREFIX + repo_id) or "@" in repo_id:
        raise ValueError(f"repo_id must be user/repo, got {repo_id!r}")
    directory = Path(directory)
    config, _ = read_adapter(directory)
    _warn_of_paths(config)
    contents: dict[str, bytes | Path] = {
        name: directory / name for name in FILES if (directory / name).is_file()
    }
    if CARD in contents:
        card = (directory / CARD).read_text(encoding="utf-8")
        contents[CARD] = card.replace(PLACEHOLDER, PREFIX + repo_id).encode()
    files = tuple(
        (name, len(content) if isinstance(content, bytes) else content.stat().st_size)
        for name, content in contents.items()
    )
    if dry_run:
        return Upload(repo_id, files, None)
    api = HfApi(token=token, library_name="paretune", library_version=paretune.__version__)
    with _reaching(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        names = {*api.list_repo_files(repo_id, revision=revision)}
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in contents.items()
        ]
        operations += [
            CommitOperationDelete(path_in_repo=name)
            for name in FILES
            if name in names and name not in contents
        ]
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=message or f"Adapter {config['call']}",
            revision=revision,
            create_pr=create_pr,
        )
    return Upload(repo_id, files, commit.pr_url or commit.commit_url)


def fetch(reference: str, *, token: str | None = None) -> Path:
    """The directory of an adapter on the hub, downloaded into the hub's cache unless it is there.

    Args:
        reference: "hf:user/repo", or "hf:user/repo@revision" with a branch, a tag or a commit. A commit gives the same
            files for ever; the others may change between two calls.
        token: of the hub; None takes the one that ``hf auth login`` stored, or HF_TOKEN.

    Raises:
        ValueError: ``reference`` is not of that form.
        FileNotFoundError: the repository has no adapter.
        OSError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ValueError(
            f"an adapter on the hub is named hf:user/repo or hf:user/repo@revision, got {reference!r}"
        )
    with _reaching(match["repo"]), _keeping(HF_HUB_CACHE):
        path = snapshot_download(
            match["repo"],
            revision=match["revision"],
            allow_patterns=[*FILES],
            token=token,
            library_name="paretune",
            library_version=paretune.__version__,
        )
    directory = Path(path)
    if not (directory / "adapter_model.safetensors").is_file():
        raise FileNotFoundError(
            f"{reference} is not an adapter: the repository has no adapter_model.safetensors. Weights in pickle files "
            "(.bin, .pt) are not loaded, as they can run code"
        )
    return directory


@contextlib.contextmanager
def _reaching(repo_id: str) -> Iterator[None]:
    """Errors of the network, of whichever client the hub's library uses, as OSError."""
    try:
        yield
    except (OSError, ValueError):  # what the hub answers is one of these
        raise
    except Exception as error:
        cause = error.__cause__ or error
        raise OSError(f"the hub failed for {repo_id}: {type(cause).__name__}: {cause}") from error


@contextlib.contextmanager
def _keeping(cache: str) -> Iterator[None]:
    """What a full disk refuses names the directory, as the hub's library does not."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, cache) from error


def _warn_of_paths(config: dict[str, Any]) -> None:
    named = {"base": (config["base"].get("source") or "").removeprefix(PREFIX)}
    with contextlib.suppress(KeyError, TypeError, AttributeError):  # notes are free
        loaded_with = config["notes"]["data"]["loaded_with"]
        named |= {"data": loaded_with["name_or_path"], "root of the data": loaded_with["root"]}
    for what, name in named.items():
        if name and (Path(str(name)).is_absolute() or (what == "base" and Path(name).exists())):
            log.warning(
                "paretune.json names %r, a path of this machine, as the %s; it is uploaded with it",
                name,
                what,
            )
