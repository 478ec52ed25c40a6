"""Graphs of what a search asks the model, with a stand-in for the recording itself; that needs a GPU."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.attacks import APGD, FAB, AttackCopy, Square, attack_copy
from paretune.attacks.copy import captured, looks
from paretune.selftest import on_gpu
from tests import tiny
from tests.unit.attacks.copy.test_captured import (
    KeepsWhatItMakesOfItsWeights,
    _own_randomness,
    engines,
    recorded,
)

__all__ = ["_own_randomness", "recorded"]  # fixtures

ONE = pt.Linf(1 / 255)  # so small that most images are searched to the end


def network() -> nn.Module:
    """With a gradient that follows the image."""
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 7), nn.Tanh(), nn.Linear(7, 5))


def asked(victim: AttackCopy, images: Tensor, times: int = 1) -> tuple[Tensor, Tensor]:
    """Logits and a gradient, from the last of several looks."""
    for _ in range(times):
        leaf = images.clone().requires_grad_()
        logits = victim.look(leaf)
        (gradient,) = torch.autograd.grad(logits.square().sum(), leaf)
    return logits.detach(), gradient


def same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> bool:
    return all(map(torch.equal, found, wanted))


@pytest.mark.parametrize(
    "attack",
    [
        pt.PGD(ONE, steps=15, restarts=2),
        APGD(ONE, steps=15),
        APGD(pt.L2(0.05), steps=15, loss="dlr"),
        FAB(ONE, steps=15, targets=2),
        Square(ONE, queries=30),
    ],
    ids=repr,
)
def test_an_evaluation_takes_graphs_of_its_looks_and_gives_the_same_images(
    attack: Any, recorded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model, split = tiny.backbone(pt.LoRA(rank=2)), tiny.data(100).report
    model.eval()
    images = split[:12][0]
    labels = model(images).argmax(1)  # all of them right
    wanted = attack(attack_copy(model, engine="eager"), images, labels, seed=3)
    assert recorded == []
    assert torch.equal(attack(attack_copy(model), images, labels, seed=3), wanted)
    assert recorded.count("record") >= 1
    assert recorded.count("replay") >= 10
    assert " looks for (12, 3, 8, 8)" in caplog.text
    recorded.clear()
    bits = [pt.evaluate(model, split, [attack], engine=engine).robust[attack] for engine in ("eager", "auto")]
    assert (bits[0] == bits[1]).all()
    assert recorded


def test_only_what_is_looked_at_often_is_recorded_and_of_that_eight_shapes(recorded: list[str]) -> None:
    plain, graph = engines(network())
    sizes = range(1, looks.MOST_LOOKS + 3)
    for size in sizes:
        images = torch.rand(size, 3, 4, 4)
        assert same(asked(graph, images, looks.OFTEN - 1), asked(plain, images))
    assert recorded == []
    assert graph.engine == "eager"
    for size in sizes:
        images = torch.rand(size, 3, 4, 4)
        assert same(asked(graph, images, 2), asked(plain, images))
    assert recorded.count("record") == 2 * looks.MOST_LOOKS  # forward and backward
    assert graph.engine == "graph"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_replay_takes_new_images_and_weights_and_leaves_earlier_answers(
    precision: Any, recorded: list[str]
) -> None:
    model = network()
    plain, graph = engines(model, precision=precision)
    kept = []
    for _ in range(3):
        images = torch.rand(4, 3, 4, 4)
        found = asked(graph, images, looks.OFTEN)
        assert same(found, asked(plain, images))
        verified = [graph.exact(images) for _ in range(looks.OFTEN + 1)][-1]
        assert torch.equal(verified, plain.exact(images))
        kept.append((found, tuple(each.clone() for each in found)))
        with torch.no_grad():
            model[1].weight.neg_()
        plain.refresh()
        graph.refresh()
    assert all(same(found, copy) for found, copy in kept)
    assert recorded.count("record") == 2 + 1  # with gradients, and without


def test_passes_may_cross_and_one_pass_may_have_several_gradients(recorded: list[str]) -> None:
    plain, graph = engines(network())
    batches = [torch.rand(4, 3, 4, 4) for _ in range(2)]
    asked(graph, batches[0], looks.OFTEN)

    def crossed(victim: AttackCopy) -> list[Tensor]:
        leaves = [images.clone().requires_grad_() for images in batches]
        logits = [victim.look(leaf) for leaf in leaves]
        gradients = [
            torch.autograd.grad(logits[number][:, label].sum(), leaves[number], retain_graph=True)[0]
            for label in range(3)
            for number in range(2)
        ]
        return [*(each.detach() for each in logits), *gradients]

    recorded.clear()
    found = crossed(graph)
    assert recorded
    assert all(map(torch.equal, found, crossed(plain)))


def test_threads_keep_to_their_own_answers(recorded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    record = captured.record_graph

    def slow(*arguments: Any) -> tuple[Callable[[], None], Tensor]:
        replay, result = record(*arguments)
        return lambda: (replay(), time.sleep(1e-3))[0], result  # in which others run

    monkeypatch.setattr(captured, "record_graph", slow)
    plain, graph = engines(network())
    batches = [torch.rand(4, 3, 4, 4) for _ in range(4)]
    asked(graph, batches[0], looks.OFTEN)
    wrong: list[int] = []

    def work(number: int, wanted: tuple[Tensor, Tensor]) -> None:
        wrong.extend(number for _ in range(10) if not same(asked(graph, batches[number]), wanted))

    threads = [
        threading.Thread(target=work, args=(number, asked(plain, images)))
        for number, images in enumerate(batches)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert recorded.count("record") == 2


def refuse(*_: Any) -> Any:
    raise RuntimeError("operation not permitted when stream is capturing")


def idle(warm_up: Any, loop: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    return lambda: None, loop()  # replays nothing


@pytest.mark.parametrize(
    ("record", "reason"),
    [(refuse, "no graph of them (RuntimeError: operation"), (idle, "a graph of them gave other bits")],
    ids=["no capture", "stale"],
)
def test_what_cannot_be_recorded_or_trusted_is_taken_as_it_is(
    record: Any, reason: str, recorded: list[str], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(captured, "record_graph", record)
    plain, graph = engines(network())
    images = torch.rand(4, 3, 4, 4)
    assert same(asked(graph, images, 2 * looks.OFTEN), asked(plain, images))
    assert graph.engine == "eager"
    warnings = [each.getMessage() for each in caplog.records if "for (4, 3, 4, 4)" in each.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith("attack copy: eager looks for")
    assert reason in warnings[0]


def test_where_the_gpu_is_busy_anyway_only_a_wish_takes_a_graph_of_looks(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured, "seconds_of", lambda run, device: (0.004, 0.020))
    images = torch.rand(4, 3, 4, 4)
    for engine, taken in (("auto", "eager"), ("graph", "graph"), ("eager", "eager")):
        victim = attack_copy(network(), engine=engine)  # type: ignore[arg-type]
        asked(victim, images, looks.OFTEN)
        assert victim.engine == taken


class Noisy(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        logits = images.flatten(1)[:, :5]
        return logits + 0.1 * torch.rand_like(logits)


@pytest.mark.parametrize("model", [KeepsWhatItMakesOfItsWeights(), Noisy()], ids=["keeps", "draws"])
def test_what_a_graph_would_not_repeat_is_not_recorded(model: nn.Module, recorded: list[str]) -> None:
    victim = attack_copy(model, engine="graph")
    for _ in range(2 * looks.OFTEN):
        victim.exact(torch.rand(4, 3, 4, 4))
    assert recorded == []
    assert victim.engine == "eager"


def test_the_self_test_looks_for_stale_answers(recorded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    everything = "same as eager looks, several gradients, other weights, by a graph"
    assert on_gpu._looks(torch.device("cpu")) == (True, everything)
    monkeypatch.setattr(captured, "record_graph", refuse)
    assert on_gpu._looks(torch.device("cpu")) == (False, "by a graph")
