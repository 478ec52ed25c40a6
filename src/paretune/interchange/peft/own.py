"""What an adapter trains of the model itself, in peft's terms: modules saved whole, and biases."""

from collections.abc import Iterable, Mapping

from torch import nn

from paretune.backbones.backbone import inside
from paretune.interchange.peft.directory import PeftFiles
from paretune.strategies.mechanics.adapting import Adaptation
from paretune.strategies.mechanics.base import Delta, base_parameters
from paretune.strategies.mechanics.wrapped import wrapped_layers


def add_own_parameters(files: PeftFiles, module: nn.Module, adaptation: Adaptation) -> None:
    """The head, biases and norms: peft has ``modules_to_save`` and, for LoRA, ``bias``."""
    head = adaptation.head
    base = base_parameters(module)
    trained = {base[name]: name for name in adaptation.trained if name not in files.names}
    whole = {head} | {name.rpartition(".")[0] for name in trained if not name.endswith(".bias")} - {""}
    whole |= {name.rpartition(".")[0] for name in adaptation.statistics(module) if name not in files.names}
    whole = {name for name in whole if name == head or not inside(name, head)}
    _check_whole(whole, trained, module, adaptation)
    for name in sorted(whole):
        layer = module.get_submodule(name)
        for key, value in layer.state_dict(keep_vars=True).items():
            full = f"{name}.{key}"
            files.add(full, full, value)
            if full not in adaptation.trained and name not in adaptation.follows:
                raise ValueError(f"peft would also save {full}, which is not trained")
    biases = {name: full for name, full in trained.items() if name.rpartition(".")[0] not in whole}
    files.config["modules_to_save"] = sorted(whole)
    if biases:
        files.config["bias"] = _bias(biases, whole, files, module)
    wrapped = {name for name, _ in Delta.carriers(module)}
    for name, full in biases.items():
        layer_name = name.rpartition(".")[0]
        target = f"{layer_name}.base_layer.bias" if layer_name in wrapped else name
        files.add(full, target, module.get_parameter(full))


def _check_whole(
    whole: Iterable[str], trained: Mapping[str, str], module: nn.Module, adaptation: Adaptation
) -> None:
    carriers = {name for name, _ in Delta.carriers(module)} | set(wrapped_layers(module))
    for name in whole:
        layer = module.get_submodule(name)
        parts = any(child.state_dict() for child in layer.children())
        if name in carriers or (parts and name != adaptation.head):
            raise ValueError(f"peft cannot save {name!r} whole beside its adapter")
        partly = [key for key, _ in layer.named_parameters() if f"{name}.{key}" not in trained]
        if partly and name not in adaptation.follows:
            raise ValueError(f"peft saves a module whole, and {name}.{partly[0]} is not trained")
    for other, part in module.named_modules():
        alike = [name for name in whole if other.endswith(name)]
        if alike and other not in whole and part.state_dict():
            raise ValueError(f"peft would take {other!r} for {alike[0]!r}, because its name ends alike")


def _bias(biases: Mapping[str, str], whole: set[str], files: PeftFiles, module: nn.Module) -> str:
    if files.config["peft_type"] != "LORA":
        raise ValueError(f"peft's {files.config['peft_type']} trains no biases, such as {min(biases)}")
    every = {
        name
        for name in base_parameters(module).values()
        if name.endswith(".bias") and name.rpartition(".")[0] not in whole
    }
    if set(biases) == every:
        return "all"
    of_targets = {
        name for name in every if name.rpartition(".")[0] in {key for key, _ in Delta.carriers(module)}
    }
    if set(biases) == of_targets:
        return "lora_only"
    odd = min(set(biases) ^ every)
    raise ValueError(f"peft trains all biases, those of the targeted layers, or none; {odd} does not fit")
