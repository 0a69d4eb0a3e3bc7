"""The method of the paper: forests, kinds of perturbation, geometries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from hrzs.attacks import sample_seeds
from hrzs.data import Batch
from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.clip import ClipModel
from hrzs.models.depth import text_depth, text_edges
from hrzs.models.heads import HyperbolicHead
from hrzs.models.text import TextBank
from hrzs.training.methods import method_class
from hrzs.training.methods.base import Method
from hrzs.training.methods.hierarchical import NARROWER, SPREAD
from hrzs.training.options import TrainOptions

MakeModel = Callable[[], ClipModel]
OPTIONS = TrainOptions(steps=2, eps=Fraction(2, 255), step_size=Fraction(1, 255))
ALL_TERMS = {"hnsa": "both", "lambda_vic": 1.0, "lambda_gap": 1.0}


@pytest.fixture(scope="module")
def other_tree(shapes_tree: Tree) -> Tree:
    """The same leaves under two parents by the order of their classes."""
    leaves = [node for node in shapes_tree.root.walk() if node.class_id is not None]
    halves = [Node(f"half {k}", f"half{k}", tuple(leaves[k::2]), level=1) for k in (0, 1)]
    return Tree(Node("all", "all", tuple(halves), level=2), shapes_tree.classes)


def start(model: ClipModel, trees: list[Tree], batch: Batch, **overrides: Any) -> Method:
    method = method_class("hierarchical")(model, trees[0], replace(OPTIONS, **overrides), trees[1:])
    method.begin(batch.images)
    return method


def total(method: Method, batch: Batch) -> float:
    return method.loss(batch.images, batch.labels, sample_seeds(batch.ids, 0)).total.item()


def encodings(model: ClipModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each later run of the image encoder: how many images."""
    seen: list[int] = []
    encode = model.encode_image

    def counted(pixels: Tensor, precision: str | None = None) -> Tensor:
        seen.append(len(pixels))
        return encode(pixels, precision)

    monkeypatch.setattr(model, "encode_image", counted)
    return seen


@pytest.mark.parametrize("overrides", [{}, ALL_TERMS, {"image_levels": "hypavg", **ALL_TERMS}], ids=str)
def test_a_forests_loss_is_the_sum_over_its_trees(
    make_model: MakeModel, shapes_tree: Tree, other_tree: Tree, batch: Batch, overrides: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """On the same images and texts: the adversary is put out of action."""
    monkeypatch.setattr(
        "hrzs.training.methods.hierarchical.perturb_universally",
        lambda model, loss, images, text, seeds, **_: (images, torch.zeros_like(text)),  # noqa: ARG005
    )
    whole = start(make_model(), [shapes_tree, other_tree], batch, beta=5.0, **overrides)
    head = whole.model.geometry
    assert head is not None
    alone = []
    for tree in (shapes_tree, other_tree):
        # With the same head: alone, a tree of fewer levels would have its own depth factors.
        model = make_model()
        model.geometry = HyperbolicHead(**head.values())
        alone.append(total(start(model, [tree], batch, beta=5.0, **overrides), batch))
    assert total(whole, batch) == pytest.approx(sum(alone), rel=1e-5)


@pytest.mark.parametrize("name", ["hierarchical", "tecoa"])
def test_the_anchor_is_the_distance_from_the_original(
    name: str, make_model: MakeModel, shapes_tree: Tree, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its formula, in float64; on images that are not attacked it is nothing until the model has moved."""
    monkeypatch.setattr(
        "hrzs.training.methods.hierarchical.perturb_universally",
        lambda model, loss, images, text, seeds, **_: (images, torch.zeros_like(text)),  # noqa: ARG005
    )
    monkeypatch.setattr(
        "hrzs.training.methods.cross_entropy.perturb_images",
        lambda model, loss, images, seeds, **_: images,  # noqa: ARG005
    )
    settings = [replace(OPTIONS, beta=5.0, lambda_anchor=weight) for weight in (0.0, 7.0)]
    free, anchored = (method_class(name)(make_model(), shapes_tree, o) for o in settings)
    for method in (free, anchored):
        method.begin(batch.images)
    assert total(anchored, batch) == pytest.approx(total(free, batch), rel=1e-6)
    images = batch.images
    with torch.no_grad():
        before = free.model.encode_image(images).double()
        for method in (free, anchored):
            for parameter in method.model.clip.visual.parameters():  # type: ignore[union-attr]
                parameter.mul_(1.02)
        after = free.model.encode_image(images).double()
    expected = 7.0 * ((after - before) ** 2).sum().item() / (before**2).sum().item()
    assert expected > 1e-3
    assert total(anchored, batch) - total(free, batch) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_image_encoder_runs_as_often_for_any_number_of_trees(
    make_model: MakeModel, shapes_tree: Tree, other_tree: Tree, batch: Batch, count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = make_model()
    method = start(model, [shapes_tree, *[other_tree] * (count - 1)], batch)
    seen = encodings(model, monkeypatch)
    total(method, batch)
    assert seen == [48] * (OPTIONS.steps + 1)


@pytest.mark.parametrize(("kind", "passes"), [("universal", 1), ("leaf", 1), ("per-level", 4)])
def test_what_each_kind_of_perturbation_costs(
    make_model: MakeModel, shapes_tree: Tree, batch: Batch, kind: str, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shapes_tree.height == 4
    model = make_model()
    method = start(model, [shapes_tree], batch, perturbation=kind)
    seen = encodings(model, monkeypatch)
    total(method, batch)
    assert len(seen) == passes * (OPTIONS.steps + 1)


def test_universal_and_leaf_perturbations_differ(make_model: MakeModel, shapes_tree: Tree, batch: Batch) -> None:
    """The universal adversary raises the whole loss more than one that looks at the leaves alone."""
    losses = {}
    for kind in ("leaf", "universal"):
        method = start(make_model(), [shapes_tree], batch, perturbation=kind, steps=5, eps=Fraction(8, 255))
        losses[kind] = total(method, batch)
    assert losses["universal"] > losses["leaf"]


def test_on_a_flat_tree_all_kinds_are_one(make_model: MakeModel, shapes_tree: Tree, batch: Batch) -> None:
    chosen = batch.labels < 3
    ids = tuple(i for i, c in zip(batch.ids, chosen.tolist(), strict=True) if c)
    few = Batch(batch.images[chosen], batch.labels[chosen], ids)
    tree = shapes_tree.restrict(shapes_tree.classes[:3])
    kinds = [total(start(make_model(), [tree], few, perturbation=k), few) for k in ("universal", "leaf", "per-level")]
    assert kinds[0] == pytest.approx(kinds[1])
    assert kinds[0] == pytest.approx(kinds[2])


def test_a_level_of_no_weight_is_as_if_it_were_not_there(
    make_model: MakeModel, shapes_tree: Tree, batch: Batch
) -> None:
    weights = "1" + ",0" * (shapes_tree.height - 1)
    leaves_alone = {"beta": 5.0, "hnsa": "none", "lambda_gap": 0.0}
    only_leaves = start(make_model(), [shapes_tree], batch, level_weights=weights, **leaves_alone)
    flat = Tree(Node("all", "all", tuple(shapes_tree.levels[0]), level=1), shapes_tree.classes)
    same = start(make_model(), [flat], batch, level_weights="1", **leaves_alone)
    # The text perturbation is relative to the mean norm of all texts, of which the flat tree has fewer.
    assert total(only_leaves, batch) == pytest.approx(total(same, batch), rel=1e-3)


def test_more_level_weights_than_levels_are_refused(make_model: MakeModel, shapes_tree: Tree, batch: Batch) -> None:
    with pytest.raises(UsageError, match=r"--level-weights '1,1,1,1,1': more than the 4 levels"):
        start(make_model(), [shapes_tree], batch, level_weights="1,1,1,1,1")


def test_in_flat_space(make_model: MakeModel, shapes_tree: Tree, batch: Batch) -> None:
    model = make_model()
    method = start(model, [shapes_tree], batch, geometry="euclidean", image_levels="hypavg", **ALL_TERMS)
    assert model.head().name == "euclidean"
    loss = method.loss(batch.images, batch.labels, sample_seeds(batch.ids, 0))
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.clip.visual.parameters())
    assert loss.log["cap_share"] == 0
    assert model.geometry is not None
    assert model.geometry.values()["curvature"] == 0


def test_geometry_of_an_earlier_run_is_not_changed_silently(
    make_model: MakeModel, shapes_tree: Tree, batch: Batch
) -> None:
    model = make_model()
    start(model, [shapes_tree], batch)
    with pytest.raises(UsageError, match="has a hyperbolic head already; go on with --geometry hyperbolic"):
        start(model, [shapes_tree], batch, geometry="euclidean")


@pytest.mark.parametrize(("freeze", "kept"), [("transformer.resblocks.0", 12), ("conv1, class_embedding", 2)])
def test_frozen_parts_get_no_gradient(
    make_model: MakeModel, shapes_tree: Tree, batch: Batch, freeze: str, kept: int
) -> None:
    model = make_model()
    method = start(model, [shapes_tree], batch, freeze=freeze)
    method.loss(batch.images, batch.labels, sample_seeds(batch.ids, 0)).total.backward()
    parts = tuple(part.strip() for part in freeze.split(","))
    without = {name for name, p in model.clip.visual.named_parameters() if p.grad is None}
    assert without == {name for name, _ in model.clip.visual.named_parameters() if name.startswith(parts)}
    assert len(without) == kept


def test_freezing_what_is_not_there_or_all_is_refused(make_model: MakeModel, shapes_tree: Tree, batch: Batch) -> None:
    with pytest.raises(UsageError, match=r"--freeze 'layer1'.*its parts are .*conv1.*transformer"):
        start(make_model(), [shapes_tree], batch, freeze="layer1")
    everything = ",".join({name.split(".")[0] for name, _ in make_model().clip.visual.named_parameters()})
    with pytest.raises(UsageError, match="nothing of the image encoder is left"):
        start(make_model(), [shapes_tree], batch, freeze=everything)


def test_where_the_levels_lie_is_logged(make_model: MakeModel, shapes_tree: Tree, batch: Batch) -> None:
    method = start(make_model(), [shapes_tree], batch, image_levels="hypavg")
    log = method.loss(batch.images, batch.labels, sample_seeds(batch.ids, 0)).log
    for level in range(shapes_tree.height):
        assert 0 < log[f"radius_text_{level}"] < 1
        assert 0 < log[f"radius_image_{level}"] < 1
        assert 0 < log[f"margin_{level}"] <= log[f"bound_{level}"] * (1 + 1e-5)
    assert log["radius_text"] == log["radius_text_0"]
    assert 0 <= log["edges_ordered"] <= 1


def test_with_depth_levels_start_at_evenly_falling_radii(
    make_model: MakeModel, shapes_tree: Tree, batch: Batch
) -> None:
    for depth in ("both", "text", "none"):
        model = make_model()
        method = start(model, [shapes_tree], batch, depth=depth, radius_text=0.6, radius=0.5)
        head = model.geometry
        assert head is not None
        assert head.image_depth == (depth == "both")
        factors = head.depth.tolist()
        if depth == "none":
            assert factors == [1.0]
        else:
            expected = [math.atanh(0.6 * (1 - level / 4)) / math.atanh(0.6) for level in range(4)]
            assert factors == pytest.approx(expected, rel=1e-5)
        assert len(head.value("beta")) == 4
        # Texts of a random model are about as long at all levels; so are they after training (docs/method.md).
        log = method.loss(batch.images, batch.labels, sample_seeds(batch.ids, 0)).log
        for level in range(4):
            radius = 0.6 * (1 - level / 4) if depth != "none" else 0.6
            assert log[f"radius_text_{level}"].item() == pytest.approx(radius, rel=0.1)


def test_each_level_starts_with_the_spread_of_the_models_own_logits_or_a_smaller_margin_than_the_one_below(
    make_model: MakeModel, shapes_tree: Tree, batch: Batch
) -> None:
    held_back = set()
    for kind in ("tied", "free", "shared"):
        for depth in ("both", "none"):
            model = make_model()
            start(model, [shapes_tree], batch, beta_levels=kind, depth=depth)
            head = model.geometry
            assert head is not None
            assert len(head.value("beta")) == (1 if kind == "shared" else 4)
            texts, cosine = TextBank(model, shapes_tree), model.head("cosine")
            with torch.no_grad():
                image, text = model.encode_image(batch.images), texts.features(model)[texts.index.owner]
                prepared, plain = head.prepare(text, texts.index.level), cosine.prepare(text)
                spreads = [
                    (head.logits(image, prepared[c], level).std(dim=1).mean()
                     / cosine.logits(image, plain[c]).std(dim=1).mean()).item()
                    for level, c in enumerate(texts.index.columns)
                ]  # fmt: skip
            edges = text_edges(shapes_tree, texts.index)
            margins = text_depth(head, texts.index, edges, prepared).margin.tolist()
            assert spreads[0] == pytest.approx(SPREAD, rel=1e-3)
            if kind == "shared":
                if depth == "both":
                    assert spreads[3] < 0.8 * SPREAD, "one β starves the upper levels, which lie near the centre"
                continue
            for level in range(1, 4):
                most = NARROWER * margins[level - 1]
                assert spreads[level] <= SPREAD * (1 + 1e-3)
                assert margins[level] <= most * (1 + 1e-4)
                is_held_back = spreads[level] < SPREAD * (1 - 1e-3)
                held_back.add(is_held_back)
                if is_held_back:
                    assert margins[level] == pytest.approx(most, rel=1e-4)
    assert held_back == {True, False}, "either is to be seen here"


@pytest.mark.parametrize(("optimizer_class", "lr"), [(torch.optim.AdamW, 0.01), (torch.optim.SGD, 0.05)])
@pytest.mark.parametrize("resumed", [False, True])
def test_tied_temperatures_keep_their_ratios_and_free_ones_do_not(
    make_model: MakeModel,
    shapes_tree: Tree,
    batch: Batch,
    resumed: bool,
    optimizer_class: type[torch.optim.Optimizer],
    lr: float,
) -> None:
    gradients = {}
    for kind in ("tied", "free"):
        model = make_model()
        method = start(model, [shapes_tree], batch, beta_levels=kind)
        if resumed:
            kept = model.geometry
            assert kept is not None
            method.adopt(HyperbolicHead(**kept.values()))
            assert model.geometry is not kept
        head = model.geometry
        assert head is not None
        first = head.value("beta").detach().clone()
        optimizer = optimizer_class([head.log_beta], lr=lr, weight_decay=0.0)  # type: ignore[call-arg]  # SGD and AdamW alike
        for step in range(4):
            optimizer.zero_grad()
            method.loss(batch.images, batch.labels, sample_seeds(batch.ids, step)).total.backward()
            assert head.log_beta.grad is not None
            gradients.setdefault(kind, head.log_beta.grad.clone())
            optimizer.step()
        moved = head.value("beta").detach() / first
        assert (moved[0] - 1).abs() > 0.01
        if kind == "tied":
            torch.testing.assert_close(moved, moved[0].expand(4), rtol=1e-6, atol=0)
        elif optimizer_class is torch.optim.SGD:  # Adam's first steps are of one length, whatever the gradients
            assert moved.max() / moved.min() > 1.1
    torch.testing.assert_close(gradients["tied"], gradients["free"].mean().expand(4))
