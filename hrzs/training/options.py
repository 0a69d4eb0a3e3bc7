"""Everything a fine-tuning run can be told, with the defaults that measured best, and the recipes of papers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from hrzs.errors import UsageError

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


@dataclass(frozen=True)
class TrainOptions:
    """Options of `hrzs.training.trainer.Trainer` and of the methods; names are those of the command line.

    Adversary: ``eps`` and ``step_size`` in pixels [0, 1], ``steps`` of PGD, ``eps_text`` relative to the mean norm of
    the projected text features. Schedule: linear warm-up over ``warmup`` of all steps, then a cosine to zero or level.
    """

    method: str = "hierarchical"
    eps: Fraction = Fraction(1, 255)
    step_size: Fraction = Fraction(1, 255)
    steps: int = 3
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float = 3e-4
    momentum: float = 0.9
    weight_decay: float = 1e-4
    # Largest norm of the whole gradient; 0: whatever it is.
    clip_grad: float = 10.0
    warmup: float = 0.05
    schedule: str = "cosine"
    # Images of each class in a batch, whose classes are drawn at random; 1: any images at all.
    per_class: int = 1
    # A batch is worked through in that many parts: less memory, the same mean gradient of all per-image losses.
    accumulate: int = 1
    checkpoint_activations: bool = False
    compile: bool = False
    # The weights that are validated and saved: a running mean with this decay, then moved towards the original's.
    ema: float = 0.0
    interpolate: float = 0.0
    # Beginnings of names of image encoder parameters that stay as they are, separated by commas.
    freeze: str = ""
    seed: int = 0
    # What is trained: "image" (text frozen), "image+projection", or "all" (pretraining; text is encoded every step).
    tune: str | None = None
    augment: str = "none"
    template: str = "photo"
    # clean, tecoa and what builds on them: cross-entropy at every level instead of the leaves alone.
    every_level: bool = False
    # What has a loss over several levels: does the mean of a superclass level weigh its nodes or its images alike?
    level_balance: str = "node"
    # hierarchical: what measured best (docs/results.md); the paper's own are --recipe paper
    perturbation: str = "universal"
    geometry: str = "hyperbolic"
    level_weights: str = "paper"
    image_levels: str = "hypavg"
    hnsa: str = "both"
    depth: str = "both"
    radius: float = 0.6
    radius_text: float = 0.6
    beta: float | None = None
    beta_levels: str = "tied"
    curvature: float = 1.0
    learn_curvature: bool = False
    # The head's scalars learn that many times as fast as the rest.
    head_lr: float = 10.0
    lambda_vic: float = 0.1
    lambda_gap: float = 10.0
    lambda_anchor: float = 0.0
    zeta_vic: float = 1.0
    zeta_gap: float = 0.12
    eps_text: float = 2e-4
    # pmg-aft: weights of the divergences from the original's prediction and from the one on clean images
    pmg_original: float = 1.0
    pmg_clean: float = 1.0
    pmg_direction: str = "target-first"
    pmg_reduction: str = "sum"
    # fare: the clean images' share of the loss
    fare_clean: float = 0.0
    # tga-zsr: weights of the distances of attention maps, on attacked and on clean images
    tga_refinement: float = 0.08
    tga_constraint: float = 0.05
    # trades: weight of the divergence
    trades_beta: float = 6.0
    # A look at held-out images now and then; it changes nothing about the weights.
    validate_every: int = 100
    val_limit: int = 100
    val_steps: int = 5
    best_by: str = "balanced"

    def __post_init__(self) -> None:
        choices = {
            "tune": (None, "image", "image+projection", "all"),
            "augment": ("none", "flip", "dihedral"),
            "image_levels": ("per-image", "hypavg", "mixed"),
            "level_balance": ("node", "image"),
            "depth": ("both", "text", "none"),
            "beta_levels": ("tied", "free", "shared"),
            "hnsa": ("none", "lower", "upper", "both"),
            "optimizer": ("adamw", "sgd"),
            "schedule": ("cosine", "constant"),
            "perturbation": ("universal", "leaf", "per-level"),
            "geometry": ("hyperbolic", "euclidean"),
            "pmg_direction": ("target-first", "adversarial-first"),
            "pmg_reduction": ("sum", "mean"),
            "best_by": CRITERIA,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                shown = ", ".join(str(a) for a in allowed if a)
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)!r}: one of {shown}")
        for name in ("epochs", "batch_size", "lr", "steps", "curvature", "accumulate", "per_class", "head_lr",
                     "val_limit", "val_steps"):  # fmt: skip
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be more than 0")
        if self.beta is not None and self.beta <= 0:
            raise UsageError(f"--beta {self.beta}: must be more than 0")
        for name in (
            "weight_decay", "warmup", "lambda_vic", "lambda_gap", "lambda_anchor", "zeta_vic", "zeta_gap", "eps_text",
            "validate_every", "clip_grad",
            "pmg_original", "pmg_clean", "tga_refinement", "tga_constraint", "trades_beta",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: cannot be negative")
        for name in ("ema", "momentum", "interpolate", "fare_clean"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 0 and less than 1")
        if self.level_weights not in LEVEL_WEIGHTS:
            parse_level_weights(self.level_weights)
        for name in ("radius", "radius_text"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: between 0 and 1, 1 is the boundary"
                )


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


def option_names() -> tuple[str, ...]:
    return tuple(f.name for f in fields(TrainOptions))
