"""What several threads may do at once, and that each then gets what it gets alone, to the last bit."""

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import paretune as pt
from paretune.attacks import APGD, FGSM, Attack, attack_copy
from paretune.backbones.threads import Gate
from paretune.evaluation.scores import Scores
from paretune.strategies import Strategy
from tests import tiny
from tests.contracts.backbones import images
from tests.unit.interchange.test_adapter_set import (
    CONVNET,
    ON_CONVNET,
    ON_VIT,
    VIT,
    draw,
    make,
    with_adapters,
)

THREADS = 8


def in_threads(work: Callable[[int], Any], number: int = THREADS) -> list[Any]:
    """``work(0)``, ``work(1)``, … each in a thread of its own, begun together; an error of any is raised here."""
    begin = threading.Barrier(number)
    found: list[Any] = [None] * number
    errors: list[BaseException] = []

    def run(index: int) -> None:
        begin.wait()
        try:
            found[index] = work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


@pytest.fixture(autouse=True)
def often_switched() -> Iterator[None]:
    """Let threads take turns often, so that what can go wrong does."""
    import sys

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


# ---- adapters ---------------------------------------------------------------------------------------------------


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("arch", "strategies"),
    [(VIT, (pt.LoRA(rank=2),) * 4), (VIT, ON_VIT), (CONVNET, (pt.IA3(),) * 3), (CONVNET, ON_CONVNET)],
)
def test_calls_from_several_threads_give_each_its_own_logits(arch: str, strategies: Any) -> None:
    model = make(arch)
    adapters = with_adapters(model, *strategies)
    batch = images(model.image_size)
    requests = [[name] * 2 for name in adapters.names]
    requests += [[a, b] for a, b in zip(adapters.names, (*adapters.names[1:], None), strict=True)]
    requests += [[None, None]]
    expected = [adapters(batch, request) for request in requests]

    def work(index: int) -> None:
        for turn in range(len(requests)):
            number = (index * 3 + turn) % len(requests)
            assert torch.equal(adapters(batch, requests[number]), expected[number])

    in_threads(work)


def test_calls_of_different_images_do_not_meet() -> None:
    model = make(VIT)
    adapters = with_adapters(model, *[pt.LoRA(rank=2)] * 3)
    generator = torch.Generator().manual_seed(3)
    batches = torch.rand(THREADS, 4, 3, 32, 32, generator=generator)
    mixed: list[str | None] = ["a0", "a2", None, "a1"]
    expected = [adapters(batch, mixed) for batch in batches]
    found = in_threads(lambda index: [adapters(batches[index], mixed) for _ in range(6)])
    for index in range(THREADS):
        for logits in found[index]:
            assert torch.equal(logits, expected[index])


@pytest.mark.parametrize(
    ("arch", "strategies"),
    [(VIT, (pt.BitFit(), pt.BitFit(), pt.LoRA(rank=2), pt.Compacter())), (CONVNET, ON_CONVNET)],
)
def test_calls_while_another_thread_activates_are_those_of_their_adapters(arch: str, strategies: Any) -> None:
    model = make(arch)
    adapters = with_adapters(model, *strategies)
    batch = images(model.image_size)
    requests: list[list[str | None]] = [[name, name] for name in adapters.names] + [[None, None]]
    expected = [adapters(batch, request) for request in requests]
    switches: list[Any] = ["a0", "a1", None, {"a0": 0.5, "a1": 0.5}, "a2", "a3", {"a2": 1.0}, None]
    running = threading.Event()

    def work(index: int) -> None:
        if index == 0:
            for switch in switches * 4:
                adapters.activate(switch)
            running.set()
            return
        turn = index
        while not running.is_set():
            number = turn % len(requests)
            assert torch.equal(adapters(batch, requests[number]), expected[number])
            turn += 1

    in_threads(work, 4)
    assert torch.equal(model(batch), adapters(batch, [None, None]))


def test_adapters_come_and_go_while_others_are_called(tmp_path: Path) -> None:
    model = make(VIT)
    adapters = with_adapters(model, pt.LoRA(rank=2), pt.BitFit())
    batch = images(model.image_size)
    expected = adapters(batch, ["a0", "a1"])
    adapters.save("a0", tmp_path / "a0")

    def work(index: int) -> None:
        for turn in range(3):
            if index < 3:
                name = f"{index}-{turn}"
                adapters.add(name, tmp_path / "a0")
                assert torch.equal(adapters(batch, [name, "a1"]), expected)
                adapters.remove(name)
            else:
                assert torch.equal(adapters(batch, ["a0", "a1"]), expected)

    in_threads(work)
    assert adapters.names == ("a0", "a1")


def test_of_two_threads_that_add_one_name_one_is_refused() -> None:
    adapters = pt.interchange.AdapterSet(make(VIT))

    def work(index: int) -> str:
        try:
            adapters.add("same", pt.BitFit(), seed=index)
        except ValueError as error:
            return str(error)
        return ""

    found = in_threads(work, 4)
    assert sorted(bool(error) for error in found) == [False, True, True, True]
    assert "there is an adapter 'same' already" in max(found)


def test_a_cache_of_parametrized_tensors_does_not_mix_adapters() -> None:
    model = make(CONVNET)
    adapters = with_adapters(model, pt.LoRA(rank=2), pt.LoRA(rank=2))
    batch = images(model.image_size)
    expected = [adapters(batch, [name] * 2) for name in adapters.names]
    with parametrize.cached():
        for name, logits in zip(adapters.names, expected, strict=True):
            assert torch.equal(adapters(batch, [name] * 2), logits)


def test_adapters_can_be_copied() -> None:
    model = make(CONVNET)
    adapters = with_adapters(model, pt.LoRA(rank=2), pt.IA3())
    batch = images(model.image_size)
    copied = copy.deepcopy(adapters)
    assert torch.equal(copied(batch, ["a0", "a1"]), adapters(batch, ["a0", "a1"]))


# ---- one model --------------------------------------------------------------------------------------------------


@pytest.mark.some(5)
@pytest.mark.parametrize(
    "strategy",
    [
        pt.LoRA(rank=2),
        pt.IA3(),
        pt.BitFit(),
        pt.Compacter(reads="sum"),
        pt.Adapter(reads="stream"),
        pt.VisualPrompt(size=4),
    ],
    ids=repr,
)
@pytest.mark.parametrize("graph", [False, True], ids=["inference", "gradients"])
def test_one_adapted_model_answers_several_threads(strategy: Strategy, graph: bool) -> None:
    model = pt.adapt(make(VIT), strategy)
    draw(model, 0)
    batches = torch.rand(THREADS, 2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    expected = [model(batch).detach() for batch in batches]

    def work(index: int) -> None:
        for _ in range(10):
            with torch.set_grad_enabled(graph):
                assert torch.equal(model(batches[index]).detach(), expected[index])

    in_threads(work)


def test_a_model_is_copied_while_others_are_in_it() -> None:
    model = pt.adapt(make(VIT), pt.Compacter(reads="sum"))
    draw(model, 0)
    batch, labels = images(model.image_size), torch.arange(2)
    attack = pt.PGD(pt.Linf(0.1), steps=2, keep="last")
    expected, logits = attack(model, batch, labels), model(batch).detach()

    def work(index: int) -> None:
        for _ in range(8):
            if index % 2:
                assert torch.equal(model(batch).detach(), logits)
            else:
                assert torch.equal(attack(model, batch, labels), expected)

    in_threads(work)


ATTACKS: tuple[Attack, ...] = (
    pt.PGD(pt.Linf(0.1), steps=3),
    pt.PGD(pt.Linf(0.1), steps=3, keep="last"),
    APGD(pt.L2(1.0), steps=5),
    FGSM(pt.Linf(0.1)),
    pt.AutoAttack(pt.Linf(0.05), steps=3, queries=5, targets=2),
)


class Noisy(nn.Module):
    """Draws from the global generators in each pass, as randomised smoothing does."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny.network()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images + 0.1 * torch.randn_like(images))
        return logits


@pytest.mark.some(6)
@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
@pytest.mark.parametrize("noisy", [False, True], ids=["deterministic", "noisy"])
@pytest.mark.parametrize("shared", [False, True], ids=["model", "copy"])
def test_attacks_from_several_threads_are_those_of_their_seeds(
    attack: Attack, noisy: bool, shared: bool
) -> None:
    if noisy and isinstance(attack, pt.AutoAttack):
        attack = pt.AutoAttack(pt.Linf(0.05), version="rand", steps=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (Noisy() if noisy else tiny.network()).train()
    batch = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(6)

    def victim() -> Any:
        return attack_copy(model, precision="fp32") if shared else model

    alone = victim()
    expected = [attack(alone, batch, labels, seed=seed) for seed in range(THREADS)]
    state, together = torch.get_rng_state(), victim()
    found = in_threads(lambda seed: attack(together, batch, labels, seed=seed))
    assert all(map(torch.equal, found, expected))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in model.modules())


def test_attacks_leave_alone_what_another_thread_draws() -> None:
    model = make(CONVNET)
    batch, labels = images(model.image_size), torch.arange(2)
    torch.manual_seed(5)
    expected = torch.stack([torch.rand(3) for _ in range(200)])
    torch.manual_seed(5)

    def work(index: int) -> Tensor | None:
        if index == 0:
            return torch.stack([torch.rand(3) for _ in range(200)])
        for seed in range(4):
            pt.PGD(pt.Linf(0.1), steps=2)(model, batch, labels, seed=seed)
        return None

    assert torch.equal(in_threads(work, 4)[0], expected)


def test_evaluations_of_one_model_do_not_end_each_others_mode() -> None:
    data = tiny.data(100).report
    model = tiny.backbone(pt.FullFineTune(bn="adapt")).train()
    model.module[4].eval()  # as a user may have frozen it
    attacks = [pt.PGD(pt.Linf(4 / 255), steps=2)]
    modes = [part.training for part in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    expected = [pt.evaluate(model, data, attacks, batch_size=5, seed=seed) for seed in range(4)]

    def work(index: int) -> Scores:
        scores = [pt.evaluate(model, data, attacks, batch_size=5, seed=index) for _ in range(1 + index)]
        return scores[-1]

    for scores, alone in zip(in_threads(work, 4), expected, strict=True):
        assert (scores.clean == alone.clean).all()
        assert (scores.robust[attacks[0]] == alone.robust[attacks[0]]).all()
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_copy_is_refreshed_between_attacks_not_during_one() -> None:
    model = make(CONVNET)
    victim = attack_copy(model)
    batch, labels = images(model.image_size), torch.arange(2)
    attack = pt.PGD(pt.Linf(0.1), steps=3, keep="last")
    before = attack(victim, batch, labels)
    with torch.no_grad():
        model.module[-1].weight.neg_()
    after = attack(model, batch, labels)
    assert not torch.equal(before, after)

    def work(index: int) -> list[Tensor]:
        found = []
        for turn in range(6):
            if index == 0 and turn == 3:
                victim.refresh()
            found.append(attack(victim, batch, labels))
        return found

    for found in in_threads(work, 4):
        assert all(torch.equal(each, before) or torch.equal(each, after) for each in found)
    assert torch.equal(attack(victim, batch, labels), after)


# ---- the gate ---------------------------------------------------------------------------------------------------


def test_a_gate_lets_many_use_and_one_change() -> None:
    gate, inside, most = Gate(), [0, 0], [0, 0]

    def work(index: int) -> None:
        for _ in range(30):
            kind = int(index < 2)
            with gate.changing() if kind else gate.using():
                inside[kind] += 1
                most[kind] = max(most[kind], inside[kind])
                assert not (inside[1] and inside[0])
                assert inside[1] <= 1
                with gate.using():  # again
                    pass
                inside[kind] -= 1

    in_threads(work)
    assert most[1] == 1


def test_who_uses_a_gate_cannot_change_what_is_behind_it() -> None:
    gate = Gate()
    with (
        gate.using(),
        pytest.raises(RuntimeError, match="cannot change while this thread uses it"),
        gate.changing(),
    ):
        pass
    with gate.changing(), gate.changing():
        pass
    with pickle.loads(pickle.dumps(gate)).changing(), gate.using():
        pass
