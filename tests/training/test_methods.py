"""One contract for every method: new ones enter through `METHODS`."""

from __future__ import annotations

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
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.models.text import TextBank
from hrzs.training.job import settle
from hrzs.training.methods import METHODS, Method, check_options, method_class
from hrzs.training.methods.hierarchical import SPREAD
from hrzs.training.options import PUBLISHED, RECIPES, TrainOptions

MakeModel = Callable[[], ClipModel]

#: (method, options): every method as it is, the hierarchical one in all its forms.
CASES = {
    **{name: TrainOptions(method=name) for name in METHODS},
    **{f"hierarchical-{m}": TrainOptions(image_levels=m) for m in ("per-image", "hypavg", "mixed")},
    "hierarchical-all-terms": TrainOptions(hnsa="both", lambda_vic=1.0, lambda_gap=1.0),
    "hierarchical-hypavg-all-terms": TrainOptions(image_levels="hypavg", hnsa="both", lambda_vic=1.0, lambda_gap=1.0),
    "hierarchical-text-depth": TrainOptions(depth="text"),
    "hierarchical-no-depth": TrainOptions(depth="none", beta_levels="shared", level_balance="image"),
    "hierarchical-anchor": TrainOptions(lambda_anchor=1.0),
    "tecoa-anchor": TrainOptions(method="tecoa", lambda_anchor=1.0),
    "clean-every-level": TrainOptions(method="clean", every_level=True),
    "tecoa-every-level": TrainOptions(method="tecoa", every_level=True),
    "pmg-aft-paper": TrainOptions(method="pmg-aft", pmg_direction="adversarial-first", pmg_reduction="mean"),
    "fare-clean-too": TrainOptions(method="fare", fare_clean=0.5),
}
#: Those that hold the tuned model to the original.
HELD = ("fare", "pmg-aft", "tga-zsr", "agft", "ucat", "lore")
#: Those that read no text.
TEXTLESS = ("fare", "lore")
SCALARS = {"geometry.log_scale_image", "geometry.log_scale_text", "geometry.log_beta"}
DEPTH = {"geometry.log_depth"}


@pytest.fixture(params=CASES.values(), ids=CASES)
def options(request: pytest.FixtureRequest) -> TrainOptions:
    return replace(request.param, steps=1, eps=Fraction(2, 255), step_size=Fraction(2, 255))


def start(model: ClipModel, tree: Tree, options: TrainOptions, batch: Batch) -> Method:
    method = method_class(options.method)(model, tree, options)
    method.begin(batch.images)
    return method


def seeds(batch: Batch) -> list[int]:
    return sample_seeds(batch.ids, 0)


def reached(model: ClipModel) -> set[str]:
    """The parameters that a backward pass left a gradient other than zero on."""
    return {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}


def named(model: ClipModel, *prefixes: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


def tuned(model: ClipModel, options: TrainOptions) -> set[str]:
    """What ``--tune`` promises, in the names of open_clip."""
    default = "image+projection" if options.method == "hierarchical" else "image"
    tune = options.tune or default
    prefixes = {
        "image": ("clip.visual",),
        "image+projection": ("clip.visual", "clip.text_projection"),
        "all": ("clip",),
    }
    deep = DEPTH if options.depth != "none" else set()
    head = SCALARS | deep if options.method == "hierarchical" else set()
    return named(model, *prefixes[tune]) | head


@pytest.mark.parametrize("tune", [None, "image", "image+projection", "all"])
def test_gradient_reaches_exactly_what_is_tuned(
    make_model: MakeModel, shapes_tree: Tree, batch: Batch, options: TrainOptions, tune: str | None
) -> None:
    options = replace(options, tune=tune)
    model = make_model()
    if options.method in TEXTLESS and tune not in (None, "image"):
        with pytest.raises(UsageError, match=rf"--tune .*{options.method} reads no text"):
            start(model, shapes_tree, options, batch)
        return
    method = start(model, shapes_tree, options, batch)
    loss = method.loss(batch.images, batch.labels, seeds(batch))
    assert loss.total.isfinite()
    assert all(value.isfinite() and not value.requires_grad for value in loss.log.values())
    loss.total.backward()
    expected = tuned(model, options)
    if options.method == "hierarchical":
        expected -= {"clip.logit_scale"}  # the cosine head's; distances have β
    assert reached(model) == expected


def test_curvature_is_learnt_on_request(make_model: MakeModel, shapes_tree: Tree, batch: Batch) -> None:
    model = make_model()
    options = TrainOptions(steps=1, learn_curvature=True)
    start(model, shapes_tree, options, batch).loss(batch.images, batch.labels, seeds(batch)).total.backward()
    assert reached(model) == tuned(model, options) | {"geometry.log_curvature"}


def test_a_few_steps_lower_the_loss(
    make_model: MakeModel, shapes_tree: Tree, batch: Batch, options: TrainOptions
) -> None:
    if options.method in HELD:  # a weak attack leaves little to learn
        options = replace(options, steps=3, eps=Fraction(8, 255), step_size=Fraction(4, 255))
    model = make_model()
    method = start(model, shapes_tree, options, batch)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(8):
        loss = method.loss(batch.images, batch.labels, seeds(batch)).total
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize(("tune", "expected"), [(None, 0), ("image+projection", 0), ("all", 1)])
def test_text_transformer_runs_per_step_only_where_it_is_trained(
    make_model: MakeModel, shapes_tree: Tree, batch: Batch, options: TrainOptions, tune: str | None, expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if options.method in TEXTLESS:
        tune, expected = None, 0
    model, calls = make_model(), 0
    transformer = model.clip.transformer
    forward = transformer.forward

    def counted(*args: Tensor, **kwargs: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return forward(*args, **kwargs)

    monkeypatch.setattr(transformer, "forward", counted)
    method = start(model, shapes_tree, replace(options, tune=tune), batch)
    once = 0 if options.method in TEXTLESS else 1
    assert calls == once
    for step in range(1, 3):
        method.loss(batch.images, batch.labels, seeds(batch))
        assert calls == once + step * expected


@pytest.mark.parametrize("count", [2, 3])
def test_few_classes_and_a_flat_tree(
    make_model: MakeModel, shapes_tree: Tree, batch: Batch, options: TrainOptions, count: int
) -> None:
    tree = shapes_tree.restrict(shapes_tree.classes[:count])
    assert tree.height == 1
    chosen = batch.labels < count
    ids = tuple(i for i, c in zip(batch.ids, chosen.tolist(), strict=True) if c)
    few = Batch(batch.images[chosen], batch.labels[chosen], ids)
    model = make_model()
    loss = start(model, tree, options, few).loss(few.images, few.labels, seeds(few)).total
    assert loss.isfinite()
    loss.backward()
    assert named(model, "clip.visual") <= reached(model)


def test_seeds_decide_the_loss(make_model: MakeModel, shapes_tree: Tree, batch: Batch, options: TrainOptions) -> None:
    method = start(make_model(), shapes_tree, options, batch)
    first, again = (method.loss(batch.images, batch.labels, seeds(batch)).total for _ in range(2))
    assert torch.equal(first, again)
    if options.method != "clean":
        assert not torch.equal(first, method.loss(batch.images, batch.labels, range(48)).total)


@pytest.mark.parametrize("radius", [0.3, 0.5, 0.8])
def test_calibration(make_model: MakeModel, shapes_tree: Tree, batch: Batch, radius: float) -> None:
    model = make_model()
    options = TrainOptions(radius=radius, radius_text=0.9 * radius, curvature=2.0)
    start(model, shapes_tree, options, batch)
    head, cosine = model.head("hyperbolic"), model.head("cosine")
    bank = TextBank(model, shapes_tree)
    with torch.no_grad():
        image = model.encode_image(batch.images)
        text = bank.features(model)[bank.index.columns[0]]
        own = cosine.logits(image, cosine.prepare(text)).std(dim=1).mean()
        hyperbolic = head.logits(image, head.prepare(text)).std(dim=1).mean()
        radii = {"image": head.embed_image(image), "text": head.prepare(text)}
    # β gives `SPREAD` of the spread of the model's own logits.
    torch.testing.assert_close(hyperbolic, SPREAD * own, rtol=1e-3, atol=0)
    # The scale brings the mean norm to `radius`; the mean of the radii lies a little below (tanh is concave).
    shares = {name: 2.0**0.5 * points.norm(dim=1).mean().item() for name, points in radii.items()}
    assert shares["image"] == pytest.approx(radius, rel=0.05)
    assert shares["text"] == pytest.approx(0.9 * radius, rel=0.05)


def test_calibration_takes_a_beta_as_given(make_model: MakeModel, shapes_tree: Tree, batch: Batch) -> None:
    model = make_model()
    start(model, shapes_tree, TrainOptions(beta=3.5), batch)
    assert model.geometry is not None
    assert model.geometry.values()["beta"] == pytest.approx([3.5] * 4)
    start(model := make_model(), shapes_tree, TrainOptions(beta=3.5, beta_levels="shared"), batch)
    assert model.geometry is not None
    assert model.geometry.values()["beta"] == pytest.approx([3.5])


def test_a_baseline_leaves_the_head_it_trained(make_model: MakeModel, shapes_tree: Tree, batch: Batch) -> None:
    model = make_model()
    start(model, shapes_tree, TrainOptions(), batch)
    assert model.head().name == "hyperbolic"
    start(model, shapes_tree, TrainOptions(method="tecoa"), batch)
    assert model.head().name == "cosine"


@pytest.mark.parametrize(
    ("method", "option", "readers"),
    [
        ("tecoa", "depth", "hierarchical"), ("clean", "beta_levels", "hierarchical"),
        ("tga-zsr", "head_lr", "hierarchical"), ("fare", "depth", "hierarchical"),
        ("agft", "lore_rho", "lore"), ("lore", "fare_clean", "fare"), ("ucat", "agft_scale", "agft"),
        ("agft", "every_level", "tecoa, pmg-aft"),
        ("fare", "level_balance", "hierarchical, tecoa"),
    ],
)  # fmt: skip
def test_options_that_a_method_does_not_read_are_refused(method: str, option: str, readers: str) -> None:
    named = f"--{option.replace('_', '-')}: --method {method} does not read it; it belongs to {readers}"
    with pytest.raises(UsageError, match=named):
        check_options(method, {option})


def test_what_reads_the_options_of_levels() -> None:
    for option in ("depth", "beta_levels", "head_lr", "level_balance"):
        check_options("hierarchical", {option})
    for method in ("clean", "tecoa"):
        check_options(method, {"level_balance", "every_level"})


@pytest.mark.parametrize("method", ["clean", "tecoa"])
def test_level_balance_tells_on_a_lopsided_tree(
    method: str, make_model: MakeModel, shapes_tree: Tree, batch: Batch
) -> None:
    """Two images a class, but nodes of many classes and of few."""

    def total(**overrides: Any) -> float:
        options = TrainOptions(method=method, steps=1, **overrides)
        return (
            start(make_model(), shapes_tree, options, batch).loss(batch.images, batch.labels, seeds(batch)).total.item()
        )

    by_node, by_image = (total(every_level=True, level_balance=balance) for balance in ("node", "image"))
    assert abs(by_node - by_image) > 1e-3 * by_image
    # At the leaves alone there is nothing to balance.
    assert total(level_balance="node") == total(level_balance="image")


@pytest.mark.parametrize("recipe", sorted(RECIPES.keys() - {"default"}))
def test_a_recipe_gives_options_that_its_method_reads(recipe: str) -> None:
    options = settle(recipe, {})
    assert all(getattr(options, name) == value for name, value in RECIPES[recipe].items())
    check_options(options.method, RECIPES[recipe].keys())
    assert set(PUBLISHED.get(recipe, ())) <= RECIPES[recipe].keys()
    assert recipe in ("paper", options.method)


def test_unknown_method() -> None:
    with pytest.raises(UsageError, match="hierarchical, tecoa, pmg-aft, fare, clean, tga-zsr, trades"):
        method_class("tekoa")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tune", "text"), ("augment", "rotate"), ("image_levels", "mean"), ("hnsa", "all"), ("epochs", 0.0),
        ("batch_size", 0), ("lr", -1.0), ("lr", float("nan")), ("steps", 0), ("curvature", 0.0), ("radius", 1.0),
        ("radius_text", 0.0), ("beta", 0.0), ("lambda_gap", -1.0), ("eps_text", -1e-4), ("warmup", -0.1),
        ("fare_clean", 1.0), ("trades_beta", -1.0), ("pmg_original", -1.0),
        ("level_balance", "class"), ("depth", "image"), ("beta_levels", "one"), ("head_lr", 0.0),
        ("tga_constraint", -1.0), ("agft_scale", 0.0), ("agft_ratio", 0.0), ("ucat_weight", -1.0),
        ("ucat_temperature", 0.001), ("lore_rho", 0.0), ("lore_primal_steps", 0), ("lore_dual_lr", 0.0),
        ("pmg_direction", "both"), ("pmg_reduction", "none"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_named(name: str, value: float | str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} "):
        replace(TrainOptions(), **{name: value})


def test_a_batch_in_parts_is_the_same_batch(
    make_model: MakeModel, shapes_tree: Tree, batch: Batch, options: TrainOptions
) -> None:
    """In float64: its loss and every gradient, class means and the perturbation of the texts included."""
    found = []
    for count in (1, 5):
        model = make_model().double()
        method = start(model, shapes_tree, replace(options, accumulate=count, eps_text=0.05), batch)
        loss = method.loss(batch.images, batch.labels, seeds(batch))
        loss.total.backward()
        found.append((loss.total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (whole, gradients), (total, in_parts) = found
    assert total.item() == pytest.approx(whole.item(), rel=1e-12)
    assert gradients.keys() == in_parts.keys()
    scale = max(g.abs().max().item() for g in gradients.values() if g.numel())
    for name, gradient in gradients.items():
        assert gradient.numel() == 0 or (gradient - in_parts[name]).abs().max() <= 1e-10 * scale, name
