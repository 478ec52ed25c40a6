"""Adapter files: what training changed, and enough about the base to refuse the wrong one."""

from paretune.interchange.adapter_set import AdapterSet
from paretune.interchange.averaging import average, interpolate
from paretune.interchange.card_notes import update_card
from paretune.interchange.detect import detect
from paretune.interchange.export import export_model
from paretune.interchange.files import read_adapter, save_adapter, save_merged, save_peft
from paretune.interchange.hub import push_to_hub
from paretune.interchange.importing import import_adapter
from paretune.interchange.loading import load_adapter
from paretune.interchange.loralib.writing import save_loralib

__all__ = [
    "AdapterSet",
    "average",
    "detect",
    "export_model",
    "import_adapter",
    "interpolate",
    "load_adapter",
    "push_to_hub",
    "read_adapter",
    "save_adapter",
    "save_loralib",
    "save_merged",
    "save_peft",
    "update_card",
]
