"""What became of every image of an evaluation, and examples of it; `hrzs.evaluation.outcome` finds both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """What became of every image of a dataset at one ε.

    ``clean`` says which images are right at each level 0 … L-1. ``robust[level]`` says which of them also hold under
    every attack that aimed at that level; a level that no attack aimed at is not among its keys. ``taken_for`` is the
    class predicted under the strongest attack on the leaves, None where there was none.
    """

    eps: str
    labels: Int[Tensor, "n"]
    clean: Bool[Tensor, "levels n"]
    robust: Mapping[int, Bool[Tensor, "n"]]
    taken_for: Int[Tensor, "n"] | None


@dataclass(frozen=True)
class Example:
    """One image before and after, with the predicted node at each level 0 … L-1."""

    id: str
    label: int
    clean: Float[Tensor, "3 H W"]
    adversarial: Float[Tensor, "3 H W"]
    before: Int[Tensor, "levels"]
    after: Int[Tensor, "levels"]


@dataclass(frozen=True)
class Gallery:
    """Some adversarial images; ``title`` says which attack made them."""

    title: str
    examples: Sequence[Example]
