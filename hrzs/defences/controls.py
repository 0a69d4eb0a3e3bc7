"""Controls: they defend against nothing, and look as if they did where the adversary does not know them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from hrzs.attacks import counter
from hrzs.defences.base import Purifier, Undefended
from hrzs.errors import UsageError


@dataclass(frozen=True)
class Quantise(Purifier):
    """Round every pixel to one of ``values`` values: an adversary without BPDA finds no gradient."""

    values: int = 16

    name: ClassVar[str] = "quantise"
    description: ClassVar[str] = "round pixels: a control, which defends against nothing (Athalye et al., ICML 2018)"
    adversary: ClassVar[str] = "Rounding is taken for the identity (BPDA)."

    def __post_init__(self) -> None:
        if self.values < 2:
            raise UsageError(f"--defence {self}: values must be at least 2")

    def purify(
        self, images: Float[Tensor, "B 3 H W"], undefended: Undefended, seeds: Sequence[int]  # noqa: ARG002
    ) -> Float[Tensor, "B 3 H W"]:  # fmt: skip
        top = self.values - 1
        return images + ((images * top).round() / top - images).detach()


@dataclass(frozen=True)
class Noise(Purifier):
    """Add Gaussian noise of ``sigma`` 255ths to every pixel."""

    sigma: float = 8.0

    name: ClassVar[str] = "noise"
    description: ClassVar[str] = "add Gaussian noise: a control, which an adversary averages out"
    adversary: ClassVar[str] = "The noise is averaged over (EOT)."
    needs_eot: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.sigma < 0:
            raise UsageError(f"--defence {self}: sigma cannot be negative")

    def purify(
        self, images: Float[Tensor, "B 3 H W"], undefended: Undefended, seeds: Sequence[int]  # noqa: ARG002
    ) -> Float[Tensor, "B 3 H W"]:  # fmt: skip
        noise = counter.standard_normal(seeds, images.shape[1:], images.device)
        return (images + self.sigma / 255 * noise).clamp(0, 1)
