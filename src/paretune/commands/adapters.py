"""``paretune adapters``: look at, check, import, export, merge and publish saved adapters."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paretune._values import check_whole
from paretune.commands._loading import adapter_directory, load_adapted
from paretune.commands._printing import shortened
from paretune.data.sizes import ImageSize, Sides, checked_size

if TYPE_CHECKING:
    from paretune.backbones.backbone import Backbone

Written = Literal["paretune", "peft", "adapters", "loralib"]  # by which library


@dataclass(frozen=True)
class Show:
    """Print what an adapter is: its strategy, its base, its data, its classes, and how large it is.

    Args:
        adapter: a directory of paretune, peft or adapters, a state dict of loralib, a run directory, or hf:user/repo.
        format: the library that wrote the adapter, if not found out.
    """

    adapter: str
    format: Written | None = None

    def __call__(self) -> None:
        """Print YAML."""
        import yaml

        from paretune.interchange import detect, read_adapter

        path = adapter_directory(self.adapter)
        kind = self.format or detect(path)
        content: dict[str, Any] = {"format": kind}
        if kind == "paretune":
            config, tensors = read_adapter(path)
            content = config
            config["base"].pop("tensors")
            peft = config.pop("peft", None)
            config["peft"] = peft is not None
            if peft is not None:
                config.pop("peft_reason", None)
        else:
            described, tensors = _foreign(path, kind)
            content |= {key: value for key, value in described.items() if value not in (None, {}, [], False)}
        numbers = sum(tensor.numel() for tensor in tensors.values())
        content["tensors"] = f"{len(tensors)} tensors, {numbers:,} numbers"
        print(yaml.safe_dump(shortened(content), sort_keys=False, allow_unicode=True), end="")


@dataclass(frozen=True)
class OnBase:
    """An adapter and the base that it is loaded onto.

    Args:
        adapter: a directory of paretune, peft or adapters, a state dict of loralib, a run directory, or hf:user/repo.
        backbone: name for load_backbone, if the adapter does not have it.
        weights: a .safetensors or .pth file for that architecture.
        weights_key: which state dict of that file, such as state_dict; null takes the averaged one (EMA) if there is one.
        num_classes: number of classes, if the adapter holds no head.
        image_size: side of square images in pixels, or height and width as in 32,48; that of the adapter, or the backbone's
            own, when null.
        alpha: loralib: lora_alpha, which its files do not hold.
        enable_lora: loralib: that argument of MergedLinear, such as [true, false, true].
    """

    adapter: str
    backbone: str | None = None
    weights: str | None = None
    weights_key: str | None = None
    num_classes: int | None = None
    image_size: ImageSize | Sides | None = None
    alpha: float | None = None
    enable_lora: list[bool] | None = None

    def __post_init__(self) -> None:
        if self.num_classes is not None:
            check_whole("num_classes", self.num_classes, 2)
        if self.image_size is not None:
            object.__setattr__(self, "image_size", checked_size("image_size", self.image_size))
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}")

    def load(self, written: Written | None = None) -> tuple["Backbone", Path, str]:
        """The backbone with the adapter on it, where the adapter is, and the library that wrote it, if not ``written``."""
        from paretune.backbones.loading import load_backbone
        from paretune.interchange import detect, import_adapter

        path = adapter_directory(self.adapter)
        kind = written or detect(path)
        if kind == "paretune":
            model = load_adapted(str(path), self.backbone, self.weights, self.weights_key)[0]
            if self.image_size not in (None, model.image_size):
                raise ValueError(
                    f"image_size={self.image_size} is not that of {path}, which has {model.image_size}; leave it out"
                )
            return model, path, kind
        if self.backbone is None:
            raise ValueError(
                f"{path} is of {kind}, which does not say what it was trained on; pass --backbone timm:NAME, hf:NAME or an "
                "offline name"
            )
        classes = _number_of_classes(path, kind) if self.num_classes is None else self.num_classes
        model = load_backbone(
            self.backbone,
            num_classes=classes,
            img_size=self.image_size,
            weights=self.weights,
            weights_key=self.weights_key,
        )
        import_adapter(model, path, format=kind, alpha=self.alpha, enable_lora=self.enable_lora)
        return model, path, kind


@dataclass(frozen=True)
class Verify(OnBase):
    """Load an adapter onto its base, and say whether it fits.

    Args:
        format: the library that wrote the adapter, if not found out.
    """

    format: Written | None = None

    def __call__(self) -> None:
        """Load."""
        print(f"{self.adapter} fits {self.load(self.format)[0].architecture}")


@dataclass(frozen=True)
class Import(OnBase):
    """Read an adapter of another library, put it onto its base, and write it as one of ours.

    Args:
        out: the directory to write.
        format: the library that wrote the adapter, if not found out.
    """

    out: str | None = None
    format: Written | None = None

    def __call__(self) -> None:
        """Load and save."""
        from paretune.interchange import save_adapter

        out = _named("import", self.out, "DIRECTORY")
        model, _, kind = self.load(self.format)
        print(f"adapter: {save_adapter(model, out, notes={'imported from': kind}).resolve()}")


@dataclass(frozen=True)
class Export(OnBase):
    """Write an adapter for another library: as its adapter, or merged into the model that it loads.

    Args:
        out: what to write: a directory for peft, timm and hf, a file for loralib and onnx.
        format: the library to write for.
    """

    out: str | None = None
    format: Literal["peft", "loralib", "timm", "hf", "onnx"] | None = None

    def __call__(self) -> None:
        """Load and write."""
        from paretune.interchange import save_loralib, save_peft

        out = _named("export", self.out, "PATH")
        if self.format is None:
            raise ValueError("export needs --format peft, loralib, timm, hf or onnx")
        model, path, _ = self.load()
        if self.format == "peft":
            print(f"adapter of peft: {save_peft(model, out).resolve()}")
        elif self.format == "loralib":
            print(
                f"state dict of loralib, for lora_alpha={save_loralib(model, out):g}: {Path(out).resolve()}"
            )
        else:
            from paretune.interchange.export import export_model

            classes = _classes(path)
            print(f"{self.format}: {export_model(model, out, self.format, classes=classes).resolve()}")


@dataclass(frozen=True)
class Merge(OnBase):
    """Add an adapter to the weights of its base, and write them as one plain checkpoint.

    Args:
        out: the .safetensors file to write.
        format: the library that wrote the adapter, if not found out.
    """

    out: str | None = None
    format: Written | None = None

    def __call__(self) -> None:
        """Load and write."""
        from paretune.interchange import save_merged

        out = _named("merge", self.out, "FILE.safetensors")
        print(f"checkpoint: {save_merged(self.load(self.format)[0], out).resolve()}")


@dataclass(frozen=True)
class Push:
    """Upload an adapter to the Hugging Face hub, with its card.

    Args:
        adapter: a directory of an adapter of ours, or of a run that has one.
        to: user/repo.
        license: identifier, such as apache-2.0, that is written into the card first.
        runs: the sweep whose areas are written into the card first.
        public: make a public repository.
        dry_run: only say what would be sent.
    """

    adapter: str
    to: str | None = None
    license: str | None = None
    runs: str | None = None
    public: bool = False
    dry_run: bool = False

    def __call__(self) -> None:
        """Write the card, upload, say what went where."""
        from paretune.interchange.card_notes import update_card
        from paretune.interchange.hub import push_to_hub

        path = adapter_directory(self.adapter)
        to = _named("push", self.to, "user/repo", "--to")
        if self.license or self.runs:
            update_card(path, license=self.license, runs=self.runs)
        sent = push_to_hub(path, to, private=not self.public, dry_run=self.dry_run)
        for name, size in sent.files:
            print(f"{name}: {size:,} bytes")
        print(f"pushed: {sent.url}" if sent.url else f"nothing was sent to {sent.repo_id}: a dry run")


def _named(action: str, value: str | None, what: str, option: str = "--out") -> str:
    """What an option names that has no default."""
    if not value:
        raise ValueError(f"{action} needs {option} {what}")
    return value


def _foreign(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The description and the tensors of another library's adapter, under its own names."""
    from paretune.interchange.adapters import reading
    from paretune.interchange.peft.reading import read_files
    from paretune.interchange.reading import read_checkpoint, read_tensors

    if kind == "peft":
        return read_files(path)
    if kind == "adapters":
        files = reading.read(path)
        return dict(files.config), {
            **files.tensors,
            **{f"head.{name}": value for name, value in files.head.items()},
        }
    tensors, metadata = read_tensors(path) if path.suffix == ".safetensors" else (read_checkpoint(path), {})
    return dict(metadata), tensors


def _number_of_classes(path: Path, kind: str) -> int:
    """Of the classifier among the tensors; heads have few names."""
    heads = ("head", "fc", "classifier")
    for name, tensor in _foreign(path, kind)[1].items():
        if tensor.ndim == 2 and name.removesuffix(".weight").endswith(heads) and name.endswith(".weight"):
            return int(tensor.shape[0])
    raise ValueError(
        f"{path} holds no classifier, so that the number of classes is unknown; pass --num-classes"
    )


def _classes(path: Path) -> list[str] | None:
    from paretune.interchange.reading import read_json

    description = path / "paretune.json"
    return read_json(description).get("classes") if description.is_file() else None
