"""``paretune adapters``: look at, check and merge saved adapters."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from paretune.commands._loading import adapter_directory, load_adapted


@dataclass(frozen=True)
class Adapters:
    """Look at a saved adapter, check it against its base, or merge it into plain weights.

    Args:
        action: show prints what it is; verify loads it onto its base; merge writes a plain checkpoint.
        adapter: directory of an adapter, or of a run that has one.
        backbone: name for load_backbone, if the adapter does not have it.
        weights: a .safetensors or .pth file for that architecture.
        out: merge: the .safetensors file to write, which timm and transformers load without paretune.
    """

    HELP: ClassVar[str] = "show, verify or merge a saved adapter"
    action: Literal["show", "verify", "merge"]
    adapter: str
    backbone: str | None = None
    weights: str | None = None
    out: str | None = None

    def __call__(self) -> None:
        """Do ``action``."""
        import yaml

        from paretune.interchange.files import read_adapter, save_merged

        if self.action == "show":
            config, tensors = read_adapter(adapter_directory(self.adapter))
            config["base"].pop("tensors")
            config["tensors"] = (
                f"{len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers"
            )
            print(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), end="")
            return
        if self.action == "merge" and self.out is None:
            raise ValueError("merge needs --out FILE.safetensors")
        model = load_adapted(self.adapter, self.backbone, self.weights)
        if self.out is not None and self.action == "merge":
            print(f"checkpoint: {save_merged(model, self.out).resolve()}")
        else:
            print(f"{self.adapter} fits {model.architecture}")
