"""``paretune distance``: how far two data sets are apart."""

import json
from dataclasses import dataclass, replace
from typing import Literal

from paretune._values import parse, told


@dataclass(frozen=True)
class Distance:
    """Measure how far two data sets are apart, before anything is trained: on features of a backbone, or on pixels.

    Of split data the train split is measured. Samples are at a distance even from samples of the same set; the floor says
    at which. Compare distances of as many examples only.

    Args:
        a: digits, fashion-mnist, cifar10, cifar100, a folder of class folders, a .csv, .tsv or .parquet file of paths and
            labels, or hf:NAME.
        b: likewise.
        kind: otdd (optimal transport of images and labels), mmd, or frechet, which see images alone; or a call, such as
            "OTDD(inner='gaussian', entropy=0.05)".
        on: features of the backbone, or pixels; null is what kind says, features by default.
        backbone: whose features: efficientnet-lite0, dinov2-small, timm:NAME or hf:NAME_OR_DIRECTORY.
        weights: a .safetensors or .pth file for that architecture; nothing is downloaded then.
        weights_key: which state dict of that file, such as state_dict; null takes the averaged one (EMA) if there is one.
        img_size: side of the square images in pixels, or height and width as in 32,48; null takes the backbone's own, or on
            pixels that of the images.
        data_root: where torchvision keeps its data sets, or where the paths of a table start.
        limit: examples of each set, at most, drawn at random.
        seed: of the draw and of the resamples.
        resamples: cuts into halves, for interval and floor; 0 for neither.
        level: of the interval.
        json: print JSON instead.
    """

    a: str
    b: str
    kind: str = "otdd"
    on: Literal["pixels", "features"] | None = None
    backbone: str = "efficientnet-lite0"
    weights: str | None = None
    weights_key: str | None = None
    img_size: int | str | None = None
    data_root: str | None = None
    limit: int = 1000
    seed: int = 0
    resamples: int = 50
    level: float = 0.95
    json: bool = False

    def __call__(self) -> None:
        """Load both, measure, print."""
        from paretune.backbones.loading import load_backbone
        from paretune.data.images import load_data
        from paretune.data.sizes import Sides, checked_size
        from paretune.shifts.distances import DISTANCES, distance

        with told("kind", self.kind):
            kind = parse(self.kind, DISTANCES)
        if self.on is not None:
            kind = replace(kind, on=self.on)
        sides = Sides.read(self.img_size) if isinstance(self.img_size, str) else self.img_size
        size = None if sides is None else checked_size("img_size", sides)
        model = None
        if kind.on == "features":
            with told("backbone", self.backbone):
                model = load_backbone(
                    self.backbone,
                    num_classes=2,
                    img_size=size,
                    weights=self.weights,
                    weights_key=self.weights_key,
                )
            size = model.image_size
        with told("a", self.a):
            a = load_data(self.a, img_size=size, root=self.data_root).train
        with told("b", self.b):
            b = load_data(self.b, img_size=size, root=self.data_root).train
        measured = distance(
            a,
            b,
            kind,
            model,
            limit=self.limit,
            seed=self.seed,
            resamples=self.resamples,
            level=self.level,
        )
        if self.json:
            source = None if model is None else self.backbone
            print(json.dumps({"a": self.a, "b": self.b, "backbone": source, **measured.to_dict()}, indent=2))
            return
        print(f"{measured.value:.5g}")
        if measured.floor is not None:
            print(f"{measured.level * 100:g} % interval: {measured.low:.5g} to {measured.high:.5g}")
            print(f"floor, between halves of one set: {measured.floor:.5g}")
        where = "pixels" if model is None else f"features of {self.backbone}"
        print(f"{kind!r}, on {where}, {' and '.join(f'{count:,}' for count in measured.examples)} examples")
        if measured.paired:
            print(
                "the examples of both have the same ids; copies of an image are nearer than images that differ"
            )
