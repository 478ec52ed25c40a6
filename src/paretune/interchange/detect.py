"""Which library wrote a file or directory, by its contents."""

from pathlib import Path
from typing import Literal, get_args

from paretune.interchange.adapters import reading
from paretune.interchange.reading import member, read_json, read_state

Format = Literal["paretune", "peft", "adapters", "loralib"]
FORMATS: tuple[str, ...] = get_args(Format)


def detect(path: str | Path) -> Format:
    """The format of an adapter.

    Raises:
        FileNotFoundError: there is nothing at ``path``, or nothing in it that could be an adapter.
        ValueError: what is there is no adapter, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _of_directory(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    names = set(_tensors(path))
    if any(name.endswith((".lora_A", ".lora_B")) for name in names):
        return "loralib"
    if any(".lora_A." in name or name.endswith(".ia3_l") for name in names):
        raise ValueError(
            f"{path} has tensors of peft; give its directory, which must have an adapter_config.json too"
        )
    raise ValueError(f"{path} is no adapter: none of its {len(names)} tensors is called lora_A or lora_B")


def _of_directory(path: Path) -> Format:
    if (path / "paretune.json").exists():
        return "paretune"
    if not (path / "adapter_config.json").exists():
        some = sorted(entry.name for entry in path.iterdir())[:5]
        raise FileNotFoundError(
            f"{path} is not an adapter: it has no paretune.json and no adapter_config.json, "
            f"but {', '.join(some) or 'nothing'}"
        )
    if "peft_type" in read_json(member(path, "adapter_config.json")):
        return "peft"
    if reading.recognise(path):
        return "adapters"
    raise ValueError(
        f"{path / 'adapter_config.json'} is neither of peft (it has no peft_type) nor of adapters"
    )


def _tensors(path: Path) -> dict[str, object]:
    path = path.resolve()
    if not path.is_file():
        raise ValueError(f"{path} is neither a directory nor a regular file")
    return dict(read_state(path)[0])
