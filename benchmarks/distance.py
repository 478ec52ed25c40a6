"""Does the distance between data sets predict how much of the first is forgotten when a model learns the second?

    python benchmarks/distance.py            # appends what is missing to benchmarks/distance.csv, then prints the summary
    python benchmarks/distance.py --summary  # of the rows that are there

A row is a pair of tasks. An ImageNet backbone is fine-tuned on the first (the pretraining proxy), then all of it on the
second (downstream), from the same start and for the same number of steps. Tasks are Fashion-MNIST or the digits of
scikit-learn at 24 pixels, as they are or changed: inverted, turned by 90 degrees, noisy, blurred, faint, or with labels in
random order. Both tasks of a pair have images of their own, also where nothing is changed.

**drop** is that of the accuracy on test images of the proxy. The protocol is that of ImageNet-RIB (Hwang et al. 2024,
https://arxiv.org/abs/2410.21582): both tasks of a pair have the same classes, so the model goes on with its head, and its
answers mean the same before and after. Pairs of digits and clothes are not measured: one head would be trained over with
other meanings of its logits, and a new head, which starts at random, moves the features away from the old one even where the
second task is the first again (from 76 to 10 of 100 right). **probe_drop** fits a new linear head to training images of the
proxy before and after: what is lost in the features, wherever the head is.

Distances are between training images of both tasks, as many of each, in the features of the model that has learnt the
proxy and in pixels: before the second task is trained on, so that they could have been asked for a prediction.
"""

import argparse
import csv
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

import paretune as pt
from _record import append, machine
from paretune.backbones.features import entering_head
from paretune.data import ImageData
from paretune.data.splits import ROLES
from paretune.shifts.distances import MMD, OTDD, Frechet, distance
from paretune.training import AdamW, Natural

CSV = Path(__file__).with_suffix(".csv")
SIZE, EXAMPLES, STEPS = 24, 250, 60
FIRST_LR, SECOND_LR = 3e-4, 1e-4  # for the proxy, and downstream
BACKBONE = "efficientnet-lite0"
Change = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


CHANGES: dict[str, Change] = {
    "": lambda images, labels, _: (images, labels),
    "inverted": lambda images, labels, _: (1 - images, labels),
    "turned": lambda images, labels, _: (images.rot90(1, (2, 3)), labels),
    "noisy": lambda images, labels, random: (
        (images + 0.2 * torch.randn(images.shape, generator=random)).clamp(0, 1),
        labels,
    ),
    "blurred": lambda images, labels, _: (avg_pool2d(pad(images, (2, 2, 2, 2), "replicate"), 5, 1), labels),
    "faint": lambda images, labels, _: (0.5 + 0.2 * (images - 0.5), labels),
    "shuffled": lambda images, labels, random: (
        images,
        labels[torch.randperm(len(labels), generator=random)],
    ),
}
SOURCES = ("fashion-mnist", "digits")
PAIRS = tuple(
    (f"{source} {first}".strip(), f"{source} {second}".strip())
    for first in ("", "inverted", "noisy")
    for source in SOURCES
    for second in CHANGES
)
PROXIES = tuple(dict.fromkeys(proxy for proxy, _ in PAIRS))
KINDS = {
    "otdd": OTDD(),
    "otdd_gaussian": OTDD(inner="gaussian"),
    "mmd": MMD(),
    "frechet": Frechet(),
    "otdd_pixels": OTDD(on="pixels"),
    "mmd_pixels": MMD(on="pixels"),
    "frechet_pixels": Frechet(on="pixels"),
}


def task(name: str, role: str) -> tuple[Tensor, Tensor]:
    """Images and labels; those of the roles train (of proxies), select (downstream) and report (tests) are others."""
    source, _, change = name.partition(" ")
    data = pt.load_data(source, img_size=SIZE, limit=1700, splits=(0.3, 0.3, 0.4))
    random = torch.Generator().manual_seed(ROLES.index(role))
    return CHANGES[change](*getattr(data, role)[:], random)


def as_data(images: Tensor, labels: Tensor) -> ImageData:
    """Nine tenths to train on; the rest is what training measures, and is not used here."""
    return ImageData.from_tensors(images, labels, splits=(0.9, 0.05, 0.05))


def learnt(images: Tensor, labels: Tensor, start: Mapping[str, Tensor] | None, seed: int) -> pt.Backbone:
    """The backbone, or what ``start`` has made of it, fine-tuned."""
    model = pt.load_backbone(BACKBONE, num_classes=10, img_size=SIZE, seed=seed)
    if start is not None:
        model.module.load_state_dict(start)
    pt.adapt(model, pt.FullFineTune(), seed=seed)
    with tempfile.TemporaryDirectory() as directory:
        pt.train(
            model,
            as_data(images, labels),
            Natural(),
            out=directory,
            steps=STEPS,
            points=1,
            optimizer=AdamW(FIRST_LR if start is None else SECOND_LR),
            attacks=[pt.attacks.FGSM(pt.Linf(1 / 255))],
            seed=seed,
            augmentation="none",
            progress=False,
        )
    return model.eval()


def features(model: pt.Backbone, images: Tensor) -> Tensor:
    """(images, features)."""
    with torch.no_grad(), entering_head(model) as seen:
        model(images)
    return seen[0]


@dataclass(frozen=True)
class Proxy:
    """A model that has learnt a proxy, and what it is tested with."""

    model: pt.Backbone
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def accuracies(self, model: pt.Backbone) -> tuple[float, float]:
        """Of ``model``, and of a new linear head on its features."""
        seen, test = (features(model, images) for images, _ in (self.train, self.test))
        with torch.no_grad():
            old = model(self.test[0]).argmax(1)
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        new = torch.from_numpy(probe.fit(seen, self.train[1]).predict(test))
        right = self.test[1]
        return (old == right).double().mean().item(), (new == right).double().mean().item()


def pairs(done: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Rows of the pairs that are not ``done``."""
    for number, proxy in enumerate(PROXIES):
        missing = [second for first, second in PAIRS if first == proxy and (first, second) not in done]
        if not missing:
            continue
        train, test = task(proxy, "train"), task(proxy, "report")
        first = Proxy(learnt(*train, None, seed=number), train, test)
        before = first.accuracies(first.model)
        for each in missing:
            images, labels = task(each, "select")
            second = learnt(images, labels, first.model.module.state_dict(), seed=100 + number)
            after = first.accuracies(second)
            row: dict[str, Any] = {"proxy": proxy, "downstream": each, "examples": EXAMPLES, "steps": STEPS}
            for name, was, now in zip(("", "probe_"), before, after, strict=True):
                row |= {f"{name}before": was, f"{name}after": now, f"{name}drop": was - now}
            splits = [as_data(*each).train for each in (train, (images, labels))]
            for name, kind in KINDS.items():
                # Cutting in halves for an interval is for the main one.
                resamples = 20 if name == "otdd" else 0
                told = distance(*splits, kind, first.model, limit=EXAMPLES, resamples=resamples, seed=number)
                row |= {name: told.value}
                if resamples:
                    row |= {"otdd_low": told.low, "otdd_high": told.high, "otdd_floor": told.floor}
            yield {
                name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()
            }


def within(rows: list[dict[str, str]], kind: str, drop: str) -> float:
    """Spearman's correlation of distance and drop among the downstream tasks of one proxy, averaged over proxies."""
    found = []
    for proxy in PROXIES:
        chosen = [row for row in rows if row["proxy"] == proxy]
        x, y = ([float(row[name]) for row in chosen] for name in (kind, drop))
        if len(set(x)) > 1 and len(set(y)) > 1:
            found.append(float(spearmanr(x, y).statistic))
    return float(np.mean(found))


def pooled(rows: list[dict[str, str]], kind: str, drop: str) -> float:
    """Spearman's correlation of distance and drop over all pairs."""
    return float(spearmanr(*([float(row[name]) for row in rows] for name in (kind, drop))).statistic)


def correlations(
    rows: list[dict[str, str]], drop: str, resamples: int = 2000
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """(correlation, low, high) by kind of distance and by what is correlated: pairs pooled, and within proxies.

    95 % percentile intervals of pairs resampled with replacement, those of each proxy among themselves. Pairs of one proxy
    share its model, and those of one downstream task its images, so that the intervals are too narrow for other proxies.
    """
    table = {}
    for kind in KINDS:
        generator = np.random.default_rng(0)
        groups = [[row for row in rows if row["proxy"] == proxy] for proxy in PROXIES]
        drawn: dict[str, list[float]] = {"pooled": [], "within": []}
        for _ in range(resamples):
            again = [
                group[i] for group in groups for i in generator.integers(len(group), size=len(group)).tolist()
            ]
            drawn["pooled"].append(pooled(again, kind, drop))
            drawn["within"].append(within(again, kind, drop))
        table[kind] = {
            name: (measure(rows, kind, drop), *map(float, np.quantile(drawn[name], (0.025, 0.975))))
            for name, measure in (("pooled", pooled), ("within", within))
        }
    return table


def main() -> None:
    """Measure what is missing, print the summary."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--summary", action="store_true")
    if not parser.parse_args().summary:
        logging.getLogger("paretune").setLevel(
            logging.ERROR
        )  # findings about attacks, of which there are none here
        done = {(row["proxy"], row["downstream"]) for row in read()}
        shared = machine("POT")
        for row in pairs(done):
            append(CSV, shared | row)
            print(*(f"{name}={value}" for name, value in row.items()), flush=True)
    rows = read()
    for drop in ("drop", "probe_drop"):
        print(f"Spearman's correlation with {drop} over {len(rows)} pairs")
        for kind, measured in correlations(rows, drop).items():
            told = [
                f"{name} {value:+.2f} ({low:+.2f} to {high:+.2f})"
                for name, (value, low, high) in measured.items()
            ]
            print(f"  {kind:15} {'   '.join(told)}")


def read() -> list[dict[str, str]]:
    """The rows of benchmarks/distance.csv."""
    if not CSV.exists():
        return []
    with CSV.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
