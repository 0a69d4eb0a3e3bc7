"""Is a robust accuracy real, or are the gradients masked? A verdict from the canaries of an evaluation.

A masked model looks robust because its gradients lead an attack nowhere, not because nothing can be found (Athalye et
al., ICML 2018: shattered, stochastic, vanishing gradients). One sign is enough to suspect it; no number of good signs
proves the contrary (Carlini et al. 2019, "On Evaluating Adversarial Robustness").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hrzs.results.metrics import wilson

NONE_FOUND, SUSPECTED, INCONCLUSIVE = "none found", "suspected", "inconclusive"

#: What to do about each verdict.
ADVICE = {
    NONE_FOUND: "This is no proof: for a figure to publish, evaluate with --attack autoattack as well.",
    SUSPECTED: (
        "Do not trust the robust accuracy of this run, it is too high. Evaluate with attacks that need less of these "
        "gradients (--attack autoattack, or square and cw) and with more --steps, and report the lowest figure; then "
        "look for what cuts the gradients: a saturated softmax, rounding, randomness, or too few or too small steps."
    ),
    INCONCLUSIVE: (
        "Do not rely on the robust accuracy of this run alone: remove the causes named here (more images, all canaries "
        "run), or evaluate with --attack autoattack."
    ),
}

_ADVICE_ON_STATIC = (
    "The static figures say what the defences do to an adversary who does not know them. Do not report them as robust "
    "accuracy: report the adaptive ones."
)

#: Fewer images say nothing: even if none gives a sign, up to a fifth of all images might (Wilson's interval).
LEAST = 16
#: Fewer images with a sign raise no suspicion, out of however few: they may lie at a boundary by chance.
SUSPICIOUS = 3

#: What each canary shows where it fails; ``{n}`` is "COUNT of OF images", with the level unless it is the leaves';
#: ``{pgd}`` the white-box attack there.
_SIGNS = {
    "dead-gradients": "gradients are zero or not finite, where the attack was blind: {note}",
    "huge-eps": "{n} hold at an ε at which hardly anything can: the attack is blocked",
    "eps-monotone": "{n} fall at one ε and not at twice that, although what fools them lies in that ball too",
    "steps-monotone": "{n} fall to a quarter of the steps and not to all of them: luck decides, not the gradient",
    "one-step-vs-iterative": "{n} fall to a single step (FGSM) and not to {pgd}, which takes many",
    "noise-vs-white-box": "{n} fall to random noise and not to {pgd}, which follows the gradient",
    "margin-vs-ce": "{n} fall to PGD on the margin and not on the cross-entropy: a saturated softmax has no gradient",
    "square-vs-white-box": "{n} fall to Square, which takes no gradients, and not to {pgd}, which follows them",
    "gradient-check": (
        "on {n} the gradient points elsewhere than where the loss rises, as finite differences show: {pgd} is misled"
    ),
    "transfer-vs-white-box": "{n} fall to what was made against the untouched model and not to leaf-pgd on this one",
    "adaptive-vs-static": (
        "{n} hold under what was made against the model without its defences, and fall to an adversary who knows them "
        "({note})"
    ),
    "static-vs-adaptive": (
        "{n} fall to what was made against the model without its defences, and not to an adversary who knows them: its "
        "gradient leads elsewhere ({note})"
    ),
    "cosine-head": "{n} that hold under the model's own head fall to what leaf-pgd finds through its cosine head",
}


#: Share of the images attacked (for the cosine head: of those that hold) that may fall to the weaker attack only.
MISSED = 0.05
HELD_AT_HUGE = 0.05
UNTOUCHED = 0.25
DEAD = 0.01
ASTRAY = 0.02
#: The number of images whose gradients are compared with finite differences.
CHECKED = 32


@dataclass(frozen=True)
class Canary:
    """A check of the attacks: its measured ``value``, ``count / of`` (None: not measurable), and whether it is ``ok``.

    A value is ``ok`` unless it surely lies above ``bound``. ``applicable`` is False if there is nothing to measure.
    ``level`` is the superclass level attacked, which is in the name too; None for the leaves. Behind defences,
    ``adversary`` tells whose figures it is about.
    """

    name: str
    value: float | None
    expected: str
    ok: bool | None
    note: str = ""
    dataset: str = ""
    count: int | None = None
    of: int | None = None
    bound: float | None = None
    applicable: bool = True
    level: int | None = None
    adversary: str | None = None

    @property
    def kind(self) -> str:
        """The name without the level."""
        return self.name.partition("@")[0]


@dataclass(frozen=True)
class Masking:
    """Are the gradients of a model masked on ``dataset``? ``verdict``: none found, suspected or inconclusive.

    Behind defences there is one verdict for the figures of each ``adversary``.
    """

    dataset: str
    verdict: str
    reasons: tuple[str, ...]
    adversary: str | None = None

    @property
    def title(self) -> str:
        """What the verdict is about."""
        return self.dataset if self.adversary is None else f"{self.dataset}, {self.adversary}"

    @property
    def advice(self) -> str:
        """What to do about it."""
        about_static = self.adversary == "static" and self.verdict == SUSPECTED
        return _ADVICE_ON_STATIC if about_static else ADVICE[self.verdict]


def verdicts(canaries: Sequence[Canary]) -> list[Masking]:
    """One verdict for each dataset that has canaries, and each adversary."""
    return [
        Masking(dataset, *verdict_of([c for c in canaries if (c.dataset, c.adversary) == (dataset, who)]), who)
        for dataset, who in dict.fromkeys((c.dataset, c.adversary) for c in canaries)
    ]


def verdict_of(canaries: Sequence[Canary]) -> tuple[str, tuple[str, ...]]:
    """The verdict on the canaries of one dataset, and why.

    Suspected, if any sign surely lies above its bound, on three images at least. Else inconclusive, if a sign lies
    above its bound maybe by chance, could not be measured, or rests on too few images, or if the attack does not fool
    an untouched model either. `power` tells what this rule notices.
    """
    signs = [c for c in canaries if c.kind in _SIGNS and c.applicable]
    suspected = tuple(
        _SIGNS[c.kind].format(n=_images(c), note=c.note, pgd="leaf-pgd" if c.level is None else "superclass-pgd")
        for c in signs
        if c.ok is False and c.count is not None and c.count >= SUSPICIOUS
    )
    if suspected:
        return SUSPECTED, suspected
    doubts = [
        *(f"{c.name}: {_images(c)}, more than the {c.bound} expected, but so few may be chance"
          for c in signs if c.bound is not None and c.value is not None and c.value > c.bound),
        *(f"{c.name}: {c.note}" for c in signs if c.value is None),
        *_few_images(signs),
        *(f"{c.name}: {_images(c)} of an untouched model hold: the attack is too weak to judge by, or that model was "
          "made robust elsewhere" for c in canaries if c.name == "untouched-model" and c.ok is False),
    ]  # fmt: skip
    return (INCONCLUSIVE, tuple(doubts)) if doubts else (NONE_FOUND, _found(signs))


def _images(canary: Canary) -> str:
    unit = "gradients" if canary.kind == "dead-gradients" else "images"
    where = "" if canary.level is None else f" at level {canary.level}"
    return f"{canary.count} of {canary.of} {unit}{where}"


def _few_images(signs: Sequence[Canary]) -> list[str]:
    """A sentence for each level (the leaves' first) that has too few images to say anything."""
    found = []
    for level in dict.fromkeys(c.level for c in signs):
        attacked = _attacked([c for c in signs if c.level == level])
        if attacked is not None and attacked < LEAST:
            where = "" if level is None else f" at level {level}"
            found.append(
                f"only {attacked} images are right when clean{where}: had none of them given a sign, up to "
                f"{100 * wilson(0, attacked)[1]:.0f}% of all images still might"
            )
    return found


def _found(signs: Sequence[Canary]) -> tuple[str, ...]:
    largest = max((c for c in signs if c.count is not None and c.kind != "dead-gradients"), default=None, key=_count)
    if largest is None:
        return ()
    shown = f"the largest is {largest.name}, {_images(largest)}" if largest.count else f"none on {largest.of} images"
    return (f"{len(signs)} signs were looked for: {shown}",)


def _count(canary: Canary) -> int:
    return canary.count or 0


def _attacked(signs: Sequence[Canary]) -> int | None:
    return max((c.of for c in signs if c.of is not None and c.kind != "dead-gradients"), default=None)


# -- what the rule notices ---------------------------------------------------------------------------------------------


def least_count(images: int, bound: float = MISSED) -> int | None:
    """On how many of ``images`` a canary must give a sign for the verdict "suspected"; None: all are too few."""
    counts = range(SUSPICIOUS, images + 1)
    return next((count for count in counts if wilson(count, images)[0] > bound), None)


def power(share: float, images: int, bound: float = MISSED) -> float:
    """The chance that one canary alone makes the verdict "suspected".

    Args:
        share: of the images attacked, those that show the sign: the attack misses them, and another finds them.
        images: attacked, that is, right when clean; drawn independently.
        bound: what the canary allows.
    """
    least = least_count(images, bound)
    if least is None:
        return 0.0
    fewer = sum(math.comb(images, k) * share**k * (1 - share) ** (images - k) for k in range(least))
    return min(max(1 - fewer, 0.0), 1.0)


def power_table() -> str:
    """The chances of `power` as a table in Markdown (docs/evaluation.md)."""
    columns = [("canary", n, MISSED) for n in (8, 16, 24, 32, 48, 64)] + [
        ("`gradient-check`", n, ASTRAY) for n in (16, CHECKED)
    ]
    lines = [
        "| share missed | " + " | ".join(f"{name}, {n} images" for name, n, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        "| needed | " + " | ".join(str(least_count(n, bound)) for _, n, bound in columns) + " |",
    ]
    for share in (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5):
        cells = (f"{100 * power(share, n, bound):.0f}" for _, n, bound in columns)
        lines.append(f"| {100 * share:.0f}% | " + " | ".join(cells) + " |")
    return "\n".join(lines)
