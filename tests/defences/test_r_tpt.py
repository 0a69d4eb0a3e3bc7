from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import hflip, resized_crop

from hrzs.attacks import counter
from hrzs.defences import RTPT, Undefended, r_tpt
from hrzs.defences.r_tpt import agreement, context_length, draw_views, embedding_of, encode, entropy, tune
from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Tree
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel

SEEDS = [3, 1, 4, 15, 9, 2**56 - 1]
SMALL = RTPT(views=10, attack_views=6, surest=0.3, neighbours=4)


def parts(undefended: Undefended) -> tuple[ClipModel, ZeroShotClassifier]:
    model, classifier = undefended.model, undefended.classifier
    assert isinstance(model, ClipModel)
    assert isinstance(classifier, ZeroShotClassifier)
    return model, classifier


# -- views ------------------------------------------------------------------------------------------------------------


def boxes(height: int, width: int, count: int, seed: int) -> list[tuple[int, int, int, int, bool]]:
    """Top, left, height, width and whether it is turned over: torchvision's rule, on the draws of the defence."""
    found = []
    for draw in counter.uniform([seed], (count, 23), torch.device("cpu"))[0].tolist():
        down, across = height, width
        for share, shape in zip(draw[:10], draw[10:20], strict=True):
            area = height * width * (0.08 + 0.92 * share)
            ratio = math.exp(math.log(3 / 4) + shape * (math.log(4 / 3) - math.log(3 / 4)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                down, across = h, w
                break
        top, left = (
            math.floor(d * (room + 1)) for d, room in zip(draw[20:22], (height - down, width - across), strict=True)
        )
        found.append((top, left, down, across, draw[22] < 0.5))
    return found


@pytest.mark.parametrize("shape", [(12, 12), (32, 32), (9, 17)])
def test_views_are_those_of_torchvision(shape: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    views = draw_views(images, 40, [5, 2**56 - 1])
    assert views.shape == (2, 40, 3, *shape)
    assert torch.equal(views[:, 0], images)
    turned = 0
    for image, seed, own in zip(images, (5, 2**56 - 1), views, strict=True):
        for box, view in zip(boxes(*shape, 39, seed), own[1:], strict=True):
            *place, over = box
            expected = resized_crop(image, *place, list(shape), InterpolationMode.BILINEAR, antialias=True)
            assert torch.allclose(view, hflip(expected) if over else expected, atol=1e-5)
            turned += over
    assert 20 <= turned <= 58


def drawn(height: int, width: int, count: int, seeds: list[int]) -> Tensor:
    """Top, left, height, width and whether it is turned over, read off views of an image of coordinates."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, rows]).float().expand(len(seeds), -1, -1, -1)
    views = draw_views(image, count, seeds)[:, 1:].flatten(0, 1)
    first, last = views[:, :, 0, 0].round(), views[:, :, -1, -1].round()
    top, bottom = first[:, 0], last[:, 0]
    left, right = torch.minimum(first[:, 1], last[:, 1]), torch.maximum(first[:, 1], last[:, 1])
    return torch.stack([top, left, bottom - top + 1, right - left + 1, (first[:, 1] > last[:, 1]).float()], 1)


@settings(max_examples=25)
@given(height=st.integers(2, 40), width=st.integers(2, 40), seed=st.integers(0, 2**56 - 1))
def test_crops_lie_within_the_image_and_its_bounds(height: int, width: int, seed: int) -> None:
    for top, left, down, across, _ in drawn(height, width, 20, [seed]).tolist():
        assert top >= 0
        assert left >= 0
        assert top + down <= height
        assert left + across <= width
        if (down, across) != (height, width):  # sides are rounded to pixels
            assert (down + 0.5) * (across + 0.5) >= 0.08 * height * width
            assert (across + 0.5) / (down - 0.5) >= 3 / 4
            assert (across - 0.5) / (down + 0.5) <= 4 / 3


def test_crops_are_distributed_as_torchvision_draws_them() -> None:
    side, n = 32, 1500
    ours = drawn(side, side, 51, list(range(n // 50)))
    torch.manual_seed(0)
    image = torch.zeros(3, side, side)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])
    for place in range(4):
        assert ks_2samp(ours[:, place].numpy(), theirs[:, place].numpy()).pvalue > 0.001
    assert ours[:, 4].mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(n))


def test_views_do_not_depend_on_the_batch_nor_on_their_number() -> None:
    images = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    whole = draw_views(images, 8, [1, 2, 3])
    assert torch.allclose(draw_views(images[[2, 0]], 8, [3, 1]), whole[[2, 0]], atol=1e-6)
    assert torch.allclose(draw_views(images, 4, [1, 2, 3]), whole[:, :4], atol=1e-6)
    assert not torch.allclose(draw_views(images, 8, [4, 2, 3])[0], whole[0], atol=0.1)


# -- weights ----------------------------------------------------------------------------------------------------------


@given(views=st.integers(2, 30), neighbours=st.integers(1, 40), seed=st.integers(0, 999))
def test_agreement(views: int, neighbours: int, seed: int) -> None:
    features = torch.randn(views, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1
    weights = agreement(features, neighbours)
    scores = []
    for i, one in enumerate(features):
        cosines = [torch.cosine_similarity(one, other, dim=0).item() for j, other in enumerate(features) if j != i]
        nearest = sorted(cosines, reverse=True)[:neighbours]
        scores.append(sum(nearest) / len(nearest))
    expected = [math.exp((score - max(scores)) / 0.01) for score in scores]
    assert weights.tolist() == pytest.approx([e / sum(expected) for e in expected], rel=1e-9)
    assert weights.sum().item() == pytest.approx(1)


def test_a_copy_of_a_view_is_a_neighbour_but_the_view_itself_is_not() -> None:
    features = torch.eye(4, dtype=torch.float64)[[0, 0, 1, 2, 3]]
    assert agreement(features, 1).tolist() == pytest.approx([0.5, 0.5, 0, 0, 0])


def test_entropy() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, 200.0, 3.0]], requires_grad=True)
    found = entropy(logits)
    assert found.tolist() == pytest.approx([math.log(3), 0])
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.isfinite().all()


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_words_that_all_prompts_begin_with(undefended: Undefended) -> None:
    model, classifier = parts(undefended)
    assert context_length(model.tokenize(classifier.prompts.texts)) == 4  # a photo of a
    assert context_length(model.tokenize(["red cat", "red dog"])) == 1
    for texts in (["cat", "dog"], ["a cat", "the cat"], ["a cat", "a cat"]):
        with pytest.raises(UsageError, match=r"have none in common; give --template photo"):
            context_length(model.tokenize(texts))


def test_models_that_it_does_not_fit(undefended: Undefended, tree: Tree) -> None:
    model, classifier = parts(undefended)
    RTPT().check(undefended)
    with pytest.raises(UsageError, match="--template photo"):
        RTPT().check(Undefended(model, ZeroShotClassifier(model, tree, "name")))
    other = copy.copy(model)
    other._modules = dict(model._modules)
    other.clip = copy.copy(model.clip)
    other.clip._modules = dict(model.clip._modules, token_embedding=nn.Identity())
    with pytest.raises(UsageError, match="takes none as vectors; take ttc or et3"):
        embedding_of(other)
    with pytest.raises(UsageError, match="takes none as vectors"):
        RTPT().check(Undefended(other, classifier))
    from hrzs.models.encoder import ImageEncoder

    with pytest.raises(UsageError, match="this model has none; take ttc or et3"):
        RTPT().check(Undefended(ImageEncoder(), classifier))


@pytest.mark.parametrize("custom_text", [False, True])
def test_untouched_words_are_the_prompts(make: Callable[..., ClipModel], custom_text: bool) -> None:
    model = make(custom_text=custom_text)
    texts = ["a photo of a dog.", "a photo of a coach."]
    tokens = model.tokenize(texts)
    words = embedding_of(model)(tokens[0, 1:5])
    changed = words + torch.randn(4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = encode(model, tokens, torch.stack([words, changed]))
    assert found.shape == (2, 2, 24)
    assert torch.allclose(found[0], model.encode_text(texts), rtol=1e-12)
    assert torch.allclose(found[1], encode(model, tokens, changed[None])[0], rtol=1e-12)
    assert not torch.allclose(found[0], found[1], rtol=0.01)
    assert torch.equal(model.encode_text(texts), model.encode_text(texts))  # the hook is gone


@pytest.mark.parametrize("steps", [1, 3])
def test_tuning_makes_the_surest_views_surer(undefended: Undefended, pixels: Tensor, steps: int) -> None:
    _, classifier = parts(undefended)
    features = undefended.features(draw_views(pixels, 10, SEEDS).flatten(0, 1)).view(6, 10, -1)
    # So small a step that an untrained text encoder is nearly linear along it.
    tuned = tune(replace(SMALL, steps=steps, rate=2e-4), features, undefended)
    assert not tuned.requires_grad
    for own, texts in zip(features, tuned, strict=True):
        before = entropy(classifier.logits(own)).sort()
        after = entropy(classifier.head.logits(own[before.indices[:3]], texts[classifier.columns[0]]))
        assert after.mean() < before.values[:3].mean()


def test_without_steps_the_texts_are_the_classifiers(undefended: Undefended, pixels: Tensor) -> None:
    _, classifier = parts(undefended)
    features = undefended.features(pixels)[:, None].repeat(1, 3, 1)
    texts = tune(replace(SMALL, steps=0), features, undefended)
    assert torch.allclose(texts, classifier.prepared.expand_as(texts), rtol=1e-12)


def test_images_that_the_text_encoder_takes_at_once(
    undefended: Undefended, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SMALL.scores(pixels, undefended, SEEDS)
    monkeypatch.setattr(r_tpt, "_PROMPTS", 1)
    assert torch.allclose(SMALL.scores(pixels, undefended, SEEDS), whole, rtol=1e-9)


# -- the whole --------------------------------------------------------------------------------------------------------


def naive(one: RTPT, undefended: Undefended, image: Tensor, seed: int) -> Tensor:
    """Logits of all columns for one image, from the paper and from open_clip's own layers."""
    model, classifier = parts(undefended)
    clip, tree = model.clip, classifier.tree
    views = draw_views(image[None], one.views, [seed])[0]
    images = F.normalize(undefended.features(views), dim=1)
    prompts = {
        id(node): [f"a photo of a {name}." for name in node.prompt_names]
        for level in tree.levels[: tree.height]
        for node in level
    }

    def text(context: Tensor, prompt: str) -> Tensor:
        tokens = model.tokenize([prompt])
        x = clip.token_embedding(tokens)
        x = torch.cat([x[:, :1], context[None], x[:, 5:]], 1) + clip.positional_embedding
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))
        return F.normalize((x[0, tokens[0].argmax()] @ clip.text_projection), dim=0)

    def logits(context: Tensor, level: int) -> Tensor:
        means = [
            sum(text(context, prompt) for prompt in prompts[id(node)]) / len(prompts[id(node)])
            for node in tree.levels[level]
        ]
        return 100 * images @ F.normalize(torch.stack(means), dim=1).T

    def entropies(scores: Tensor) -> Tensor:
        p = scores.exp() / scores.exp().sum(1, keepdim=True)
        return -(p * p.log()).sum(1)

    context = clip.token_embedding(model.tokenize(["a photo of a dog."]))[0, 1:5].clone().requires_grad_()
    with torch.enable_grad():
        surest = entropies(logits(context, 0)).sort().indices[: int(one.surest * one.views)]
        (g,) = torch.autograd.grad(entropies(logits(context, 0))[surest].mean(), context)
    # The first step of AdamW: its means are the gradient itself; weights decay by 0.01 of the rate.
    context = context.detach() * (1 - 0.01 * one.rate) - one.rate * g / (g.abs() + 1e-8)
    weights = agreement(images, one.neighbours)
    return torch.cat([weights @ logits(context, level) for level in range(tree.height)])


def test_same_as_a_naive_one(undefended: Undefended, pixels: Tensor) -> None:
    found = SMALL.scores(pixels, undefended, SEEDS)
    assert found.shape == (6, 6 + 4 + 2)
    for image, seed, own in zip(pixels[:3], SEEDS, found, strict=False):
        assert torch.allclose(own, naive(SMALL, undefended, image, seed), rtol=1e-6)


def test_views_and_weights_are_differentiated_through(undefended: Undefended, pixels: Tensor) -> None:
    """Where the texts are constant the gradient is exact; an adversary has other views than a verdict."""
    one = replace(SMALL, steps=0)
    images = pixels.clone().requires_grad_()
    scores = one.scores(images, undefended, SEEDS)
    verdict = one.scores(pixels, undefended, SEEDS)
    assert not torch.allclose(scores, verdict, rtol=1e-4)
    same = replace(one, views=one.attack_views)
    assert torch.allclose(scores, same.scores(pixels, undefended, SEEDS), rtol=1e-9)

    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(scores.shape, generator=generator, dtype=torch.float64)
    direction = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((scores * weights).sum(), images)

    def along(step: float) -> Tensor:
        return (same.scores(pixels + step * direction, undefended, SEEDS) * weights).sum(1)

    slope = (along(1e-6) - along(-1e-6)) / 2e-6
    assert torch.allclose((gradient * direction).flatten(1).sum(1), slope, rtol=1e-5)


def test_tuned_words_are_held_constant(undefended: Undefended, pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient is that of the same scores with the tuned texts as they are."""
    images = pixels.clone().requires_grad_()
    scores = SMALL.scores(images, undefended, SEEDS)
    (gradient,) = torch.autograd.grad(scores[:, 0].sum(), images)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    kept = tune(SMALL, undefended.features(draw_views(pixels, 6, SEEDS).flatten(0, 1)).view(6, 6, -1), undefended)
    monkeypatch.setattr(r_tpt, "tune", lambda *_: kept)
    again = SMALL.scores(images, undefended, SEEDS)
    (expected,) = torch.autograd.grad(again[:, 0].sum(), images)
    assert torch.allclose(scores, again, rtol=1e-9)
    assert torch.allclose(gradient, expected, rtol=1e-6, atol=1e-9 * expected.abs().max().item())


def test_texts_are_encoded_for_a_head_that_lifts_them(undefended: Undefended, pixels: Tensor) -> None:
    """Under a hyperbolic head texts have levels, and means over prompts are taken before they are lifted."""
    from hrzs.models.heads import HyperbolicHead

    model, classifier = parts(undefended)
    other = copy.copy(model)
    other._modules = dict(model._modules)
    other.geometry = HyperbolicHead(0.5, 0.5, [4.0, 3.0, 2.0], depth=[1.0, 0.8, 0.6]).double().requires_grad_(False)
    behind = Undefended(other, ZeroShotClassifier(other, classifier.tree))
    features = behind.features(pixels)[:, None].repeat(1, 4, 1)
    still = tune(replace(SMALL, steps=0), features, behind)
    prepared = parts(behind)[1].prepared
    assert torch.allclose(still, prepared.expand_as(still), rtol=1e-9)
    assert SMALL.scores(pixels, behind, SEEDS).isfinite().all()
