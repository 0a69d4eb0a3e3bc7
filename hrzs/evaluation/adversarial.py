"""A set of adversarial images: made, judged, and written as float32 with a manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import save_image

from hrzs.attacks import attack_spec, sample_seeds
from hrzs.attacks.budget import format_eps
from hrzs.data import loader
from hrzs.errors import HrzsError
from hrzs.evaluation.gallery import Example, draw_gallery
from hrzs.evaluation.metrics import right
from hrzs.evaluation.runner import EvalOptions, Unit, budget_of
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.models.loading import write_safetensors
from hrzs.models.templates import template_for
from hrzs.tasks import Task

TENSORS_FILE = "adversarial.safetensors"
MANIFEST_FILE = "manifest.jsonl"
GALLERY_FILE = "gallery.png"


class AdversarialSet:
    """Adversarial images of every image of a task, under one unit of the plan."""

    def __init__(self, model: ClipModel, task: Task, options: EvalOptions, unit: Unit) -> None:
        assert unit.eps is not None
        assert unit.level is not None
        options = replace(options, template=template_for(options.template, task.data.name))
        self.model, self.task, self.options, self.unit = model, task, options, unit
        spec = attack_spec(unit.attack)
        self.budget = budget_of(options, unit.eps, spec)
        self.attack = spec.optimiser(self.budget)
        self.classifier = ZeroShotClassifier(model, task.tree, options.template, options.head)
        self.objective = spec.objective(self.classifier, unit.level, unit.scoring)
        self.ids: list[str] = []
        self.clean: list[Tensor] = []
        self.images: list[Tensor] = []
        self.before: list[Tensor] = []
        self.after: list[Tensor] = []
        self.rounded: list[Tensor] = []

    def run(self, progress: Callable[[int, int], None]) -> None:
        """Attack everything, batch by batch; images that are wrong when clean too."""
        for batch in loader(self.task.data, self.options.batch_size, self.options.workers):
            images, labels = batch.images.to(self.model.device), batch.labels.to(self.model.device)
            seeds = sample_seeds(batch.ids, self.options.seed)
            result = self.attack(self.model, self.objective, images, labels, seeds).images
            self.ids += batch.ids
            self.clean.append(batch.images)
            self.images.append(result.cpu())
            self.before.append(self._predict(images))
            self.after.append(self._predict(result))
            self.rounded.append(self._predict((result * 255).round() / 255))
            progress(len(self.ids), len(self.task.data))

    @torch.no_grad()
    def _predict(self, images: Tensor) -> Tensor:
        return self.classifier.predict(self.model.encode_image(images, "fp32"))[0].cpu()

    @property
    def labels(self) -> Tensor:
        return torch.tensor(list(self.task.data.labels))

    def accuracies(self, *, png: bool) -> dict[str, list[float]]:
        """Per level, clean and under this attack (and, for PNGs, after rounding to 8 bits)."""
        named = {"clean": self.before, "robust": self.after} | ({"robust_after_8_bit": self.rounded} if png else {})
        tree = self.task.tree
        return {
            name: [
                round(v, 4) for v in right(tree, self.labels, torch.cat(parts, 1)[None])[0].double().mean(1).tolist()
            ]
            for name, parts in named.items()
        }

    def write(self, folder: Path, *, png: bool) -> None:
        """``adversarial.safetensors``, ``gallery.png``, on request ``images/*.png``, and last the manifest.

        Raises:
            HrzsError: the folder cannot be written.
        """
        images, clean = torch.cat(self.images), torch.cat(self.clean)
        header = {
            "attack": self.unit.attack,
            "attack_level": self.unit.level,
            "eps": format_eps(self.budget.eps),
            "norm": self.budget.norm,
            "model": self.model.info.source,
            "model_digest": self.model.info.digest,
            "task": self.task.describe(),
            "accuracies": self.accuracies(png=png),
        }
        write_safetensors({"images": images, "labels": self.labels}, folder / TENSORS_FILE, header)
        try:
            if png:
                (folder / "images").mkdir(exist_ok=True)
                for i, image in enumerate(images):
                    save_image(image, folder / "images" / f"{i:06d}.png")
            self._gallery(folder / GALLERY_FILE, clean, images)
            aside = folder / f".{MANIFEST_FILE}"
            aside.write_text("".join(json.dumps(line) + "\n" for line in self._manifest(clean, images)))
            aside.replace(folder / MANIFEST_FILE)
        except OSError as error:
            raise HrzsError(f"{folder} could not be written ({error})") from error

    def _manifest(self, clean: Tensor, images: Tensor) -> list[dict[str, Any]]:
        tree, delta = self.task.tree, (images.double() - clean.double()).flatten(1)
        before, after = torch.cat(self.before, 1), torch.cat(self.after, 1)

        def names(nodes: Tensor) -> list[str]:
            stood = [tree.levels[level][node] for level, node in enumerate(nodes.tolist())]
            return [node.class_id or node.id for node in stood]

        return [
            {
                "index": i,
                "id": self.ids[i],
                "label": tree.classes[int(self.labels[i])],
                "before": names(before[:, i]),
                "after": names(after[:, i]),
                "linf": delta[i].abs().max().item(),
                "l2": torch.linalg.vector_norm(delta[i]).item(),
            }
            for i in range(len(self.ids))
        ]

    def _gallery(self, path: Path, clean: Tensor, images: Tensor, most: int = 8) -> None:
        """The most telling first: images that were right at every level and are now wrong at the most."""
        tree, labels = self.task.tree, self.labels
        before, after = torch.cat(self.before, 1), torch.cat(self.after, 1)
        was = right(tree, labels, before[None])[0].sum(0)
        lost = was - right(tree, labels, after[None])[0].sum(0)
        order = sorted(range(len(labels)), key=lambda i: (-int(lost[i]), -int(was[i]), i))
        # One of a class before a second of any.
        seen: dict[int, int] = {}
        ranked: list[tuple[int, int, int]] = []
        for i in order:
            ranked.append((seen.get(int(labels[i]), 0), len(ranked), i))
            seen[int(labels[i])] = seen.get(int(labels[i]), 0) + 1
        chosen = [i for _, _, i in sorted(ranked)[:most]]
        examples = [
            Example(self.ids[i], int(labels[i]), clean[i], images[i], before[:, i], after[:, i]) for i in chosen
        ]
        draw_gallery(path, examples, tree, f"{self.unit.title}: {self.model.info.source} on {self.task.data.name}")
