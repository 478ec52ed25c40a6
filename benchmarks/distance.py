"""Does the distance between data sets predict how much of the first is forgotten when a model learns the second?

    python benchmarks/distance.py            # appends what is missing to benchmarks/distance.csv, then prints the summary
    python benchmarks/distance.py --proxies "digits" "digits noisy"    # those of these proxies
    python benchmarks/distance.py --proxies  # the summary alone

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
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
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


def pairs(proxies: Collection[str], done: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Rows of the pairs of ``proxies`` that are not ``done``."""
    for number, proxy in enumerate(PROXIES):
        if proxy not in proxies:
            continue
        missing = [second for first, second in PAIRS if first == proxy and (first, second) not in done]
        if not missing:
            continue
        train, test = task(proxy, "train"), task(proxy, "report")
        first = Proxy(learnt(*train, None, seed=number), train, test)
        before = first.accuracies(first.model)
        for downstream in missing:
            images, labels = task(downstream, "select")
            second = learnt(images, labels, first.model.module.state_dict(), seed=100 + number)
            after = first.accuracies(second)
            row: dict[str, Any] = {
                "proxy": proxy,
                "downstream": downstream,
                "examples": EXAMPLES,
                "steps": STEPS,
            }
            for name, was, now in zip(("", "probe_"), before, after, strict=True):
                row |= {f"{name}before": was, f"{name}after": now, f"{name}drop": was - now}
            splits = [as_data(*pictures).train for pictures in (train, (images, labels))]
            for name, kind in KINDS.items():
                # Cutting in halves for an interval is for the main one.
                resamples = 20 if name == "otdd" else 0
                measured = distance(
                    *splits, kind, first.model, limit=EXAMPLES, resamples=resamples, seed=number
                )
                row |= {name: measured.value}
                if resamples:
                    row |= {
                        "otdd_low": measured.low,
                        "otdd_high": measured.high,
                        "otdd_floor": measured.floor,
                    }
            yield {
                name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()
            }


Groups = list[np.ndarray]  # of each proxy the distances and the drops of its pairs, (pairs, 2)


def by_proxy(rows: list[dict[str, str]], kind: str, drop: str) -> Groups:
    """The pairs of each proxy that has any."""
    groups = [[(row[kind], row[drop]) for row in rows if row["proxy"] == proxy] for proxy in PROXIES]
    return [np.array(group, float) for group in groups if group]


def spearman(points: np.ndarray) -> np.ndarray:
    """Rank correlation of two columns, (..., pairs, 2) → (...); NaN where one is constant."""
    ranks = rankdata(points, axis=-2)
    ranks -= ranks.mean(-2, keepdims=True)
    norms = np.sqrt((ranks**2).sum(-2).prod(-1))
    return np.where(norms > 0, ranks.prod(-1).sum(-1) / np.where(norms > 0, norms, 1), np.nan)


def within(groups: Groups) -> np.ndarray:
    """Mean over proxies of the correlation among the downstream tasks of one: is the order of its tasks predicted?"""
    return np.nanmean([spearman(group) for group in groups], axis=0)


def pooled(groups: Groups) -> np.ndarray:
    """The correlation over all pairs."""
    return spearman(np.concatenate(groups, axis=-2))


def interval(
    measure: Callable[[Groups], np.ndarray], groups: Groups, resamples: int = 1000
) -> tuple[float, float]:
    """95 % percentile interval over pairs, resampled with replacement among those of each proxy.

    Pairs of one proxy share its model, and those of one downstream task its images, so that it is too narrow for the proxies
    and tasks of somebody else.
    """
    random = np.random.default_rng(0)
    draws = [[random.integers(len(group), size=len(group)) for group in groups] for _ in range(resamples)]
    drawn = [group[np.array(rows)] for group, rows in zip(groups, zip(*draws, strict=True), strict=True)]
    low, high = np.quantile(measure(drawn), (0.025, 0.975))
    return float(low), float(high)


def told(measure: Callable[[Groups], np.ndarray], groups: Groups) -> str:
    """The correlation with its interval."""
    low, high = interval(measure, groups)
    return f"{measure(groups):.2f} ({low:.2f} to {high:.2f})"


def summary(rows: list[dict[str, str]]) -> Iterator[str]:
    """The table that docs/concepts/distance.md shows: within proxies, and pooled."""
    images = [row for row in rows if not row["downstream"].endswith("shuffled")]
    columns = {
        "drop": (within, rows, "drop"),
        "drop, but for shuffled labels": (within, images, "drop"),
        "drop of a new probe": (within, rows, "probe_drop"),
        "drop, all pairs in one": (pooled, rows, "drop"),
    }
    yield f"| distance | {' | '.join(columns)} |"
    yield "|---" * (1 + len(columns)) + "|"
    for kind, value in KINDS.items():
        cells = [told(measure, by_proxy(chosen, kind, drop)) for measure, chosen, drop in columns.values()]
        yield f"| `{value!r}` | {' | '.join(cells)} |"


def main() -> None:
    """Measure what is missing, print the summary."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--proxies", nargs="*", choices=PROXIES, default=PROXIES)
    if proxies := parser.parse_args().proxies:
        logging.getLogger("paretune").setLevel(
            logging.ERROR
        )  # findings about attacks, of which there are none here
        done = {(row["proxy"], row["downstream"]) for row in read()}
        shared = machine("POT")
        for row in pairs(proxies, done):
            append(CSV, shared | row)
            print(*(f"{name}={value}" for name, value in row.items()), flush=True)
    rows = read()
    print(f"Spearman's correlation of distance and drop, {len(rows)} pairs", *summary(rows), sep="\n")


def read() -> list[dict[str, str]]:
    """The rows of benchmarks/distance.csv."""
    if not CSV.exists():
        return []
    with CSV.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
