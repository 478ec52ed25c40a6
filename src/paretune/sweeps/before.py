"""The model before fine-tuning: one that answers with the classes of the tasks already."""

import copy
from pathlib import Path
from typing import Any

import torch

from paretune.backbones.backbone import Backbone, fingerprint, inside, tensor_digests
from paretune.backbones.heads import note_pretrained_head, pretrained_head
from paretune.data.images import ImageData
from paretune.interchange.loading import load_adapter
from paretune.shifts.imagenet import wordnet_ids
from paretune.strategies import FullFineTune, adaptation_of, merge_adapter
from paretune.sweeps.config import RunConfig, TaskConfig
from paretune.sweeps.entry import GivenRun
from paretune.sweeps.grid import run_all
from paretune.training.freezing import NoFreezing


def plain(model: Backbone) -> Backbone:
    """A copy of ``model`` that is a pretrained one: without an adapter, and with its own head as the one of pretraining.

    Raises:
        ValueError: it carries an adapter that cannot be merged.
    """
    model = copy.deepcopy(model)
    if adaptation_of(model) is not None:
        try:
            merge_adapter(model)
        except ValueError as error:
            raise ValueError(f"the model that is fine-tuned must be one of plain weights: {error}") from None
        model.published = False
    head = {name: value for name, value in model.module.state_dict().items() if inside(name, model.head)}
    note_pretrained_head(model.module, head)
    return model.eval()


def with_own_head(config: TaskConfig) -> Backbone:
    """The backbone that ``config`` names with the head that its weights come with; classes are noted where known.

    Raises:
        ValueError: the weights have no head.
    """
    bare = config.load_backbone(2, 0)
    try:
        head = pretrained_head(bare)
    except ValueError as error:
        raise ValueError(
            f"backbone={config.backbone!r}: {error}; or train it on a task with the same classes first (pretrain), or begin "
            "with a model that was (start)"
        ) from None
    model = config.load_backbone(len(head.weight), 0)
    loaded: Any = model.module.get_submodule(model.head)
    if not torch.equal(loaded.weight.detach().flatten(1).float(), head.weight):
        raise ValueError(f"backbone={config.backbone!r}: its head does not load; give a Backbone that has it")
    model.classes = _known_classes(model)
    return plain(model)


def pretrained_on(
    config: RunConfig, data: ImageData, given: Backbone | None, out: Path, **options: Any
) -> Backbone:
    """The backbone with all its weights fine-tuned on ``data``, by a run in ``out``.

    Args:
        config: of the run.
        data: to learn.
        given: the backbone, if it is an object.
        out: directory of the run.
        **options: ``resume`` and ``progress`` of :func:`~paretune.sweeps.grid.run_all`.
    """
    values = {**vars(config), "data": f"{data.name} {data.fingerprint}", "img_size": data.image_size}
    run = GivenRun(**values, objects=(data, given), called="pretraining")
    (done,) = run_all([run], out, workers=1, **options)
    model = run.load_backbone(len(data.classes), run.seed)
    load_adapter(model, done.path / "adapter")
    return plain(model)


def identity(model: Backbone) -> str:
    """A text that no other model before fine-tuning has."""
    return (
        f"{model.architecture} {fingerprint(model.architecture, tensor_digests(model.module.state_dict()))}"
    )


def pretraining_run(config: TaskConfig, epochs: float) -> RunConfig:
    """The run that pretrains: clean images, all weights."""
    shared = {name: value for name, value in vars(config).items() if name in TaskConfig.__dataclass_fields__}
    fresh = {
        "epochs": epochs,
        "objective": None,
        "train_steps": 0,
        "points": 1,
        "shifts": None,
        "attack_elsewhere": False,
        "freezing": NoFreezing(),
    }
    return RunConfig(**{**shared, **fresh}, strategy=FullFineTune())


def _known_classes(model: Backbone) -> tuple[str, ...] | None:
    """Of published weights: WordNet ids of a timm model of ImageNet-1k, the names that a transformers model has."""
    if not model.published:
        return None
    recorded = getattr(getattr(model.module, "config", None), "id2label", None)
    if isinstance(recorded, dict) and len(recorded) == model.num_classes:
        names = tuple(str(recorded[number]) for number in sorted(recorded))
        return None if names[0] == "LABEL_0" or len({*names}) < len(names) else names
    wordnet = wordnet_ids() if model.num_classes == 1000 else None
    return wordnet if wordnet and _of_imagenet(model) else None


def _of_imagenet(model: Backbone) -> bool:
    from timm.data import infer_imagenet_subset

    recorded = getattr(model.module, "pretrained_cfg", None)
    return bool(recorded) and infer_imagenet_subset(recorded) == "imagenet-1k"
