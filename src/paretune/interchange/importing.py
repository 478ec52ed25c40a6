"""Adapters that other libraries wrote, put on a model."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from paretune.backbones.backbone import digest, inside, network_of
from paretune.interchange.composing import Imported
from paretune.interchange.detect import FORMATS, detect
from paretune.interchange.files import load_own
from paretune.interchange.loralib.reading import read_loralib
from paretune.interchange.peft.reading import read_peft
from paretune.interchange.peft.writing import never_called, wrapped_by_peft
from paretune.interchange.placing import place, stored_name, tried
from paretune.strategies.mechanics.adapting import anatomy_of, require_bare
from paretune.strategies.mechanics.base import Anatomy
from paretune.strategies.mechanics.wrapped import names_in_peft


def import_adapter(
    model: nn.Module,
    path: str | Path,
    *,
    format: str | None = None,
    alpha: float | None = None,
    enable_lora: Sequence[bool] | None = None,
) -> nn.Module:
    """Put an adapter of peft, adapters or loralib into an existing model, in place; returns the same object.

    The logits are those that the other library computes on the same base weights. These are the user's to get right: of the
    base, foreign files say nothing but names and shapes. Everything is checked before the model changes.

    Example: ``import_adapter(model, "lora.pt", alpha=16)``, then ``save_adapter(model, "mine")``.

    Args:
        model: a Backbone, or a timm, transformers or other classifier, without an adapter.
        path: a directory of paretune, peft or adapters, or a file with the state dict of loralib.
        format: one of ``"paretune"``, ``"peft"``, ``"adapters"``, ``"loralib"``; found out from the contents when None.
        alpha: loralib: ``lora_alpha``, which its files do not hold.
        enable_lora: loralib: of ``MergedLinear``, such as ``(True, False, True)`` for q and v of a fused layer.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of no known format, damaged, hostile, or does not fit the model; the message says what differs.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    path = Path(path)
    kind = format or detect(path)
    if kind != "loralib" and (alpha is not None or enable_lora is not None):
        raise ValueError(f"alpha and enable_lora are for files of loralib; {path} is of {kind}")
    if kind == "paretune":
        return load_own(model, path)
    if kind == "adapters":
        from paretune.interchange.adapters import reading

        return reading.load(model, path)
    module = network_of(model)
    require_bare(module)
    anatomy = anatomy_of(model)
    try:
        if kind == "peft":
            imported = read_peft(module, anatomy.head, path)
        else:
            imported = read_loralib(module, anatomy.head, path, alpha, enable_lora)
        tensors = imported.tensors | _of_peft(module, anatomy, imported, path)
    except (TypeError, AttributeError, KeyError, IndexError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if kind == "peft":
        _check_effect(module, anatomy, imported, path)
    return place(model, imported.strategy, anatomy, tensors, path, partial=True)


def _check_effect(module: nn.Module, anatomy: Anatomy, imported: Imported, path: Path) -> None:
    """Raise where peft's layer would have no effect, and ours one: there the logits would not be those of peft."""
    acts = {
        name.rpartition(".")[0].partition(".parametrizations.")[0]: bool(
            (value != name.endswith(".ia3_l")).any()
        )
        for name, value in imported.tensors.items()
        if name.endswith((".lora_B", ".ia3_l"))
    }
    acting = [name for name, does in acts.items() if does]
    try:
        passed_by = never_called(module, wrapped_by_peft(acting, acts), anatomy)
    except ValueError:  # of a module that does not run on plain images nobody can say
        return
    if passed_by:
        raise ValueError(
            f"{path} adapts {passed_by[0]!r}, which the model never calls: it reads the weight, so that peft's layer has no "
            "effect. Train such a model with LoRA of paretune, which changes the weight itself"
        )


def _of_peft(module: nn.Module, anatomy: Anatomy, imported: Imported, path: Path) -> dict[str, Tensor]:
    """Tensors that peft's own layers take, by the names of our files."""
    if not imported.through_peft:
        return {}
    names = names_in_peft(tried(module, imported.strategy, anatomy, path)[0])
    names = {name: full for name, full in names.items() if not inside(full, anatomy.head)}
    odd = sorted(set(names) ^ set(imported.through_peft))
    if odd:
        where = "missing" if odd[0] in names else "unknown"
        raise ValueError(f"the adapter in {path} does not fit: {odd[0]} is {where}")
    tensors: dict[str, Tensor] = {}
    for name, full in names.items():  # of a tensor that layers share, peft's file has a copy for each
        value = imported.through_peft[name]
        first = tensors.setdefault(stored_name(full), value)
        if first is not value and digest(first) != digest(value):
            raise ValueError(f"{path}: {name} differs from what another layer shares with it")
    return tensors
