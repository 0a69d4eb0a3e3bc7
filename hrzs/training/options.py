"""Everything a fine-tuning run can be told, with the defaults that measured best, and the recipes of papers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from hrzs.errors import UsageError


@dataclass(frozen=True)
class TrainOptions:
    """Options of `hrzs.training.trainer.Trainer` and of the methods; names are those of the command line.

    Adversary: ``eps`` and ``step_size`` in pixels [0, 1], ``steps`` of PGD, ``eps_text`` relative to the mean norm of
    the projected text features. Schedule: AdamW, linear warm-up over ``warmup`` of all steps, cosine to zero.
    """

    method: str = "hierarchical"
    eps: Fraction = Fraction(1, 255)
    step_size: Fraction = Fraction(1, 255)
    steps: int = 3
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 128
    lr: float = 3e-4
    weight_decay: float = 1e-4
    warmup: float = 0.05
    seed: int = 0
    # What is trained: "image" (text frozen), "image+projection", or "all" (pretraining; text is encoded every step).
    tune: str | None = None
    augment: str = "none"
    template: str = "photo"
    # clean, tecoa: cross-entropy at every level instead of the leaves alone.
    every_level: bool = False
    # hierarchical: what measured best (docs/results.md); the paper's own are --recipe paper
    image_levels: str = "per-image"
    hnsa: str = "none"
    radius: float = 0.5
    radius_text: float = 0.5
    beta: float | None = None
    curvature: float = 1.0
    learn_curvature: bool = False
    lambda_vic: float = 0.0
    lambda_gap: float = 0.0
    zeta_vic: float = 1.0
    zeta_gap: float = 0.01
    eps_text: float = 2e-4

    def __post_init__(self) -> None:
        choices = {
            "tune": (None, "image", "image+projection", "all"),
            "augment": ("none", "flip", "dihedral"),
            "image_levels": ("per-image", "hypavg", "mixed"),
            "hnsa": ("none", "lower", "upper", "both"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                shown = ", ".join(str(a) for a in allowed if a)
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)!r}: one of {shown}")
        for name in ("epochs", "batch_size", "lr", "steps", "curvature"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be more than 0")
        if self.beta is not None and self.beta <= 0:
            raise UsageError(f"--beta {self.beta}: must be more than 0")
        for name in ("weight_decay", "warmup", "lambda_vic", "lambda_gap", "zeta_vic", "zeta_gap", "eps_text"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: cannot be negative")
        for name in ("radius", "radius_text"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: between 0 and 1, 1 is the boundary"
                )


#: What a paper sets, as overrides of the defaults above.
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    # method.md, sections 2 to 4 and 7; its batch is the paper's 256 of 1000 classes.
    "paper": {
        "image_levels": "hypavg",
        "hnsa": "both",
        "lambda_vic": 1.0,
        "lambda_gap": 1.0,
        "eps": Fraction(1, 255),
        "step_size": Fraction(1, 255),
        "steps": 3,
        "epochs": 1.0,
        "batch_size": 256,
    },
}


def option_names() -> tuple[str, ...]:
    return tuple(f.name for f in fields(TrainOptions))
