"""The contract of every defence, and of the model that it makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrzs.attacks import AttackResult, Budget
from hrzs.attacks.ball import Ball
from hrzs.attacks.base import Search, features_of
from hrzs.attacks.objectives import LevelObjective
from hrzs.attacks.pgd import PGD
from hrzs.defences import DEFENCES, Defence, Defended, Predictor, Purifier, Undefended, defences, r_tpt
from hrzs.errors import UsageError
from hrzs.models.classifier import ZeroShotClassifier, sum_leaves
from hrzs.models.clip import ClipModel

SEEDS = [3, 1, 4, 15, 9, 2**56 - 1]
#: One of each, small, and stacks of them.
EVERY = {
    "ttc": ["ttc:tau=9"],
    "r-tpt": ["r-tpt:views=8:attack_views=5:neighbours=3:surest=0.3"],
    "et3": ["et3:steps=2"],
    "et3, held constant": ["et3:steps=2:unroll=0"],
    "quantise": ["quantise"],
    "noise": ["noise"],
    "noise + et3 + r-tpt": ["noise", "et3:steps=1", "r-tpt:views=4:attack_views=3:neighbours=2:surest=0.5"],
}
every_defence = pytest.mark.parametrize("names", EVERY.values(), ids=EVERY)
RANDOM = [names for names in EVERY.values() if names[0].partition(":")[0] not in ("et3", "quantise")]
random_ones = pytest.mark.parametrize("names", RANDOM, ids=" + ".join)
BUDGET = Budget(Fraction(8, 255), Fraction(4, 255), 3)


@dataclass(frozen=True)
class Recorder(Purifier):
    """Changes nothing, and keeps the seeds that it is given."""

    seen: ClassVar[list[tuple[int, ...]]] = []
    name: ClassVar[str] = "recorder"
    needs_eot: ClassVar[bool] = True

    @property
    def passes(self) -> float:
        return 0.0

    def purify(self, images: Tensor, _undefended: Undefended, seeds: Sequence[int]) -> Tensor:
        self.seen.append(tuple(seeds))
        return images


@pytest.fixture
def recorder() -> Recorder:
    Recorder.seen.clear()
    return Recorder()


@pytest.fixture
def behind(undefended: Undefended) -> Callable[..., Defended]:
    """The model behind defences, for the six images or others."""

    def made(names: Sequence[str | Defence], seeds: Sequence[int] = SEEDS, eot: int = 1) -> Defended:
        model, classifier = undefended.model, undefended.classifier
        assert isinstance(model, ClipModel)
        assert isinstance(classifier, ZeroShotClassifier)
        return Defended(model, classifier, defences(names), eot=eot).of(seeds)

    return made


def search(model: Defended, pixels: Tensor, rows: Sequence[int] = range(6)) -> Search:
    labels = torch.arange(6)[list(rows)]
    return Search.of(model, LevelObjective(model.classifier, 0), Ball.of(pixels[list(rows)].float(), BUDGET), labels)


def probed(model: Defended, pixels: Tensor, rows: Sequence[int] = range(6)) -> tuple[Tensor, Tensor]:
    images = pixels[list(rows)]
    outcome, gradient = search(model, pixels, rows).probe(images, AttackResult.of(images))
    return outcome.loss, gradient


def same(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-7, atol=1e-7 * expected.abs().max().item())


def test_every_defence_is_tried() -> None:
    assert EVERY.keys() > DEFENCES.keys()


# -- seeds ------------------------------------------------------------------------------------------------------------


@every_defence
def test_verdicts_and_gradients_depend_on_neither_batch_nor_order(
    behind: Callable[..., Defended], pixels: Tensor, names: list[str]
) -> None:
    with torch.no_grad():
        verdict = behind(names).encode_image(pixels)
        assert torch.equal(behind(names).encode_image(pixels), verdict)
    loss, gradient = probed(behind(names, eot=2), pixels)
    for rows in ([4], [5, 0, 2]):
        seeds = [SEEDS[row] for row in rows]
        with torch.no_grad():
            assert same(behind(names, seeds).encode_image(pixels[rows]), verdict[rows])
        own_loss, own_gradient = probed(behind(names, seeds, eot=2), pixels, rows)
        assert same(own_loss, loss[rows])
        assert same(own_gradient, gradient[rows])


@every_defence
def test_a_selection_goes_on_where_the_whole_is(
    behind: Callable[..., Defended], pixels: Tensor, names: list[str]
) -> None:
    whole = behind(names)
    mask = torch.tensor([False, True, False, False, True, True])
    kept = {"indices": torch.tensor([4, 1]), "mask": mask, "slice": slice(2, 5)}
    chosen = {kind: whole.select(rows) for kind, rows in kept.items()}  # before the clock moves on
    for _ in range(2):
        with torch.no_grad():
            features = whole.encode_image(pixels)
            for kind, rows in kept.items():
                assert same(chosen[kind].encode_image(pixels[rows]), features[rows])
        chosen["mask"].advance()


@given(st.lists(st.integers(0, 2**56 - 1), min_size=1, max_size=8), st.data())
def test_seeds_of_a_selection(undefended: Undefended, seeds: list[int], data: st.DataObject) -> None:
    model, classifier = undefended.model, undefended.classifier
    assert isinstance(model, ClipModel)
    assert isinstance(classifier, ZeroShotClassifier)
    whole = Defended(model, classifier, [Recorder()]).of(seeds)
    rows = data.draw(st.lists(st.integers(0, len(seeds) - 1)))
    mask = torch.zeros(len(seeds), dtype=torch.bool)
    mask[rows] = True
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(seeds))] * 2)))
    assert list(whole.select(torch.tensor(rows, dtype=torch.long)).seeds) == [seeds[row] for row in rows]
    assert list(whole.select(mask).seeds) == [seeds[row] for row in sorted(set(rows))]
    assert list(whole.select(slice(start, end)).seeds) == seeds[start:end]
    assert list(whole.seeds) == seeds


@random_ones
def test_random_ones_draw_anew_at_every_advance(
    behind: Callable[..., Defended], pixels: Tensor, names: list[str]
) -> None:
    model = behind(names)
    with torch.no_grad():
        first = model.encode_image(pixels)
        model.advance()
        second = model.encode_image(pixels)
        assert not (first == second).all(1).any()
        assert torch.equal(model.encode_image(pixels), second)
        assert torch.equal(model.of(SEEDS).encode_image(pixels), first)  # whose clock is its own
        assert torch.equal(model.encode_image(pixels), second)


def test_no_two_draws_have_a_seed_in_common(
    behind: Callable[..., Defended], recorder: Recorder, pixels: Tensor
) -> None:
    """Neither those of a verdict and of an attack, nor those of two steps, two draws or two places of a stack."""
    model = behind([recorder, recorder], eot=3)
    features_of(model, pixels)
    verdict = set(sum(recorder.seen, ()))
    assert len(recorder.seen) == 2
    attacked = search(model, pixels)
    for _ in range(4):
        attacked.probe(pixels, AttackResult.of(pixels))
        attacked.outcome(pixels)
    assert len(recorder.seen) == 2 + 4 * (2 * 3 + 2)
    seeds = sum(recorder.seen, ())
    assert len(set(seeds)) == len(seeds)
    recorder.seen.clear()
    features_of(model.of(SEEDS), pixels)
    assert set(sum(recorder.seen, ())) == verdict


# -- attacks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["noise"], ["ttc:tau=9"], ["quantise", "noise"]], ids=" + ".join)
def test_eot_is_the_mean_over_draws(behind: Callable[..., Defended], pixels: Tensor, names: list[str]) -> None:
    loss, gradient = probed(behind(names, eot=3), pixels)
    model = behind(names, eot=3)
    model.advance()
    assert len(model.draws()) == 3
    objective = LevelObjective(model.classifier, 0)
    losses, gradients = [], []
    for draw in model.draws():
        images = pixels.clone().requires_grad_()
        losses.append(objective(draw.encode_image(images), torch.arange(6)).loss)
        gradients.append(torch.autograd.grad(losses[-1].sum(), images)[0])
    assert same(gradient, sum(gradients) / 3)
    assert same(loss, sum(losses) / 3)
    assert not same(gradients[0], gradients[1])


def test_a_gradient_needs_one_draw_where_nothing_is_noisy(behind: Callable[..., Defended]) -> None:
    assert {title: behind(names, eot=5).eot for title, names in EVERY.items()} == {
        "ttc": 5,
        "r-tpt": 1,
        "et3": 1,
        "et3, held constant": 1,
        "quantise": 1,
        "noise": 5,
        "noise + et3 + r-tpt": 5,
    }


@every_defence
def test_slices_of_a_batch_are_the_batch(
    behind: Callable[..., Defended], pixels: Tensor, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = behind(names, eot=2)
    assert whole.at_once is None
    loss, gradient = probed(whole, pixels)
    features = features_of(behind(names), pixels)
    sliced = behind(names, eot=2)
    monkeypatch.setattr(sliced.model, "at_once", 10)
    assert sliced.at_once == 10 // max(defence.expansion for defence in sliced.defences)
    own_loss, own_gradient = probed(sliced, pixels)
    assert same(own_loss, loss)
    assert same(own_gradient, gradient)
    monkeypatch.setattr(sliced.model, "at_once", 1)
    assert sliced.at_once == 1
    assert same(features_of(behind(names), pixels), features)


@pytest.mark.parametrize("names", [["noise"], ["ttc:tau=9", "et3:steps=1"]], ids=" + ".join)
def test_an_attack_goes_through_the_defence(behind: Callable[..., Defended], pixels: Tensor, names: list[str]) -> None:
    """Its images stay in the ball, and depend on neither batch nor fooled neighbours."""
    model, rows = behind(names, eot=2), [4, 1]
    images, labels, attack = pixels.float(), torch.arange(6), PGD(BUDGET)
    found = attack(model, LevelObjective(model.classifier, 0), images, labels, SEEDS)
    assert Ball.of(images, BUDGET).contains(found.images).all()
    assert found.zero_gradients == found.bad_gradients == 0
    seeds = [SEEDS[row] for row in rows]
    alone = attack(
        behind(names, seeds, eot=2), LevelObjective(model.classifier, 0), images[rows], labels[rows], seeds
    )  # fmt: skip
    assert torch.allclose(alone.images, found.images[rows], atol=1e-5)
    assert model.base is model.model


# -- stacks and predictors --------------------------------------------------------------------------------------------


def test_images_meet_the_defences_in_order(behind: Callable[..., Defended], pixels: Tensor) -> None:
    model = behind(["noise:sigma=40", "quantise:values=2"])
    assert model.title == "noise + quantise"
    assert str(model) == "noise:sigma=40,quantise:values=2"
    with torch.no_grad():
        there, back = (behind(names).encode_image(pixels) for names in (["quantise", "noise"], ["noise", "quantise"]))
        one, two = model.defences
        assert isinstance(one, Purifier)
        assert isinstance(two, Purifier)
        noisy = one.purify(pixels, model.undefended, SEEDS)
        expected = model.model.encode_image(two.purify(noisy, model.undefended, SEEDS))
        assert torch.allclose(model.encode_image(pixels), expected)
    assert not torch.allclose(there, back)


def test_nothing_follows_a_predictor(behind: Callable[..., Defended]) -> None:
    (predictor,) = defences(["r-tpt"])
    for names in (["r-tpt", "noise"], ["noise", "r-tpt", "et3"], ["r-tpt", "r-tpt"], [predictor, predictor]):
        with pytest.raises(UsageError, match=r"--defence: r-tpt gives probabilities .*; name it last"):
            behind(names)
    assert behind(["noise", "r-tpt"]).title == "noise + r-tpt"


def test_a_defence_that_the_model_cannot_have(undefended: Undefended) -> None:
    model, classifier = undefended.model, undefended.classifier
    assert isinstance(model, ClipModel)
    with pytest.raises(UsageError, match="--template photo"):
        Defended(model, ZeroShotClassifier(model, classifier.tree, "name"), defences(["noise", "r-tpt"]))


def test_scores_of_a_predictor_are_logits_of_every_level(
    behind: Callable[..., Defended], undefended: Undefended, pixels: Tensor
) -> None:
    @dataclass(frozen=True)
    class Plain(Predictor):
        """The classifier itself, as a predictor."""

        @property
        def passes(self) -> float:
            return 0.0

        def scores(self, images: Tensor, undefended: Undefended, _seeds: Sequence[int]) -> Tensor:
            features = undefended.features(images)
            return torch.cat([undefended.classifier.logits(features, level) for level in range(3)], 1)

    model, classifier = behind([Plain()]), undefended.classifier
    features, scores = undefended.features(pixels), model.encode_image(pixels)
    for level in range(3):
        for scoring in ("prompt", "leaves"):
            expected = classifier.logits(features, level, scoring)
            assert torch.allclose(model.classifier.logits(scores, level, scoring), expected)
    leaves = sum_leaves(classifier.logits(features), classifier.ancestors[2], 2)
    assert torch.allclose(model.classifier.logits(scores, 2, "leaves"), leaves)
    assert torch.equal(model.classifier.labels(torch.arange(6), 1), classifier.labels(torch.arange(6), 1))
    assert behind(["noise"]).classifier is classifier


# -- costs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [*EVERY.values(), ["ttc:steps=0"], ["ttc"], ["et3:steps=0"]], ids=" + ".join)
def test_passes_are_those_made(
    behind: Callable[..., Defended], pixels: Tensor, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward pass counts one, and a gradient, which needs a backward pass too, three. So do prompts."""
    model, made, read = behind(names), [0, 0], [0]
    encode, differentiate, encode_texts = ClipModel.encode_image, torch.autograd.grad, r_tpt.encode

    def counted(self: ClipModel, images: Tensor, precision: str | None = None) -> Tensor:
        made[0] += len(images)
        return encode(self, images, precision)

    def backward(loss: Tensor, x: Tensor, **options: bool) -> tuple[Tensor, ...]:
        made[1] += 2 * len(x) if x.ndim == 4 else 0  # images, and no words of a prompt
        return differentiate(loss, x, **options)

    def reading(encoder: ClipModel, tokens: Tensor, context: Tensor) -> Tensor:
        read[0] += len(tokens) * len(context) * (3 if context.requires_grad and torch.is_grad_enabled() else 1)
        return encode_texts(encoder, tokens, context)

    a_prompt = model.model.passes_of_a_prompt(model.undefended.classifier.tokens)
    monkeypatch.setattr(ClipModel, "encode_image", counted)
    monkeypatch.setattr(torch.autograd, "grad", backward)
    monkeypatch.setattr(r_tpt, "encode", reading)
    features_of(model, pixels)
    assert sum(made) + a_prompt * read[0] == pytest.approx(6 * (1 + model.passes))
    assert sum(made) == pytest.approx(6 * (1 + model.passes - sum(model.reading)))


def test_costs_of_a_stack(behind: Callable[..., Defended]) -> None:
    model = behind(["ttc", "et3", "r-tpt"], eot=4)
    # Words are tuned on the 7 names of the 6 leaves, forward and backward. In the end all 11 prompts are read.
    prompts = (3 * 7 + 11) * model.model.passes_of_a_prompt(model.undefended.classifier.tokens)
    assert model.passes_of_each == pytest.approx((7, 15, 63 + prompts))
    assert model.passes == pytest.approx(7 + 15 + 63 + prompts)
    assert model.attack_passes == pytest.approx(4 * (1 + 7 / 3 + 3.75 * 5 + 15 + prompts / 3))
    assert model.gradients == 2 + 5 + 1
