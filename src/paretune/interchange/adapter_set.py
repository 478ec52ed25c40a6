"""Several adapters on one backbone: named, switched in place, combined, and mixed in one batch."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paretune.backbones.backbone import Task, network_of, note_task, task_of
from paretune.backbones.random import GENERATORS, borrowed_randomness
from paretune.backbones.threads import Gate
from paretune.interchange.files import save_adapter
from paretune.interchange.loading import load_adapter
from paretune.interchange.placing import stored_tensors_full_names
from paretune.strategies.combination import (
    Blend,
    Combination,
    check_weights,
    combined,
    inserted_modules,
    part_of,
)
from paretune.strategies.mechanics.adapting import (
    Adaptation,
    adapt,
    adaptation_of,
    base_state,
    install,
    remove_adapter,
    require_adaptation,
    restore,
)
from paretune.strategies.mechanics.base import Anatomy, Strategy
from paretune.strategies.mechanics.views import Views


@dataclasses.dataclass(frozen=True)
class _Named:
    """An adapter that is not on the model: what it is, and its tensors under the names they have on the model."""

    strategy: Strategy
    anatomy: Anatomy
    values: Mapping[str, Tensor]
    task: Task


@dataclasses.dataclass(frozen=True)
class _Blended:
    """What a combination has inserted: copies of modules, whose structures they have, and their tensors."""

    parts: tuple[nn.Module, ...]
    views: tuple[Views, ...]
    slots: tuple[Mapping[str, Tensor], ...]


class AdapterSet:
    """Named adapters that take turns on one model, or share it.

    One name at a time is *active*: the model then is an ordinary adapted model, which trains, is attacked, saved and merged
    as such. A weighted combination is for evaluation and attacks only. Make optimizers after :meth:`activate`, and
    refresh attack copies after it. Each adapter has its own head, of the same classes.

    Switching between adapters of one strategy, or from one combination to another, copies values in place, so that a model
    that :func:`torch.compile` has compiled is not compiled again. What changes its structure is another strategy, and a
    combination with another number or kind of inserted modules (Compacter, Adapter, VisualPrompt). ``activate({"a": 1.0})``
    is the model with ``"a"`` merged, and such switches never change the structure where nothing is inserted.

    Several threads may share one object. Calls run side by side, each with the logits that it has alone; whatever changes
    the adapters (:meth:`add`, :meth:`activate`, :meth:`remove`) waits for the calls that run, and later calls wait for it.
    The model itself, which :meth:`activate` changes in place, is for one thread at a time.

    Example:
        >>> import paretune as pt
        >>> model = pt.load_backbone("timm:test_vit", num_classes=10, pretrained=False)
        >>> adapters = pt.interchange.AdapterSet(model)
        >>> adapters.add("weak", pt.LoRA(rank=2))
        >>> adapters.add("strong", pt.LoRA(rank=8), seed=1)
        >>> adapters.activate("weak")                           # now train it
        >>> adapters.activate({"weak": 0.3, "strong": 0.7})     # the weighted sum of their differences
        >>> adapters(torch.rand(3, 3, 160, 160), ["weak", None, "strong"]).shape
        torch.Size([3, 10])
        >>> adapters.activate(None)                             # the base, bit for bit

    Args:
        model: a Backbone, or a plain module into which adapters are loaded; changed in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._module: nn.Module = network_of(model)
        self._named: dict[str, _Named] = {}
        self._active: str | dict[str, float] | None = None
        self._adaptation = adaptation_of(model)
        self._blended: _Blended | None = None
        self._views: list[Views] = []
        self._seen: frozenset[int] = frozenset()
        self._gate = Gate()

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they were added."""
        return tuple(self._named)

    @property
    def active(self) -> str | dict[str, float] | None:
        """What :meth:`activate` was last given."""
        return dict(self._active) if isinstance(self._active, dict) else self._active

    def add(
        self,
        name: str,
        source: Strategy | str | Path | None = None,
        *,
        seed: int = 0,
        check_base: bool = True,
    ) -> None:
        """Add an adapter under ``name``; what is active stays so.

        Args:
            name: a new one.
            source: a strategy for a fresh adapter (on a Backbone), the directory of a saved one, or None for the one that
                the model carries already, which becomes the active one.
            seed: of a fresh adapter, as for :func:`~paretune.adapt`.
            check_base: of a saved one, as for :func:`~paretune.load_adapter`.

        Raises:
            ValueError: the name is taken, or the adapter does not fit the model, which is as before then.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"name must be a text of at least one letter, got {name!r}")
        if source is None:
            with self._gate.changing():
                self._free(name)
                self._take_over(name)
            return
        with self._gate.using():
            self._free(name)
            self._check()
            bare = self._bare()
        if isinstance(source, Strategy):
            adapt(bare, source, seed=seed)  # type: ignore[arg-type]  # which refuses anything but a Backbone
        else:
            load_adapter(bare, source, check_base=check_base)
        module = network_of(bare)
        adaptation = require_adaptation(bare)
        values, task = _values(module, adaptation), task_of(bare)
        with self._gate.changing():
            self._free(name)
            self._named[name] = _Named(adaptation.strategy, adaptation.anatomy, values, task)

    def activate(self, which: str | Mapping[str, float] | None, *, head: str | None = None) -> None:
        """Let the model be the one with this adapter, with a combination of several, or (None) the base bit for bit.

        A combination {a: w_a, b: w_b} is W + w_a (W_a - W) + w_b (W_b - W) for every weight, bias and batch-norm statistic W
        of the base, with W_a what adapter a makes of it. Of what adapters insert, the changes are added likewise at each
        place: h + w_a (f_a(h) - h) + w_b (f_b(h) - h). A head is no change of a pretrained one, so the heads are averaged,
        with the weights divided by their sum; ``head`` takes that of one adapter instead. All parameters are frozen.

        Args:
            which: a name, weights by name, or None.
            head: of a combination, the name of the adapter whose head is used.

        Raises:
            ValueError: an unknown name, a weight that means nothing, or adapters that have no combination (prompt tokens,
                :class:`~paretune.strategies.Peft`). The model is as before then.
        """
        if head is not None and not isinstance(which, Mapping):
            raise ValueError(f"head={head!r} is for combinations; every adapter has its own head")
        with self._gate.changing():
            self._check()
            if isinstance(which, Mapping):
                self._known(*which)
                self._combine({name: which[name] for name in which}, check_weights(which, head))
            elif which is None:
                self._take_off()
            elif which != self._active:
                self._known(which)
                self._put_on(which)

    def remove(self, name: str) -> None:
        """Forget an adapter; if it takes part in what is active, the model is the base again.

        Raises:
            ValueError: there is none of this name.
        """
        with self._gate.changing():
            self._check()
            self._known(name)
            if name == self._active or (isinstance(self._active, dict) and name in self._active):
                self._take_off()
            del self._named[name]
            structures = [(adapter.strategy, adapter.anatomy) for adapter in self._named.values()]
            self._views = [views for views in self._views if any(views.fits(*pair) for pair in structures)]

    def save(self, name: str, directory: str | Path, **describing: Any) -> Path:
        """Write one adapter as :func:`~paretune.save_adapter` does, which takes ``describing`` too.

        Raises:
            ValueError: there is none of this name.
        """
        with self._gate.using():
            self._check()
            self._known(name)
            if name == self._active:
                return save_adapter(self.model, directory, **describing)
            adapter, bare = self._named[name], self._bare()
        module = network_of(bare)
        install(module, adapter.strategy, adapter.anatomy)
        restore(module, adapter.values)
        note_task(bare, adapter.task)
        return save_adapter(bare, directory, **describing)

    def __call__(self, images: Tensor, adapters: Sequence[str | None]) -> Tensor:
        """Logits (batch, classes) of a batch in which each image has its own adapter, in evaluation mode.

        The images of one adapter run together, so the logits are those that they have under it alone. Nothing is switched:
        what is active stays so. Gradients flow to the images, not to the adapters. Several threads may call at once.

        Args:
            images: (batch, channels, height, width).
            adapters: for each image a name, or None for the base.

        Raises:
            ValueError: an unknown name, or not one entry an image.
        """
        if len(adapters) != len(images) or not len(images):
            raise ValueError(
                f"adapters needs one entry an image, and at least one: got {len(adapters)} for {len(images)} images"
            )
        groups: dict[str | None, list[int]] = {}
        for number, name in enumerate(adapters):
            groups.setdefault(name, []).append(number)
        logits = []
        with self._gate.using():
            self._check()
            self._known(*(name for name in groups if name is not None))
            base = base_state(self._module)
            for name, numbers in groups.items():
                chosen = torch.tensor(numbers, device=images.device)
                values = {} if name is None else self._current(name).values
                with self._views_of(name).one() as view:
                    logits.append(view(images[chosen], values, base))
        back = torch.tensor([number for numbers in groups.values() for number in numbers]).argsort()
        return torch.cat(logits)[back.to(images.device)]

    # ---- what is on the model ---------------------------------------------------------------------------------------

    def _check(self) -> None:
        if adaptation_of(self.model) is not self._adaptation:
            raise ValueError(
                "the model's adapter was put on, merged or removed without this set; make a new one: AdapterSet(model)"
            )
        if self._adaptation is not None and self._active is None:
            raise ValueError(
                f"the model carries {self._adaptation.strategy!r}, which has no name here; give it one with add(NAME), or "
                "call remove_adapter before AdapterSet(model)"
            )

    def _free(self, name: str) -> None:
        if name in self._named:
            raise ValueError(f"there is an adapter {name!r} already; remove it first, or choose another name")

    def _known(self, *names: str) -> None:
        for name in names:
            if name not in self._named:
                raise ValueError(
                    f"there is no adapter {name!r}; there are {', '.join(self._named) or 'none'}"
                )

    def _take_over(self, name: str) -> None:
        adaptation = require_adaptation(self.model)
        if self._active is not None:
            raise ValueError(f"the adapter that the model carries is {self._active!r} already")
        self._adaptation = adaptation
        self._named[name] = _Named(adaptation.strategy, adaptation.anatomy, {}, Task())
        self._active = name

    def _take_off(self) -> None:
        self._keep()
        if self._adaptation is not None:
            remove_adapter(self.model)
        self._active = self._adaptation = self._blended = None

    def _put_on(self, name: str) -> None:
        adapter = self._named[name]
        now = self._named[self._active] if isinstance(self._active, str) else None
        if now is not None and (now.strategy, now.anatomy) == (adapter.strategy, adapter.anatomy):
            self._keep()
            for parameter in self._module.parameters():
                parameter.grad = None
        else:
            self._take_off()
            self._install(adapter.strategy, adapter.anatomy)
        restore(self._module, adapter.values)
        note_task(self._module, adapter.task)
        self._active = name

    def _combine(self, weights: dict[str, float], head_weights: dict[str, float]) -> None:
        self._keep()
        base = base_state(self._module)
        views = {name: self._views_of(name) for name in weights}
        changes = (
            (name, view.pattern.effective(self._named[name].values, base)) for name, view in views.items()
        )
        inserting = {name: view for name, view in views.items() if inserted_modules(view.pattern.module)}
        anatomy = self._named[next(iter(weights))].anatomy
        values = combined(base, changes, weights, anatomy.head, head_weights)
        if self._blended is None or self._blended.views != tuple(inserting.values()):
            copies = [part_of(view.pattern.module) for view in inserting.values()]
            parts = tuple(part for part, _ in copies)
            self._take_off()
            self._install(Combination(weights, parts=parts), anatomy).trained = ()
            self._module.requires_grad_(False)
            slots = tuple(tensors for _, tensors in copies)
            self._blended = _Blended(parts, tuple(inserting.values()), slots)
        assert self._adaptation is not None
        blended, adaptation = self._blended, self._adaptation
        adaptation.strategy = Combination(weights, parts=blended.parts)
        originals = adaptation.base
        originals |= {name: base[name].detach().clone() for name in values if name not in originals}
        restore(self._module, originals | values)
        with torch.no_grad():
            for name, slot in zip(inserting, blended.slots, strict=True):
                for inner, tensor in slot.items():
                    tensor.copy_(self._named[name].values[inner])
        for part in self._module.modules():
            if isinstance(part, Blend):
                part.set([weights[name] for name in inserting])
        classes = {self._named[name].task.classes for name in weights}
        note_task(self._module, Task(classes.pop() if len(classes) == 1 else None))
        self._active = weights

    def _install(self, strategy: Strategy, anatomy: Anatomy) -> Adaptation:
        with borrowed_randomness():
            self._adaptation = install(self._module, strategy, anatomy)
        self.model.train(self.model.training)  # what was inserted too
        return self._adaptation

    # ---- values and views -------------------------------------------------------------------------------------------

    def _current(self, name: str) -> _Named:
        """With the present values, which for the active adapter are the model's."""
        adapter = self._named[name]
        if name != self._active or self._adaptation is None:
            return adapter
        return dataclasses.replace(
            adapter, values=_values(self._module, self._adaptation), task=task_of(self._module)
        )

    def _keep(self) -> None:
        """Take the values of the active adapter from the model, where training may have changed them."""
        if isinstance(self._active, str):
            now = self._current(self._active)
            copies = {name: value.clone() for name, value in now.values.items()}
            self._named[self._active] = dataclasses.replace(now, values=copies)

    def _bare(self) -> nn.Module:
        """A copy of the base, to which the model is closed."""
        copied = copy.deepcopy(self.model)
        return remove_adapter(copied) if adaptation_of(copied) is not None else copied

    def _views_of(self, name: str | None) -> Views:
        """For adapters of this one's structure; made again when the model's tensors lie elsewhere than before."""
        names = self._adaptation.base_names if self._adaptation is not None else None
        state = self._module.state_dict()
        seen = frozenset(value.data_ptr() for key, value in state.items() if names is None or key in names)
        strategy = None if name is None else self._named[name].strategy
        anatomy = None if name is None else self._named[name].anatomy
        with GENERATORS:
            if seen != self._seen:
                self._seen, self._views = seen, []
            for views in self._views:
                if views.fits(strategy, anatomy):
                    return views
            self._views.append(Views(self.model, strategy, anatomy))
            return self._views[-1]


def _values(module: nn.Module, adaptation: Adaptation) -> dict[str, Tensor]:
    """The present values of what an adapter file would hold, under the names of the adapted module; no copies."""
    stored = stored_tensors_full_names(module, adaptation)
    return {name: value.detach() for name, value in stored.items()}
