"""Adapter files: what training changed, and enough about the base to refuse the wrong one."""

from paretune.interchange.detect import detect
from paretune.interchange.files import load_adapter, read_adapter, save_adapter, save_merged, save_peft
from paretune.interchange.importing import import_adapter
from paretune.interchange.loralib_writing import save_loralib

__all__ = [
    "detect",
    "import_adapter",
    "load_adapter",
    "read_adapter",
    "save_adapter",
    "save_loralib",
    "save_merged",
    "save_peft",
]
