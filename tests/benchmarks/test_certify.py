"""A certificate beside the forward passes of its samples alone: CPU time, as a ratio (`make bench`)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from measures import seconds

from hrzs.attacks.base import features_of
from hrzs.data_options import DataOptions
from hrzs.evaluation.certify import AT_ONCE, Certification, Votes
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.runner import Evaluation
from hrzs.models.exact import exact_fp32
from hrzs.models.loading import load_model
from hrzs.tasks import open_task

pytestmark = pytest.mark.benchmark

#: Whole batches, so that as many images go through the bare encoder.
IMAGES, SAMPLES, SELECTION = 2, 9 * AT_ONCE, 4 * AT_ONCE


def test_a_certificate_takes_what_its_forward_passes_take() -> None:
    model = load_model("tiny")
    data = DataOptions.of({"data": "shapes", "limit": IMAGES})
    task = open_task("shapes", model, data, purpose="eval", template="photo")
    options = EvalOptions(attack=("none",), certify=0.25, samples=SAMPLES, selection=SELECTION)
    evaluation, count = Evaluation(model, task, options), IMAGES * (SAMPLES + SELECTION)
    images = torch.stack([task.data[i].image for i in range(IMAGES)]).repeat(AT_ONCE // IMAGES, 1, 1, 1)

    def certificate(threads: int) -> None:
        certification = Certification(evaluation, Votes(None))
        torch.set_num_threads(threads)
        try:
            with certification.votes.opened():
                certification.run()
        finally:
            torch.set_num_threads(1)

    @exact_fp32()
    def forward() -> None:
        for _ in range(count // AT_ONCE):
            features_of(model, images)

    cases: list[Callable[[], None]] = [forward, lambda: certificate(1), lambda: certificate(2)]
    rounds = [[seconds(case) for case in cases] for _ in range(16)][1:]
    bare, alone, together = map(min, zip(*rounds, strict=True))
    minutes = [spent / count * (10_000 + 100) * 100 / 2 / 60 for spent in (alone, together)]
    print(
        f"\ncertificate / its forward passes alone, tiny: {alone / bare:.3f} (bound 1.25), with two threads "
        f"{together / bare:.3f}; {1e3 * alone / count:.2f} ms of CPU a sample: 10,000 samples of each of 100 images take "
        f"{minutes[0]:.1f} minutes of two cores, with two threads {minutes[1]:.1f}"
    )
    assert alone <= 1.25 * bare
