import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretune._values import from_dict, parse
from paretune.attacks import ATTACKS, L1, L2, PGD, THREATS, AttackCopy, Linf, Threat, attack_copy
from paretune.attacks.copy.options import CopyOptions
from paretune.attacks.streams import Streams
from tests.unit.attacks.victims import Counting, Liar, Linear, batch, exact_copy, from_logits, right

CHOICES = {**ATTACKS, **THREATS}


# ---- closed forms -----------------------------------------------------------------------------------------------


def test_linf_pgd_reaches_the_optimum_of_a_two_class_linear_model() -> None:
    model = Linear(2, 3, 4, 4)
    images, labels = batch(classes=2)
    wrong_minus_right = (model.weight[1 - labels] - model.weight[labels]).view_as(images)
    optimum = (images + 0.1 * wrong_minus_right.sign()).clamp(0, 1)
    found = PGD(Linf(0.1), keep="last")(model, images, labels)
    torch.testing.assert_close(found, optimum, rtol=0, atol=2**-23)


def test_l2_pgd_reaches_the_optimum_of_a_two_class_linear_model() -> None:
    model = Linear(2, 3, 4, 4)
    images, labels = batch(classes=2, low=0.4, high=0.6)  # so far inside [0, 1] that no pixel is clamped
    wrong_minus_right = model.weight[1 - labels] - model.weight[labels]
    optimum = images + 0.2 * F.normalize(wrong_minus_right).view_as(images)
    # After a step of ten radii and the way back, what is not along the optimum is a tenth of what it was.
    found = PGD(L2(0.2), steps=8, step_size=2.0, keep="last")(model, images, labels)
    torch.testing.assert_close(found, optimum, rtol=0, atol=2**-22)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.2)], ids=repr)
def test_pgd_reaches_the_optimum_of_a_target_of_a_three_class_linear_model(threat: Threat) -> None:
    model = Linear(3, 3, 4, 4)
    model.weight.data[2] = model.weight[1]  # so that only the direction from these two to the target counts
    images, labels = batch(low=0.4, high=0.6)
    towards = (model.weight[0] - model.weight[1]).view(1, 3, 4, 4)
    direction = towards.sign() if isinstance(threat, Linf) else towards / towards.norm()
    attack = PGD(threat, steps=8, step_size=10 * threat.epsilon, targeted=True, keep="last")
    found = attack(model, images, labels, targets=torch.zeros_like(labels))
    torch.testing.assert_close(found, images + threat.epsilon * direction, rtol=0, atol=2**-22)


def test_untargeted_pgd_raises_the_loss_of_a_three_class_linear_model_to_the_best_corner() -> None:
    model = Linear(3, 1, 2, 2)
    draw = torch.Generator().manual_seed(3)
    images, labels = torch.rand(8, 1, 2, 2, generator=draw), torch.randint(3, (8,), generator=draw)
    found = PGD(Linf(0.05), steps=20, restarts=10)(model, images, labels)
    corners = torch.cartesian_prod(*[torch.tensor([-0.05, 0.05])] * 4).view(-1, 1, 1, 2, 2)
    best = torch.stack(
        [F.cross_entropy(model((images + c).clamp(0, 1)), labels, reduction="none") for c in corners]
    )
    reached = F.cross_entropy(model(found), labels, reduction="none")
    # Cross-entropy is convex in x for a linear model, so its maximum over the box is at a corner.
    solved = model(found).argmax(1) != labels
    assert (
        solved == (torch.stack([model((images + c).clamp(0, 1)).argmax(1) for c in corners]) != labels).any(0)
    ).all()
    torch.testing.assert_close(reached[~solved], best.amax(0)[~solved])
    assert (~solved).sum() >= 2
    assert solved.sum() >= 2


def test_one_l1_step_of_length_epsilon_reaches_the_optimum_of_a_two_class_linear_model() -> None:
    # The pixels with the largest weights go to their bounds, the last of them as far as the budget reaches.
    model = Linear(2, 3, 4, 4)
    images, labels = batch(classes=2)
    towards = (model.weight[1 - labels] - model.weight[labels]).detach()
    order = towards.abs().argsort(dim=1, descending=True)
    optimum = images.flatten(1).clone()
    for image, row in enumerate(order):
        budget = 1.5
        for pixel in row:
            bound = 1.0 if towards[image, pixel] > 0 else 0.0
            way = min(abs(bound - float(optimum[image, pixel])), budget)
            optimum[image, pixel] += way if bound else -way
            budget -= way
    found = PGD(L1(1.5), steps=1, step_size=1.5, random_start=False, keep="last")(model, images, labels)
    torch.testing.assert_close(found, optimum.view_as(images), rtol=0, atol=2**-20)


# ---- momentum ---------------------------------------------------------------------------------------------------


def test_momentum_accumulates_gradients_of_mean_absolute_value_one() -> None:
    # Dong et al. 2018, equations 6 and 7, by hand; logits[1] - logits[0] = sum of x^2 / 2, so the gradient follows x.
    model = from_logits(lambda x: torch.stack([0 * x.sum(1), (x**2).sum(1) / 2], dim=1))
    images, labels = torch.tensor([[0.3, 0.6]]), torch.tensor([0])
    found = PGD(L2(0.2), steps=2, step_size=0.05, momentum=0.7, random_start=False, keep="last")(
        model, images, labels
    )
    x, direction = images.clone(), torch.zeros(1, 2)
    for _ in range(2):
        direction = 0.7 * direction + x / x.abs().mean()
        x = x + 0.05 * direction / direction.norm()
    torch.testing.assert_close(found, x, rtol=0, atol=2**-22)


def test_momentum_keeps_going_where_the_gradient_turns() -> None:
    # After one step to the right the slope points back; with momentum 1 the second step still goes right.
    model = from_logits(lambda x: torch.cat([0 * x, torch.where(x < 0.55, 2 * x, 2.2 - 2 * x)], dim=1))
    attack = PGD(Linf(0.4), steps=2, step_size=0.1, momentum=2.0, random_start=False, keep="last")
    found = attack(model, torch.tensor([[0.5]]), torch.tensor([0]))
    torch.testing.assert_close(found, torch.tensor([[0.7]]))


# ---- verified in float32 ----------------------------------------------------------------------------------------


def test_an_image_whose_success_float32_does_not_confirm_is_searched_on() -> None:
    Counting.batches = []
    model, (images, _) = Counting(3, 3, 4, 4), batch()
    labels = model(images).argmax(dim=1)
    victim = Liar(model, CopyOptions())
    victim.exact(images[:1])  # at its first batch a copy tries one image
    Counting.batches = []
    found = PGD(Linf(1e-6), steps=3)(victim, images, labels)  # too weak to change a prediction
    # The clean images exactly; then every claim of the fast copy is asked again, and none of them stands.
    assert Counting.batches == [16] + [16, 16] * 4
    assert right(model, found, labels).all()


# ---- what comes back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=repr)
def test_the_seed_decides_and_the_global_random_state_neither_matters_nor_changes(
    threat: Threat, keep: Any
) -> None:
    model, (images, labels) = Linear(3, 3, 4, 4), batch()
    attack = PGD(threat, steps=3, keep=keep)
    torch.manual_seed(1)
    first = attack(model, images, labels, seed=5)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(first, attack(model, images, labels, seed=5))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(first, attack(model, images, labels, seed=6))


def test_a_model_that_draws_numbers_is_attacked_reproducibly() -> None:
    class Noisy(Linear):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images + 0.5 * torch.randn_like(images))

    images, labels = batch()
    attack = PGD(Linf(0.05), steps=3)
    state = torch.random.get_rng_state()
    first = attack(Noisy(3, 3, 4, 4), images, labels)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(first, attack(Noisy(3, 3, 4, 4), images, labels))


def test_without_random_start_the_attack_starts_at_the_image() -> None:
    model, (images, labels) = Linear(3, 3, 4, 4), batch()
    attack = PGD(Linf(0.1), steps=1, step_size=0.01, random_start=False, keep="last")
    first = attack(model, images, labels, seed=0)
    assert torch.equal(first, attack(model, images, labels, seed=1))
    assert Linf(0.1).distance(first, images).max() <= 0.01 + 2**-24


def test_best_returns_the_first_adversarial_point() -> None:
    # One pixel decides: class 1 above 0.5. From 0.2 in steps of 0.1, the first adversarial point is just above 0.5.
    model = Linear(2, 1)
    model.weight.data, model.bias.data = torch.tensor([[0.0], [1.0]]), torch.tensor([0.45, 0.0])
    attack = PGD(Linf(0.6), steps=6, step_size=0.1, random_start=False)
    found = attack(model, torch.tensor([[0.2], [0.3], [0.9]]), torch.tensor([0, 0, 0]))
    torch.testing.assert_close(found, torch.tensor([[0.5], [0.5], [0.9]]))
    last = PGD(Linf(0.6), steps=6, step_size=0.1, random_start=False, keep="last")
    found = last(model, torch.tensor([[0.2], [0.3], [0.9]]), torch.tensor([0, 0, 0]))
    torch.testing.assert_close(found, torch.tensor([[0.8], [0.9], [1.0]]))


def test_best_checks_the_point_after_the_last_step() -> None:
    model = Linear(2, 1)
    model.weight.data, model.bias.data = torch.tensor([[0.0], [1.0]]), torch.tensor([0.45, 0.0])
    attack = PGD(Linf(0.6), steps=3, step_size=0.1, random_start=False, restarts=1)
    assert float(attack(model, torch.tensor([[0.2]]), torch.tensor([0]))) == pytest.approx(0.5)


def test_restarts_keep_the_run_with_the_highest_loss_and_never_lose_a_success() -> None:
    class Rings(nn.Module):
        """A wavy loss with many local maxima, so that the start matters."""

        def forward(self, images: Tensor) -> Tensor:
            wave = torch.sin(40 * images.flatten(1)).sum(1) + images.flatten(1).sum(1)
            return torch.stack([torch.full_like(wave, 3.0), wave], dim=1)

    images, labels = (
        torch.rand(200, 1, 1, 3, generator=torch.Generator().manual_seed(0)),
        torch.zeros(200).long(),
    )

    def margin(restarts: int) -> Tensor:
        found = PGD(Linf(0.2), steps=5, restarts=restarts)(Rings(), images, labels)
        logits = Rings()(found)
        return logits[:, 1] - logits[:, 0]

    one, four = margin(1), margin(4)
    assert (four[one <= 0] >= one[one <= 0]).all()
    assert torch.equal(four[one > 0], one[one > 0])
    assert ((four > 0).sum() > (one > 0).sum()).item()


def test_restarts_solve_what_any_of_their_starts_solves() -> None:
    class Steps(nn.Module):
        """Below 0.5 a flat region with nearly the loss of three equal logits; above, class 1 wins from 0.6 on."""

        def forward(self, images: Tensor) -> Tensor:
            x = images.flatten()
            flat = (x < 0.5).float()
            return torch.stack(
                [0 * x, (1 - flat) * (x - 0.6) - 0.001 * flat, -0.001 * flat - 10 * (1 - flat)], dim=1
            )

    images, labels = torch.full((400, 1), 0.5), torch.zeros(400).long()
    streams = Streams(7, torch.arange(400))
    starts = torch.cat([Linf(0.5).random_start(images, streams, run) for run in range(3)], dim=1)
    found = PGD(Linf(0.5), steps=1, step_size=0.2, restarts=3)(Steps(), images, labels, seed=7)
    assert torch.equal(Steps()(found).argmax(1) == 1, (starts >= 0.5).any(dim=1))


def test_targeted_stops_at_the_target_and_counts_other_mistakes_as_unsolved() -> None:
    model, (images, labels) = Linear(3, 3, 4, 4), batch(64)
    targets = (labels + 1) % 3
    found = PGD(Linf(0.3), steps=10, targeted=True)(model, images, labels, targets=targets)
    untargeted = PGD(Linf(0.3), steps=10)(model, images, labels)
    reached = (model(found).argmax(1) == targets).float().mean()
    by_chance = (model(untargeted).argmax(1) == targets).float().mean()
    assert reached > 0.9
    assert reached > by_chance + 0.2


# ---- cost -------------------------------------------------------------------------------------------------------


def test_last_makes_exactly_as_many_passes_as_steps() -> None:
    Counting.batches = []
    images, labels = batch(16)
    victim = exact_copy(Counting(3, 3, 4, 4))
    victim.exact(images[:1])  # at its first batch a copy tries one image
    Counting.batches = []
    PGD(Linf(0.1), steps=5, keep="last")(victim, images, labels)
    assert Counting.batches == [16] * 5


def test_solved_images_leave_the_batch_and_are_not_restarted() -> None:
    Counting.batches = []
    images, labels = batch(64)
    model = Counting(3, 3, 4, 4)
    wrong = int((model(images).argmax(1) != labels).sum())
    victim = exact_copy(model)
    victim.exact(images[:1])  # at its first batch a copy tries one image
    Counting.batches = []
    attack = PGD(Linf(1e-6), steps=4, restarts=3)  # too weak to change a prediction
    attack(victim, images, labels)
    assert 0 < wrong < 64
    # A look at the clean images, after which the misclassified ones leave; three runs of four steps and a last look.
    assert Counting.batches == [64] + [64 - wrong] * 15
    Counting.batches = []
    PGD(Linf(1e-6), steps=4, restarts=3)(victim, images, model(images).argmin(1))
    assert Counting.batches[1:] == [64]  # all are misclassified already


def test_the_gradient_of_an_image_does_not_depend_on_its_batch() -> None:
    model, (images, labels) = Linear(3, 3, 4, 4), batch(8)
    attack = PGD(L2(0.3), steps=4, random_start=False)
    together = attack(model, images, labels)
    alone = torch.cat([attack(model, images[i : i + 1], labels[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(together, alone)


# ---- the caller's world -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("made_inside", [False, True])
@pytest.mark.parametrize("attack", [PGD(Linf(0.1), steps=3), PGD(L2(0.1), steps=3, keep="last")], ids=repr)
def test_works_in_every_gradient_mode(attack: PGD, context: Callable[[], Any], made_inside: bool) -> None:
    expected = attack(Linear(3, 3, 4, 4), *batch())
    model, (images, labels) = Linear(3, 3, 4, 4), batch()
    with context():
        if made_inside:
            model, (images, labels) = Linear(3, 3, 4, 4), batch()
        found = attack(model, images, labels)
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert not found.is_inference()


def test_arguments_stay_as_they_are() -> None:
    images, labels = batch()
    images.requires_grad_()
    before = images.detach().clone(), labels.clone()
    PGD(Linf(0.1), steps=3)(Linear(3, 3, 4, 4), images, labels)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    assert images.grad is None
    assert images.requires_grad


def test_other_float_images_give_float32_results() -> None:
    images, labels = batch()
    found = PGD(Linf(0.1), steps=2)(Linear(3, 3, 4, 4), images.double(), labels.int())
    assert found.dtype == torch.float32
    assert torch.equal(found, PGD(Linf(0.1), steps=2)(Linear(3, 3, 4, 4), images, labels))


def test_autocast_of_the_caller_does_not_reach_the_attack() -> None:
    images, labels = batch()
    expected = PGD(L2(0.1), steps=3)(Linear(3, 3, 4, 4), images, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(PGD(L2(0.1), steps=3)(Linear(3, 3, 4, 4), images, labels), expected)


def test_models_that_return_an_object_with_logits() -> None:
    class Wrapped(Linear):
        def forward(self, images: Tensor) -> Any:
            return SimpleNamespace(logits=super().forward(images))

    expected = PGD(Linf(0.1), steps=3)(Linear(3, 3, 4, 4), *batch())
    assert torch.equal(PGD(Linf(0.1), steps=3)(Wrapped(3, 3, 4, 4), *batch()), expected)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_an_empty_batch_gives_an_empty_batch(keep: Any) -> None:
    found = PGD(Linf(0.1), keep=keep)(Linear(3, 3, 4, 4), torch.zeros(0, 3, 4, 4), torch.zeros(0).long())
    assert found.shape == (0, 3, 4, 4)
    assert found.dtype == torch.float32


# ---- errors -----------------------------------------------------------------------------------------------------

GOOD, LABELS = torch.full((2, 3, 4, 4), 0.5), torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            GOOD.to(torch.uint8),
            LABELS,
            r"floating point in \[0, 1\], got torch.uint8; .*images.float\(\) / 255",
        ),
        (GOOD * 300, LABELS, r"must lie in \[0, 1\], got values from 150 to 150; .*images / 255"),
        (GOOD - 1, LABELS, r"got values from -0.5 to -0.5; normalise inside the model"),
        (GOOD * 2.5, LABELS, r"got values from 1.25 to 1.25; normalise inside the model"),
        (GOOD * 2.000001, LABELS, r"got values from 1.00000\d+ to 1.00000\d+; if that is rounding: .*clamp"),
        (GOOD * math.nan, LABELS, "images hold NaN"),
        (GOOD.to("meta"), LABELS, "images are on meta, the model on cpu"),
        (torch.tensor(0.5), LABELS, "images must have a batch axis"),
        (GOOD, LABELS.float(), "labels must be class indices of an integer dtype, got torch.float32"),
        (GOOD, LABELS > 0, "labels must be class indices of an integer dtype, got torch.bool"),
        (GOOD, LABELS[:1], r"labels must have shape \(2,\), one class for each image; got \(1,\)"),
        (GOOD, LABELS[:, None], r"labels must have shape \(2,\), one class for each image; got \(2, 1\)"),
        (GOOD, LABELS - 1, "labels must be class indices from 0, got -1"),
        (GOOD, LABELS + 1, "labels and targets must be below the model's 3 classes, got 3"),
        (GOOD, LABELS.to("meta"), "labels are on meta, the images on cpu"),
    ],
)
def test_wrong_images_and_labels_are_named(images: Tensor, labels: Tensor, message: str) -> None:
    for keep in ("best", "last"):
        with pytest.raises(ValueError, match=message):
            PGD(Linf(0.1), keep=keep)(Linear(3, 3, 4, 4), images, labels)


def test_wrong_types_are_named() -> None:
    model: Any = Linear(3, 3, 4, 4)
    with pytest.raises(TypeError, match=r"images must be a tensor .*, got ndarray"):
        PGD(Linf(0.1))(model, GOOD.numpy(), LABELS)
    with pytest.raises(TypeError, match=r"labels must be an int64 tensor .*, got list"):
        PGD(Linf(0.1))(model, GOOD, [0, 2])
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module or an AttackCopy, got function"):
        PGD(Linf(0.1))(lambda x: x, GOOD, LABELS)


def test_targets_belong_to_targeted_attacks() -> None:
    model = Linear(3, 3, 4, 4)
    with pytest.raises(ValueError, match=r"PGD\(targeted=True\) needs targets="):
        PGD(Linf(0.1), targeted=True)(model, GOOD, LABELS)
    with pytest.raises(ValueError, match=r"PGD\(targeted=False\) does not take targets"):
        PGD(Linf(0.1))(model, GOOD, LABELS, targets=LABELS)
    with pytest.raises(ValueError, match="below the model's 3 classes, got 7"):
        PGD(Linf(0.1), targeted=True)(model, GOOD, LABELS, targets=LABELS + 5)
    with pytest.raises(ValueError, match="targets must have shape"):
        PGD(Linf(0.1), targeted=True)(model, GOOD, LABELS, targets=LABELS[:1])


RIGHT = torch.tensor([9.0, 0.0, 0.0])  # so that class 0 is right all over the ball


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: x.detach().flatten(1)[:, :3] + RIGHT,
            "the model has no gradient with respect to its images",
        ),
        (
            lambda x: RIGHT.clone().requires_grad_().expand(len(x), 3) * 1,
            "the model has no gradient with respect",
        ),
        (lambda x: x.flatten(1)[:, :3] * math.nan, "NaN"),
        # sqrt at 0 has an infinite slope, and infinity times 0 is NaN.
        (
            lambda x: (x * 0).sqrt().flatten(1)[:, :3] + RIGHT,
            "gradient is NaN",
        ),
        (lambda x: x.flatten(2), r"must return logits \(batch, classes\), got shape \(2, 3, 16\)"),
        (lambda x: x.flatten(), r"must return logits \(batch, classes\), got shape \(96,\)"),
    ],
)
def test_models_that_cannot_be_attacked_are_named(function: Any, message: str, keep: Any) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(Linf(0.1), keep=keep)(from_logits(function), GOOD, torch.tensor([0, 0]))


def test_a_model_that_returns_nan_is_not_fooled_but_broken() -> None:
    # argmax calls NaN the largest, so these look misclassified.
    model = from_logits(lambda x: torch.cat([x.flatten(1)[:, :2], x.flatten(1)[:, :1] * math.nan], dim=1))
    with pytest.raises(ValueError, match="the model returned NaN"):
        PGD(Linf(0.1))(model, GOOD, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        (
            {"steps": 10**12},
            "steps must be a whole number of at least 1, got 1000000000000; at most 1000000000",
        ),
        ({"steps": 2.5}, "steps must be a whole number of at least 1, got 2.5"),
        ({"restarts": 0}, "restarts must be a whole number of at least 1, got 0"),
        ({"step_size": 0}, "step_size must be a finite number above 0, or None, got 0"),
        ({"step_size": math.nan}, "step_size must be a finite number above 0"),
        ({"momentum": -0.1}, "momentum must be a finite number of at least 0, got -0.1"),
        ({"keep": "all"}, "keep must be 'best' or 'last', got 'all'"),
        ({"restarts": 2, "random_start": False}, "restarts=2 needs random_start=True"),
        ({"restarts": 2, "keep": "last"}, "restarts=2 needs keep='best'"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(Linf(0.1), **fields)


def test_the_threat_must_be_one() -> None:
    with pytest.raises(TypeError, match=r"threat must be a threat such as Linf\(8/255\).*, got 0.1"):
        PGD(0.1)


# ---- as a value -------------------------------------------------------------------------------------------------


def test_prints_and_reads_back_as_the_call_that_makes_it() -> None:
    attack = PGD(Linf(0.25), steps=7, keep="last")
    assert repr(attack) == "PGD(Linf(0.25), steps=7, keep='last')"
    assert parse("pgd(linf(1/4), steps=7, keep='last')", CHOICES) == attack
    assert from_dict(attack.to_dict(), CHOICES) == attack


def test_the_default_step_is_that_of_madry_et_al() -> None:
    assert PGD(Linf(0.1), steps=5).effective_step_size == pytest.approx(2.5 * 0.1 / 5)
    assert PGD(Linf(0.1), step_size=0.03).effective_step_size == 0.03


def test_with_epsilon_scales_a_fixed_step_in_proportion() -> None:
    assert PGD(Linf(0.1), step_size=0.04).with_epsilon(0.05) == PGD(Linf(0.05), step_size=0.02)
    assert PGD(L2(1.0), steps=3).with_epsilon(0.5) == PGD(L2(0.5), steps=3)
    with pytest.raises(ValueError, match="epsilon must be a finite number above 0, got 0"):
        PGD(Linf(0.1)).with_epsilon(0)


def test_a_copy_made_once_gives_the_same_result_as_the_model() -> None:
    model, (images, labels) = Linear(3, 3, 4, 4), batch()
    copy = attack_copy(model)
    assert isinstance(copy, AttackCopy)
    assert torch.equal(PGD(Linf(0.1))(copy, images, labels), PGD(Linf(0.1))(model, images, labels))
