"""Attacks beside those of torchattacks and AutoAttack: CPU time as a ratio, at the same verdicts (`make bench`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from parity_autoattack import run_ours, run_reference
from torch import Tensor

from hrzs.attacks import ATTACKS, Budget
from hrzs.attacks.base import features_of
from hrzs.attacks.objectives import LevelObjective
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.bf16 import bf16_speed
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel, frozen

pytestmark = pytest.mark.benchmark

HALF, STEPS, EPS = 8, 20, Fraction(1, 255)


@dataclass
class Verdicts:
    """Of each image: did it fall, and the seconds that all of them took."""

    fell: Tensor
    seconds: float


def timed(attack: Callable[[], Tensor]) -> Verdicts:
    began = time.process_time()
    return Verdicts(attack(), time.process_time() - began)


def scene(model: ClipModel, holding: int) -> tuple[LevelObjective, Tensor, Tensor]:
    """A classifier and images: ``holding`` fall to no attack, eight fall to the first steps.

    An untrained encoder tells images of noise apart. Each of these is the text of a class of its own, and so lies far
    from any boundary. The mean of two of them lies close to the boundary between their classes. An image's label is
    what the model predicts, so all are right when clean.
    """
    far = torch.rand(HALF, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
    images = torch.cat([far[:holding], (far + far.roll(1, 0)) / 2])
    leaves = tuple(Node(str(i), str(i), class_id=str(i)) for i in range(HALF))
    classifier = ZeroShotClassifier(model, Tree(Node("all", "all", leaves, level=1)))
    texts = F.normalize(features_of(model, far), dim=-1)
    classifier.prepared = F.normalize(texts - texts.mean(0), dim=-1)
    labels = classifier.logits(features_of(model, images)).argmax(1)
    return LevelObjective(classifier, 0), images, labels


@pytest.fixture(scope="module")
def pgd(model: ClipModel) -> dict[str, Verdicts]:
    """PGD-20 without a random start: torchattacks', ours, and ours in bf16; in turns, the fastest of two."""
    torchattacks = pytest.importorskip("torchattacks")
    objective, images, labels = scene(model, holding=HALF)

    def logits(pixels: Tensor) -> Tensor:
        return objective.logits(model.encode_image(pixels, "fp32"))

    class Pixels(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = model  # torchattacks asks a parameter for the device

        def forward(self, pixels: Tensor) -> Tensor:
            return logits(pixels)

    def theirs() -> Tensor:
        attack = torchattacks.PGD(Pixels(), eps=float(EPS), alpha=float(EPS), steps=STEPS, random_start=False)
        with frozen(model):
            adversarial = attack(images, labels)
        with torch.no_grad():
            return logits(adversarial).argmax(1) != labels

    def ours(precision: str) -> Tensor:
        attack = ATTACKS["leaf-pgd"].optimiser(Budget(EPS, EPS, STEPS, random_start=False))
        model.precision = precision
        try:
            return attack(model, objective, images, labels, range(len(images))).success
        finally:
            model.precision = "fp32"

    runs = {"torchattacks": theirs, "fp32": lambda: ours("fp32"), "bf16": lambda: ours("bf16")}
    rounds = [{name: timed(run) for name, run in runs.items()} for _ in range(2)]
    return {name: min((r[name] for r in rounds), key=lambda verdicts: verdicts.seconds) for name in runs}


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1.7), ("bf16", 3.0)])
def test_pgd_beside_torchattacks(pgd: dict[str, Verdicts], precision: str, bound: float) -> None:
    theirs, ours = pgd["torchattacks"], pgd[precision]
    measured = theirs.seconds / ours.seconds
    print(f"\ntorchattacks / ours ({precision}), PGD-{STEPS}, ViT-B-32: {measured:.2f} (bound {bound})")
    assert theirs.fell.sum() == HALF
    assert not (theirs.fell & ~ours.fell).any()
    if precision == "bf16" and (product := bf16_speed()) < 1.8:
        pytest.skip(f"{measured:.2f}; on this CPU a bf16 matrix product itself runs at {product:.2f} × fp32")
    assert measured >= bound


@pytest.fixture(scope="module")
def autoattack(model: ClipModel) -> dict[str, Verdicts]:
    """AutoAttack with a tenth of its steps and a fifth of its queries: the reference's, ours, and ours in bf16."""
    checkout = os.environ.get("HRZS_AUTOATTACK")
    if checkout is None:
        pytest.skip("HRZS_AUTOATTACK names no checkout of fra31/auto-attack")
    # As on photographs (docs/evaluation.md), most fall. One that holds costs the same queries whoever asks them.
    objective, images, labels = scene(model, holding=2)
    held = torch.ones(len(images), dtype=torch.bool)
    budget = Budget(EPS, EPS, 10)

    def logits(pixels: Tensor) -> Tensor:
        return objective.logits(model.encode_image(pixels, "fp32"))

    def theirs() -> Tensor:
        with frozen(model):
            adversarial = run_reference(
                Path(checkout), "autoattack", logits, images, labels, budget, classes=HALF, steps=10,
                batch_size=len(images), seed=0,
            )  # fmt: skip
        with torch.no_grad():
            return logits(adversarial).argmax(1) != labels

    def ours(precision: str) -> Tensor:
        model.precision = precision
        try:
            seeds = list(range(len(images)))
            return ~run_ours("autoattack", model, objective, images, labels, seeds, budget, held, len(images))
        finally:
            model.precision = "fp32"

    return {"reference": timed(theirs), "fp32": timed(lambda: ours("fp32")), "bf16": timed(lambda: ours("bf16"))}


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 0.9), ("bf16", 0.5)])
def test_autoattack_beside_the_reference(autoattack: dict[str, Verdicts], precision: str, bound: float) -> None:
    theirs, ours = autoattack["reference"], autoattack[precision]
    measured = ours.seconds / theirs.seconds
    print(
        f"\nours ({precision}) / AutoAttack, ViT-B-32: {measured:.3f} (bound {bound}); "
        f"{int(ours.fell.sum())} of {len(ours.fell)} fell, theirs {int(theirs.fell.sum())}"
    )
    assert 0 < theirs.fell.sum() < len(theirs.fell)
    assert not (theirs.fell & ~ours.fell).any()
    if precision == "bf16" and (product := bf16_speed()) < 1.8:
        pytest.skip(f"{measured:.3f}; on this CPU a bf16 matrix product itself runs at {product:.2f} × fp32")
    assert measured <= bound
