"""Saved adversarial images of `hrzs attack`, judged anew and scored on any model: how well an attack transfers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from torch import Tensor

from hrzs.attacks import Budget
from hrzs.attacks.ball import Ball
from hrzs.attacks.budget import format_eps
from hrzs.data import Batch
from hrzs.errors import HrzsError, UsageError
from hrzs.evaluation.adversarial import MANIFEST_FILE, TENSORS_FILE, is_begun, is_finished
from hrzs.evaluation.image_file import read_images
from hrzs.evaluation.runner import EvalOptions, Evaluation, Tick, Unit
from hrzs.models.classifier import SCORINGS
from hrzs.models.clip import ClipModel
from hrzs.models.loading import file_digest, read_header
from hrzs.results import metrics
from hrzs.results.metrics import Predictions
from hrzs.tasks import Task, open_task


@dataclass(frozen=True)
class SavedSet:
    """A finished folder of `hrzs attack`; ``ids`` and ``labels`` (class ids) are those of its images, in order."""

    folder: Path
    header: dict[str, Any]
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    shape: tuple[int, ...]

    @classmethod
    def open(cls, folder: Path) -> SavedSet:
        """
        Raises:
            UsageError: not a finished folder of `hrzs attack`.
        """
        if not is_finished(folder):
            raise UsageError(f"--adversarial {folder}: not finished; `hrzs attack --resume` goes on with it")
        tensors = folder / TENSORS_FILE
        header = read_header(tensors)
        if missing := {"attack", "norm", "step_size", "head", "prompts_digest", "origin"} - header.keys():
            raise UsageError(
                f"--adversarial {folder}: the header of {TENSORS_FILE} lacks {', '.join(sorted(missing))}: "
                "not written by this version of `hrzs attack`; make the images anew"
            )
        try:
            records = [json.loads(line) for line in (folder / MANIFEST_FILE).read_text().splitlines()]
            ids, labels = (tuple(record[key] for record in records) for key in ("id", "label"))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"--adversarial {folder}: {MANIFEST_FILE} was not written by hrzs ({error})") from error
        with safe_open(tensors, framework="pt") as file:
            n, *shape = file.get_slice("images").get_shape()
        if n != len(ids):
            raise UsageError(f"--adversarial {folder}: {n} images, but {len(ids)} lines in {MANIFEST_FILE}")
        return cls(folder, header, ids, labels, tuple(shape))

    @property
    def unit(self) -> Unit:
        """The attack that made them."""
        header = self.header
        return Unit(header["attack"], header["attack_level"], header["scoring"], Fraction(header["eps"]))

    @property
    def budget(self) -> Budget:
        """What that attack might spend."""
        header = self.header
        return Budget(Fraction(header["eps"]), Fraction(header["step_size"]), header["steps"], header["norm"])

    def source(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Where the clean images are: options of the command line, as for the attack where they are not given.

        Args:
            given: ``data``, ``data_root``, ``split``, ``tree`` and ``classes``, None for one that is not given. Data
                that is given has no root or split but its own.

        Raises:
            UsageError: the set does not say what its data is, and neither does anybody else.
        """
        source: dict[str, Any] = dict.fromkeys(given) | self.header["origin"]
        if given["data"] is not None:
            source |= {"data_root": None, "split": None}
        source |= {name: value for name, value in given.items() if value is not None}
        if source["data"] is None:
            raise UsageError(f"--data: needed, {self.folder} does not say which data its images come from")
        return source

    def read(self, rows: Sequence[int], clean: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """The images at ``rows``, judged against their ``clean`` ones.

        Raises:
            HrzsError: one of them is no adversarial image of its clean one within ε: it is named.
        """
        images = read_images(self.folder / TENSORS_FILE, rows)
        ball = Ball.of(clean, self.budget)
        outside = (~ball.contains(images)).nonzero().flatten()
        if len(outside):
            i = int(outside[0])
            raise HrzsError(
                f"{self.folder}: image {rows[i]}, {self.ids[rows[i]]!r}, lies {ball.distance(images)[i]:.6g} from its "
                f"clean image, pixels in [{images[i].min():.6g}, {images[i].max():.6g}]; allowed are "
                f"{self.header['eps']} = {float(ball.eps):.6g} ({self.header['norm']}) and [0, 1]. Either it was "
                "altered, or the clean images are not those that were attacked"
            )
        return images


def find_saved(path: Path) -> list[SavedSet]:
    """What a folder of `hrzs attack` holds: one set, or one for each level in ``level-0``, ``level-1``, …

    Raises:
        UsageError: none, one that is not finished, or levels of different images.
    """
    levels = sorted(path.glob("level-*"), key=lambda folder: (len(folder.name), folder.name))
    folders = [path] if is_finished(path) or not levels else levels
    if not any(is_finished(folder) or is_begun(folder) for folder in folders):
        raise UsageError(f"--adversarial {path}: not a folder that `hrzs attack -o` wrote")
    found = [SavedSet.open(folder) for folder in folders]
    if len({one.unit for one in found}) < len(found):
        raise UsageError(f"--adversarial {path}: two of its folders hold the same attack; evaluate them one by one")
    for other in found[1:]:
        if (other.ids, other.labels, other.shape) != (found[0].ids, found[0].labels, found[0].shape):
            raise UsageError(
                f"--adversarial {path}: {folders[0].name} and {other.folder.name} hold different images; "
                "evaluate them one by one"
            )
    return found


def task_of(
    saved: SavedSet,
    model: ClipModel,
    *,
    data: str,
    data_root: str | None = None,
    split: str | None = None,
    tree: str | None = None,
    classes: Sequence[str] | None = None,
    template: str = "photo",
) -> Task:
    """The clean images of a saved set, in its order and at its size (see `SavedSet.source`).

    Raises:
        UsageError: the data lacks one of the images, has it under another class or in another size.
    """
    resize = saved.header["task"]["resize"]
    root = None if data_root is None else Path(data_root)
    task = open_task(data, model, purpose="eval", split=split, root=root, tree=tree, classes=classes,
                     resize=resize, size=saved.shape[-1], ids=saved.ids, template=template)  # fmt: skip
    for name, label, there in zip(saved.ids, saved.labels, task.data.labels, strict=True):
        if task.data.classes[there] != label:
            raise UsageError(
                f"--data {data}: image {name!r} is of class {task.data.classes[there]!r} there and of class {label!r} "
                f"in {saved.folder}; name the data that it comes from"
            )
    if (shape := tuple(task.data[0].image.shape)) != saved.shape:
        raise UsageError(
            f"--data {data}: images of {shape[-1]}×{shape[-2]}, in {saved.folder} of "
            f"{saved.shape[-1]}×{saved.shape[-2]}; name the data that they come from"
        )
    return task


class SavedEvaluation(Evaluation):
    """One dataset under one model, whose adversarial images are given. No attack is run.

    Args:
        saved: sets of the same images, the task's, in its order.
    """

    def __init__(
        self, model: ClipModel, task: Task, options: EvalOptions, saved: Sequence[SavedSet], store: Path | None = None
    ) -> None:
        self.sets = tuple(saved)
        self.saved = {one.unit: one for one in saved}
        self.places = {name: place for place, name in enumerate(saved[0].ids)}
        super().__init__(model, task, replace(options, attacks=("none",)), store)

    def _plan(self) -> list[Unit]:
        return [Unit("none"), *self.saved]

    def stand_ins(self) -> list[str]:
        """As it was for the attack: in another tree, the number of classes says nothing of it."""
        return [
            f"{unit.attack} at level {unit.level}: {fault}"
            for unit, saved in self.saved.items()
            if (fault := saved.header["stands_in"])
        ]

    def budget(self, unit: Unit) -> Budget:
        """What the attack might spend that made the images."""
        return self.saved[unit].budget

    def cost(self, unit: Unit) -> float:  # noqa: ARG002
        return super().cost(self.units[0])

    def identity(self) -> str:
        about = [super().identity()]
        for one in self.sets:
            about += [json.dumps(one.header, sort_keys=True), file_digest(one.folder / MANIFEST_FILE)]
        return hashlib.sha256("\n".join(about).encode()).hexdigest()

    def _run_attack(self, unit: Unit, tick: Tick) -> None:
        """Every saved image is looked at, and judged first.

        Raises:
            HrzsError: one is not what it should be.
        """
        self._score(unit, partial(self._look_at_saved, unit), tick)

    def _look_at_saved(self, unit: Unit, batch: Batch) -> tuple[Predictions, Sequence[int]]:
        found, counts = self._look(replace(batch, images=self.again(unit, batch, batch.labels)))
        return replace(found, won=self._won(unit, batch.labels, found.nodes)), counts

    def _won(self, unit: Unit, labels: Int[Tensor, "n"], nodes: Int[Tensor, "s levels n"]) -> Bool[Tensor, "n"]:
        """Did the image get at this model what it was made for: a mistake at its level, or at every one?"""
        wrong = ~metrics.right(self.task.tree, labels, nodes)[SCORINGS.index(unit.scoring)]
        if isinstance(unit.level, int) and unit.level < len(wrong):
            return wrong[unit.level]
        return wrong.all(0)

    def again(self, unit: Unit, batch: Batch, labels: Int[Tensor, "B"]) -> Float[Tensor, "B 3 H W"]:  # noqa: ARG002
        """The saved images, judged."""
        return self.saved[unit].read([self.places[name] for name in batch.ids], batch.images).to(self.model.device)

    # -- what comes of it -----------------------------------------------------------------------------------------

    def is_white_box(self, saved: SavedSet) -> bool:
        """Were the images made against this very model, through this head, these prompts and this tree?"""
        info, header = self.model.info, saved.header
        mine = [info.digest, json.loads(json.dumps(info.config)), self.classifier.head.name,
                self.classifier.prompts.digest, self.task.tree.digest]  # fmt: skip
        theirs = [header["model_digest"], header["model_config"], header["head"],
                  header["prompts_digest"], header["task"]["tree_digest"]]  # fmt: skip
        return bool(info.digest) and mine == theirs

    def rows(self) -> list[dict[str, Any]]:
        """As of any evaluation; each row also says against which model its images were made."""
        by_attack = {(u.attack, u.level, format_eps(u.eps)): s for u, s in self.saved.items() if u.eps is not None}
        rows = []
        for row in super().rows():
            saved = by_attack.get((row["attack"], row["attack_level"], row["eps"]))
            row |= {"source_model": None, "source_model_digest": None}
            if saved is not None:
                row |= {"transfer": row["transfer"] or not self.is_white_box(saved),
                        "source_model": saved.header["model"],
                        "source_model_digest": saved.header["model_digest"]}  # fmt: skip
            rows.append(row)
        return rows

    def provenance(self) -> dict[str, Any]:
        """What the images are, by the title of their unit."""
        passed_over = ("model_config", "task", "origin")
        return {
            unit.title: {key: value for key, value in sorted(saved.header.items()) if key not in passed_over}
            for unit, saved in self.saved.items()
        }
