"""What to work on: a dataset, cut and resized as asked, and the tree over exactly its classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hrzs.data import Dataset, ImageError, decodable, digest, open_dataset, pick, resize_to, subset
from hrzs.data_options import DataOptions
from hrzs.errors import UsageError
from hrzs.files import exists
from hrzs.hierarchy.namesakes import REMEDY, Namesakes, sentences
from hrzs.hierarchy.published import find_tree
from hrzs.hierarchy.tree import Tree
from hrzs.hierarchy.yaml_form import load_tree, load_trees, parse_tree_spec
from hrzs.models.clip import ClipModel
from hrzs.models.templates import resolve_template, template_for
from hrzs.models.text import same_tokens

logger = logging.getLogger(__name__)

DEFAULTS = DataOptions()
#: How open_clip resizes for most models: interpolation and mode, as `resize_to` takes them.
RESIZED_BY = ("bicubic", "shortest")


@dataclass(frozen=True)
class Task:
    """``tree.classes == data.classes``; ``resize`` says where images get the model's size.

    ``more_trees`` are the others of a forest, over the same classes; only training reads them. ``namesakes`` are the
    nodes of ``tree`` that the model cannot tell from another one of their level, since it reads the same prompt.
    ``options`` are those that it was opened with.
    ``resized_by`` are interpolation and mode of images that are resized before.
    """

    data: Dataset
    tree: Tree
    tree_source: str
    resize: str
    more_trees: tuple[Tree, ...] = ()
    namesakes: tuple[Namesakes, ...] = ()
    options: DataOptions = DEFAULTS
    resized_by: tuple[str, str] = RESIZED_BY

    def describe(self) -> dict[str, Any]:
        """What a report says of the data and the tree; the last of it only where there is something to say."""
        about = {
            "dataset": self.data.name,
            "split": self.data.split,
            "n": len(self.data),
            "image_ids": digest(self.data),
            "classes": len(self.data.classes),
            "native_size": self.data.native_size,
            "resize": self.resize,
            "tree": self.tree_source,
            "tree_digest": self.tree.digest,
            "levels": [len(level) for level in self.tree.levels],
        }
        more: dict[str, Any] = {
            "same_prompts": [each.describe() for each in self.namesakes],
            "left_out": self.data.left_out.counts,
            "unreadable": list(self.data.unreadable),
        }
        if self.resize == "before" and self.resized_by != RESIZED_BY:  # most models want images resized alike
            more["resized_by"] = list(self.resized_by)
        return about | {name: value for name, value in more.items() if value}


def open_task(
    spec: str,
    model: ClipModel,
    options: DataOptions = DEFAULTS,
    *,
    purpose: Literal["train", "eval"],
    size: int | None = None,
    resized_by: tuple[str, str] | None = None,
    ids: Sequence[str] | None = None,
    template: str = "photo",
) -> Task:
    """Open the dataset ``spec`` as ``options`` say, with its tree.

    Nodes of one level with the same prompt are logged as a warning: of those, the model can predict one at most.

    Args:
        purpose: training takes every tree of every file that is named, evaluation the first; ``FILE#2`` is one tree.
        size: the side of images that are resized before; by default the model's.
        resized_by: how those are resized (see `Task`); by default as the model's ``info`` says.
        ids: only these images, in this order.
        template: the ``--template`` that the prompts will have; here it only serves to find the same ones.

    Raises:
        UsageError: no such data, no tree for it, a tree that does not belong to it, nothing left of it, or no such
            template.
    """
    data = open_dataset(spec, options.split, root=options.data_root, purpose=purpose)
    if options.limit is not None or options.skip or options.classes is not None:
        data = subset(data, limit=options.limit, skip=options.skip, classes=options.classes)
    data = _looked_at(data, options) if ids is None else pick(data, ids)
    if options.resize == "in-graph" and data.native_size is None:
        raise UsageError(
            f"--resize in-graph: the images of {spec} differ in size; they are resized before (--resize before)"
        )
    # Small data keeps its native pixels, so that ε means what it says; photographs of all sizes are cut to size first.
    in_graph = options.resize == "in-graph" or (options.resize == "auto" and data.native_size is not None)
    resized_by = resized_by or (model.info.interpolation, model.info.resize_mode)
    if not in_graph:
        data = resize_to(data, size or model.image_size, *resized_by)
    found, source = _find_trees(options.tree, data, spec)
    whole, *more = found if purpose == "train" else found[:1]
    fitted = whole.restrict(data.classes)
    if len(fitted.classes) < len(whole.classes):
        sizes = " / ".join(str(len(level)) for level in fitted.levels)
        logger.info("%s: %d of the tree's %d classes are in the data; levels of %s nodes are left",
                    spec, len(fitted.classes), len(whole.classes), sizes)  # fmt: skip
    others = tuple(t.restrict(data.classes) for t in more)
    templates = resolve_template(template_for(template, data.name))
    same, *same_in_others = (same_tokens(t, templates, model.tokenize) for t in (fitted, *others))
    _warn_of_namesakes(spec, [*same, *(each for found in same_in_others for each in found)])
    return Task(data, fitted, source, "in-graph" if in_graph else "before", others, tuple(same), options, resized_by)


def open_validation(
    spec: str, task: Task, model: ClipModel, *, split: str = "val", root: Path | None = None, limit: int
) -> Dataset:
    """Held-out images of the classes of ``task``, seen as its own are.

    Raises:
        UsageError: the split is not there, lacks one of the classes, or is the one that is trained on.
        ImageError: images cannot be decoded, where ``task`` was to look at its own, too.
    """
    if split == task.data.split:
        raise UsageError(f"--val-split {split}: is what is trained on; --validate-every 0 trains without a look at it")
    whole = open_dataset(spec, split, root=root, purpose="train", known=task.data.left_out)
    data = subset(whole, limit=limit, classes=task.data.classes)
    try:
        data = _looked_at(data, task.options)
    except UsageError as error:  # which here is no reason to train without a look at it
        raise ImageError(str(error)) from error
    if task.resize == "before" or data.native_size is None:
        return resize_to(data, model.image_size, *task.resized_by)
    return data


def _looked_at(data: Dataset, options: DataOptions) -> Dataset:
    """``data``, its images decoded beforehand if that is asked for."""
    return decodable(data, options.bad_images) if options.check_images or options.bad_images == "skip" else data


def _warn_of_namesakes(spec: str, found: Sequence[Namesakes]) -> None:
    """One warning for the dataset, with the first few."""
    said = list(dict.fromkeys(sentences(found)))
    if said:
        more = f"; and {len(said) - 3} more such groups" if len(said) > 3 else ""
        logger.warning("%s: %s%s. Of nodes with the same prompt, the model can predict one at most; %s",
                       spec, "; ".join(said[:3]), more, REMEDY)  # fmt: skip


def _find_trees(tree: str | Tree | Sequence[str] | None, data: Dataset, spec: str) -> tuple[list[Tree], str]:
    if isinstance(tree, Tree):
        return [tree], str(tree.header.get("name", "tree"))
    if tree:
        files = [tree] if isinstance(tree, str) else list(tree)
        return [found for file in files for found in _read(file)], ", ".join(files)
    published = find_tree(data.name) or find_tree(data.like or "")
    if published is None:
        raise UsageError(
            f"--tree: no tree is published for {spec!r}; make one with "
            f"`hrzs build-tree --classes {spec} -o tree.yaml` and add --tree tree.yaml"
        )
    return load_trees(published), published.name


def _read(spec: str) -> list[Tree]:
    """All trees of ``FILE``, or the one that ``FILE#2`` names, or those published for a dataset."""
    spec = spec if exists(spec) else str(find_tree(spec) or spec)
    file, _ = parse_tree_spec(spec)
    return load_trees(file) if file == spec else [load_tree(spec)]
