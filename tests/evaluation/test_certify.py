"""Votes on noisy copies: the closed form of a linear classifier, and that samples add up whatever happens in between."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from scipy.stats import norm

from hrzs.errors import HrzsError, UsageError
from hrzs.evaluation import certify
from hrzs.evaluation.certify import ESTIMATION, SELECTION, Certification, Run, Votes, noise
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.plan import settle
from hrzs.evaluation.runner import Evaluation
from hrzs.evaluation.shards import Shard
from hrzs.results.report import Certificate

CPU = torch.device("cpu")
Evaluate = Callable[..., Evaluation]
Make = Callable[..., Certification]


@pytest.fixture
def make(evaluate: Evaluate) -> Make:
    """The certification of `evaluate`'s 24 images, few samples each."""

    def certification(votes: Votes | None = None, **options: Any) -> Certification:
        evaluation = evaluate(**{"attack": ("none",), "certify": 0.1, "samples": 24, "selection": 6, **options})
        return Certification(evaluation, votes or Votes(None))

    return certification


def found(certification: Certification) -> list[Certificate]:
    with certification.votes.opened():
        certification.run()
        return [msgspec.structs.replace(one, seconds=0.0) for one in certification.certificates()]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- noise --------------------------------------------------------------------------------------------------------


def test_noise_of_a_sample_is_its_own() -> None:
    def of(samples: range, image: str = "a", stream: str = ESTIMATION, seed: int = 0) -> torch.Tensor:
        return noise(image, samples, stream, (3, 5, 5), seed=seed, device=CPU)

    whole = of(range(10))
    assert torch.equal(torch.cat([of(range(3)), of(range(3, 10))]), whole)
    for other in (of(range(10), image="b"), of(range(10), stream=SELECTION), of(range(10), seed=1), of(range(10, 20))):
        assert (other - whole).abs().min(0).values.max() > 0.1
    assert len({z.tobytes() for z in whole.numpy()}) == 10


def test_noise_is_standard_normal() -> None:
    drawn = noise("a", range(200), ESTIMATION, (3, 16, 16), seed=0, device=CPU).double().flatten()
    n = len(drawn)
    assert abs(drawn.mean().item()) < 5 / n**0.5
    assert abs(drawn.var().item() - 1) < 5 * (2 / n) ** 0.5
    for quantile in (-2.0, -1.0, 0.5, 2.5):
        p = norm.cdf(quantile)
        assert abs((drawn < quantile).double().mean().item() - p) < 5 * (p * (1 - p) / n) ** 0.5


# -- the closed form ------------------------------------------------------------------------------------------------


def test_a_linear_classifier_has_the_radius_of_its_margin(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two half spaces the smoothed classifier is the classifier, p is Φ(margin/σ), and the radius the margin."""
    certification = make(certify=0.1, samples=500, selection=50)
    evaluation, sigma = certification.evaluation, 0.1
    size = evaluation.task.data[0].image.shape
    normal_ = torch.randn(size, generator=torch.Generator().manual_seed(0)).flatten()
    normal_ /= normal_.norm()
    images = torch.stack([evaluation.task.data[i].image for i in range(24)]).flatten(1)
    # Every image at a margin of its own, from -1.5 σ to 1.5 σ.
    wanted = sigma * torch.linspace(-1.5, 1.5, 24)
    offsets = dict(zip(evaluation.task.data.ids, (images @ normal_ - wanted).tolist(), strict=True))
    current: dict[str, float] = {}
    ends: list[float] = []
    run = certification._run

    def told(image: torch.Tensor, image_id: str, *rest: Any) -> Run:
        current["offset"] = offsets[image_id]
        return run(image, image_id, *rest)

    def features(_: object, noisy: torch.Tensor) -> torch.Tensor:
        ends.extend((noisy.min().item(), noisy.max().item()))
        return (noisy.flatten(1) @ normal_ - current["offset"])[:, None]

    def logits(score: torch.Tensor) -> torch.Tensor:
        rest = torch.full((len(score), 4), -torch.inf)
        return torch.cat([score, -score, rest], dim=1)

    monkeypatch.setattr(certify, "AT_ONCE", 100)
    monkeypatch.setattr(certification, "_run", told)
    monkeypatch.setattr(certify, "features_of", features)
    monkeypatch.setattr(evaluation.classifier, "logits", logits)
    leaves = found(certification)[0]
    assert min(ends) < -2 * sigma  # clipped noise is not Gaussian
    assert max(ends) > 1 + 2 * sigma
    by_id = wanted[evaluation.by_id].tolist()
    for margin, node, votes in zip(by_id, leaves.chosen.split(), leaves.votes.split(), strict=True):
        p = norm.cdf(abs(margin) / sigma)
        if abs(margin) > 0.5 * sigma:  # nearer, the selection may take the other side
            assert int(node) == (0 if margin > 0 else 1)
            assert abs(int(votes) / 500 - p) < 5 * (p * (1 - p) / 500) ** 0.5
            radius = sigma * norm.ppf(certificate_bound(int(votes), 500))
            assert 0.5 * abs(margin) < radius < abs(margin) + 1e-3 * sigma
    # Both leaves are below one node, which so has every vote and the largest radius.
    assert evaluation.task.tree.ancestors[1, :2].tolist() == [0, 0]
    above = found(certification)[1]
    assert {*above.votes.split()} == {"500"}


def certificate_bound(votes: int, samples: int) -> float:
    from scipy.stats import binomtest

    bound = binomtest(votes, samples, alternative="greater").proportion_ci(0.999, "exact").low
    return float(bound)


# -- samples add up -------------------------------------------------------------------------------------------------


def test_more_samples_add_to_those_kept(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json.votes"
    at_once = found(make(samples=30))
    first = found(make(Votes(path), samples=12))
    asked: list[int] = []
    monkeypatch.setattr(
        certify, "noise", lambda image, samples, *rest, **more: (asked.extend(samples), noise(image, samples, *rest, **more))[1]
    )  # fmt: skip
    assert found(make(Votes(path), samples=30)) == at_once != first
    assert sorted(set(asked)) == list(range(12, 30))
    assert len(asked) == 24 * 18
    # Fewer than are kept, other levels of confidence and the joint claim need no sample.
    asked.clear()
    assert found(make(Votes(path), samples=12)) == first
    assert found(make(Votes(path), samples=30, alpha=0.05, confidence="joint"))[0].level_alpha == 0.05 / 3
    assert asked == []


def test_neither_batch_size_nor_threads_matter(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads have at most ``batch_size`` under way, keep to their own cores, and leave nothing changed behind them."""
    by_nine = found(make(batch_size=9))
    assert any(one.abstained for one in by_nine)
    assert any(one.abstained < 1 for one in by_nine)
    seen, cores = list[tuple[int, str, int]](), torch.get_num_threads()

    def seen_noise(image: str, samples: range, *rest: Any, **more: Any) -> torch.Tensor:
        seen.append((len(samples), threading.current_thread().name, torch.get_num_threads()))
        return noise(image, samples, *rest, **more)

    monkeypatch.setattr(certify, "noise", seen_noise)
    monkeypatch.setattr(certify, "AT_ONCE", 5)
    torch.set_num_threads(4)
    try:
        assert found(make(batch_size=14)) == by_nine
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(cores)
    sizes, names, threads = map(set, zip(*seen, strict=True))
    assert sizes == {5, 4, 1}  # of 24 and of 6
    assert names == {"votes_0", "votes_1"}
    assert threads == {2}


def test_runs_are_of_bounded_length(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify, "RUN", 10)
    path = tmp_path / "r.json.votes"
    assert found(make(Votes(path))) == found(make())
    spans = {(line["start"], line["stop"]) for line in lines(path) if line["stream"] == ESTIMATION}
    assert spans == {(0, 10), (10, 20), (20, 24)}


def test_whatever_stops_it_what_is_done_is_kept(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "r.json.votes", [0]
    run = Certification._run

    def stops(self: Certification, *of: Any) -> Run:
        seen[0] += 1
        if seen[0] == 12:
            raise KeyboardInterrupt
        return run(self, *of)

    monkeypatch.setattr(Certification, "_run", stops)
    with pytest.raises(KeyboardInterrupt):
        found(make(Votes(path)))
    assert len(lines(path)) == 11
    with path.open("a") as file:
        file.write('{"of": "torn')
    assert found(make(Votes(path))) == found(make())
    assert len(lines(path)) == 48


def test_votes_are_of_model_noise_and_leaves(make: Make) -> None:
    base = make()
    same = (make(samples=20), make(alpha=0.01), make(confidence="joint"), make(batch_size=3), make(selection=5))
    assert {one.identity() for one in same} == {base.identity()}
    others = (make(certify=0.2), make(seed=1), make(template="openai"))
    assert len({base.identity(), *(one.identity() for one in others)}) == 4


def test_shards_give_what_one_process_gives(make: Make, tmp_path: Path) -> None:
    whole, total = tmp_path / "whole", tmp_path / "total"
    found(make(Votes(total), samples=9))
    parts = [tmp_path / shard.name for shard in Shard(1, 3).all]
    for shard, part in zip(Shard(1, 3).all, parts, strict=True):
        certification = make(Votes(part, [total]))
        seen: list[tuple[int, int]] = []
        with certification.votes.opened():
            certification.run(lambda done, all_, _, seen=seen: seen.append((done, all_)), shard)
        assert seen[-1] == (certification.passes(shard),) * 2
    merged = make(Votes(total, parts=parts))
    with merged.votes.opened():
        merged.run(kept_only=True)
        together = [msgspec.structs.replace(one, seconds=0.0) for one in merged.certificates()]
    assert together == found(make(Votes(whole)))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("shard")] == []
    # All of it is in the one file now.
    assert sum(line["stop"] - line["start"] for line in lines(total)) == 24 * 30


def test_votes_that_no_shard_has_are_an_error(make: Make, tmp_path: Path) -> None:
    certification = make(Votes(tmp_path / "total", parts=[tmp_path / "nothing"]))
    with certification.votes.opened(), pytest.raises(HrzsError, match="votes on 24 of 24 images"):
        certification.run(kept_only=True)


@pytest.mark.parametrize(
    "line",
    [
        {"identity": "x"},
        {"of": "a", "image": "b", "stream": "estimation", "start": 0, "stop": 9, "votes": [[0, 8]], "seconds": 0},
        {"of": "a", "image": "b", "stream": "estimation", "start": 0, "stop": 0, "votes": [], "seconds": 0},
        {"of": "a", "image": "b", "stream": "estimation", "start": 0, "stop": 2, "votes": [[-1, 2]], "seconds": 0},
        [1],
    ],
)
def test_a_file_that_holds_no_votes_is_refused(tmp_path: Path, line: object) -> None:
    path = tmp_path / "r.json.votes"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(UsageError, match=r"r\.json\.votes: no votes of"), Votes(path).opened():
        pytest.fail("it was opened")
    assert json.loads(path.read_text()) == line


# -- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"certify": 0.0}, "--certify 0.0: must be more than 0"),
        ({"certify": float("nan")}, "--certify nan: must be a finite number"),
        ({"certify": 0.25, "samples": 50}, "--samples 50: fewer than the 100 of --selection"),
        ({"certify": 0.25, "alpha": 0.0}, "--alpha 0.0: more than 0 and less than 1"),
        ({"certify": 0.25, "alpha": 1.0}, "--alpha 1.0: more than 0 and less than 1"),
        ({"certify": 0.25, "confidence": "both"}, "one of per-level, joint"),
        ({"certify": 0.25, "attack": "leaf-pgd"}, "--attack leaf-pgd with --certify"),
        ({"samples": 1000}, "give --certify SIGMA"),
    ],
)
def test_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settle(given)


def test_defaults() -> None:
    o = settle({"certify": 0.25})
    assert (o.attack, o.samples, o.selection, o.alpha, o.confidence) == (("none",), 10_000, 100, 0.001, "per-level")
    assert "samples" not in EvalOptions().as_config()
    assert settle({name.replace("-", "_"): value for name, value in o.as_config().items()}) == o
