"""What each strategy costs: time, memory for the backward pass, files, and switching between adapters.

    python benchmarks/strategies.py                          # all sections, appends to benchmarks/strategies.csv
    python benchmarks/strategies.py --only compacter files   # some of them
    python benchmarks/strategies.py --quick --out /tmp/x.csv # fewer images and rounds: does it run?

Seconds are CPU time of one thread, measured in turns in one process; rows hold medians. Memory is what autograd keeps
between the forward and the backward pass: the storages of saved tensors that are none of the model's, each once. The network
is ViT-B/16 at 224 px with random weights, on which time does not depend.

=========  ==========================================================================================================
section    work
=========  ==========================================================================================================
compacter  one Compacter on the tokens of some images, at the widths of ViT-B (768, and 3072 in its MLP), beside the same
           formula with its Kronecker products H built at each call, as the adapters library does
vit        forward, and forward and backward, of the whole network with each strategy; LoRA and IA3 beside peft's
files      size of an adapter's tensors, seconds to save and to load; beside peft's
switching  seconds to switch, combine and mix named adapters; mixed batches beside peft's
=========  ==========================================================================================================
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paretune as pt
from _record import Recorder, Work, in_turns
from paretune.backbones.sites import Site
from paretune.strategies import Strategy
from paretune.strategies.compacter import Compacter, CompacterAdapter
from paretune.strategies.phm import PHM, new_rule

HERE = Path(__file__).parent
TOKENS = 197  # of an image of 224 px in patches of 16 px, and the class token
LAYERS = r".*blocks\.\d+\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"  # what pt.LoRA(targets="linear") adapts
STRATEGIES: dict[str, Strategy] = {
    "LinearProbe": pt.LinearProbe(),
    "BitFit": pt.BitFit(),
    "NormTune": pt.strategies.NormTune(),
    "LoRA": pt.LoRA(rank=8, targets=("linear",)),
    "IA3": pt.IA3(targets=("k", "v", "hidden")),
    "Compacter": pt.Compacter(),
    "Adapter": pt.Adapter(),
    "VisualPrompt": pt.VisualPrompt(kind="deep"),
    "FullFineTune": pt.FullFineTune(),
}


class Rows(Recorder):
    """The rows of this benchmark; ``ratio`` is the peer's value over this one's, ``required`` its least value."""

    def __init__(self, path: Path) -> None:
        columns = "images rounds value unit lowest highest against ratio required"
        super().__init__(path, columns.split(), "peft")

    def timed(
        self,
        section: str,
        work: str,
        seconds: dict[str, list[float]],
        against: dict[str, tuple[str, float | str]],
        images: int | str = "",
    ) -> None:
        """A row for each implementation; ``against`` names its peer and the ratio required."""
        for name, taken in seconds.items():
            middle = statistics.median(taken)
            found: dict[str, Any] = {"images": images, "rounds": len(taken), "value": middle, "unit": "s"}
            found |= {"lowest": min(taken), "highest": max(taken)}
            if name in against:
                peer, required = against[name]
                found |= {"against": peer, "ratio": statistics.median(seconds[peer]) / middle}
                found["required"] = required
            self.row(section, work, name, **found)


def kept_bytes(model: nn.Module, forward: Callable[[Tensor], Tensor], given: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, without the tensors of ``model`` and what is ``given`` to it."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), given)}
    kept: dict[int, int] = {}
    alive = []  # else a storage that is freed gives its place to another

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = forward(given)
    assert outputs.requires_grad
    return sum(kept.values())


# ---- one Compacter ----------------------------------------------------------------------------------------------


class Materialised(nn.Module):
    """h + scaling · up(gelu(down(h))) with its Kronecker products H built at each call, as in adapters 1.3.

    The operations are those of ``PHMLayer.forward`` and ``Adapter.forward`` in its ``methods/modeling.py``; with ``scaling``
    None the pass over the outputs is left out that multiplies them by a scaling of 1.
    """

    def __init__(self, ours: CompacterAdapter, scaling: float | None) -> None:
        super().__init__()
        self.ours = ours
        self.scaling = scaling

    def forward(self, h: Tensor) -> Tensor:
        """The changed branch."""
        up = self.layer(F.gelu(self.layer(h, self.ours.down)), self.ours.up)
        if self.scaling is not None:
            up = up * self.scaling
        return up + h

    def layer(self, x: Tensor, layer: PHM) -> Tensor:
        """``PHMLayer.forward``."""
        a, b = self.ours.rule, torch.bmm(layer.s, layer.t)
        size = torch.Size(torch.tensor(a.shape[-2:]) * torch.tensor(b.shape[-2:]))
        product = a.unsqueeze(-1).unsqueeze(-3) * b.unsqueeze(-2).unsqueeze(-4)
        y = torch.matmul(x, product.reshape(product.shape[:-4] + size).sum(0))
        y += layer.b
        return y


def compacter(record: Rows, quick: bool) -> None:
    """Time and memory at both widths, for a small and a larger batch."""
    rounds = 5 if quick else 21
    # A process that has freed a large tensor keeps the memory of later ones (glibc adapts its thresholds), and every network
    # does. Else a call of 2 ms may pay 1 ms for pages that were returned to the system, or not, by chance.
    torch.empty(30 << 20, dtype=torch.uint8)
    for width, images in ((768, 4), (768, 16), (3072, 4), (3072, 16)):
        like = torch.zeros(1)
        ours = CompacterAdapter(Site("", "output", "mlp", width, -1), Compacter(), new_rule(4, like), like)
        for parameter in ours.parameters():
            nn.init.normal_(parameter, std=0.1)
        h = torch.randn(images, TOKENS, width, requires_grad=True)
        one_compacter(record, ours, h, rounds)


def one_compacter(record: Rows, ours: CompacterAdapter, h: Tensor, rounds: int) -> None:
    """Rows for one width and batch ``h`` (images, tokens, width)."""
    images, _, width = h.shape
    work = f"Compacter at width {width}"
    other, least = "as adapters 1.3, H built at each call", "H built at each call, no scaling"
    sides: dict[str, Callable[[Tensor], Tensor]] = {
        "paretune": lambda h: ours(h, h),
        other: Materialised(ours, 1.0),
        least: Materialised(ours, None),
    }
    for name in (other, least):
        torch.testing.assert_close(sides["paretune"](h), sides[name](h), rtol=1e-4, atol=1e-4)
    inputs = [h, *ours.parameters()]
    direction = torch.randn_like(h)

    def forward(side: Callable[[Tensor], Tensor]) -> None:
        with torch.no_grad():
            side(h)

    def both(side: Callable[[Tensor], Tensor]) -> None:
        torch.autograd.grad(side(h), inputs, direction)

    for what, run, required in (("forward", forward, ""), ("forward and backward", both, 2.0)):
        works: dict[str, Work] = {
            name: lambda run=run, side=side: run(side)  # type: ignore[misc]
            for name, side in sides.items()
        }
        against: dict[str, tuple[str, float | str]] = {"paretune": (other, required)}
        record.timed("compacter", f"{what}, {work}", in_turns(works, rounds, before=3), against, images)
    kept = {name: kept_bytes(ours, side, h) for name, side in sides.items()}
    for name, size in kept.items():
        found: dict[str, Any] = {"images": images, "value": size, "unit": "bytes"}
        if name == "paretune":
            found |= {"against": other, "ratio": kept[other] / size, "required": 3.0}
        record.row("compacter", f"kept for backward beyond the branch, {work}", name, **found)


# ---- the whole network ------------------------------------------------------------------------------------------


def vit() -> pt.Backbone:
    """ViT-B/16 of 10 classes, always the same random weights, in evaluation mode."""
    return pt.load_backbone("timm:vit_base_patch16_224", num_classes=10, pretrained=False).eval()


def lora_config() -> Any:
    """What ``pt.LoRA(rank=8, targets=("linear",))`` is in peft."""
    import peft

    return peft.LoraConfig(r=8, lora_alpha=8, target_modules=LAYERS, modules_to_save=["head"])


def peft_model(kind: str, backbone: pt.Backbone) -> pt.Backbone:
    """The network wrapped by peft, with the head to train as ours has."""
    import peft

    if kind == "LoRA":
        config: Any = lora_config()
    else:
        config = peft.IA3Config(
            target_modules=r".*blocks\.\d+\.(attn\.qkv|mlp\.fc2)",
            feedforward_modules=r".*mlp\.fc2",
            modules_to_save=["head"],
        )
    backbone.module = peft.get_peft_model(backbone.module, config)
    return backbone


def network(record: Rows, quick: bool) -> None:
    """Every strategy beside the bare network, LoRA and IA3 also beside peft's."""
    images, rounds = (1, 1) if quick else (2, 4)
    models = {"base": vit().requires_grad_(False)}
    models |= {name: pt.adapt(vit(), strategy) for name, strategy in STRATEGIES.items()}
    models |= {f"peft {kind}": peft_model(kind, vit()) for kind in ("LoRA", "IA3")}
    x = torch.rand(images, 3, 224, 224)
    against: dict[str, tuple[str, float | str]] = {
        name: ("base", "") for name in models if name not in ("base", "LoRA", "IA3")
    }
    against |= {"LoRA": ("peft LoRA", 1.0), "IA3": ("peft IA3", "")}

    def forward(model: pt.Backbone) -> None:
        with torch.no_grad():
            model.eval()(x)

    def both(model: pt.Backbone) -> None:
        model.train()
        leaf = x.clone().requires_grad_(model is models["base"])
        model(leaf).square().sum().backward()
        for parameter in model.parameters():
            parameter.grad = None

    for what, run in (("forward", forward), ("forward and backward", both)):
        works: dict[str, Work] = {
            name: lambda run=run, model=model: run(model)  # type: ignore[misc]
            for name, model in models.items()
        }
        record.timed("vit", f"{what}, ViT-B/16", in_turns(works, rounds), against, images)
        against["LoRA"] = ("peft LoRA", "")
    kept = {}
    for name, model in models.items():
        if name != "base":
            kept[name] = kept_bytes(model, model.train(), x)
            assert all(parameter.grad is None for parameter in model.parameters())
    for name, size in kept.items():
        found: dict[str, Any] = {"images": images, "value": size, "unit": "bytes"}
        if f"peft {name}" in kept:
            found |= {"against": f"peft {name}", "ratio": kept[f"peft {name}"] / size}
        record.row("vit", "kept for backward, ViT-B/16", name, **found)


# ---- files ------------------------------------------------------------------------------------------------------


def files(record: Rows, quick: bool) -> None:
    """Adapters of the whole network on disk."""
    import peft

    rounds = 1 if quick else 2

    def ours(name: str, place: Path) -> tuple[float, float]:
        model, fresh = pt.adapt(vit(), STRATEGIES[name]), vit().module
        return (
            seconds_of(lambda: pt.save_adapter(model, place)),
            seconds_of(lambda: pt.load_adapter(fresh, place)),
        )

    def theirs(kind: str, place: Path) -> tuple[float, float]:
        model: Any = peft_model(kind, vit()).module
        fresh = vit().module
        return (
            seconds_of(lambda: model.save_pretrained(place)),
            seconds_of(lambda: peft.PeftModel.from_pretrained(fresh, place)),
        )

    sides = {name: (ours, name) for name in (("LoRA", "Compacter") if quick else STRATEGIES)}
    sides |= {f"peft {kind}": (theirs, kind) for kind in ("LoRA", "IA3")}
    with tempfile.TemporaryDirectory() as folder:
        for name, (measure, kind) in sides.items():
            place = Path(folder) / name
            taken = [measure(kind, place) for _ in range(rounds)]
            size = (place / "adapter_model.safetensors").stat().st_size
            record.row("files", "tensors of an adapter, ViT-B/16", name, value=size, unit="bytes")
            for what, seconds in zip(("save", "load"), zip(*taken, strict=True), strict=True):
                record.timed("files", f"{what}, ViT-B/16", {name: list(seconds)}, {})


def seconds_of(work: Work) -> float:
    """CPU seconds of ``work``, done once."""
    began = time.process_time()
    work()
    return time.process_time() - began


# ---- several adapters -------------------------------------------------------------------------------------------


def switching(record: Rows, quick: bool) -> None:
    """Named adapters on one network; a mixed batch beside peft's, and beside the same batch under one adapter."""
    images, rounds = (4, 1) if quick else (8, 3)
    backbone = vit()
    adapters = pt.interchange.AdapterSet(backbone)
    lora = STRATEGIES["LoRA"]
    for number in range(4):
        adapters.add(f"lora{number}", lora, seed=number)
    adapters.add("compacter", pt.Compacter())

    def between(*states: Any) -> Work:
        def work() -> None:
            for state in states:
                adapters.activate(state)

        return work

    switches: dict[str, tuple[Any, ...]] = {
        "LoRA to LoRA": ("lora0", "lora1"),
        "LoRA to Compacter and back": ("compacter", "lora0"),
        "LoRA to LoRA, merged": ({"lora0": 1.0}, {"lora1": 1.0}),
        "mean of two LoRA to that of others": ({"lora0": 0.5, "lora1": 0.5}, {"lora2": 0.5, "lora3": 0.5}),
    }
    for name, states in switches.items():
        seconds = in_turns({"paretune": between(*states)}, rounds)["paretune"]
        record.timed("switching", f"{name}, ViT-B/16", {"paretune": [each / 2 for each in seconds]}, {})

    theirs: Any = peft_model("LoRA", vit()).eval()
    for number in range(1, 4):
        theirs.module.add_adapter(f"lora{number}", lora_config())
    x = torch.rand(images, 3, 224, 224)
    for kinds in (2, 4):
        numbers = [number % kinds for number in range(images)]
        names = [f"lora{number}" for number in numbers]
        other = [f"lora{number}" if number else "default" for number in numbers]
        adapters.activate("lora0")
        works: dict[str, Work] = {
            "paretune, one adapter for all": lambda: backbone.eval()(x),
            "paretune, mixed": lambda names=names: adapters(x, names),  # type: ignore[misc]
            "peft, mixed": lambda other=other: theirs.module((x - 0.5) / 0.5, adapter_names=other),  # type: ignore[misc]
        }
        with torch.no_grad():
            seconds_each = in_turns(works, rounds)
        record.timed(
            "switching",
            f"forward of {images} images with {kinds} adapters, ViT-B/16",
            seconds_each,
            {"paretune, mixed": ("peft, mixed", "")},
            images,
        )


SECTIONS: dict[str, Callable[[Rows, bool], None]] = {
    "compacter": compacter,
    "vit": network,
    "files": files,
    "switching": switching,
}


def main() -> None:
    """Run the sections."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=tuple(SECTIONS), metavar="SECTION")
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    parser.add_argument("--out", type=Path, default=HERE / "strategies.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    record = Rows(options.out)
    for section in options.only:
        print(f"== {section}", file=sys.stderr)
        SECTIONS[section](record, options.quick)


if __name__ == "__main__":
    main()
