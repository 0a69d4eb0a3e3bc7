"""Everything an evaluation can be told, and an attack. Nothing heavy is imported: ``--help`` is made of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, Literal

from hrzs.errors import UsageError
from hrzs.models.templates import HELP
from hrzs.option import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, PROBABILITY, check, option

#: The fixed suite behind any-level robust accuracy: one optimiser, every aim, every level, on the cross-entropy and, as
#: that alone flatters some models more than others, on the margin.
SUITE = ("leaf-pgd", "superclass-pgd", "hierarchical-pgd", "cw")


#: The panel of ``--help`` of those that belong to ``--certify``.
CERTIFICATES = "Certificates"
#: The panel of ``--help`` of those about defences at test time.
DEFENCES = "Defences at test time"
#: Options that mean nothing without ``--defence``.
OF_DEFENCES = ("eot", "draw")
#: Options that mean nothing without ``--certify``.
OF_CERTIFICATES = ("samples", "selection", "alpha", "confidence")


@dataclass(frozen=True)
class EvalOptions:
    """Options of an evaluation, and of an attack; names are those of the command line.

    With ``matrix`` every attack is scored at every level, and images are attacked for all steps; without it at its own
    level only, and fooled images leave the batch.

    Raises:
        UsageError: a value is none of its option.
    """

    # fmt: off
    attack: tuple[str, ...] = option(SUITE, "Names with commas, none, or list.", shown=", ".join(SUITE))
    level: int | Literal["all"] | None = option(None, "Level attacked: a number or all.", shown="all for the default attacks, else 1 for superclass attacks")
    scoring: str = option("both", "Superclasses scored by their own prompt, by the sum of their leaves, or both.", choices=("prompt", "leaves", "both"))
    matrix: bool = option(True, "Score every attack at every level; without, at its own only: fooled images leave the batch.")
    eps: tuple[Fraction, ...] | None = option(None, "1/255, 0.0039 or 1/255,2/255.", shown="1/255, or the data's")
    step_size: Fraction | None = option(None, "Of each step of the attack.", shown="the larger of 1/255 and ε/4")
    steps: int | None = option(None, "Steps of the attack.", range=AT_LEAST_1, shown="the attack's own: 20 for PGD")
    restarts: int = option(1, "Runs of PGD and APGD from a random start each, on what is left.", range=AT_LEAST_1)
    random_start: bool = option(True, "PGD from a random point of the ball, or the image.")
    norm: str = option("linf", "What ε bounds: each entry of the perturbation, or its length.", choices=("linf", "l2"))
    template: str = option("photo", HELP)
    head: str | None = option(None, "cosine, hyperbolic or euclidean.", shown="the model's own")
    seed: int = option(0, "Of all that is random.")
    batch_size: int = option(128, "Images at a time.", range=AT_LEAST_1)
    workers: int | None = option(None, "Processes that read images ahead.", range=NOT_NEGATIVE, shown="0 on a CPU, on a GPU one per core, at most 16")

    defence: tuple[Any, ...] = option((), "Names with commas, in the order in which an image meets them, or list; `ttc:tau=0.1` changes a setting. Every attack comes twice: static, made against the model without them, and adaptive.", DEFENCES, shown="none")
    eot: int = option(4, "Draws over which an adaptive attack averages each gradient, where a defence is random.", DEFENCES, range=AT_LEAST_1)
    draw: str = option("unknown", "Does an adaptive attack know the random numbers by which each image is judged? Where it does, it needs no average.", DEFENCES, choices=("unknown", "known"))

    certify: float | None = option(None, "Attack nothing; certify at every level by Gaussian noise of this σ, in pixels of 0 to 1: such as 0.25.", CERTIFICATES, range=POSITIVE)
    samples: int = option(10_000, "Noisy copies of each image; papers take 100000, and fewer are marked as a preview.", CERTIFICATES, range=AT_LEAST_1)
    selection: int = option(100, "Noisy copies that choose the node to be certified.", CERTIFICATES, range=AT_LEAST_1)
    alpha: float = option(0.001, "Probability that the certificate of an image is wrong.", CERTIFICATES, range=PROBABILITY)
    confidence: str = option("per-level", "What alpha is about: each level by itself, or all levels of an image jointly.", CERTIFICATES, choices=("per-level", "joint"))
    # fmt: on

    def __post_init__(self) -> None:
        check(self)
        if self.certify is None:
            return
        if self.defence:
            raise UsageError(
                f"--defence {','.join(map(str, self.defence))} with --certify: certificates are about the model alone; "
                "leave out one of the two"
            )
        if self.samples < self.selection:
            raise UsageError(
                f"--samples {self.samples}: fewer than the {self.selection} of --selection, which only choose the node; "
                "take more samples (10000 for a preview), or a smaller --selection"
            )
        if attacks := [name for name in self.attack if name != "none"]:
            raise UsageError(
                f"--attack {','.join(attacks)} with --certify: a certificate needs no attack; leave out one of the two "
                "(a --preset brings attacks too)"
            )

    @property
    def scorings(self) -> tuple[str, ...]:
        """In which ways superclasses are scored."""
        return ("prompt", "leaves") if self.scoring == "both" else (self.scoring,)

    def as_config(self) -> dict[str, Any]:
        """As ``--config`` reads it back."""
        left_out = {"certify", *OF_CERTIFICATES} if self.certify is None else set()
        left_out |= set() if self.defence else {"defence", *OF_DEFENCES}
        found = {f.name.replace("_", "-"): getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        found |= {"defence": ",".join(map(str, self.defence))} if self.defence else {}
        found |= {"attack": ",".join(self.attack), "step-size": None if self.step_size is None else str(self.step_size)}
        return found | {"eps": None if self.eps is None else ",".join(map(str, self.eps))}
