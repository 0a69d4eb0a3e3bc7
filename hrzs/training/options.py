"""Everything a fine-tuning run can be told, with the defaults that measured best, and the recipes of papers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from hrzs.errors import UsageError
from hrzs.models.templates import HELP
from hrzs.option import INSIDE, NOT_NEGATIVE, POSITIVE, SHARE, check, option

#: Named weights of the levels: ``ω_l = 1 - l/(L+1)`` of the paper, or the same for all.
LEVEL_WEIGHTS = ("paper", "equal")

#: By what the best model of a run is told, on the validation images: ``leaf`` per image, the others balanced over the
#: nodes of each level, see `hrzs.training.validation`.
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


@dataclass(frozen=True)
class TrainOptions:
    """Options of `hrzs.training.trainer.Trainer` and of the methods; names are those of the command line.

    ``eps`` and ``step_size`` are in pixels [0, 1]. The learning rate rises linearly over ``warmup`` of all steps. What
    is not said to be a paper's measured best (docs/results.md).

    Raises:
        UsageError: a value is none of its option.
    """

    # fmt: off
    method: str = option("hierarchical", "hierarchical, tecoa, pmg-aft, fare, clean, tga-zsr, trades, or list.", METHOD)
    eps: Fraction = option(Fraction(1, 255), "L∞ radius: 1/255 or 0.0039.", ADVERSARY, shown="1/255, or the data's")
    step_size: Fraction = option(Fraction(1, 255), "Of each PGD step.", ADVERSARY, shown="1/255, or ε/4 if that is more")
    steps: int = option(3, "PGD steps.", ADVERSARY, range=POSITIVE)
    eps_text: float = option(2e-4, "Radius of the text perturbation, relative to the mean norm.", ADVERSARY, range=NOT_NEGATIVE)

    epochs: float = option(1.0, "Passes over the data.", OPTIMISER, range=POSITIVE)
    max_steps: int | None = option(None, "Optimiser steps at most.", OPTIMISER, range=POSITIVE, shown="as many as the epochs have")
    batch_size: int = option(128, "Images in a step.", OPTIMISER, range=POSITIVE)
    optimizer: str = option("adamw", "What takes the steps.", OPTIMISER, choices=("adamw", "sgd"))
    lr: float = option(3e-4, "Peak learning rate.", OPTIMISER, range=POSITIVE)
    momentum: float = option(0.9, "Of sgd.", OPTIMISER, range=SHARE)
    weight_decay: float = option(1e-4, "Share of the weights that a step of rate 1 takes away.", OPTIMISER, range=NOT_NEGATIVE)
    clip_grad: float = option(10.0, "Largest norm of the whole gradient; 0: any.", OPTIMISER, range=NOT_NEGATIVE)
    warmup: float = option(0.05, "Share of all steps.", OPTIMISER, range=SHARE)
    schedule: str = option("cosine", "After the warm-up: down to zero, or level.", OPTIMISER, choices=("cosine", "constant"))
    per_class: int = option(1, "N > 1: a batch has N images each of random classes, so that class means average something; 1: any images.", OPTIMISER, range=POSITIVE)
    accumulate: int = option(1, "Work through a batch in N parts: less memory, the same gradient of per-image losses.", OPTIMISER, range=POSITIVE)
    checkpoint_activations: bool = option(False, "Compute activations twice instead of keeping them: less memory, about a third more time.", OPTIMISER)
    compile: bool = option(False, "torch.compile the image encoder (a C++ compiler is needed).", OPTIMISER)
    ema: float = option(0.0, "Validate and save a running mean of the weights, with this decay; 0.999, say. 0: the weights themselves.", OPTIMISER, range=SHARE)
    interpolate: float = option(0.0, "Move what is validated and saved this share of the way back to the original weights.", OPTIMISER, range=SHARE)
    freeze: str = option("", "Parts of the image encoder that stay as they are: conv1,transformer.resblocks.0, say.", OPTIMISER, shown="none")
    augment: str = option("none", "Images are mirrored, or turned and mirrored, at random.", OPTIMISER, choices=("none", "flip", "dihedral"))

    tune: str | None = option(None, "What is trained; all is for pretraining.", METHOD, choices=("image", "image+projection", "all"), shown="the method's")
    every_level: bool = option(False, "All but hierarchical and fare: cross-entropy at every level.", METHOD)
    level_balance: str = option("node", "Whatever has a loss over several levels: the mean of a superclass level weighs its nodes or its images alike.", METHOD, choices=("node", "image"))
    perturbation: str = option("universal", "hierarchical: against all levels at once, the leaves alone, or one for each level.", METHOD, choices=("universal", "leaf", "per-level"))
    geometry: str = option("hyperbolic", "hierarchical: where texts and images are compared.", METHOD, choices=("hyperbolic", "euclidean"))
    level_weights: str = option("paper", "ω of the levels: paper (1 - l/(L+1)), equal, or numbers from the leaves upwards: 1,0.5,0.", METHOD)
    image_levels: str = option("hypavg", "What stands for a superclass's image: each of its images, or the means of its classes (the paper's).", METHOD, choices=("per-image", "hypavg", "mixed"))
    hnsa: str = option("both", "Negatives from neighbouring levels.", METHOD, choices=("none", "lower", "upper", "both"))
    depth: str = option("both", "What lies at the depth of its level from the start: texts and images, texts alone, or nothing.", METHOD, choices=("both", "text", "none"))
    beta_levels: str = option("tied", "An inverse temperature for each level, learnt together or alone, or one for all.", METHOD, choices=("tied", "free", "shared"))
    head_lr: float = option(10.0, "The head's scales, depths and temperatures learn that many times as fast as the rest.", METHOD, range=POSITIVE)
    radius: float = option(0.6, "Where the mean image starts, as a share of the ball's.", METHOD, range=INSIDE)
    radius_text: float = option(0.6, "Where the mean leaf text starts.", METHOD, range=INSIDE)
    beta: float | None = option(None, "Initial inverse temperature.", METHOD, range=POSITIVE, shown="half the spread of the model's own logits")
    curvature: float = option(1.0, "r > 0; the ball's curvature is -r.", METHOD, range=POSITIVE)
    learn_curvature: bool = option(False, "Train r too.", METHOD)
    lambda_vic: float = option(0.1, "λ1: weight of the neighbourhood term.", METHOD, range=NOT_NEGATIVE)
    lambda_gap: float = option(10.0, "λ2: weight of the norm-order terms.", METHOD, range=NOT_NEGATIVE)
    lambda_anchor: float = option(0.0, "Weight of the distance from the original's features on clean images, as a share of their square (not in the paper).", METHOD, range=NOT_NEGATIVE)
    zeta_vic: float = option(1.0, "Distance to the leaf's text that costs nothing.", METHOD, range=NOT_NEGATIVE)
    zeta_gap: float = option(0.12, "Norm gap wanted between parent and child.", METHOD, range=NOT_NEGATIVE)
    pmg_original: float = option(1.0, "pmg-aft: weight of the divergence from the original's prediction on attacked images.", METHOD, range=NOT_NEGATIVE)
    pmg_clean: float = option(1.0, "pmg-aft: weight of the divergence from the model's own prediction on clean images.", METHOD, range=NOT_NEGATIVE)
    pmg_direction: str = option("target-first", "pmg-aft: KL(target ‖ attacked), or the other way round.", METHOD, choices=("target-first", "adversarial-first"))
    pmg_reduction: str = option("sum", "pmg-aft: divergences summed over the batch, beside a mean cross-entropy, or their mean.", METHOD, choices=("sum", "mean"))
    fare_clean: float = option(0.0, "fare: the clean images' share of the loss.", METHOD, range=SHARE)
    tga_refinement: float = option(0.08, "tga-zsr: weight of attacked images' attention, held to the original's on clean ones.", METHOD, range=NOT_NEGATIVE)
    tga_constraint: float = option(0.05, "tga-zsr: weight of clean images' attention, held to the original's.", METHOD, range=NOT_NEGATIVE)
    trades_beta: float = option(6.0, "trades: weight of the divergence of clean and attacked predictions.", METHOD, range=NOT_NEGATIVE)

    validate_every: int = option(100, "Steps between looks at held-out images, which change no weight; 0: never.", VALIDATION, range=NOT_NEGATIVE)
    val_limit: int = option(100, "How many images, balanced over the classes.", VALIDATION, range=POSITIVE)
    val_steps: int = option(5, "PGD steps, at each level.", VALIDATION, range=POSITIVE)
    best_by: str = option("balanced", "What the model in RUN_DIR/best is best by.", VALIDATION, choices=CRITERIA)

    template: str = option("photo", HELP)
    seed: int = option(0, "Of all that is random.")
    # fmt: on

    def __post_init__(self) -> None:
        check(self)
        if self.level_weights not in LEVEL_WEIGHTS:
            parse_level_weights(self.level_weights)


#: By the name of the option.
DEFAULTS: dict[str, object] = {f.name.replace("_", "-"): f.default for f in fields(TrainOptions)}

#: What a paper sets, as overrides of the defaults above.
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    # The complete method, method.md, sections 2 to 4 and 7; `PUBLISHED` says what is not ours.
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
    # Schlarmann et al., ICML 2024: AdamW, two epochs of ImageNet in batches of 128, 7% warm-up, PGD-10.
    "fare": {
        "method": "fare",
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
    },
}


#: Of the recipes whose papers leave constants open: what is published. The others are ours.
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
}


def about_recipe(name: str) -> str:
    """Its constants in one line; where some are ours, which."""

    def shown(some: dict[str, Any]) -> str:
        return ", ".join(f"{key.replace('_', '-')} {value}" for key, value in some.items())

    recipe, published = RECIPES[name], PUBLISHED.get(name)
    if published is None:
        return shown(recipe) or "the defaults"
    ours = {key: value for key, value in recipe.items() if key not in published}
    return (
        f"published: {shown({key: recipe[key] for key in published})}; ours: {shown(ours)}, and whatever is not named"
    )
