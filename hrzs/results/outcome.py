"""What the page of a report shows beyond its JSON; `hrzs.evaluation.outcome` collects it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.hierarchy.tree import Tree


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


@dataclass(frozen=True)
class Pictures:
    """What the page shows of one dataset beyond the JSON; a field is None if nothing was attacked, or no image fell."""

    tree: Tree
    outcome: Outcome | None = None
    gallery: Gallery | None = None


def most_instructive(labels: Int[Tensor, "n"], was: Int[Tensor, "n"], lost: Int[Tensor, "n"], most: int) -> list[int]:
    """The images that lost most levels, and of these the ones right at most; one of each class before a second of any.

    Args:
        was: the number of levels at which an image was right when clean.
        lost: how many of these it lost.
    """
    order = sorted((i for i in range(len(labels)) if lost[i] > 0), key=lambda i: (-int(lost[i]), -int(was[i]), i))
    seen: Counter[int] = Counter()
    ranked = []
    for place, i in enumerate(order):
        ranked.append((seen[int(labels[i])], place, i))
        seen[int(labels[i])] += 1
    return [i for _, _, i in sorted(ranked)[:most]]
