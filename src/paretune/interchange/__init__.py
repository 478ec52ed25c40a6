"""Adapter files: what training changed, and enough about the base to refuse the wrong one."""

from paretune.interchange.files import load_adapter, read_adapter, save_adapter, save_merged

__all__ = ["load_adapter", "read_adapter", "save_adapter", "save_merged"]
