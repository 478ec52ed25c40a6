"""Our attacks are at least as strong as the reference libraries' on a trained network.

Both sides get the same radius, step size, number of steps and random starts. The rule: at most half a point more robust
accuracy under ours, of 256 images. Where both draw random numbers one seed is luck, so the attacks of AutoAttack are
compared on the average of several.
"""

import copy
import importlib.util
import math
import statistics
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import paretune as pt
from paretune.attacks import APGD, FAB, L1, L2, PGD, Attack, AutoAttack, Linf, Square, Threat, attack_copy

STEPS = 10
SLACK = 1
SEEDS = 6
THREATS = [Linf(0.05), Linf(0.1), L2(0.5), L2(1.0)]
Victim = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture(scope="module")
def victim() -> Victim:
    """A small ResNet (batch norm, residual branches) that reads digits, and 256 images it was not trained on."""
    digits = load_digits()
    images = F.interpolate(torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, size=16)
    labels = torch.tensor(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", pretrained=False, num_classes=10, in_chans=1).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for _ in range(150):
            rows = torch.randint(0, 1500, (64,))
            noisy = images[rows] + 0.1 * torch.randn(64, 1, 16, 16)
            loss = F.cross_entropy(model(noisy), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval().requires_grad_(False), images[1500:1756], labels[1500:1756]


@pytest.fixture(scope="module")
def pretrained_victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """EfficientNet-Lite0 with its ImageNet weights and a LoRA trained under attack, and 250 images it was not trained on."""
    data = pt.load_data("digits", img_size=24, limit=1000)
    backbone = pt.load_backbone("efficientnet-lite0", num_classes=10, img_size=24)
    model = pt.adapt(backbone, pt.LoRA(rank=4))
    pt.train(
        model,
        data,
        pt.AdversarialTraining(PGD(Linf(2 / 255), steps=2)),
        out=tmp_path_factory.mktemp("run"),
        epochs=3,
        attacks=[PGD(Linf(2 / 255), steps=1)],
        eval_every=1000,
        progress=False,
    )
    return (pt.merge_adapter(model), *data.report[:])


def survivors(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    with torch.no_grad():
        return int((model(images).argmax(1) == labels).sum())


def torchattacks_pgd(model: nn.Module, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
    import torchattacks

    kind = torchattacks.PGD if isinstance(threat, Linf) else torchattacks.PGDL2
    attack = kind(
        model, eps=threat.epsilon, alpha=2.5 * threat.epsilon / STEPS, steps=STEPS, random_start=True
    )
    attacked: Tensor = attack(images, labels)
    return attacked


def foolbox_pgd(model: nn.Module, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
    import foolbox

    kind = foolbox.attacks.LinfPGD if isinstance(threat, Linf) else foolbox.attacks.L2PGD
    attack = kind(abs_stepsize=2.5 * threat.epsilon / STEPS, steps=STEPS, random_start=True)
    attacked: Tensor
    _, attacked, _ = attack(
        foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=threat.epsilon
    )
    return attacked


@pytest.mark.slow
@pytest.mark.some(3)
@pytest.mark.parametrize("reference", [torchattacks_pgd, foolbox_pgd])
@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_pgd_is_as_strong_as_the_reference(
    victim: Victim, threat: Threat, reference: Callable[[nn.Module, Tensor, Tensor, Threat], Tensor]
) -> None:
    compare_with_reference(victim, threat, reference, learnt=0.9)


@pytest.mark.some(1)
@pytest.mark.slow
@pytest.mark.parametrize(
    "reference",
    # The second says the same in twice the time; both are compared on the small model by each run of the tests.
    [torchattacks_pgd, pytest.param(foolbox_pgd, marks=pytest.mark.thorough)],
)
@pytest.mark.parametrize("threat", [Linf(2 / 255), Linf(4 / 255), L2(0.25)], ids=repr)
def test_pgd_is_as_strong_as_the_reference_on_a_pretrained_model(
    pretrained_victim: Victim,
    threat: Threat,
    reference: Callable[[nn.Module, Tensor, Tensor, Threat], Tensor],
) -> None:
    compare_with_reference(pretrained_victim, threat, reference, learnt=0.85)


def compare_with_reference(
    victim: Victim,
    threat: Threat,
    reference: Callable[[nn.Module, Tensor, Tensor, Threat], Tensor],
    learnt: float,
) -> None:
    """On average over starts, no more than ``SLACK`` images survive our attack than survive the reference's.

    Up to two standard errors of the difference, because both draw their starts.
    """
    model, images, labels = victim
    counts = []
    with torch.random.fork_rng(), warnings.catch_warnings():
        # Both import packages that use what setuptools, numpy and torch have deprecated.
        warnings.simplefilter("ignore")
        for seed in range(SEEDS):
            ours = survivors(model, PGD(threat, steps=STEPS)(model, images, labels, seed=seed), labels)
            torch.manual_seed(seed)
            # On a copy: one leaves gradients behind, the other changes modes.
            theirs = survivors(model, reference(copy.deepcopy(model), images, labels, threat), labels)
            counts.append((ours, theirs))
    (ours_mean, theirs_mean), errors = np.mean(counts, axis=0), np.var(counts, axis=0, ddof=1) / SEEDS
    clean = survivors(model, images, labels)
    assert clean > learnt * len(images)
    assert 0 < theirs_mean < clean
    assert ours_mean <= theirs_mean + SLACK + 2 * np.sqrt(errors.sum())


def test_linf_pgd_without_a_random_start_takes_the_steps_of_torchattacks(victim: Victim) -> None:
    model, images, labels = victim
    attack = PGD(Linf(0.05), steps=3, step_size=0.02, random_start=False, keep="last")
    ours = attack(model, images, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        import torchattacks

        reference = torchattacks.PGD(copy.deepcopy(model), eps=0.05, alpha=0.02, steps=3, random_start=False)
        theirs = reference(images, labels)
    # A pixel whose gradient is zero up to rounding may step either way; every other pixel must agree.
    agreeing = ((ours - theirs).abs() <= 2**-23).float().mean()
    assert agreeing > 0.99


# ---- the attacks of AutoAttack ----------------------------------------------------------------------------------

NORMS = {Linf: "Linf", L2: "L2", L1: "L1"}
ORDERS = {Linf: math.inf, L2: 2.0, L1: 1.0}
Reference = Callable[[nn.Module, Tensor, Tensor, Any, int], Tensor]


def by_pyautoattack(model: nn.Module, images: Tensor, labels: Tensor, attack: Any, seed: int) -> Tensor:
    """The code of the authors of AutoAttack, as packaged."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    norm = NORMS[type(attack.threat)]
    common: dict[str, Any] = {"norm": norm, "eps": attack.threat.epsilon, "seed": seed, "device": "cpu"}
    match attack:
        case APGD(loss="dlr-targeted"):
            made = APGDAttack_targeted(
                model,
                n_iter=attack.steps,
                n_target_classes=attack.targets,
                use_largereps=norm == "L1",
                **common,
            )
        case APGD():
            made = APGDAttack(
                model, n_iter=attack.steps, loss=attack.loss, use_largereps=norm == "L1", **common
            )
        case FAB():
            made = FABAttack_PT(
                model,
                n_iter=attack.steps,
                targeted=attack.targets is not None,
                n_target_classes=attack.targets,
                **common,
            )
        case Square():
            made = SquareAttack(model, n_queries=attack.queries, resc_schedule=False, **common)
    attacked: Tensor = made.perturb(images.clone(), labels.clone())
    return attacked


def by_torchattacks(model: nn.Module, images: Tensor, labels: Tensor, attack: Any, seed: int) -> Tensor:
    import torchattacks

    common: dict[str, Any] = {"norm": NORMS[type(attack.threat)], "eps": attack.threat.epsilon, "seed": seed}
    match attack:
        case APGD(loss="dlr-targeted"):
            made = torchattacks.APGDT(model, steps=attack.steps, n_classes=attack.targets + 1, **common)
        case APGD():
            made = torchattacks.APGD(model, steps=attack.steps, loss=attack.loss, **common)
        case FAB():
            made = torchattacks.FAB(
                model, steps=attack.steps, multi_targeted=True, n_classes=attack.targets + 1, **common
            )
        case Square():
            made = torchattacks.Square(model, n_queries=attack.queries, resc_schedule=False, **common)
    attacked: Tensor = made(images, labels)
    return attacked


def by_adv_lib(model: nn.Module, images: Tensor, labels: Tensor, attack: Any, seed: int) -> Tensor:
    # It imports visdom, a plotting server that nothing here uses and that current packages cannot build.
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))
    from adv_lib.attacks.auto_pgd import apgd, apgd_targeted

    common: dict[str, Any] = {
        "eps": attack.threat.epsilon,
        "norm": ORDERS[type(attack.threat)],
        "n_iter": attack.steps,
        "use_large_reps": isinstance(attack.threat, L1),
    }
    torch.manual_seed(seed)
    if attack.loss == "dlr-targeted":
        attacked: Tensor = apgd_targeted(model, images, labels, num_targets=attack.targets, **common)
    else:
        attacked = apgd(model, images, labels, loss_function=attack.loss, **common)
    return attacked


def slowly(*attacks: Attack) -> list[Any]:
    return [pytest.param(attack, marks=pytest.mark.slow) for attack in attacks]


APGDS = [
    attack
    for threat in (Linf(0.1), L2(1.0))
    for attack in (
        APGD(threat, steps=20),
        APGD(threat, steps=20, loss="dlr"),
        APGD(threat, steps=20, loss="dlr-targeted", targets=3),
    )
]
OTHERS: list[Attack] = [
    attack
    for threat in (Linf(0.1), L2(1.0))
    for attack in (FAB(threat, steps=15, targets=3), Square(threat, queries=150))
]
ONLY_THERE: list[Attack] = [
    APGD(L1(4.0), steps=20),
    APGD(L1(4.0), steps=40, loss="dlr-targeted", targets=9),
    FAB(L1(4.0), steps=15, targets=3),
    FAB(Linf(0.1), steps=10, targets=None),
    Square(L1(4.0), queries=150),
]


@pytest.mark.some(5)
@pytest.mark.parametrize(
    "attack",
    [APGD(Linf(0.1), steps=10), FAB(L2(1.0), steps=5, targets=2), *slowly(*APGDS, *OTHERS, *ONLY_THERE)],
    ids=repr,
)
def test_it_is_as_strong_as_the_code_of_its_authors(victim: Victim, attack: Attack) -> None:
    compare(victim, attack, by_pyautoattack)


@pytest.mark.some(2)
@pytest.mark.slow
@pytest.mark.parametrize("attack", [*APGDS, *OTHERS], ids=repr)
def test_it_is_as_strong_as_that_of_torchattacks(victim: Victim, attack: Attack) -> None:
    compare(victim, attack, by_torchattacks)


@pytest.mark.some(1)
@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    # Enough steps for both to converge: adv_lib halves its steps more often than the paper, which wins short runs.
    [
        APGD(Linf(0.1), steps=100),
        APGD(L2(1.0), steps=100),
        APGD(L2(1.0), steps=40, loss="dlr-targeted", targets=9),
    ],
    ids=repr,
)
def test_it_is_as_strong_as_that_of_adv_lib(victim: Victim, attack: Attack) -> None:
    if importlib.util.find_spec("adv_lib") is None:
        pytest.skip("adv-lib installs only without its dependency: pip install --no-deps adv-lib==0.2.8")
    compare(victim, attack, by_adv_lib)


def compare(victim: Victim, attack: Attack, reference: Reference) -> None:
    """Half a point at most, and what the luck of the seeds explains: two standard errors of the difference of means."""
    model, images, labels = victim
    copied = attack_copy(model, precision="fp32")
    ours, theirs = [], []
    # FAB's first run draws nothing; between runs of the others some images change sides.
    seeds = (0,) if isinstance(attack, FAB) else range(5)
    for seed in seeds:
        ours.append(survivors(model, attack(copied, images, labels, seed=seed), labels))
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as above
            attacked = reference(copy.deepcopy(model), images, labels, attack, seed)
        theirs.append(survivors(model, attacked, labels))
    assert min(theirs) > 0
    assert max(theirs) < survivors(model, images, labels)
    luck = 0.0
    if len(seeds) > 1:
        luck = 2 * math.sqrt((statistics.variance(ours) + statistics.variance(theirs)) / len(seeds))
    assert statistics.mean(ours) <= statistics.mean(theirs) + 0.005 * len(images) + luck, (ours, theirs)


@pytest.mark.some(1)
@pytest.mark.slow
@pytest.mark.parametrize("threat", [Linf(0.1), L2(1.0)], ids=repr)
def test_autoattack_is_as_strong_as_the_reference_at_the_same_budget(victim: Victim, threat: Threat) -> None:
    from pyautoattack import AutoAttack as Theirs

    model, images, labels = victim
    ours = AutoAttack(threat, steps=20, targets=3, queries=100)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        theirs = Theirs(
            copy.deepcopy(model), norm=NORMS[type(threat)], eps=threat.epsilon, seed=0, device="cpu"
        )
        for part in (theirs.apgd, theirs.apgd_targeted):
            part.n_iter = part.n_iter_orig = 20
            part.n_iter_2, part.n_iter_min, part.size_decr = 4, 1, 1  # 0.22, 0.06 and 0.03 of 20
        theirs.fab.n_iter = 20
        theirs.apgd_targeted.n_target_classes = theirs.fab.n_target_classes = 3
        theirs.square.n_queries = 100
        attacked, _ = theirs.run_standard_evaluation(images.clone(), labels.clone(), batch_size=128)
    left = survivors(model, attacked, labels)
    assert 0 < left < survivors(model, images, labels)
    result = ours.run(attack_copy(model, precision="fp32"), images, labels)
    assert survivors(model, result.images, labels) <= left + 0.005 * len(images)
    assert survivors(model, result.images, labels) == int(result.robust.sum())


@pytest.mark.thorough
def test_the_published_autoattack_is_as_strong_as_that_of_torchattacks(victim: Victim) -> None:
    model, images, labels = victim[0], victim[1][:128], victim[2][:128]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        import torchattacks

        theirs = torchattacks.AutoAttack(copy.deepcopy(model), eps=0.1, seed=0)(images, labels)
    ours = AutoAttack(Linf(0.1))(attack_copy(model, precision="fp32"), images, labels)
    left = survivors(model, theirs, labels)
    assert 0 < left < 128
    assert survivors(model, ours, labels) <= left + 0.005 * 128


@pytest.mark.some(1)
@pytest.mark.slow
@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.5), L1(4.0)], ids=repr)
def test_autoattack_on_two_classes_is_as_strong_as_what_the_reference_can_run(
    victim: Victim, threat: Threat
) -> None:
    from pyautoattack import AutoAttack as Theirs

    class OddOrEven(nn.Module):
        """The larger logit of the even and of the odd digits."""

        def __init__(self, digits: nn.Module) -> None:
            super().__init__()
            self.digits = digits

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.digits(images)
            return torch.stack([logits[:, 0::2].logsumexp(dim=1), logits[:, 1::2].logsumexp(dim=1)], dim=1)

    model, images, labels = OddOrEven(copy.deepcopy(victim[0])), victim[1], victim[2] % 2

    def by_theirs(seed: int) -> int:
        theirs = Theirs(
            copy.deepcopy(model),
            norm=NORMS[type(threat)],
            eps=threat.epsilon,
            seed=seed,
            version="custom",
            attacks=["apgd-ce", "fab", "square"],
            device="cpu",
        )
        theirs.apgd.n_iter = theirs.apgd.n_iter_orig = 20
        theirs.apgd.n_iter_2, theirs.apgd.n_iter_min, theirs.apgd.size_decr = 4, 1, 1
        theirs.apgd.use_largereps = isinstance(threat, L1)
        theirs.apgd.n_restarts = 5 if isinstance(threat, L1) else 1
        theirs.fab.n_iter, theirs.fab.n_restarts, theirs.square.n_queries = 20, 1, 100
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as above
            attacked, _ = theirs.run_standard_evaluation(images.clone(), labels.clone(), batch_size=128)
        return survivors(model, attacked, labels)

    def by_ours(seed: int) -> int:
        attack = AutoAttack(threat, steps=20, queries=100)
        result = attack.run(attack_copy(model, precision="fp32"), images, labels, seed=seed)
        assert [stage.name for stage in result.stages] == ["apgd-ce", "fab-t", "square"]
        assert survivors(model, result.images, labels) == int(result.robust.sum())
        return int(result.robust.sum())

    theirs, ours = ([run(seed) for seed in range(3)] for run in (by_theirs, by_ours))
    assert min(theirs) > 0
    assert max(theirs) < survivors(model, images, labels)
    luck = 2 * math.sqrt((statistics.variance(ours) + statistics.variance(theirs)) / 3)
    assert statistics.mean(ours) <= statistics.mean(theirs) + 0.005 * len(images) + luck, (ours, theirs)
