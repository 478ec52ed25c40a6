"""Loading an adapter, wherever it comes from: a directory of ours, of peft or of the adapters library, or the hub."""

from pathlib import Path

from torch import nn

from paretune.interchange.files import CONFIG, PEFT_CONFIG, load_own
from paretune.interchange.hub import fetch
from paretune.interchange.importing import import_adapter


def load_adapter(model: nn.Module, directory: str | Path, *, check_base: bool = True) -> nn.Module:
    """Put a saved adapter into an existing model, in place; returns the same object, in evaluation mode.

    ``model`` may be a Backbone or the plain timm or transformers model (or any module) that was inside it. Everything is
    checked before the model changes: on an error it is as before. The numbers stay as they were saved: a model of a type
    that does not hold them (bfloat16, for one trained in float32) is refused; load first, and cast the model then.

    Args:
        model: same architecture, base weights and number of classes as the adapter was trained on.
        directory: written by :func:`save_adapter`; or by peft or the adapters library, see :func:`import_adapter`. Or a
            repository on the hub that has such files, "hf:user/repo" or "hf:user/repo@revision".
        check_base: compare the digests of the base's tensors, and what the Backbone does to pixels; False loads onto other
            weights of the same shapes.

    Raises:
        FileNotFoundError: the directory is no adapter.
        ValueError: a file is damaged, or the model differs; the message names what.
    """
    if isinstance(directory, str) and directory.startswith("hf:"):
        directory = fetch(directory)
    directory = Path(directory)
    if not (directory / CONFIG).exists() and (directory / PEFT_CONFIG).exists():
        return import_adapter(model, directory)
    return load_own(model, directory, check_base=check_base)
