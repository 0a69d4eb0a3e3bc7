"""Saved adversarial images of `hrzs attack`, judged anew and scored on any model: how well an attack transfers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hrzs.attacks import Budget
from hrzs.attacks.ball import Ball
from hrzs.attacks.budget import parse_eps
from hrzs.data import Batch
from hrzs.data_options import DataOptions
from hrzs.errors import HrzsError, UsageError
from hrzs.evaluation.adversarial import MANIFEST_FILE, ORIGIN, TENSORS_FILE, is_begun, is_finished
from hrzs.evaluation.image_file import read_images
from hrzs.evaluation.images import Made
from hrzs.evaluation.plan import Unit
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.models.config import read_json
from hrzs.models.saving import file_digest, read_header
from hrzs.tasks import RESIZED_BY, Task, open_task


class _Task(msgspec.Struct):
    """What is read of the data that was attacked."""

    resize: str
    tree_digest: str
    resized_by: tuple[Literal["bicubic", "bilinear"], Literal["shortest", "squash"]] = ("bicubic", "shortest")


class _Header(msgspec.Struct):
    """What is read of the header of a set."""

    attack: str
    attack_level: int | str
    scoring: str
    eps: str
    step_size: str
    steps: int
    norm: str
    head: str
    prompts_digest: str
    stands_in: str | None
    model: str
    model_digest: str
    model_config: dict[str, Any]
    task: _Task
    origin: dict[str, str | list[str] | None]


class _Record(msgspec.Struct):
    """A line of the manifest; labels are class ids."""

    id: str
    label: str


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
        where = f"--adversarial {folder}"
        try:
            said = msgspec.convert(header, _Header)
        except msgspec.ValidationError as error:
            raise UsageError(
                f"{where}: the header of {TENSORS_FILE} was not written by this version of `hrzs attack` ({error}); "
                "make the images anew"
            ) from error
        for name in ("eps", "step_size"):
            parse_eps(header[name], option=f"{where}: {name} in the header of {TENSORS_FILE}:", norm=said.norm)
        try:
            records = [
                msgspec.convert(read_json(line), _Record)
                for line in (folder / MANIFEST_FILE).read_text(encoding="utf-8").splitlines()
            ]
        except (ValueError, OSError) as error:  # of msgspec too
            raise UsageError(f"{where}: {MANIFEST_FILE} was not written by hrzs ({error})") from error
        ids, labels = tuple(each.id for each in records), tuple(each.label for each in records)
        try:
            with safe_open(tensors, framework="pt") as file:
                n, *shape = file.get_slice("images").get_shape()
        except SafetensorError as error:
            raise UsageError(f"{where}: {TENSORS_FILE} holds no images ({error})") from error
        if n != len(ids):
            raise UsageError(f"{where}: {n} images, but {len(ids)} lines in {MANIFEST_FILE}")
        found = cls(folder, header, ids, labels, tuple(shape))
        _ = found.budget  # whose values are checked where they are put together
        return found

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

    def source(self, given: DataOptions) -> DataOptions:
        """Where the clean images are: as for the attack, but for what is ``given``.

        Data that is given has no root or split but its own.

        Raises:
            UsageError: the set does not say what its data is, and neither does ``given``.
        """
        origin = {name: self.header["origin"].get(name) for name in ORIGIN}
        if given.data is not None:
            origin |= {"data_root": None, "split": None}
        origin |= {name: value for name in ORIGIN if (value := getattr(given, name)) is not None}
        if origin["data"] is None:
            raise UsageError(f"--data: needed, {self.folder} does not say which data its images come from")
        return DataOptions.of(origin)

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


def task_of(saved: SavedSet, model: ClipModel, source: DataOptions, template: str = "photo") -> Task:
    """The clean images of a saved set, in its order and at its size; for ``source`` see `SavedSet.source`.

    Raises:
        UsageError: the data lacks one of the images, has it under another class or in another size.
    """
    data = source.spec
    source = replace(source, resize=saved.header["task"]["resize"])
    interpolation, mode = saved.header["task"].get("resized_by", RESIZED_BY)
    task = open_task(
        data, model, source, purpose="eval", size=saved.shape[-1], resized_by=(interpolation, mode), ids=saved.ids,
        template=template,
    )  # fmt: skip
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


class SavedImages:
    """Saved sets of the same images, the task's in its order, judged before they are scored (as `AttackedImages`)."""

    def __init__(
        self,
        model: ClipModel,
        task: Task,
        classifier: ZeroShotClassifier,
        sets: Sequence[SavedSet],
        *,
        is_defended: bool = False,
    ) -> None:
        self.model, self.task, self.classifier = model, task, classifier
        self.sets = {one.unit.as_static if is_defended else one.unit: one for one in sets}
        self.places = {name: place for place, name in enumerate(sets[0].ids)}
        self.units = list(self.sets)

    def parts(self, unit: Unit) -> list[_Read]:
        return [_Read(self, unit)]

    def stops_early(self, unit: Unit) -> bool:  # noqa: ARG002 -- the same for all
        return False

    def worth(
        self,
        unit: Unit,  # noqa: ARG002 -- the same for all
        correct: Bool[Tensor, "s levels n"],
    ) -> Bool[Tensor, "n"]:
        """All, for every one is judged."""
        return torch.ones_like(correct[0, 0])

    def budget(self, unit: Unit) -> Budget:
        return self.sets[unit].budget

    def stand_ins(self) -> list[str]:
        """As it was for the attack: in another tree, the number of classes says nothing of it."""
        return [
            f"{unit.attack} at level {unit.level}: {fault}"
            for unit, saved in self.sets.items()
            if (fault := saved.header["stands_in"])
        ]

    def identity(self) -> list[str]:
        return [
            part
            for one in self.sets.values()
            for part in (json.dumps(one.header, sort_keys=True), file_digest(one.folder / MANIFEST_FILE))
        ]

    def source_of(self, unit: Unit) -> tuple[str, str] | None:
        header = self.sets[unit].header
        return header["model"], header["model_digest"]

    def is_white_box(self, unit: Unit) -> bool:
        """Against this very model, through this head, these prompts and this tree, and without defences in front?"""
        info, header = self.model.info, self.sets[unit].header
        mine = [info.digest, json.loads(json.dumps(info.config)), self.classifier.head.name,
                self.classifier.prompts.digest, self.task.tree.digest]  # fmt: skip
        theirs = [header["model_digest"], header["model_config"], header["head"],
                  header["prompts_digest"], header["task"]["tree_digest"]]  # fmt: skip
        return bool(info.digest) and mine == theirs and unit.adversary is None

    def adversarial_images(self, unit: Unit, batch: Batch) -> Float[Tensor, "B 3 H W"]:
        return self.sets[unit].read([self.places[name] for name in batch.ids], batch.images.cpu()).to(self.model.device)

    def provenance(self) -> dict[str, dict[str, Any]]:
        """What the images are, by the title of their unit."""
        passed_over = ("model_config", "task", "origin")
        return {
            unit.title: {key: value for key, value in sorted(saved.header.items()) if key not in passed_over}
            for unit, saved in self.sets.items()
        }


@dataclass(frozen=True)
class _Read:
    """The saved images of one unit, judged; their predictions tell what they get at this model."""

    source: SavedImages
    unit: Unit
    cost: float = 0.0

    def __call__(self, batch: Batch) -> Made:
        """
        Raises:
            HrzsError: one of them is not what it should be.
        """
        return Made(self.source.adversarial_images(self.unit, batch))
