"""All options of a fine-tuning run, with the defaults that measured best, and the recipes of papers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from hrzs.errors import UsageError
from hrzs.models.templates import HELP
from hrzs.option import INSIDE, NOT_NEGATIVE, POSITIVE, SHARE, Range, check, option

#: Named weights of the levels: ``ω_l = 1 - l/(L+1)`` of the paper, or the same for all.
LEVEL_WEIGHTS = ("paper", "equal")

#: The criteria by which a run's best model is chosen on the validation images: ``leaf`` is per image, the others are
#: balanced over the nodes of each level (`hrzs.training.validation`).
CRITERIA = ("balanced", "clean", "leaf", "levels", "any-level")


def parse_level_weights(text: str) -> tuple[float, ...]:
    """``1,0.5,0`` as weights, the leaves' first.

    Raises:
        UsageError: not numbers, one is negative, or all are 0.
    """
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = (-1.0,)
    if not all(0 <= w < math.inf for w in weights) or not any(weights):
        raise UsageError(
            f"--level-weights {text!r}: {', '.join(LEVEL_WEIGHTS)}, or numbers of at least 0 from the leaves upwards, "
            "such as 1,0.5,0.25"
        )
    return weights


#: Panels of ``--help``.
METHOD, ADVERSARY, OPTIMISER, VALIDATION = "Method", "Adversary", "Optimiser", "Validation while training"

#: exp(2/τ) leaves float64 at τ = 0.0028.
EVIDENCE = Range(lambda value: value >= 0.01, "at least 0.01, or else the evidence overflows")


@dataclass(frozen=True)
class TrainOptions:
    """Options of `hrzs.training.trainer.Trainer` and of the methods; names are those of the command line.

    ``eps`` and ``step_size`` are in pixels [0, 1]. The learning rate rises linearly over ``warmup`` of all steps.
    Defaults that are not a paper's are those that measured best (docs/results.md).

    Raises:
        UsageError: an option has a value that it does not allow.
    """

    # fmt: off
    method: str = option("hierarchical", "hierarchical, tecoa, pmg-aft, fare, clean, tga-zsr, trades, agft, ucat, lore, or list.", METHOD)
    eps: Fraction = option(Fraction(1, 255), "L∞ radius: 1/255 or 0.0039.", ADVERSARY, shown="1/255, or the data's")
    step_size: Fraction = option(Fraction(1, 255), "Size of each PGD step.", ADVERSARY, shown="1/255, or ε/4 if that is more")
    steps: int = option(3, "PGD steps.", ADVERSARY, range=POSITIVE)
    eps_text: float = option(2e-4, "Radius of the text perturbation, relative to the mean norm.", ADVERSARY, range=NOT_NEGATIVE)

    epochs: float = option(1.0, "Passes over the data.", OPTIMISER, range=POSITIVE)
    max_steps: int | None = option(None, "Largest number of optimiser steps.", OPTIMISER, range=POSITIVE, shown="as many as the epochs have")
    batch_size: int = option(128, "Images per optimiser step, over all processes.", OPTIMISER, range=POSITIVE)
    optimizer: str = option("adamw", "The optimiser.", OPTIMISER, choices=("adamw", "sgd"))
    lr: float = option(3e-4, "Peak learning rate.", OPTIMISER, range=POSITIVE)
    momentum: float = option(0.9, "Momentum of sgd.", OPTIMISER, range=SHARE)
    weight_decay: float = option(1e-4, "Weight decay of the weight matrices.", OPTIMISER, range=NOT_NEGATIVE)
    clip_grad: float = option(10.0, "Clip the norm of the whole gradient to this; 0: no clipping.", OPTIMISER, range=NOT_NEGATIVE)
    warmup: float = option(0.05, "Share of all steps in which the learning rate rises.", OPTIMISER, range=SHARE)
    schedule: str = option("cosine", "After the warm-up: down to zero, or level.", OPTIMISER, choices=("cosine", "constant"))
    per_class: int = option(1, "Images of each class in a batch of random classes, so that class means average several; 1: batches of random images.", OPTIMISER, range=POSITIVE)
    accumulate: int = option(1, "Encode a batch in N parts: less memory, the same loss and gradient, a third more time.", OPTIMISER, range=POSITIVE)
    checkpoint_activations: bool = option(False, "Compute activations twice instead of keeping them: less memory, about a third more time.", OPTIMISER)
    compile: bool = option(False, "Compile the image encoder with torch.compile (a C++ compiler is needed).", OPTIMISER)
    ema: float = option(0.0, "Validate and save a running mean of the weights, with this decay (such as 0.999); 0: the weights themselves.", OPTIMISER, range=SHARE)
    interpolate: float = option(0.0, "Validate and save weights moved by this share of the way back to the original weights.", OPTIMISER, range=SHARE)
    freeze: str = option("", "Parts of the image encoder that are not trained, such as conv1,transformer.resblocks.0.", OPTIMISER, shown="none")
    noise: float = option(0.0, "σ of Gaussian noise on every training image, in pixels of 0 to 1 (such as 0.25), for `eval --certify`; 0: none.", OPTIMISER, range=NOT_NEGATIVE)
    augment: str = option("none", "Mirror images at random (flip), or turn and mirror them at random (dihedral).", OPTIMISER, choices=("none", "flip", "dihedral"))

    tune: str | None = option(None, "The weights that are trained; all is for pretraining.", METHOD, choices=("image", "image+projection", "all"), shown="the method's")
    every_level: bool = option(False, "Cross-entropy at every level instead of the leaves (every method but hierarchical, fare, lore and agft).", METHOD)
    level_balance: str = option("node", "In a loss over several levels, the mean of a superclass level weighs its nodes or its images alike.", METHOD, choices=("node", "image"))
    perturbation: str = option("universal", "hierarchical: one perturbation against all levels at once, one against the leaves alone, or one for each level.", METHOD, choices=("universal", "leaf", "per-level"))
    geometry: str = option("hyperbolic", "hierarchical: the space in which texts and images are compared.", METHOD, choices=("hyperbolic", "euclidean"))
    level_weights: str = option("paper", "ω of the levels: paper (1 - l/(L+1)), equal, or numbers from the leaves upwards: 1,0.5,0.", METHOD)
    image_levels: str = option("hypavg", "What represents a superclass in the loss: each of its images, the mean of its classes' means (the paper's), or both.", METHOD, choices=("per-image", "hypavg", "mixed"))
    hnsa: str = option("both", "Neighbouring levels whose nodes are negatives too.", METHOD, choices=("none", "lower", "upper", "both"))
    depth: str = option("both", "What is placed at the depth of its level from the start: texts and images, texts alone, or nothing.", METHOD, choices=("both", "text", "none"))
    beta_levels: str = option("tied", "Inverse temperatures: one per level, learnt together (tied) or separately (free), or one for all levels (shared).", METHOD, choices=("tied", "free", "shared"))
    head_lr: float = option(10.0, "Learning rate of the head's scales, depths and temperatures, as a multiple of --lr.", METHOD, range=POSITIVE)
    radius: float = option(0.6, "Radius at which the mean image starts, as a share of the ball's radius.", METHOD, range=INSIDE)
    radius_text: float = option(0.6, "Radius at which the mean leaf text starts, as a share of the ball's radius.", METHOD, range=INSIDE)
    beta: float | None = option(None, "Initial inverse temperature.", METHOD, range=POSITIVE, shown="half the spread of the model's own logits")
    curvature: float = option(1.0, "r > 0; the ball's curvature is -r.", METHOD, range=POSITIVE)
    learn_curvature: bool = option(False, "Train r too.", METHOD)
    lambda_vic: float = option(0.1, "λ1: weight of the term that holds an image near its leaf's text.", METHOD, range=NOT_NEGATIVE)
    lambda_gap: float = option(10.0, "λ2: weight of the terms that want a parent's norm smaller than its children's.", METHOD, range=NOT_NEGATIVE)
    lambda_anchor: float = option(0.0, "Weight of FARE's loss, the squared distance from the original model's features as a share of their square (not in the paper).", METHOD, range=NOT_NEGATIVE)
    zeta_vic: float = option(1.0, "Distance between an image and its leaf's text that costs nothing.", METHOD, range=NOT_NEGATIVE)
    zeta_gap: float = option(0.12, "Gap wanted between the norms of parent and child.", METHOD, range=NOT_NEGATIVE)
    pmg_original: float = option(1.0, "pmg-aft: weight of the divergence from the original model's prediction on attacked images.", METHOD, range=NOT_NEGATIVE)
    pmg_clean: float = option(1.0, "pmg-aft: weight of the divergence from the model's own prediction on clean images.", METHOD, range=NOT_NEGATIVE)
    pmg_direction: str = option("target-first", "pmg-aft: KL(target ‖ attacked), or the other way round.", METHOD, choices=("target-first", "adversarial-first"))
    pmg_reduction: str = option("sum", "pmg-aft: divergences are summed over the batch, beside a mean cross-entropy, or averaged.", METHOD, choices=("sum", "mean"))
    fare_clean: float = option(0.0, "fare: the clean images' share of the loss.", METHOD, range=SHARE)
    tga_refinement: float = option(0.08, "tga-zsr: weight of the distance of attention on attacked images from the original model's on clean ones.", METHOD, range=NOT_NEGATIVE)
    tga_constraint: float = option(0.05, "tga-zsr: weight of the distance of attention on clean images from the original model's.", METHOD, range=NOT_NEGATIVE)
    trades_beta: float = option(6.0, "trades: weight of the divergence between clean and attacked predictions.", METHOD, range=NOT_NEGATIVE)
    agft_scale: float = option(1.8, "agft: factor of the logits in training, beside the model's own temperature.", METHOD, range=POSITIVE)
    agft_ratio: float = option(0.4, "agft: factor of the original model's logits in the target, beside --agft-scale: less is softer.", METHOD, range=POSITIVE)
    ucat_weight: float = option(1e5, "ucat: weight of the divergence from the original model's evidence, in units of the largest possible evidence.", METHOD, range=NOT_NEGATIVE)
    ucat_temperature: float = option(0.07, "ucat: temperature at which cosines become evidence.", METHOD, range=EVIDENCE)
    lore_rho: float = option(0.1, "lore: squared distance that a clean image's features may move, as a share of the square of the original's.", METHOD, range=POSITIVE)
    lore_primal_steps: int = option(5, "lore: optimiser steps for each step of the multiplier.", METHOD, range=POSITIVE)
    lore_dual_lr: float = option(10.0, "lore: learning rate of the multiplier.", METHOD, range=POSITIVE)

    validate_every: int = option(100, "Steps between validations on held-out images; 0: never.", VALIDATION, range=NOT_NEGATIVE)
    val_limit: int = option(100, "Number of validation images, balanced over the classes.", VALIDATION, range=POSITIVE)
    val_steps: int = option(5, "PGD steps of the attack on each level.", VALIDATION, range=POSITIVE)
    best_by: str = option("balanced", "Criterion by which the model in RUN_DIR/best is chosen.", VALIDATION, choices=CRITERIA)

    template: str = option("photo", HELP)
    seed: int = option(0, "Seed of everything random.")
    # fmt: on

    def __post_init__(self) -> None:
        check(self)
        if self.level_weights not in LEVEL_WEIGHTS:
            parse_level_weights(self.level_weights)


#: Default values, by the names of the options.
DEFAULTS: dict[str, object] = {f.name.replace("_", "-"): f.default for f in fields(TrainOptions)}

# Schlarmann et al., ICML 2024: AdamW, two epochs of ImageNet in batches of 128, 7% warm-up, PGD-10.
_FARE: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 1e-5,
    "weight_decay": 1e-4,
    "clip_grad": 0.0,
    "warmup": 0.07,
    "eps": Fraction(2, 255),
    "step_size": Fraction(1, 255),
    "steps": 10,
    "epochs": 2.0,
    "batch_size": 128,
}

#: What a paper sets, as overrides of the defaults above.
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    # The complete method; `PUBLISHED` names the constants that the paper gives.
    "paper": {
        "image_levels": "hypavg",
        "hnsa": "both",
        "level_weights": "paper",
        "eps": Fraction(1, 255),
        "step_size": Fraction(1, 255),
        "steps": 3,
        "eps_text": 2e-4,
        "perturbation": "universal",
        "geometry": "hyperbolic",
        "lambda_vic": 0.1,
        "lambda_gap": 10.0,
        "zeta_vic": 1.0,
        "zeta_gap": 0.12,
        "radius": 0.6,
        "radius_text": 0.6,
        "curvature": 1.0,
        "optimizer": "adamw",
        "lr": 3e-4,
        "epochs": 1.0,
        "batch_size": 128,
    },
    # Mao et al., ICLR 2023: SGD with momentum on the image encoder, no weight decay, 10 epochs of ImageNet, PGD-2 at
    # ε = α = 1/255. Their template is "This is a photo of a {}".
    "tecoa": {
        "method": "tecoa",
        "optimizer": "sgd",
        "lr": 5e-5,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "clip_grad": 0.0,
        "eps": Fraction(1, 255),
        "step_size": Fraction(1, 255),
        "steps": 2,
        "epochs": 10.0,
        "batch_size": 256,
        "template": "tecoa",
    },
    "fare": {"method": "fare", **_FARE},
    # Cui et al., CVPR 2026, and the command of their README: two GPUs with 128 images each, 1000 steps of warm-up.
    # Their scale of 180 is 1.8 times that of OpenAI's models.
    "agft": {
        "method": "agft",
        "agft_scale": 1.8,
        "agft_ratio": 0.4,
        "optimizer": "sgd",
        "lr": 4e-4,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "clip_grad": 0.0,
        "eps": Fraction(1, 255),
        "step_size": Fraction(1, 255),
        "steps": 2,
        "epochs": 10.0,
        "batch_size": 256,
        "template": "This is a photo of a {}.",
        "warmup": 0.02,
    },
    # Lu et al., ICML 2026, by their public code and the command of its README: Tiny-ImageNet, 1000 steps of warm-up.
    "ucat": {
        "method": "ucat",
        "ucat_weight": 1e5,
        "ucat_temperature": 0.07,
        "optimizer": "sgd",
        "lr": 1e-4,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "clip_grad": 0.0,
        "eps": Fraction(1, 255),
        "step_size": Fraction(1, 255),
        "steps": 2,
        "epochs": 10.0,
        "batch_size": 256,
        "template": "tecoa",
        "warmup": 0.256,
    },
    # Khodabandeh et al., 2025: the method. The constants are ours, and those of training are FARE's.
    "lore": {"method": "lore", "lore_rho": 0.1, "lore_primal_steps": 5, "lore_dual_lr": 10.0, **_FARE},
}


#: For recipes whose papers leave constants open: the published ones. The others are ours.
PUBLISHED: dict[str, tuple[str, ...]] = {
    "paper": (
        "image_levels",
        "hnsa",
        "level_weights",
        "eps",
        "step_size",
        "steps",
        "eps_text",
        "perturbation",
        "geometry",
    ),
    # The warm-up is published in steps; ours is the same share of their runs.
    "agft": tuple(name for name in RECIPES["agft"] if name != "warmup"),
    "ucat": tuple(name for name in RECIPES["ucat"] if name != "warmup"),
    "lore": ("method",),
}


def about_recipe(name: str) -> str:
    """The constants of a recipe in one line, the published ones apart from ours."""

    def shown(some: dict[str, Any]) -> str:
        return ", ".join(f"{key.replace('_', '-')} {value}" for key, value in some.items())

    recipe, published = RECIPES[name], PUBLISHED.get(name)
    if published is None:
        return shown(recipe) or "the defaults"
    ours = {key: value for key, value in recipe.items() if key not in published}
    return (
        f"published: {shown({key: recipe[key] for key in published})}; ours: {shown(ours)}, and whatever is not named"
    )
