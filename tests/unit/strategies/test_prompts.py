"""Visual prompts change what is shown to the model, and nothing else."""

import pytest
import torch

import paretune as pt
from tests.contracts.backbones import images, make
from tests.contracts.contract import logits, perturb


def test_a_border_is_added_to_the_normalised_image_and_leaves_the_middle() -> None:
    backbone = make("resnet18")
    plain = make("resnet18")
    model = pt.adapt(backbone, pt.VisualPrompt(size=5))
    perturb(model)
    prompt = model.module.prompt
    shown = torch.zeros(3, 64, 64)
    shown[:, :5], shown[:, -5:] = prompt.rows.detach()
    shown[:, 5:-5, :5], shown[:, 5:-5, -5:] = prompt.columns.detach()
    x = images(64)
    with torch.no_grad():
        plain.module.fc.load_state_dict(model.module.fc.state_dict())
        expected = plain.module((x - plain.mean) / plain.std + shown)
    torch.testing.assert_close(logits(model, x), expected)
    assert not shown[:, 5:-5, 5:-5].any()
    assert shown.count_nonzero() == sum(
        p.numel() for p in pt.strategies.trainable_parameters(model, head=False).values()
    )


def test_images_of_another_size_than_the_border_are_refused() -> None:
    model = pt.adapt(make("resnet18"), pt.VisualPrompt(size=5))
    with pytest.raises(ValueError, match=r"the prompt is for images of 64 × 64 pixels; got \(32, 32\)"):
        model(images(32))


@pytest.mark.parametrize("kind", ["shallow", "deep"])
def test_tokens_join_those_of_the_patches_in_each_block_and_leave_before_the_norm(kind: str) -> None:
    model = pt.adapt(make("test_vit"), pt.VisualPrompt(kind=kind, size=4))
    module = model.module
    seen: dict[str, torch.Tensor] = {}
    for index, block in enumerate(module.blocks):
        block.norm1.register_forward_pre_hook(
            lambda _m, args, index=index: seen.__setitem__(f"block {index}", args[0])
        )
    module.norm.register_forward_pre_hook(lambda _m, args: seen.__setitem__("norm", args[0]))
    logits(model, images(160))
    patches = module.pos_embed.shape[1]
    assert seen["norm"].shape[1] == patches
    for index, block in enumerate(module.blocks):
        entering = seen[f"block {index}"]
        assert entering.shape[1] == patches + 4
        own = getattr(block.prompt, "tokens", None)
        assert (own is not None) == (kind == "deep" or index == 0)
        if own is not None:
            assert torch.equal(entering[0, -4:], own)


def test_tokens_are_drawn_as_the_authors_do() -> None:
    model = pt.adapt(make("vit_tiny_patch16_224"), pt.VisualPrompt(kind="shallow", size=50))
    tokens = model.module.blocks[0].prompt.tokens
    bound = (6 / (3 * 16 * 16 + 192)) ** 0.5
    assert 0.99 * bound < float(tokens.detach().abs().max()) <= bound


@pytest.mark.parametrize(
    ("arch", "strategy", "message"),
    [
        ("resnet18", pt.VisualPrompt(size=32), "must leave some of the image of 64 pixels"),
        ("beit_base_patch16_224", pt.VisualPrompt(kind="deep"), "take no further tokens"),
        ("eva02_tiny_patch14_224", pt.VisualPrompt(kind="shallow"), "take no further tokens"),
        ("swin_tiny_patch4_window7_224", pt.VisualPrompt(kind="deep"), "needs a vision transformer"),
    ],
)
def test_models_that_take_no_prompt_are_refused_and_stay(
    arch: str, strategy: pt.VisualPrompt, message: str
) -> None:
    backbone = make(arch)
    x = images(backbone.image_size)
    before = logits(backbone, x)
    with pytest.raises(ValueError, match=message):
        pt.adapt(backbone, strategy)
    assert torch.equal(logits(backbone, x), before)


@pytest.mark.parametrize(
    "fields",
    [{"kind": "border"}, {"size": 0}, {"size": 1.5}, {"dropout": 1.0, "kind": "deep"}, {"dropout": 0.1}],
)
def test_fields_that_mean_nothing_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        pt.VisualPrompt(**fields)


def test_deep_prompts_compute_what_the_authors_do() -> None:
    """After vit_prompt/vit.py of their repository: behind the class token, and replaced there before each further block."""
    model = pt.adapt(make("deit3_small_patch16_224"), pt.VisualPrompt(kind="deep", size=3)).double()
    perturb(model)
    plain, x = make("deit3_small_patch16_224").double().module, images(32).double()
    plain.head.load_state_dict(model.module.head.state_dict())
    with torch.no_grad():
        h = plain.patch_embed((x - model.mean) / model.std)
        h = plain.norm_pre(plain._pos_embed(h))
        for index, block in enumerate(plain.blocks):
            prompt = model.module.blocks[index].prompt.tokens.expand(len(x), -1, -1)
            h = block(torch.cat([h[:, :1], prompt, h[:, 1 + (3 if index else 0) :]], dim=1))
        expected = plain.head(plain.norm(h)[:, 0])
    torch.testing.assert_close(logits(model, x), expected)


def test_dropout_of_tokens_is_for_training_and_differs_between_images() -> None:
    strategy = pt.VisualPrompt(kind="deep", size=40, dropout=0.5)
    model = pt.adapt(make("vit_tiny_patch16_224"), strategy)
    prompt = model.module.blocks[3].prompt
    x = torch.rand(2, 50, 192)
    assert torch.equal(prompt.eval()(x)[0, -40:], prompt.tokens)
    shown = prompt.train()(x)[:, -40:]
    kept = shown != 0
    assert 0.4 < float(kept.float().mean()) < 0.6
    assert not torch.equal(kept[0], kept[1])
    torch.testing.assert_close(shown[kept], (2 * prompt.tokens).expand_as(shown)[kept])
