"""Putting a strategy on a model in place, and taking it off: merged into the weights, or gone without a trace."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paretune.backbones.backbone import Backbone, Task, inside, network_of, note_task, task_of
from paretune.backbones.modes import RECORD, modes_kept
from paretune.backbones.random import borrowed_randomness
from paretune.backbones.sites import Site
from paretune.strategies.inserted import check_undisturbed
from paretune.strategies.mechanics.base import Anatomy, Delta, Inserted, Strategy, base_parameters
from paretune.strategies.mechanics.left_alone import log_left_alone
from paretune.strategies.mechanics.scores import Attacker, Examples
from paretune.strategies.mechanics.tied import check_head, check_memory
from paretune.strategies.mechanics.wrapped import check_merge, unwrap, wrapped_layers


@dataclass
class Adaptation:
    """What an adapted model remembers: enough to save the adapter and to give the base back bit for bit.

    Args:
        strategy: what was put on.
        anatomy: what the strategy was told about the model.
        trained: names of the trainable parameters, head included.
        base: the values before adapting of everything that changes in place, under the base's names.
        base_names: names in the adapted model's state dict of the base's tensors, with the names they had; of a tied tensor,
            the first one.
        tied: the other names of tied tensors in the base's state dict, with the first one.
        required_grad: which parameters were trainable before.
        task: what the model was trained for before.
        follows: the batch norms by name, and whether the running statistics of each follow training; those of the others
            stay as they are, see ``paretune.backbones.modes.frozen_batch_norms``.
    """

    strategy: Strategy
    anatomy: Anatomy
    trained: tuple[str, ...]
    base: dict[str, Tensor]
    base_names: dict[str, str]
    tied: dict[str, str]
    required_grad: dict[str, bool]
    task: Task
    follows: dict[str, bool]

    @property
    def head(self) -> str:
        """Dotted name of the classifier."""
        return self.anatomy.head

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where modules may have been inserted."""
        return self.anatomy.sites

    def statistics(self, module: nn.Module) -> dict[str, Tensor]:
        """The running statistics of the adapted ``module`` that follow training, by name; shared ones under the first.

        With them what a head has beside parameters, such as prototypes, because each adapter has its own head.
        """
        norms = [module.get_submodule(name) for name, follows in self.follows.items() if follows]
        following = {id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)}
        following |= {id(buffer) for buffer in module.get_submodule(self.head).buffers()}
        return {name: buffer for name, buffer in module.named_buffers() if id(buffer) in following}

    def __deepcopy__(self, memo: dict[int, object]) -> "Adaptation":
        """The record is only read, so copies of a model share it and its values of the base."""
        return self


def adapt(
    backbone: Backbone,
    strategy: Strategy,
    *,
    seed: int = 0,
    data: Examples | None = None,
    attack: Attacker | None = None,
) -> Backbone:
    """Put ``strategy`` on ``backbone`` in place and return the same object.

    The head and the strategy's parameters become trainable, everything else is frozen. The logits do not change, except by
    prompt tokens (:class:`~paretune.VisualPrompt`), which take part in the attention from the start.

    Args:
        backbone: from :func:`~paretune.load_backbone` or :class:`~paretune.Backbone`.
        strategy: for example ``LoRA(rank=8)``.
        seed: seeds the new parameters; the global random state is untouched.
        data: what a strategy that chooses by images looks at (:class:`~paretune.strategies.Sparse`): the split to train on,
            or images (batch, channels, height, width) in [0, 1] with labels (batch,). Others do not look at it.
        attack: likewise, what such images are attacked with.

    Raises:
        TypeError: ``backbone`` is not a Backbone.
        ValueError: it is adapted already, or the strategy does not fit it. The model is unchanged then.
    """
    if not isinstance(backbone, Backbone):
        raise TypeError(
            f"adapt needs a Backbone, got {type(backbone).__name__}; wrap it: Backbone(module, mean=, std=, head=)"
        )
    with borrowed_randomness():
        torch.manual_seed(seed)
        require_bare(backbone)
        anatomy = anatomy_of(backbone)
        strategy = strategy.chosen_on(backbone, data, attack=attack, seed=seed)
        strategy.try_on(backbone.module, anatomy)
        install(backbone.module, strategy, anatomy)
    log_left_alone(backbone.module, strategy, require_adaptation(backbone).trained, backbone.head)
    return backbone.train(backbone.training)


def install(module: nn.Module, strategy: Strategy, anatomy: Anatomy) -> Adaptation:
    """Put ``strategy`` on a plain ``module``; on an error the module is as before."""
    require_bare(module)
    check_head(module, anatomy.head)
    before = dict(module.named_parameters())
    required_grad = {name: parameter.requires_grad for name, parameter in before.items()}
    state = module.state_dict(keep_vars=True)
    try:
        with torch.inference_mode(False), torch.enable_grad():  # a strategy may try its gradients
            chosen = set(strategy.install(module, anatomy))
        check_undisturbed(module, anatomy)
        # A tied parameter has several names, of which any may be chosen; the first is the one that counts.
        train = {
            id(parameter)
            for name, parameter in module.named_parameters(remove_duplicate=False)
            if name in chosen or inside(name, anatomy.head)
        }
        parameters = dict(module.named_parameters())
        if not train:
            raise ValueError(
                f"{strategy!r} would train nothing: the head {anatomy.head!r} has no parameters either; choose a strategy "
                "that changes the network"
            )
        trained = tuple(name for name, parameter in parameters.items() if id(parameter) in train)
        first: dict[int, str] = {}
        tied = {
            name: first[id(tensor)]
            for name, tensor in state.items()
            if first.setdefault(id(tensor), name) != name
        }
        base_names = {
            name: first[id(tensor)]
            for name, tensor in module.state_dict(keep_vars=True).items()
            if id(tensor) in first
        }
        base = {
            name: parameter.detach().clone() for name, parameter in before.items() if id(parameter) in train
        }
        task, follows = task_of(module), strategy.follows(module)
        adaptation = Adaptation(
            strategy, anatomy, trained, base, base_names, tied, required_grad, task, follows
        )
        statistics = adaptation.statistics(module)
        base |= {base_names.get(name, name): buffer.clone() for name, buffer in statistics.items()}
        of_peft = [parameter for layer in wrapped_layers(module).values() for parameter in layer.parameters()]
        changing = [*Delta.originals(module), *of_peft, *statistics.values()]
        check_memory(module, {*train, *map(id, changing)}, base_parameters(module))
    except BaseException:
        uninstall(module)
        for name, parameter in before.items():
            parameter.requires_grad_(required_grad[name])
        raise
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
    module.__dict__[RECORD] = adaptation
    return adaptation


def adaptation_of(model: nn.Module) -> Adaptation | None:
    """The record of the strategy that ``model`` (a Backbone or a plain module) carries, if any."""
    module = network_of(model)
    record: Adaptation | None = module.__dict__.get(RECORD)
    return record


def anatomy_of(model: nn.Module) -> Anatomy:
    """What strategies are told about ``model``, which may be a plain module."""
    present = adaptation_of(model)
    if present is not None:
        return present.anatomy
    if not isinstance(model, Backbone):
        model = Backbone(model)
    return Anatomy(model.head, model.sites, model.image_size, model.mean.shape[1])


def forget_adaptation(module: nn.Module) -> Adaptation | None:
    """Take away the record alone, and return it."""
    record: Adaptation | None = module.__dict__.pop(RECORD, None)
    return record


def require_adaptation(model: nn.Module) -> Adaptation:
    """As :func:`adaptation_of`, but a model without an adapter is an error."""
    record = adaptation_of(model)
    if record is None:
        raise ValueError(f"this {type(model).__name__} carries no adapter; call adapt or load_adapter first")
    return record


def require_bare(model: nn.Module) -> None:
    """Raise ValueError if ``model`` carries an adapter already."""
    present = adaptation_of(model)
    if present is not None:
        raise ValueError(
            f"the model already carries {present.strategy!r}; call remove_adapter or merge_adapter first"
        )


def trainable_parameters(model: nn.Module, *, head: bool = True) -> dict[str, nn.Parameter]:
    """The parameters that an adapted model trains, by name; without the classifier if ``head`` is False."""
    adaptation = require_adaptation(model)
    module = network_of(model)
    parameters = dict(module.named_parameters())
    return {
        name: parameters[name] for name in adaptation.trained if head or not inside(name, adaptation.head)
    }


def merge_adapter(model: nn.Module) -> nn.Module:
    """Turn an adapted model into one with plain weights and the same logits, in place; returns the same object.

    Raises:
        ValueError: the model carries no adapter, or one that no weight can absorb (Compacter). The model is unchanged.
    """
    adaptation = require_adaptation(model)
    if adaptation.strategy.why_not_mergeable:
        name = type(adaptation.strategy).__name__
        raise ValueError(
            f"{name} cannot be merged: {adaptation.strategy.why_not_mergeable}; save it with save_adapter"
        )
    module = network_of(model)
    if wrapped_layers(module):
        check_merge(module, adaptation.anatomy)
    uninstall(module, merge=True)
    _forget(module, adaptation)
    return model


def remove_adapter(model: nn.Module) -> nn.Module:
    """Give back the model as it was before :func:`adapt`, bit for bit, in place; returns the same object.

    Raises:
        ValueError: the model carries no adapter.
    """
    adaptation = require_adaptation(model)
    module = network_of(model)
    uninstall(module)
    restore(module, adaptation.base)
    note_task(module, adaptation.task)
    _forget(module, adaptation)
    return model


def restore(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy ``values`` into the parameters and buffers of these names."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(value)
    # TinyViT and LeViT keep what they compute from parameters until training begins.
    with modes_kept(module):
        module.train()


def base_state(module: nn.Module) -> dict[str, Tensor]:
    """State dict of the model underneath: as it was before :func:`adapt`, in the base's own names."""
    adaptation = adaptation_of(module)
    if adaptation is None:
        return dict(module.state_dict())
    state = module.state_dict()
    values = {base: adaptation.base.get(base, state[name]) for name, base in adaptation.base_names.items()}
    return values | {name: values[first] for name, first in adaptation.tied.items()}


def uninstall(module: nn.Module, *, merge: bool = False) -> None:
    """Take off what strategies have added to ``module``, and leave the values of its own tensors as they are.

    Args:
        module: changed in place.
        merge: let the weights take over what changes them first.
    """
    if merge:
        Delta.merge(module)
    for _, layer in Delta.carriers(module):
        Delta.remove(layer)
    Inserted.detach_all(module)
    unwrap(module, merge=merge)


def _forget(module: nn.Module, adaptation: Adaptation) -> None:
    forget_adaptation(module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(adaptation.required_grad[name])
        parameter.grad = None
