"""Is a robust accuracy real, or are the gradients masked? A verdict from the canaries of an evaluation.

A masked model looks robust because its gradients lead an attack nowhere, not because nothing can be found (Athalye et
al., ICML 2018: shattered, stochastic, vanishing gradients). One sign is enough to suspect it; no number of good signs
proves the contrary (Carlini et al. 2019, "On Evaluating Adversarial Robustness").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hrzs.evaluation.canaries import Canary
from hrzs.evaluation.metrics import wilson

NONE_FOUND, SUSPECTED, INCONCLUSIVE = "none found", "suspected", "inconclusive"

#: What to do about it.
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

#: Fewer images than these say nothing: even if none gave a sign, up to a fifth of all might (Wilson's interval).
LEAST = 16
#: Fewer images than these lie at a boundary by chance, out of however few: they raise no suspicion.
SUSPICIOUS = 3

#: What each canary shows where it fails; ``{n}`` is "COUNT of OF images".
_SIGNS = {
    "dead-gradients": "gradients are zero or not finite, where the attack was blind: {note}",
    "huge-eps": "{n} hold at an ε at which hardly anything can: the attack is blocked",
    "eps-monotone": "{n} fall at one ε and not at twice that, although what fools them lies in that ball too",
    "steps-monotone": "{n} fall to a quarter of the steps and not to all of them: luck decides, not the gradient",
    "one-step-vs-iterative": "{n} fall to a single step (FGSM) and not to leaf-pgd, which takes many",
    "noise-vs-white-box": "{n} fall to random noise and not to leaf-pgd, which follows the gradient",
    "margin-vs-ce": "{n} fall to PGD on the margin and not on the cross-entropy: a saturated softmax has no gradient",
    "square-vs-white-box": "{n} fall to Square, which takes no gradients, and not to leaf-pgd, which follows them",
    "transfer-vs-white-box": "{n} fall to what was made against the untouched model and not to leaf-pgd on this one",
    "cosine-head": "{n} that hold under the model's own head fall to what leaf-pgd finds through its cosine head",
}


@dataclass(frozen=True)
class Masking:
    """Are the gradients of a model masked on ``dataset``? ``verdict``: none found, suspected or inconclusive."""

    dataset: str
    verdict: str
    reasons: tuple[str, ...]


def verdicts(canaries: Sequence[Canary]) -> list[Masking]:
    """One verdict for each dataset that has canaries."""
    return [
        Masking(dataset, *verdict_of([c for c in canaries if c.dataset == dataset]))
        for dataset in dict.fromkeys(c.dataset for c in canaries)
    ]


def verdict_of(canaries: Sequence[Canary]) -> tuple[str, tuple[str, ...]]:
    """The verdict on the canaries of one dataset, and why.

    Suspected, if any sign surely lies above its bound, on three images at least. Else inconclusive, if one lies above
    it but may do so by chance, could not be measured, or rests on too few images, or if the attack does not fell an
    untouched model either.
    """
    signs = [c for c in canaries if c.name in _SIGNS and c.applicable]
    suspected = tuple(
        _SIGNS[c.name].format(n=_images(c), note=c.note)
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
    unit = "gradients" if canary.name == "dead-gradients" else "images"
    return f"{canary.count} of {canary.of} {unit}"


def _few_images(signs: Sequence[Canary]) -> list[str]:
    attacked = _attacked(signs)
    if attacked is None or attacked >= LEAST:
        return []
    return [
        f"only {attacked} images are right when clean: had none of them given a sign, up to "
        f"{100 * wilson(0, attacked)[1]:.0f}% of all images still might"
    ]


def _found(signs: Sequence[Canary]) -> tuple[str, ...]:
    largest = max((c for c in signs if c.count is not None and c.name != "dead-gradients"), default=None, key=_count)
    if largest is None:
        return ()
    shown = f"the largest is {largest.name}, {_images(largest)}" if largest.count else f"none on {largest.of} images"
    return (f"{len(signs)} signs were looked for: {shown}",)


def _count(canary: Canary) -> int:
    return canary.count or 0


def _attacked(signs: Sequence[Canary]) -> int | None:
    return max((c.of for c in signs if c.of is not None and c.name != "dead-gradients"), default=None)
