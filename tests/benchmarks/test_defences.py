"""A verdict and a gradient behind each defence beside those of the model alone: CPU time, as ratios (`make bench`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from measures import seconds

from hrzs.attacks.base import _at_once, features_of
from hrzs.data_options import DataOptions
from hrzs.defences import Defended, defences
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import frozen
from hrzs.models.encoder import ImageEncoder
from hrzs.models.exact import exact_fp32
from hrzs.models.loading import load_model
from hrzs.tasks import open_task

pytestmark = pytest.mark.benchmark

IMAGES = 16
#: Beyond what is predicted. For a model as small as `tiny`, to cut R-TPT's views out takes longer than a few FLOPs.
SLACK = {"ttc": 1.5, "et3": 1.5, "r-tpt": 2.0}


@exact_fp32()
def test_what_defences_cost() -> None:
    model = load_model("tiny")
    task = open_task(
        "shapes", model, DataOptions.of({"data": "shapes", "limit": IMAGES}), purpose="eval", template="photo"
    )
    classifier = ZeroShotClassifier(model, task.tree)
    images = torch.stack([task.data[i].image for i in range(IMAGES)])
    model.at_once = 128

    def gradient(encoder: ImageEncoder) -> None:
        for rows in _at_once(encoder, IMAGES):
            x = images[rows].clone().requires_grad_()
            for drawn in encoder.select(rows).draws():
                torch.autograd.grad(drawn.encode_image(x).sum(), x)

    with frozen(model):
        bare = [
            min(seconds(case) for _ in range(5))
            for case in (lambda: features_of(model, images), lambda: gradient(model))
        ]
        for name, slack in SLACK.items():
            defended = Defended(model, classifier, defences((name,)), eot=4).of(range(IMAGES))
            cases: list[Callable[[], object]] = [partial(features_of, defended, images), partial(gradient, defended)]
            found = [min(seconds(case) for _ in range(2)) for case in cases]
            verdict, attack = (behind / without for behind, without in zip(found, bare, strict=True))
            predicted = 1 + defended.passes, defended.attack_passes
            print(
                f"\n{name} / the model alone, tiny: a verdict {verdict:.1f} (predicted {predicted[0]:.1f}), a gradient of an "
                f"adaptive attack {attack:.1f} (predicted {predicted[1]:.1f})"
            )
            assert verdict <= slack * predicted[0]
            assert attack <= slack * predicted[1]
