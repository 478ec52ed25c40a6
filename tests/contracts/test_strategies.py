"""What must hold for every strategy on every architecture."""

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import paretune as pt
from paretune.strategies import SSF, AdaptFormer, FacT, LNLoRA, RepAdapter, Sparse, Strategy
from tests.contracts.backbones import EVERY, FEW, images, make
from tests.contracts.contract import check, logits, outcome, perturb, train_without_chance
from tests.contracts.strategies import MATRIX, TABLE, made_for, read_rows

ROWS = read_rows()
# The whole matrix has its own marker. Here: every strategy on a vision transformer and on a network with batch norms, and
# options where they matter most.
QUICK = ("test_vit", "mobilenetv3_small_050")
MORE = [
    ("vit_tiny_patch16_224", "LoRA"),
    ("eva02_tiny_patch14_224", "LoRA of q and v"),
    ("eva02_tiny_patch14_224", "IA3"),
    ("swin_tiny_patch4_window7_224", "Parallel adapter"),
    ("convnext_atto", "LoRA"),
    ("convnext_atto", "Parallel adapter"),
    ("efficientnet_lite0", "LoRA"),
    ("resnet18", "FullFineTune"),
    ("resnet18", "Compacter"),
    ("hf_vit", "LoRA + BitFit"),
    ("hf_vit", "Deep prompt"),
    ("hf_vit", "Peft LoHa"),
    ("hf_convnext", "IA3"),
    ("hf_vit", "FacT"),
    ("resnetv2_50x1_bit", "SSF"),
    ("swin_tiny_patch4_window7_224", "LNLoRA"),
    ("hf_vit", "LNLoRA"),
    ("hf_vit", "RepAdapter"),
    ("tv_vit", "RepAdapter"),
    ("eva02_tiny_patch14_224", "RepAdapter"),
    ("convnext_atto", "RepAdapter"),
    ("hf_vit", "AdaptFormer"),
]
OPTIONS = [
    ("test_vit", pt.LoRA(rank=2, targets=("all",), rslora=True, alpha=4.0)),
    (
        "test_vit",
        pt.LoRA(rank=4, rank_pattern={"blocks.0.*": 2}, alpha_pattern={"*.mlp.*": 1.0}, dropout=0.5),
    ),
    ("test_vit", pt.LoRA(where="last:2 & attention") + pt.Adapter(where="mlp") + pt.IA3(targets="v")),
    ("test_vit", pt.VisualPrompt(kind="shallow", size=3)),
    ("hf_vit", pt.IA3(targets=("k", "v", "o", "hidden")) + pt.BitFit()),
    ("mobilenetv3_small_050", pt.BitFit(bn="adapt")),
    ("mobilenetv3_small_050", pt.Compacter(n=2, rank=2, reduction=8, train_norms=True)),
    ("resnet18", pt.LoRA(rank=2) + pt.LoRA(rank=1, targets="conv", where="layer4")),
    ("swin_tiny_patch4_window7_224", AdaptFormer(reads="input", width=4)),
    ("tv_vit", LNLoRA(where="mlp", rank=2, alpha=4.0) + RepAdapter(where="attention")),
    ("test_vit", pt.LoRA(rank=2) + RepAdapter(hidden=4, groups=1, scale=0.5) + SSF()),
]


@pytest.mark.parametrize("name", [name for name in MATRIX if name != "Peft LoHa"])
def test_contract(name: str, tmp_path: Path) -> None:
    """As the rows say; and a strategy without rows works on one of them at least."""
    found = {arch: measured(arch, name, tmp_path) for arch in QUICK}
    assert "works" in {outcome for outcome, _ in found.values()}, found


@pytest.mark.some(8)
@pytest.mark.parametrize(("arch", "name"), MORE)
def test_contract_on_more_architectures(arch: str, name: str, tmp_path: Path) -> None:
    assert measured(arch, name, tmp_path)[0] == "works"


def measured(arch: str, name: str, directory: Path) -> tuple[str, str]:
    """Run the contract, and compare with the committed row if there is one."""
    base = make(arch)
    found = outcome(base, made_for(name, base), directory / arch)
    row = ROWS.get((arch, name))
    assert row is None or found == (row["outcome"], row["reason"])
    return found


@pytest.mark.some(6)
@pytest.mark.parametrize(("arch", "strategy"), OPTIONS, ids=lambda value: repr(value))
def test_contract_holds_with_options(arch: str, strategy: Strategy, tmp_path: Path) -> None:
    check(make(arch), strategy, tmp_path / "adapter")


def test_the_contract_draws_no_random_numbers() -> None:
    """Or whether it holds would depend on the tests before."""
    model = pt.adapt(
        make("test_vit"), pt.LoRA(rank=2, dropout=0.5) + pt.VisualPrompt(kind="deep", dropout=0.5)
    )
    train_without_chance(model)
    state = torch.get_rng_state()
    model(images(model.image_size))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.thorough
@pytest.mark.parametrize("arch", FEW)
def test_contract_holds_for_every_strategy_on_the_usual_architectures(arch: str, tmp_path: Path) -> None:
    for name in MATRIX:
        measured(arch, name, tmp_path / name)


@pytest.mark.thorough
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("arch", EVERY)
def test_the_table_of_support_is_true(arch: str, tmp_path: Path) -> None:
    for name in MATRIX:
        measured(arch, name, tmp_path / name)


@pytest.fixture(scope="module")
def support() -> ModuleType:
    spec = importlib.util.spec_from_file_location("support_benchmark", TABLE.with_suffix(".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(TABLE.parent))  # as for a script that is run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(TABLE.parent))
    return module


def test_the_page_of_support_is_made_of_the_rows(support: ModuleType) -> None:
    committed = (TABLE.parents[1] / "docs" / "support.md").read_text(encoding="utf-8")
    assert without_unmeasured(committed) == without_unmeasured(support.page(ROWS))
    assert list(ROWS) == [pair for pair in itertools.product(EVERY, MATRIX) if pair in ROWS]
    assert {row["outcome"] for row in ROWS.values()} == {"works", "refused"}
    assert all(bool(row["reason"]) == (row["outcome"] == "refused") for row in ROWS.values())


def test_the_page_of_support_says_what_was_not_measured(support: ModuleType) -> None:
    without = {pair: row for pair, row in ROWS.items() if pair[1] not in ("SSF", "Adapter")}
    page = support.page(without)
    assert "\nNot measured: SSF, Adapter.\n" in page
    assert "| SSF |" not in page
    assert "?: " not in page
    page = support.page(without | {("resnet18", "SSF"): ROWS["resnet18", "SSF"]})
    assert "\nNot measured: Adapter.\n" in page
    assert "\n?: not measured.\n" in page
    assert page.count(" ? |") == len(EVERY) - 1


def without_unmeasured(page: str) -> list[str]:
    """A strategy that is new may be missing in the page altogether."""
    return [line for line in page.splitlines() if line and not line.startswith("Not measured: ")]


@pytest.mark.some(3)
@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [pt.BitFit(), pt.LoRA(rank=2), pt.IA3(), SSF(), Sparse(score="random"), pt.Compacter(), pt.Adapter()],
    ids=repr,
)
@pytest.mark.parametrize("arch", ["test_vit", "resnet18"])
def test_compiles_without_a_graph_break(arch: str, strategy: Strategy) -> None:
    backbone = pt.adapt(make(arch), strategy)
    x = images(backbone.image_size)
    perturb(backbone)
    torch.compiler.reset()  # else the models before this one count towards the limit of recompilations
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(compiled, x), logits(backbone, x))


@pytest.mark.parametrize("arch", ["resnet18", "efficientnet_lite0"])
def test_batchnorm_statistics_follow_only_if_asked_to_and_survive_saving(arch: str, tmp_path: Path) -> None:
    for policy in ("frozen", "adapt"):
        backbone = pt.adapt(make(arch), pt.LinearProbe(bn=policy))
        x = images(backbone.image_size)
        before = {n: b.clone() for n, b in backbone.module.named_buffers() if n.endswith("running_mean")}
        backbone.train()(x)
        moved = [
            n for n, b in backbone.module.named_buffers() if n in before and not torch.equal(b, before[n])
        ]
        assert bool(moved) == (policy == "adapt")
        backbone.eval()
        after = logits(backbone, x)
        pt.save_adapter(backbone, tmp_path / policy)
        assert torch.equal(logits(pt.load_adapter(make(arch), tmp_path / policy), x), after)


D, DEPTH, HIDDEN = 768, 12, 3072  # width, blocks and hidden units of ViT-B/16


@pytest.mark.some(12)
@pytest.mark.parametrize(
    ("strategy", "count"),
    [
        (pt.BitFit(), 102_912),
        (pt.strategies.NormTune(), (2 * DEPTH + 1) * 2 * D),
        (pt.LoRA(rank=8, targets=("q", "v")), 294_912),
        (pt.LoRA(rank=8, targets=("q", "k", "v")), 442_368),
        (pt.LoRA(rank=8, targets=("q", "k", "v", "fc1", "fc2")), 1_179_648),
        (pt.LoRA(rank=8, targets=("q", "v"), where="last:4"), 294_912 // 3),
        (pt.Compacter(), 57_088),
        (pt.Compacter(placement="mlp"), 28_576),
        (pt.IA3(), 55_296),
        (pt.IA3(targets=("k", "v", "hidden", "*.attn.proj")), 64_512),
        # γ and β of qkv, proj, fc1, fc2 and two norms, less β of the keys; of the patch embedding; of the last norm.
        (SSF(), DEPTH * (2 * (3 * D + D + HIDDEN + D + 2 * D) - D) + 2 * D + 2 * D),
        # 1.19M in Chen et al.
        (AdaptFormer(), DEPTH * (2 * 64 * D + 64 + D)),
        (AdaptFormer(reads="input"), 1_189_632),
        # As the code of Luo et al. makes them; their 0.22M are its matrices.
        (RepAdapter(), 2 * DEPTH * (8 * D + 8 + D * 4 + D)),
        (RepAdapter(where="attention"), DEPTH * 9_992),
        # LN, A and B of the patch embedding (a matrix D × D), qkv, proj, fc1 and fc2.
        (
            LNLoRA(rank=8),
            (2 * D + 8 * 2 * D)
            + DEPTH * (3 * 2 * D + 2 * HIDDEN + 8 * (D + 3 * D + D + D + 2 * (D + HIDDEN))),
        ),
        (FacT(rank=16), 2 * D * 16 + 12 * DEPTH * 16**2),
        (Sparse(budget=50_000, score="random"), 50_000),
        (FacT(form="TK", rank=32), 2 * D * 32 + 12 * DEPTH * 32 + 32**3),
        (pt.Adapter(reduction=8), 3_559_680),
        (pt.Adapter(reduction=16), 1_789_056),
        (pt.Adapter(reduction=16, style="pfeiffer"), 894_528),
        (pt.Adapter(reduction=16, style="parallel"), DEPTH * (2 * 48 * D + 48 + D)),
        # 69,840 in Bahng et al., section 4.1: a border of 30 pixels.
        (pt.VisualPrompt(size=30), 3 * (224**2 - 164**2)),
        (pt.VisualPrompt(kind="shallow", size=10), 10 * D),
        (pt.VisualPrompt(kind="deep", size=10), DEPTH * 10 * D),
        (pt.FullFineTune(where="blocks.11.*"), 4 * D**2 + 4 * D + 2 * D * HIDDEN + HIDDEN + D + 4 * D),
        (pt.LinearProbe(), 0),
    ],
    ids=lambda value: repr(value) if not isinstance(value, int) else "",
)
def test_parameter_counts_on_vit_b_16_are_those_of_the_papers(strategy: Strategy, count: int) -> None:
    with torch.device("meta"):
        backbone = pt.load_backbone("timm:vit_base_patch16_224", num_classes=10, pretrained=False)
        pt.adapt(backbone, strategy)
    assert sum(p.numel() for p in pt.strategies.trainable_parameters(backbone, head=False).values()) == count
