"""A set of adversarial images: made, judged, and written as float32 with a manifest, batch by batch."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.utils import save_image

from hrzs._version import __version__
from hrzs.attacks import AttackResult, attack_spec, sample_seeds
from hrzs.attacks.budget import format_eps
from hrzs.data import Batch, loader
from hrzs.data_options import DataOptions
from hrzs.errors import HrzsError, UsageError
from hrzs.evaluation.image_file import allocate, read_images, write_images
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.plan import Unit, budget_of
from hrzs.evaluation.shards import WHOLE, Shard, begun, blocks
from hrzs.files import fsync, whole_lines, write_text
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.classifier import PROMPT, ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.models.exact import exact_fp32
from hrzs.models.saving import read_header
from hrzs.models.templates import template_for
from hrzs.results.metrics import correct
from hrzs.results.outcome import Example, most_instructive
from hrzs.results.pages.gallery import draw_gallery
from hrzs.stopping import stop_here, unbroken
from hrzs.tasks import Task

TENSORS_FILE = "adversarial.safetensors"
MANIFEST_FILE = "manifest.jsonl"
SUMMARY_FILE = "summary.json"
GALLERY_FILE = "gallery.png"
#: What a set keeps of the options of its data, for whoever wants the clean images again.
ORIGIN = ("data", "data_root", "split", "tree", "classes")


def is_finished(folder: Path, shard: Shard | None = None) -> bool:
    """Does the folder hold a whole set, or the whole of a shard? The manifest gets its name last."""
    return (folder / _named(MANIFEST_FILE, shard)).is_file()


def is_begun(folder: Path) -> bool:
    """Does the folder hold the beginning of a set?"""
    return _partial(folder, MANIFEST_FILE).is_file()


def remove_shards(folder: Path) -> None:
    """What shards have left, once they are merged."""
    for shard in begun(folder, ""):
        for name in (_named(MANIFEST_FILE, shard), _named(TENSORS_FILE, shard)):
            for path in (folder / name, _partial(folder, name)):
                path.unlink(missing_ok=True)


def _named(name: str, shard: Shard | None) -> str:
    return name if shard is None else f"{shard.name}.{name}"


def _partial(folder: Path, name: str) -> Path:
    return folder / f".{name}.partial"


class AdversarialSet:
    """Adversarial images of every image of a task, under one unit of the plan, in a folder of their own.

    Memory holds one batch of images. When a batch is done, its images stand in their places of a partial tensor file,
    and only then its lines in a partial manifest; so the lines say how far the set has come, whenever it was stopped.
    At the end both get their names, the manifest last.

    Args:
        folder: where all of it goes.
        origin: the options that the clean images and the tree came from.
        resume: go on with what the folder holds.

    Raises:
        UsageError: what the folder holds was made otherwise (the message says how it differs).
    """

    def __init__(
        self,
        model: ClipModel,
        task: Task,
        options: EvalOptions,
        unit: Unit,
        folder: Path,
        *,
        origin: DataOptions | None = None,
        resume: bool = False,
    ) -> None:
        assert unit.eps is not None
        assert unit.level is not None
        options = replace(options, template=template_for(options.template, task.data.name))
        self.model, self.task, self.options, self.unit, self.folder = model, task, options, unit, folder
        config = {} if origin is None else origin.as_config()
        self.origin = {name: config.get(name.replace("_", "-")) for name in ORIGIN}
        self.spec = attack_spec(unit.attack)
        self.budget = budget_of(options, unit.eps, self.spec)
        # The images will be scored at other levels and on other models: stopped early, they would overstate robustness.
        self.attack = self.spec.optimiser(self.budget, early_stop=False)
        self.classifier = ZeroShotClassifier(model, task.tree, options.template, options.head)
        self.objective = self.spec.objective(self.classifier, unit.level, unit.scoring)
        self.shape = tuple(task.data[0].image.shape)
        self._take(None)
        self.done = self._kept() if resume else 0

    def _take(self, shard: Shard | None, first: int = 0) -> None:
        self.shard, n = shard, len(self.task.data)
        #: The places of its images in the data.
        self.rows = [
            row for block in (shard or WHOLE).share(blocks(n, self.options.batch_size), first) for row in block
        ]
        names = _named(TENSORS_FILE, shard), _named(MANIFEST_FILE, shard)
        self.tensors, self.manifest = (self.folder / name for name in names)
        self._tensors, self._manifest = (_partial(self.folder, name) for name in names)

    def share(self, shard: Shard, first: int = 0) -> AdversarialSet:
        """The images of one shard, a set under names of its own that goes on with what there is of it.

        ``first`` blocks of other sets were dealt out before.

        Raises:
            UsageError: what there is was made otherwise (the message says how it differs).
        """
        part = copy.copy(self)
        part._take(shard, first)
        part.done = part._kept()
        return part

    @property
    def finished(self) -> bool:
        """Is there nothing left to do?"""
        return self.done == len(self.rows) and is_finished(self.folder, self.shard)

    def header(self) -> dict[str, Any]:
        """What these images are: everything they depend on, and where they came from."""
        assert self.unit.level is not None
        return {
            "hrzs": __version__,
            "attack": self.unit.attack,
            "attack_level": self.unit.level,
            "scoring": self.unit.scoring,
            "eps": format_eps(self.budget.eps),
            "step_size": format_eps(self.budget.step_size),
            "steps": self.budget.steps,
            "norm": self.budget.norm,
            "restarts": self.budget.restarts,
            "random_start": self.budget.random_start,
            "early_stop": self.attack.early_stop,
            "stands_in": self.spec.stands_in(self.task.tree, self.unit.level),
            "seed": self.options.seed,
            "precision": self.model.precision,
            "head": self.classifier.head.name,
            "template": self.options.template,
            "prompts_digest": self.classifier.prompts.digest,
            "model": self.model.info.source,
            "model_digest": self.model.info.digest,
            "model_config": self.model.info.config,
            "task": self.task.describe(),
            "origin": self.origin,
        }

    # -- how far it has come --------------------------------------------------------------------------------------

    def _kept(self) -> int:
        """The number of images that the folder holds already, cut back to whole batches.

        A batch that was being written is made again from its first image: in a batch with others, an image could
        differ in its last bit.
        """
        n = len(self.rows)
        if is_finished(self.folder, self.shard):
            self._check(self.tensors, [record["id"] for record, _ in whole_lines(self.manifest)])
            return n
        lines = [(record["id"], end) for record, end in whole_lines(self._manifest)]
        if not lines:
            return 0
        # Between the two renames at the end, the tensors have their name already.
        self._check(self._tensors if self._tensors.exists() else self.tensors, [i for i, _ in lines])
        return n if len(lines) == n else len(lines) // self.options.batch_size * self.options.batch_size

    def _check(self, tensors: Path, ids: list[str]) -> None:
        was, now = (dict(_leaves(h)) for h in (read_header(tensors), json.loads(json.dumps(self.header()))))
        loose = {"task.tree"}  # a path: the digest beside it tells
        if self.model.info.digest:
            loose.add("model")
        differing = [
            f"{name} {was.get(name)!r} (now {now.get(name)!r})"
            for name in dict.fromkeys([*now, *was])
            if name not in loose
            and not name.startswith(("origin.", "task.left_out.", "task.unreadable"))
            and was.get(name) != now.get(name)
        ]
        if not differing and ids != [self.task.data.ids[row] for row in self.rows[: len(ids)]]:
            differing = ["other images, or in another order" + " (another --batch-size?)" * (self.shard is not None)]
        if differing:
            what = "--resume, but what it holds" if self.shard is None else f"what it holds of shard {self.shard}"
            raise UsageError(
                f"-o {self.folder}: {what} was made with {'; '.join(differing)}; "
                "repeat the options it was started with, or give another folder"
            )

    # -- making it ------------------------------------------------------------------------------------------------

    @exact_fp32()
    @unbroken()
    def run(self, progress: Callable[[int, int], None], *, png: bool = False) -> None:
        """Attack everything, images that are wrong when clean too; then write what is asked for beside it.

        Beside a shard nothing is written.

        Raises:
            HrzsError: the folder cannot be written; finished batches are kept.
        """
        data, options = self.task.data, self.options
        with self._writing():
            self._go_on() if self.done else self._begin()
        if self.done:
            progress(self.done, len(self.rows))
        # Blocks are whole batches, so batches hold images of one block each.
        for batch in loader(
            data, options.batch_size, options.workers, self.rows[self.done :], device=self.model.device
        ):
            images, labels = batch.images.to(self.model.device), batch.labels.to(self.model.device)
            if tuple(images.shape[1:]) != self.shape:
                raise HrzsError(f"Image {batch.ids[0]} differs in size from {data.ids[0]}: resize them with --resize")
            seeds = sample_seeds(batch.ids, options.seed)
            result = self.attack(self.model, self.objective, images, labels, seeds)
            lines = self._describe(batch, images, result)
            with self._writing():
                write_images(self._tensors, self.done, result.images.cpu())
                with self._manifest.open("a") as file:
                    file.write("".join(json.dumps(line) + "\n" for line in lines))
                    fsync(file)
            self.done += len(batch.ids)
            progress(self.done, len(self.rows))
            stop_here()
        with self._writing():
            self._finish(png=png)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HrzsError(
                f"{self.folder} could not be written ({error}); --resume goes on after the last finished batch"
            ) from error

    def _begin(self) -> None:
        # The manifest goes first: without its lines, whatever else lies there counts for nothing.
        for stale in (self._manifest, self.manifest):
            stale.unlink(missing_ok=True)
        labels = torch.tensor([self.task.data.labels[row] for row in self.rows], dtype=torch.int64)
        allocate(self._tensors, labels, self.shape, self.header())
        self._manifest.touch()

    def _go_on(self) -> None:
        end = [end for _, end in whole_lines(self._manifest)][self.done - 1]
        os.truncate(self._manifest, end)

    @torch.no_grad()
    def _predict(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "levels B"]:
        return self.classifier.predict(self.model.encode_image(images, "fp32"))[PROMPT].cpu()

    def _describe(self, batch: Batch, images: Float[Tensor, "B 3 H W"], result: AttackResult) -> list[dict[str, Any]]:
        tree = self.task.tree
        delta = (result.images.double() - images.double()).flatten(1)
        linf, l2 = delta.abs().amax(1).tolist(), torch.linalg.vector_norm(delta, dim=1).tolist()
        success = result.success.tolist()
        stages = {"before": images, "after": result.images, "after_8_bit": (result.images * 255).round() / 255}
        predicted = {stage: self._predict(pixels) for stage, pixels in stages.items()}
        return [
            {
                "index": self.rows[self.done + i],
                "id": batch.ids[i],
                "label": tree.classes[int(batch.labels[i])],
                **{stage: _names(tree, nodes[:, i]) for stage, nodes in predicted.items()},
                "success": success[i],
                "linf": linf[i],
                "l2": l2[i],
            }
            for i in range(len(batch.ids))
        ]

    # -- what comes of it -----------------------------------------------------------------------------------------

    @unbroken()
    def merge(self, parts: Sequence[AdversarialSet], *, png: bool = False) -> None:
        """Make the whole of the shards, all of which are finished: the bytes of `run` in one process.

        Raises:
            HrzsError: the folder cannot be written; the shards are as they were.
        """
        size = self.options.batch_size
        lines: list[tuple[int, bytes]] = []
        with self._writing():
            self._begin()
            for part in parts:
                for start in range(0, len(part.rows), size):
                    here = range(start, min(start + size, len(part.rows)))
                    write_images(self._tensors, part.rows[start], read_images(part.tensors, here))
                    stop_here()
                lines += zip(part.rows, part.manifest.read_bytes().splitlines(keepends=True), strict=True)
            self._manifest.write_bytes(b"".join(line for _, line in sorted(lines)))
            self.done = len(self.rows)
            self._finish(png=png)

    def _finish(self, *, png: bool) -> None:
        if self.shard is None:
            self._write_beside(png=png)
        if self._tensors.exists():
            self._tensors.replace(self.tensors)
        self._manifest.replace(self.manifest)

    def _write_beside(self, *, png: bool) -> None:
        tensors = self._tensors if self._tensors.exists() else self.tensors
        if png:
            (self.folder / "images").mkdir(exist_ok=True)
            for i in range(len(self.task.data)):
                save_image(read_images(tensors, [i])[0], self.folder / "images" / f"{i:06d}.png")
        found = self._predictions(self._manifest)
        self._gallery(tensors, found)
        write_text(self.folder / SUMMARY_FILE, json.dumps(self._summary(found), indent=1) + "\n")

    def _predictions(self, manifest: Path) -> _Predictions:
        places = [{_name(node): i for i, node in enumerate(nodes)} for nodes in self.task.tree.levels]
        stages: dict[str, list[list[int]]] = {"before": [], "after": [], "after_8_bit": []}
        for record, _ in whole_lines(manifest):
            for stage, rows in stages.items():
                rows.append([places[level][name] for level, name in enumerate(record[stage])])
        return _Predictions(*(torch.tensor(rows).T for rows in stages.values()))

    def _summary(self, found: _Predictions) -> dict[str, Any]:
        tree, labels = self.task.tree, torch.tensor(list(self.task.data.labels))
        clean, robust, rounded = correct(tree, labels, torch.stack([found.before, found.after, found.after_8_bit]))
        # An image that is wrong when clean is not robust (docs/evaluation.md).
        held = {"clean": clean, "robust": clean & robust, "robust_after_8_bit": clean & rounded}
        return {
            "n": len(labels),
            **{name: [count / len(labels) for count in of.sum(1).tolist()] for name, of in held.items()},
        }

    def summary(self) -> dict[str, Any]:
        """Accuracy per level of a finished set: clean, under this attack, and under it after rounding to 8 bits."""
        summary: dict[str, Any] = json.loads((self.folder / SUMMARY_FILE).read_text())
        return summary

    def _gallery(self, tensors: Path, found: _Predictions, most: int = 8) -> None:
        tree, data, labels = self.task.tree, self.task.data, torch.tensor(list(self.task.data.labels))
        was = correct(tree, labels, found.before[None])[0].sum(0)
        lost = was - correct(tree, labels, found.after[None])[0].sum(0)
        chosen = most_instructive(labels, was, lost, most) or list(range(min(most, len(labels))))
        clean = next(loader(data, len(chosen), 0, chosen)).images
        examples = [
            Example(data.ids[i], int(labels[i]), clean[k], read_images(tensors, [i])[0],
                    found.before[:, i], found.after[:, i])
            for k, i in enumerate(chosen)
        ]  # fmt: skip
        title = f"{self.unit.title}: {self.model.info.source} on {data.name}"
        draw_gallery(self.folder / GALLERY_FILE, examples, tree, title)


@dataclass(frozen=True)
class _Predictions:
    before: Int[Tensor, "levels n"]
    after: Int[Tensor, "levels n"]
    after_8_bit: Int[Tensor, "levels n"]


def _name(node: Node) -> str:
    return node.class_id or node.id


def _names(tree: Tree, nodes: Int[Tensor, "levels"]) -> list[str]:
    return [_name(tree.levels[level][node]) for level, node in enumerate(nodes.tolist())]


def _leaves(header: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of a nested mapping under their full names."""
    for name, value in header.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
