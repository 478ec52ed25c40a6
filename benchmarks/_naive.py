"""The loop that a user writes with peft and torchattacks: each run to its end, PGD at each checkpoint on each split.

It trains what :mod:`paretune` trains, with its hyperparameters, so that both ask the same question; its rows are written as
paretune's are, so that one comparison judges both. What it does not do: fold batch norms into the attacked network, spare
attacks the gradients of weights, let attacked images leave that are solved, or keep what earlier checkpoints have shown.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import paretune as pt
from _record import version_of
from paretune.data.image_split import ImageSplit
from paretune.data.images import ImageData
from paretune.runs.store import Run, RunWriter, load_runs
from paretune.strategies import Strategy
from paretune.sweeps.config import RunConfig


def train(config: RunConfig, data: ImageData, out: Path) -> Run:
    """Train one strategy and measure it ``config.points`` times."""
    import torchattacks

    began = time.thread_time()
    model = _model(config, len(data.classes))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = [parameter for parameter in trained if parameter.ndim > 1]
    plain = [parameter for parameter in trained if parameter.ndim <= 1]
    lr = config.optimizer.lr or config.strategy.learning_rate
    optimizer = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": config.optimizer.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=lr,
    )
    total = config.steps(data)
    measured = {round(total * (number + 1) / config.points) for number in range(config.points)}
    writer = RunWriter(out, _described(config, data))
    order = torch.Generator().manual_seed(config.seed)
    batches: list[Tensor] = []
    gradients = 0
    torch.manual_seed(config.seed)
    for step in range(1, total + 1):
        if not batches:
            places = torch.randperm(len(data.train), generator=order)
            batches = [*places.split(config.batch_size)]
            batches = [places for places in batches if len(places) == config.batch_size]
        images, labels = data.train[batches.pop()]
        progress = (step - 0.5) / total
        epsilon = config.threat.epsilon * min(1.0, max(0.0, (progress - 0.25) / 0.5))
        model.train()
        if epsilon:
            steps = config.train_steps
            attack = torchattacks.PGD(model, eps=epsilon, alpha=2.5 * epsilon / steps, steps=steps)
            images = attack(images, labels)
            gradients += steps * len(images)
        _freeze_batch_norms(model)  # after the attack, which sets all modes
        for group in optimizer.param_groups:
            group["lr"] = lr * config.optimizer.factor(progress)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        nn.utils.clip_grad_norm_(trained, config.optimizer.clip or float("inf"))
        optimizer.step()
        gradients += len(images)
        if step in measured:
            model.eval()
            seconds = time.thread_time() - began
            bits: dict[str, np.ndarray[Any, Any]] = {}
            for name, split in (("report", data.report), ("select", data.select)):
                bits[f"{name}/clean"], bits[f"{name}/robust"] = _measured(model, split, config)
            size = sum(parameter.numel() for parameter in trained)
            writer.append(_row(config, data, step, bits, size, seconds, gradients), bits)
    writer.finish({})
    (run,) = load_runs(out)
    return run


def _model(config: RunConfig, classes: int) -> nn.Module:
    backbone = config.load_backbone(classes, config.seed)
    if isinstance(config.strategy, pt.LoRA):
        return _lora(backbone, config.strategy)
    # Where no library has the strategy for a convolutional network, it is this one's module.
    return pt.adapt(backbone, config.strategy, seed=config.seed)


def _lora(backbone: pt.Backbone, strategy: Strategy) -> nn.Module:
    """peft's LoRA of the layers that paretune's has, but for depthwise ones, of which it takes none at this rank."""
    import peft

    twin = pt.adapt(pt.load_backbone("efficientnet-lite0", num_classes=2, img_size=24), strategy)
    names = [
        name.removeprefix("module.")
        for name, part in twin.named_modules()
        if parametrize.is_parametrized(part)
    ]
    options = {"r": strategy.rank, "lora_alpha": strategy.rank}
    head = backbone.head.removeprefix("module.")
    layers = dict(backbone.module.named_modules())
    wide = [name for name in names if getattr(layers[name], "groups", 1) == 1]
    config = peft.LoraConfig(**options, target_modules=wide, modules_to_save=[head])
    backbone.module = peft.get_peft_model(backbone.module, config)
    return backbone


def _freeze_batch_norms(model: nn.Module) -> None:
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


def _measured(model: nn.Module, split: ImageSplit, config: RunConfig) -> tuple[Any, Any]:
    """Which examples of ``split`` are right, and which under PGD."""
    import torchattacks

    epsilon, steps = config.threat.epsilon, config.eval_steps
    attack = torchattacks.PGD(model, eps=epsilon, alpha=2.5 * epsilon / steps, steps=steps)
    clean, robust = [], []
    for places in torch.arange(len(split)).split(128):
        images, labels = split[places]
        attacked = attack(images, labels)
        with torch.no_grad():
            clean.append(model(images).argmax(1) == labels)
            robust.append(model(attacked).argmax(1) == labels)
    right = torch.cat(clean)
    return right.numpy(), (right & torch.cat(robust)).numpy()


def _described(config: RunConfig, data: ImageData) -> dict[str, Any]:
    return {
        "task": data.name,
        "strategy": type(config.strategy).__name__,
        "strategy_config": repr(config.strategy),
        "seed": config.seed,
        "data": data.fingerprint,
        "loop": "peft and torchattacks",
    }


def _row(
    config: RunConfig,
    data: ImageData,
    step: int,
    bits: dict[str, Any],
    parameters: int,
    seconds: float,
    gradients: int,
) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step / config.per_epoch(data),
        "attack": repr(config.attack),
        "threat": type(config.threat).__name__,
        "epsilon": config.threat.epsilon,
        **{
            key: float(bits[name].mean())
            for key, name in (
                ("clean", "report/clean"),
                ("robust", "report/robust"),
                ("clean_select", "select/clean"),
                ("robust_select", "select/robust"),
            )
        },
        "examples": len(data.report),
        "examples_select": len(data.select),
        "report_id": data.report.fingerprint,
        "select_id": data.select.fingerprint,
        "bits_key": "robust",
        "trainable_parameters": parameters,
        "train_seconds": seconds,
        "cpu_seconds": seconds,
        "peak_memory_bytes": 1,
        "precision": "fp32",
        "versions": {name: version_of(name) for name in ("torch", "peft", "torchattacks")},
        "gradient_evaluations": gradients,
    }
