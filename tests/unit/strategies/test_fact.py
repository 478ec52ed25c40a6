"""FacT computes the equations of its authors, shares its factors, and has the parameters of their table."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.strategies import FacT, trainable_parameters
from paretune.strategies.fact import FacTDelta
from tests.contracts.backbones import images, make
from tests.contracts.contract import logits, perturb


def deltas(model: nn.Module) -> dict[str, FacTDelta]:
    found = {name: part for name, part in model.named_modules() if isinstance(part, FacTDelta)}
    return {name.partition(".parametrizations")[0]: delta for name, delta in found.items()}


def adapted(strategy: FacT, arch: str = "vit_tiny_patch16_224") -> pt.Backbone:
    model = pt.adapt(make(arch), strategy).double()
    perturb(model, 0.3)
    return model


def test_the_tensor_train_is_what_the_authors_add_to_each_layer() -> None:
    """After fact_tt.py of their repository: layers u (d to r), v (r to d), and for each weight one between them."""
    model = adapted(FacT(rank=3, scale=0.5))
    u, v = (getattr(deltas(model)["module.blocks.0.attn.qkv"], f"fact_{name}") for name in "uv")
    r, d = u.shape

    def expected(name: str, x: Tensor, weight: Tensor, bias: Tensor, sigma: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        outputs = x @ weight.T + bias
        if name.endswith("qkv"):
            parts = [x @ u.T @ sigma[i * r : (i + 1) * r].T @ v.T for i in range(3)]
            return outputs + 0.5 * torch.cat(parts, dim=2)
        if name.endswith("fc1"):
            middle = (x @ u.T @ sigma.T).reshape(batch, tokens, 4, r)
            return outputs + 0.5 * (middle @ v.T).reshape(batch, tokens, 4 * d)
        if name.endswith("fc2"):
            middle = (x.reshape(batch, tokens, 4, d) @ u.T).reshape(batch, tokens, 4 * r)
            return outputs + 0.5 * (middle @ sigma.T @ v.T)
        return outputs + 0.5 * (x @ u.T @ sigma.T @ v.T)

    seen = check_layers(model, expected)
    assert {name.rpartition(".")[2] for name in seen} == {"qkv", "proj", "fc1", "fc2"}


def test_the_tucker_form_mixes_one_core_for_each_square() -> None:
    """After fact_tk.py: FacTc @ FacTp, of which each weight takes its slices in turn."""
    model = adapted(FacT(form="TK", rank=3, scale=2.0))
    every = deltas(model)
    u, v, c, p = (getattr(every["module.blocks.0.attn.qkv"], f"fact_{name}") for name in "uvcp")
    assert p.shape == (12 * 12, 3)
    d = u.shape[1]
    slices = c @ p.T  # (r, r, 12 L), as in theirs, where p is transposed

    def expected(name: str, x: Tensor, weight: Tensor, bias: Tensor, sigma: Tensor) -> Tensor:
        at = 12 * int(name.split(".")[2])
        first, number = {"qkv": (0, 3), "proj": (3, 1), "fc1": (4, 4), "fc2": (8, 4)}[name.rpartition(".")[2]]
        squares = [v @ slices[:, :, at + first + i].T @ u for i in range(number)]
        return x @ (weight + 2.0 * torch.cat(squares, dim=int(name.endswith("fc2")))).T + bias

    assert d == 192
    assert len(check_layers(model, expected)) == 4 * 12


def check_layers(model: pt.Backbone, expected: Any) -> list[str]:
    """Compare each layer's output with ``expected``, in training and in evaluation mode; the names of the layers."""
    seen = []

    def hook_of(name: str, delta: FacTDelta) -> Any:
        def hook(layer: Any, args: tuple[Tensor], output: Tensor) -> None:
            seen.append(name)
            plain = layer.parametrizations.weight.original
            torch.testing.assert_close(output, expected(name, args[0], plain, layer.bias, delta.sigma()))

        return hook

    for name, delta in deltas(model).items():
        model.get_submodule(name).register_forward_hook(hook_of(name, delta))
    x = images(32).double()
    model.train()(x)
    trained = len(seen)
    model.eval()(x)
    assert len(seen) == 2 * trained
    return seen[:trained]


def test_sides_that_are_no_multiple_of_the_width_are_cut_from_a_further_square() -> None:
    model = adapted(FacT(rank=2), "hf_vit")  # of width 64, with 96 hidden units
    first, second, *_ = (d for d in deltas(model).values() if (d.a, d.b) in ((2, 1), (1, 2)))
    with torch.no_grad():
        for delta, shape in ((first, (96, 64)), (second, (64, 96))):
            u, v, s = delta.fact_u, delta.fact_v, delta.sigma().view(delta.a, 2, delta.b, 2)
            rows = [torch.cat([v @ s[i, :, j] @ u for j in range(delta.b)], dim=1) for i in range(delta.a)]
            found = delta.effective(u.new_zeros(shape))
            torch.testing.assert_close(found, torch.cat(rows)[: shape[0], : shape[1]])


def test_stages_of_several_widths_have_factors_of_their_own() -> None:
    model = adapted(FacT(rank=2), "swin_tiny_patch4_window7_224")
    factors = {(delta.fact_u.shape[1], id(delta.fact_u)) for delta in deltas(model).values()}
    assert sorted(width for width, _ in factors) == [48, 96]


def test_the_mean_over_the_tasks_of_the_paper_is_that_of_its_table() -> None:
    """FacT-TK has 0.069 million in table 1; of its 19 configurations (FacT/configs/tk) 13 have rank 32, and 6 rank 16."""
    total = 0
    for rank, tasks in ((32, 13), (16, 6)):
        with torch.device("meta"):
            model = pt.load_backbone("timm:vit_base_patch16_224", num_classes=10, pretrained=False)
            pt.adapt(model, FacT(form="TK", rank=rank))
        total += tasks * sum(p.numel() for p in trainable_parameters(model, head=False).values())
    assert round(total / 19 / 1e6, 3) == 0.069


def test_merging_keeps_the_logits_of_a_part_of_the_model() -> None:
    model = pt.adapt(make("test_vit"), FacT(where="last:2 & mlp", rank=4))
    perturb(model)
    x = images(160)
    before = logits(model, x)
    assert {name.split(".")[-2] for name in deltas(model)} == {"mlp"}
    torch.testing.assert_close(logits(pt.merge_adapter(model), x), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"scale": 0.0}, r"scale must be above 0, got 0\.0"),
        ({"form": "CP"}, "form must be 'TT' or 'TK', got 'CP'"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FacT(**options)


def test_models_that_it_does_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rank=65 is more than the width 64"):
        pt.adapt(make("hf_vit"), FacT(rank=65))
    with pytest.raises(ValueError, match="no weight of an attention or MLP is known in ResNet"):
        pt.adapt(make("resnet18"), FacT())
