"""Which batch norms follow training is recorded once, by the adaptation, and holds wherever the adapted network goes."""

import copy

import pytest
from torch import nn

import paretune as pt
from paretune.interchange import AdapterSet
from paretune.strategies import adaptation_of
from tests.contracts.backbones import make


def modes(model: nn.Module) -> set[bool]:
    """Those of the batch norms, while all else is in training mode."""
    model.train()
    return {part.training for part in model.modules() if isinstance(part, nn.BatchNorm2d)}


@pytest.mark.parametrize("bn", ["frozen", "adapt"])
def test_the_record_names_every_batch_norm_and_whether_it_follows(bn: str) -> None:
    model = make("resnet18")
    names = [name for name, part in model.module.named_modules() if isinstance(part, nn.BatchNorm2d)]
    pt.adapt(model, pt.LinearProbe(bn=bn))  # type: ignore[arg-type]
    adaptation = adaptation_of(model)
    assert adaptation is not None
    assert adaptation.follows == dict.fromkeys(names, bn == "adapt")
    buffers = {name for name, _ in model.module.named_buffers() if name.rpartition(".")[0] in names}
    assert set(adaptation.statistics(model.module)) == (buffers if bn == "adapt" else set())


def test_frozen_batch_norms_stay_so_in_copies_wrappers_and_other_backbones() -> None:
    model = pt.adapt(make("resnet18"), pt.IA3())
    again = pt.Backbone(model.module, image_size=model.image_size)
    wrapper = copy.deepcopy(model)
    wrapper.module = nn.Sequential(wrapper.module)
    for each in (model, again, wrapper, copy.deepcopy(again)):
        assert modes(each) == {False}
    pt.remove_adapter(again)
    assert modes(model) == modes(again) == {True}


def test_which_follow_changes_with_the_active_adapter() -> None:
    model = make("resnet18")
    adapters = AdapterSet(model)
    adapters.add("still", pt.LinearProbe())
    adapters.add("moving", pt.LinearProbe(bn="adapt"))
    for which, training in (("still", False), ("moving", True), ({"still": 1.0}, False), (None, True)):
        adapters.activate(which)  # type: ignore[arg-type]
        assert modes(model) == {training}
