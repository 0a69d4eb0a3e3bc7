"""The engine from Python: what the command line does, with values for options.

Everything here raises `hrzs.errors.UsageError` where a call is wrong and `hrzs.errors.HrzsError` where it failed; the
messages name options as the command line does (``--step-size`` is ``step_size``).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hrzs.attacks import AttackResult, Level, attack_spec, sample_seeds
from hrzs.attacks.budget import exact_eps
from hrzs.classes.specs import ClassSpec
from hrzs.data_options import DataOptions
from hrzs.distributed import joined
from hrzs.errors import UsageError
from hrzs.evaluation.job import Job
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.plan import budget_of
from hrzs.evaluation.plan import settle as evaluation_options
from hrzs.evaluation.runner import Progress
from hrzs.files import check_folder
from hrzs.hierarchy.published import find_tree
from hrzs.hierarchy.tree import Node, Tree
from hrzs.hierarchy.yaml_form import load_tree
from hrzs.models.classifier import Classifier, ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.models.encoder import ImageEncoder
from hrzs.models.loading import load_model, wrap_model
from hrzs.models.logits import LogitClassifier, LogitModel
from hrzs.option import divide
from hrzs.progress import one_line
from hrzs.publishing import export as export
from hrzs.results.report import Report
from hrzs.sources import SourceOptions
from hrzs.sources.build import build_trees
from hrzs.sources.classes import read_classes
from hrzs.sources.file import classes_of
from hrzs.torchrun import restarts
from hrzs.training.job import LOOKS, open_run, run, settle, with_loss
from hrzs.training.options import TrainOptions
from hrzs.training.trainer import Progress as StepProgress

#: A radius or a step: ``"1/255"``, ``Fraction(1, 255)``, or the float ``1 / 255``, which is taken for that fraction.
Eps: TypeAlias = "str | float | Fraction"
#: A tree, its file (``FILE#2`` is the second in it), or the name of a dataset whose tree is published.
TreeLike: TypeAlias = "Tree | str | Path"


def load(
    model: str | Path | nn.Module = "tiny",
    pretrained: str | Path | None = None,
    *,
    arch: str | None = None,
    visual: str | Path | None = None,
    tokenizer: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    resize_mode: str | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    seed: int = 0,
) -> ClipModel:
    """A model to attack, to evaluate or to fine-tune, in evaluation mode.

        >>> hrzs.load("tiny").image_size
        64

    Args:
        model: what ``--model`` takes (an open_clip architecture, a hub's name, a config, a run folder), or an
            open_clip model in memory, which is used as it is and not copied.
        pretrained: a tag of open_clip, a file, or ``none`` for random weights.
        arch: of a model in memory: what open_clip calls it (``ViT-B-32``).
        visual: a file with an image encoder, which takes the place of the model's own.
        tokenizer: a folder or a hub's name, which takes the place of the tokenizer that the model names.
        mean: of pixels, for red, green and blue, in place of what the model says.
        std: likewise.
        interpolation: of resized images, ``bicubic`` or ``bilinear``, in place of what the model says.
        resize_mode: ``shortest`` or ``squash``, in place of what the model says.
        precision: ``fp32``, or ``bf16`` for gradients; verdicts are fp32 in either.
        seed: of random weights.
    """
    if isinstance(model, nn.Module):
        if any(value is not None for value in (pretrained, visual, tokenizer)):
            raise UsageError("pretrained, visual, tokenizer: a model in memory has its own; leave them out")
        preprocess = {"mean": mean, "std": std, "interpolation": interpolation, "resize_mode": resize_mode}
        return wrap_model(model, arch, preprocess=preprocess, device=device, precision=precision)
    if arch is not None:
        raise UsageError(f"arch {arch!r}: is for a model in memory; a name says it itself")
    given = None if pretrained is None else str(pretrained)
    return load_model(
        str(model), given, visual=visual, tokenizer=tokenizer, mean=mean, std=std, interpolation=interpolation,
        resize_mode=resize_mode, device=device, precision=precision, seed=seed,
    )  # fmt: skip


def build_tree(
    classes: str | Path | Sequence[str | ClassSpec] | Mapping[str, Any],
    *,
    source: str = "wordnet",
    levels: int | None = None,
    depths: Sequence[int] = (),
    options: SourceOptions | None = None,
) -> Tree:
    """A levelled tree over ``classes``.

        >>> [len(level) for level in hrzs.build_tree({"animal": ["cat", "dog"], "vehicle": ["car", "bus"]}).levels]
        [4, 2, 1]

    Args:
        classes: names; or what ``--classes`` takes (a dataset, a folder, a file); or the tree itself, as maps from
            superclasses to what is beneath them, with lists of classes at the bottom.
        source: of the superclasses: ``wordnet``, ``llm``, ``cluster`` or ``file``; a map brings its own.
        levels: the level of the root at most, by default 5.
        depths: cut at these depths of WordNet's tree instead of by entropy.
        options: what the source needs beyond that; several trees: `hrzs.sources.build.build_trees`.
    """
    if isinstance(classes, Mapping):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "tree.json"
            file.write_text(json.dumps(classes), encoding="utf-8")
            files = (str(file),)
            (tree,), _ = build_trees(classes_of(files), source="file", levels=levels, depths=depths,
                                     options=SourceOptions(files=files), label="a map")  # fmt: skip
        return tree
    if isinstance(classes, str | Path):
        specs, label = read_classes(str(classes))
    else:
        specs = [name if isinstance(name, ClassSpec) else ClassSpec(name) for name in classes]
        label = f"{len(specs)} names"
    trees, _ = build_trees(specs, source=source, levels=levels, depths=depths, options=options, label=label)
    return trees[0]


def attack(
    model: nn.Module,
    images: Float[Tensor, "B 3 H W"],
    labels: Tensor | Sequence[int],
    *,
    tree: TreeLike | None = None,
    attack: str = "leaf-pgd",
    level: Level | None = None,
    eps: Eps = "1/255",
    step_size: Eps | None = None,
    steps: int | None = None,
    restarts: int = 1,
    random_start: bool = True,
    norm: str = "linf",
    template: str = "photo",
    seed: int = 0,
) -> AttackResult:
    """Adversarial versions of ``images``. The same call gives the same bits: images are known by their place.

        >>> images, labels = torch.rand(2, 3, 64, 64), [0, 1]
        >>> result = hrzs.attack(hrzs.load("tiny"), images, labels, tree="shapes", eps="2/255", steps=2)
        >>> (result.images - images).abs().max().item() <= 2 / 255
        True

    Args:
        model: a `ClipModel`, or any other module in evaluation mode that gives logits for pixels in [0, 1].
        images: pixels in [0, 1], on the model's device.
        labels: the class of each, an index into those of the tree.
        tree: over the model's classes; a module without one has no superclasses.
        attack: a name in `hrzs.attacks.ATTACKS`.
        level: of the superclasses that are attacked; the leaves are level 0.
        step_size: by default the larger of 1/255 and ε/4.
        steps: by default the attack's own number.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise UsageError(f"images: floating-point numbers in [0, 1] of B × 3 × H × W, not {images.dtype} of "
                         f"{' × '.join(map(str, images.shape))}")  # fmt: skip
    truth = torch.as_tensor(labels, device=images.device)
    encoder: ImageEncoder = model if isinstance(model, ClipModel) else LogitModel(model)
    found = _tree_for(encoder, tree, images)
    _check_labels(truth, len(images), len(found.classes))
    spec = attack_spec(attack)
    levels = spec.levels(found, level)
    if not levels:
        raise UsageError(f"{attack} has no level {level} to attack in this tree of levels 0 … {found.height - 1}")
    options = evaluation_options({"eps": (eps,), "step_size": step_size, "steps": steps, "norm": norm,
                                  "restarts": restarts, "random_start": random_start})  # fmt: skip
    assert options.eps is not None
    classifier: Classifier = (
        ZeroShotClassifier(model, found, template)
        if isinstance(model, ClipModel)
        else LogitClassifier(found, images.device)
    )
    objective = spec.objective(classifier, levels[0])
    optimiser = spec.optimiser(budget_of(options, options.eps[0], spec))
    return optimiser(encoder, objective, images, truth, sample_seeds([str(i) for i in range(len(images))], seed))


def evaluate(
    model: ClipModel,
    *,
    adversarial: str | Path | None = None,
    canaries: bool = True,
    store: str | Path | None = None,
    votes: str | Path | None = None,
    progress: Progress | bool | None = None,
    **options: Any,
) -> Report:
    """Clean and robust accuracy at every level: what ``hrzs eval`` finds, with canaries and the verdict on masking.

        >>> report = hrzs.evaluate(hrzs.load("tiny"), limit=24, attack="leaf-pgd", steps=2, canaries=False)
        >>> [row.level for row in report.results if row.attack == "leaf-pgd"]
        [0, 1, 1, 2, 2, 3, 3]

    Args:
        adversarial: a folder of ``hrzs attack``: its images are scored, and none attacked.
        canaries: check the set-up on 64 images, and say whether gradients are masked.
        store: a file for finished batches; the same call goes on from it, after whatever stopped it.
        votes: a file for the votes of certificates (``certify``). It stays: a call with more ``samples`` adds to it.
        progress: called with (work done, work in all, what is being done). True: one line on stderr, written over.
        options: fields of `hrzs.data_options.DataOptions`, such as ``data`` (one or several of what ``--data`` takes),
            ``tree`` or ``limit``; and of `hrzs.evaluation.options.EvalOptions`, such as ``attack`` (names with commas
            or in a list), ``eps`` (one radius or several), ``level``, ``steps``, ``norm`` or ``batch_size``.
    """
    _check_model(model)
    where, options = divide(options, "an evaluation", DataOptions, EvalOptions)
    if adversarial is not None:
        if options.get("attack", "none") not in ("none", ("none",)):
            raise UsageError("attack with adversarial: the images are given and none is attacked; leave out one")
        options["attack"] = "none"
    settled, data = evaluation_options(options), DataOptions.of(where)
    config = {**data.as_config(), **settled.as_config(), "canaries": canaries,
              "adversarial": None if adversarial is None else str(adversarial)}  # fmt: skip
    job = Job(model, settled, data, adversarial=_path(adversarial), canaries=canaries, store=_path(store),
              votes=_path(votes), config=config)  # fmt: skip
    with job.store.opened(), one_line("eval") if progress is True else nullcontext() as line:
        report = job.run(line or (progress if callable(progress) else None))
        job.store.remove()
    return report


def finetune(
    model: ClipModel,
    output: str | Path,
    *,
    recipe: str = "default",
    val_split: str = "val",
    licence: str | None = None,
    half: bool = False,
    save_every: int = 100,
    resume: bool = False,
    workers: int | None = None,
    progress: StepProgress | bool | None = None,
    **options: Any,
) -> Path:
    """Fine-tune ``model`` itself, and return its run folder, which `load` reads.

        >>> run = hrzs.finetune(hrzs.load("tiny"), "run", max_steps=1, batch_size=24, validate_every=0)
        >>> hrzs.load(run).geometry.name
        'hyperbolic'

    Args:
        output: the run folder: weights, log, checkpoints and a report.
        recipe: what a paper sets; ``options`` go before it.
        resume: go on from the last checkpoint in ``output``, if there is one.
        progress: called after each step with (steps done, steps in all, the log of the step). True: one line on stderr
            that is written over.
        options: fields of `hrzs.data_options.DataOptions`, such as ``data``, ``classes`` or ``tree`` (several make a
            forest); and of `hrzs.training.options.TrainOptions`, such as ``method``, ``lr``, ``max_steps`` or ``eps``.

    The other arguments are the options of ``hrzs finetune`` of these names. In a script that ``torchrun`` starts, all
    processes make this call, and share each batch.
    """
    _check_model(model)
    where, options = divide(options, "a run", DataOptions, TrainOptions)
    data, folder = DataOptions.of(where), Path(output)
    radii = {name for name in ("eps", "step_size") if options.get(name) is not None}
    exact = {name: exact_eps(options[name], option=f"--{name.replace('_', '-')}") for name in radii}
    given = options | exact
    settled = settle(recipe, given)
    resume = resume or restarts() > 0
    started = model.info.origin
    config = {"model": started[0], "pretrained": started[1], **data.as_config(), "recipe": recipe,
              "val-split": val_split, "licence": licence, "half": half, "save-every": save_every}  # fmt: skip
    with joined(model.device) as group:
        if not resume and group.is_first:
            check_folder(folder)
        trainer, _ = open_run(
            model, settled, folder, data, given=given, recipe=recipe, val_split=val_split,
            insist=bool({*given} & LOOKS), licence=licence, half=half, save_every=save_every, workers=workers,
            group=group,
        )  # fmt: skip
        with one_line(f"finetune {settled.method}") if progress is True and group.is_first else nullcontext() as line:
            step = with_loss(line) if line else progress if callable(progress) else None
            run(trainer, config, resume=resume, progress=step)
    return folder


def _tree_for(model: ImageEncoder, tree: TreeLike | None, images: Tensor) -> Tree:
    if isinstance(tree, Tree):
        return tree
    if tree is not None:
        # The published one, where ``tree`` is a dataset's name.
        return load_tree(find_tree(str(tree)) or tree)
    if isinstance(model, ClipModel):
        raise UsageError("tree: a CLIP needs to know its classes; give a tree, its file, or a dataset's name")
    with torch.no_grad():
        count = model.encode_image(images[:1]).shape[1]
    leaves = tuple(Node(str(c), str(c), class_id=str(c)) for c in range(count))
    return Tree(Node("any class", "root", leaves, level=1))


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _check_model(model: object) -> None:
    if not isinstance(model, ClipModel):
        raise UsageError(
            f"model: a ClipModel is needed, not a {type(model).__name__}; hrzs.load makes one of a name or of an "
            "open_clip model in memory (hrzs.attack takes any module with logits)"
        )


def _check_labels(labels: Tensor, images: int, classes: int) -> None:
    if labels.is_floating_point() or labels.shape != (images,):
        raise UsageError(f"labels: {images} whole numbers are needed, one for each image, not {tuple(labels.shape)} of "
                         f"{labels.dtype}")  # fmt: skip
    wrong = ((labels < 0) | (labels >= classes)).nonzero().flatten()
    if len(wrong):
        at = int(wrong[0])
        raise UsageError(f"labels[{at}] is {int(labels[at])}: the tree has classes 0 … {classes - 1}")
