"""``--certify SIGMA``: votes on noisy copies of every image, streamed and kept, so that more samples add to them.

What the votes say is in `hrzs.results.certificates`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hrzs.attacks import counter, sample_seeds
from hrzs.attacks.base import features_of
from hrzs.data import read
from hrzs.errors import HrzsError, UsageError
from hrzs.evaluation.runner import FORWARD, Evaluation, Progress
from hrzs.evaluation.shards import WHOLE, Shard
from hrzs.evaluation.store import KeptFile, append
from hrzs.files import whole_lines
from hrzs.models.exact import exact_fp32
from hrzs.models.templates import resolve_template
from hrzs.models.text import Prompts
from hrzs.results.certificates import LeafVotes, certificate, smoothed
from hrzs.results.report import Certificate
from hrzs.stopping import stop_here, unbroken

#: So many samples of an image at most make one line of the file: what a kill can lose.
RUN = 1000
#: So many go through the encoder together on a CPU, as their activations then fit the caches.
AT_ONCE = 16

#: Which node is certified is chosen by samples of their own, or the bound would not hold (Cohen et al., section 3.2.2).
SELECTION, ESTIMATION = "selection", "estimation"


def noise(
    image_id: str, samples: range, stream: str, shape: Sequence[int], *, seed: int, device: torch.device
) -> Float[Tensor, "B 3 H W"]:
    """Standard normal noise: that of a sample depends on seed, image, stream and its number alone."""
    seeds = sample_seeds([f"{image_id}/{j}" for j in samples], seed, f"certify/{stream}")
    return counter.standard_normal(seeds, shape, device)


@dataclass(frozen=True)
class Run:
    """The votes of the samples ``start`` to ``stop`` (not included) of one image."""

    start: int
    stop: int
    votes: LeafVotes
    seconds: float

    @property
    def is_whole(self) -> bool:
        """Has every sample one vote?"""
        numbers = (self.start, *self.votes, *self.votes.values())
        return min(numbers) >= 0 and 0 < self.stop - self.start == sum(self.votes.values())


# Of which evaluation, which image, which of the two streams.
_Key = tuple[str, str, str]


def _line(key: _Key, run: Run) -> dict[str, Any]:
    identity, image, stream = key
    return {"of": identity, "image": image, "stream": stream, "start": run.start, "stop": run.stop,
            "votes": sorted(run.votes.items()), "seconds": run.seconds}  # fmt: skip


class Votes(KeptFile):
    """A file of votes, a line for each `Run`, or only memory where ``path`` is None; used while it is `opened`.

    It stays when the report is written. Votes of other models or of another σ may stand in it too.

    Args:
        beside: files that are read as well.
        parts: files of shards, whose lines it takes in; then they are removed.
    """

    def __init__(self, path: Path | None, beside: Sequence[Path] = (), parts: Sequence[Path] = ()) -> None:
        super().__init__(path)
        self.beside, self.parts = beside, parts
        self._runs: dict[_Key, dict[tuple[int, int], Run]] = {}

    def runs(self, key: _Key, samples: int) -> dict[int, Run]:
        """The runs of an image that end within ``samples``, by their start; of several the longest."""
        kept = sorted(self._runs.get(key, {}).items())
        return {start: run for (start, stop), run in kept if stop <= samples}

    def add(self, key: _Key, run: Run) -> None:
        """
        Raises:
            HrzsError: it cannot be written; what is there is untouched.
        """
        self._keep(key, run)
        if self.path is not None:
            append(self.path, [_line(key, run)])

    def _keep(self, key: _Key, run: Run) -> bool:
        kept = self._runs.setdefault(key, {})
        is_new = (run.start, run.stop) not in kept
        kept.setdefault((run.start, run.stop), run)
        return is_new

    def _load(self, path: Path) -> None:
        self._runs = {}
        end = self._read(path)[1]
        if path.is_file():
            os.truncate(path, end)  # behind it is the line that was being written when the power went
        for other in self.beside:
            self._read(other)
        for part in self.parts:
            if new := self._read(part)[0]:
                append(path, [_line(key, run) for key, run in new])
        for part in self.parts:
            part.unlink(missing_ok=True)

    def _read(self, path: Path) -> tuple[list[tuple[_Key, Run]], int]:
        """What of a file was not known, and where its last whole line ends."""
        new, end = [], 0
        for line, stop in whole_lines(path):
            try:
                key = (str(line["of"]), str(line["image"]), str(line["stream"]))
                votes = {int(leaf): int(count) for leaf, count in line["votes"]}
                run = Run(int(line["start"]), int(line["stop"]), votes, float(line["seconds"]))
            except (KeyError, TypeError, ValueError):
                run = None
            if run is None or not run.is_whole:
                raise UsageError(f"{path}: no votes of `hrzs eval --certify`; delete it, or give another --json FILE")
            if self._keep(key, run):
                new.append((key, run))
            end = stop
        return new, end


class Certification:
    """One dataset under one model: the smoothed classifier of every level, by one sampling.

    Every vote is an fp32 forward pass of ``x + σ·z``, which is not clipped to [0, 1]: clipped noise is not Gaussian.
    """

    def __init__(self, evaluation: Evaluation, votes: Votes) -> None:
        self.evaluation, self.votes, self.options = evaluation, votes, evaluation.options
        assert self.options.certify is not None
        self.sigma = self.options.certify
        self._identity = self.identity()

    @property
    def title(self) -> str:
        return f"certify at σ {self.sigma:g}, {self.options.samples:,} samples"

    @property
    def cost(self) -> float:
        """Forward and backward passes of an image."""
        return FORWARD * (self.options.samples + self.options.selection)

    def images(self, shard: Shard = WHOLE) -> Sequence[int]:
        """The places of the images of a shard, dealt out singly: the votes on one do not depend on the others."""
        return shard.share(range(len(self.evaluation.labels)))

    def passes(self, shard: Shard = WHOLE) -> int:
        """Forward and backward passes of the whole shard, if nothing were kept."""
        return round(self.cost * len(self.images(shard)))

    def identity(self) -> str:
        """Digest of everything a vote depends on besides image, stream and number: of the tree the leaves alone."""
        evaluation, data = self.evaluation, self.evaluation.task.data
        prompts = Prompts.of(evaluation.task.tree.levels[0], resolve_template(evaluation.options.template))
        about = [
            evaluation.model.info.digest, evaluation.model.info.config, evaluation.classifier.head.name,
            prompts.digest, data.name, data.split, data.native_size, evaluation.task.resize,
            evaluation.task.resized_by, self.sigma, self.options.seed, counter.is_used_on(evaluation.model.device),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    @exact_fp32()
    @unbroken()
    def run(self, progress: Progress | None = None, shard: Shard = WHOLE, *, kept_only: bool = False) -> None:
        """Every sample of every image that is not kept; ``progress`` counts forward and backward passes.

        Raises:
            HrzsError: ``kept_only``, and votes are missing.
        """
        data, device = self.evaluation.task.data, self.evaluation.model.device
        places = self.images(shard)
        ahead = [place for place in places if any(missing for *_, missing in self._streams(data.ids[place]))]
        if ahead and kept_only:
            raise HrzsError(
                f"votes on {len(ahead)} of {len(places)} images are in the files of none of the shards, so they are "
                "not what these shards have written. Delete them, and run the shards anew"
            )
        total, done = self.passes(shard), self.cost * (len(places) - len(ahead))
        batches = read(data, [[place] for place in ahead], workers=self.options.workers, device=device)
        with self._threads():
            for batch in batches:
                (image,), (image_id,) = batch.images.to(device), batch.ids
                for stream, samples, _ in self._streams(image_id):
                    key, at = self._key(image_id, stream), 0
                    while at < samples:
                        run = self.votes.runs(key, samples).get(at)
                        if run is None:
                            run = self._run(image, image_id, stream, range(at, min((at // RUN + 1) * RUN, samples)))
                            self.votes.add(key, run)
                            stop_here()
                        done, at = done + FORWARD * (run.stop - run.start), run.stop
                        if progress is not None:
                            progress(round(done), total, self.title)

    def certificates(self) -> list[Certificate]:
        """The figures of every level, once all was run."""
        evaluation, o = self.evaluation, self.options
        tree, data = evaluation.task.tree, evaluation.task.data
        ids = [data.ids[place] for place in evaluation.by_id.tolist()]
        labels, levels = evaluation.labels[evaluation.by_id], tree.height
        alpha = o.alpha / levels if o.confidence == "joint" else o.alpha
        chain = {stream: [self._chain(i, stream, n) for i in ids] for stream, n in self._wanted}
        assert all(runs[-1].stop == n for stream, n in self._wanted for runs in chain[stream])
        votes = {stream: [_sum(runs) for runs in found] for stream, found in chain.items()}
        seconds = sum(run.seconds for found in chain.values() for runs in found for run in runs)
        return [
            certificate(
                found := smoothed(votes[SELECTION], votes[ESTIMATION], tree.ancestors[level], o.samples,
                                  sigma=self.sigma, alpha=alpha),
                tree.ancestors[level][labels], o.samples, sigma=self.sigma, level_alpha=alpha,
                dataset=data.name, split=data.split, level=level, classes=len(tree.levels[level]),
                selection=o.selection, alpha=o.alpha, confidence=o.confidence, seconds=round(seconds, 3),
                chosen=_words(found.chosen), votes=_words(found.votes),
            )
            for level in range(levels)
        ]  # fmt: skip

    @property
    def _wanted(self) -> tuple[tuple[str, int], tuple[str, int]]:
        return (SELECTION, self.options.selection), (ESTIMATION, self.options.samples)

    def _key(self, image_id: str, stream: str) -> _Key:
        return self._identity, image_id, stream

    def _chain(self, image_id: str, stream: str, samples: int) -> list[Run]:
        """The kept runs that lie end to end from the first sample on, within ``samples``."""
        kept, found, at = self.votes.runs(self._key(image_id, stream), samples), list[Run](), 0
        while at in kept:
            found.append(kept[at])
            at = found[-1].stop
        return found

    def _streams(self, image_id: str) -> list[tuple[str, int, int]]:
        """The two streams, the samples that each is to have, and how many of them are missing."""
        return [(s, n, n - sum(run.stop - run.start for run in self._chain(image_id, s, n))) for s, n in self._wanted]

    @property
    def _at_once(self) -> int:
        """How many noisy images a thread sends through the encoder together."""
        on_cpu = self.evaluation.model.device.type == "cpu"
        return min(AT_ONCE, self.options.batch_size) if on_cpu else self.options.batch_size

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Inside, `_run` divides its samples among threads, with ``batch_size`` noisy images under way at most.

        On a CPU that takes less time than to divide every product among the same threads, which wait for one another
        after each. An accelerator gets its work from one thread.
        """
        cores = torch.get_num_threads()
        threads = min(cores, self.options.batch_size // self._at_once)
        try:
            # Threads of the pool divide their products among the cores that are left to each.
            with ThreadPoolExecutor(threads, "votes", torch.set_num_threads, (cores // threads,)) as self._pool:
                yield
        finally:
            torch.set_num_threads(cores)  # new threads take the number that was set last, whoever set it

    def _run(self, image: Float[Tensor, "3 H W"], image_id: str, stream: str, samples: range) -> Run:
        began = time.monotonic()
        parts = [samples[at : at + self._at_once] for at in range(0, len(samples), self._at_once)]
        counts = torch.zeros(len(self.evaluation.task.tree.classes), dtype=torch.long, device=image.device)
        for found in self._pool.map(partial(self._vote, image, image_id, stream), parts):
            counts += found
            stop_here()
        votes = {leaf: count for leaf, count in enumerate(counts.tolist()) if count}
        return Run(samples.start, samples.stop, votes, time.monotonic() - began)

    @exact_fp32()
    @torch.inference_mode()
    def _vote(self, image: Float[Tensor, "3 H W"], image_id: str, stream: str, samples: range) -> Int[Tensor, "C"]:
        """How many of the ``samples`` have voted for each leaf."""
        drawn = noise(image_id, samples, stream, image.shape, seed=self.options.seed, device=image.device)
        features = features_of(self.evaluation.model, drawn.mul_(self.sigma).add_(image))
        leaves = self.evaluation.classifier.logits(features).argmax(1)
        return torch.bincount(leaves, minlength=len(self.evaluation.task.tree.classes))


def _sum(runs: Sequence[Run]) -> LeafVotes:
    total = Counter[int]()
    for run in runs:
        total.update(run.votes)
    return total


def _words(numbers: Tensor) -> str:
    return " ".join(map(str, numbers.tolist()))


def shard_votes(path: Path, shard: Shard) -> Path:
    """Where a shard keeps its votes, beside the file that all shards together make."""
    return path.with_name(f"{path.name}.{shard.name}")
