"""The baselines against their formulas, worked out again in float64, image by image; and on every family of encoders."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy import integrate, special, stats
from torch import Tensor

from hrzs.attacks import sample_seeds
from hrzs.attacks.ball import LinfBall
from hrzs.data import Batch, Dataset
from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.models.heads import HyperbolicHead
from hrzs.models.loading import load_model
from hrzs.models.text import TextBank
from hrzs.training.methods import METHODS, Method, agft, cross_entropy, fare, lore, method_class, trades
from hrzs.training.methods.fare import Fare
from hrzs.training.methods.tga_zsr import TGAZSR, attention
from hrzs.training.methods.ucat import dirichlet_divergence
from hrzs.training.options import TrainOptions
from hrzs.training.trainer import Trainer

MakeModel = Callable[[], ClipModel]
#: Those that hold the tuned model to the original.
HELD = ("pmg-aft", "fare", "tga-zsr", "agft", "ucat", "lore")
#: Where methods look `perturb_images` up.
ATTACKING = (cross_entropy, fare, trades, agft, lore)


def start(model: ClipModel, tree: Tree, batch: Batch, **options: Any) -> Method:
    method = method_class(options["method"])(model, tree, TrainOptions(**options))
    method.begin(batch.images)
    return method


def seeds(batch: Batch) -> list[int]:
    return sample_seeds(batch.ids, 0)


def drift(model: ClipModel) -> None:
    """What training might have done to the image encoder."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.clip.visual.parameters():
            p += 0.05 * p.std(correction=0) * torch.randn(p.shape, generator=generator)


def shifted(images: Tensor) -> Tensor:
    return (images + torch.tensor([0.1, -0.1, 0.05]).view(3, 1, 1)).clamp(0, 1)


@pytest.fixture
def few(batch: Batch) -> Batch:
    return Batch(batch.images[:7], batch.labels[:7], batch.ids[:7])


@pytest.fixture
def _fixed_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adversarial images are `shifted` ones, whatever the adversary maximises."""

    def perturb_images(model: ClipModel, loss: object, images: Tensor, seeds: list[int], **_: Any) -> Tensor:
        return shifted(images)

    for module in ATTACKING:
        monkeypatch.setattr(module, "perturb_images", perturb_images)


# -- each loss, by its formula ----------------------------------------------------------------------------------


def naive_log_probabilities(model: ClipModel, images: Tensor, text: Tensor, factor: float = 1.0) -> list[Tensor]:
    scale = factor * model.clip.logit_scale.double().exp()
    rows = []
    for f in model.encode_image(images).double():
        logits = torch.stack([scale * (f @ t) / (f.norm() * t.norm()) for t in text])
        rows.append(logits - logits.exp().sum().log())
    return rows


def naive_kl(p: list[Tensor], q: list[Tensor]) -> Tensor:
    """The sum over the images."""
    return torch.stack([(a.exp() * (a - b)).sum() for a, b in zip(p, q, strict=True)]).sum()


def naive_evidence(model: ClipModel, images: Tensor, text: Tensor, temperature: float) -> list[list[float]]:
    return [
        [math.exp((float(f @ t / (f.norm() * t.norm())) + 1) / temperature) for t in text]
        for f in model.encode_image(images).double()
    ]


def naive_dirichlet(p: list[float], q: list[float]) -> float:
    """The textbook's formula."""
    total = special.gammaln(sum(p)) - special.gammaln(sum(q))
    for a, b in zip(p, q, strict=True):
        total += special.gammaln(b) - special.gammaln(a) + (a - b) * (special.digamma(a) - special.digamma(sum(p)))
    return float(total)


def naive_attention(model: ClipModel, images: Tensor, text: Tensor) -> list[Tensor]:
    """By the tokens that open_clip itself gives out beside the pooled features."""
    visual = model.clip.visual
    visual.output_tokens = True
    _, tokens = visual(model.preprocess(images))
    visual.output_tokens = False
    maps = []
    for patches, t in zip((tokens @ visual.proj).double(), text, strict=True):
        cosines = torch.stack([p @ t / (p.norm() * t.norm()) for p in patches])
        stretched = (cosines - cosines.min()) / (cosines.max() - cosines.min())
        side = round(len(patches) ** 0.5)
        maps.append(F.interpolate(stretched.view(1, 1, side, side), size=model.image_size, mode="bilinear").flatten())
    return maps


def naive_loss(tuned: ClipModel, original: ClipModel, text: Tensor, batch: Batch, o: TrainOptions) -> Tensor:
    images, labels, count = batch.images, batch.labels, len(batch.labels)
    hat = shifted(images)
    if o.method == "fare":
        target = original.encode_image(images).double()
        hat_sum = (tuned.encode_image(hat).double() - target).pow(2).sum()
        clean_sum = (tuned.encode_image(images).double() - target).pow(2).sum()
        return ((1 - o.fare_clean) * hat_sum + o.fare_clean * clean_sum) / count
    if o.method == "lore":
        target = original.encode_image(images).double()
        hat_sum = (tuned.encode_image(hat).double() - target).pow(2).sum()
        clean_sum = (tuned.encode_image(images).double() - target).pow(2).sum()
        return (hat_sum + math.log(2) * clean_sum) / count  # the multiplier of all images before its first step
    if o.method == "agft":
        q = naive_log_probabilities(original, images, text, o.agft_ratio * o.agft_scale)
        p = naive_log_probabilities(tuned, hat, text, o.agft_scale)
        return -torch.stack([a.exp() @ b for a, b in zip(q, p, strict=True)]).sum() / count
    p_hat = naive_log_probabilities(tuned, hat, text)
    p_clean = naive_log_probabilities(tuned, images, text)
    ce_hat = -sum(row[y] for row, y in zip(p_hat, labels, strict=True)) / count
    if o.method == "trades":
        ce = -sum(row[y] for row, y in zip(p_clean, labels, strict=True)) / count
        return ce + o.trades_beta * naive_kl(p_clean, p_hat) / count
    if o.method == "ucat":
        largest = 1 + math.exp(2 / o.ucat_temperature)
        rows = zip(
            naive_evidence(tuned, hat, text, o.ucat_temperature),
            naive_evidence(original, images, text, o.ucat_temperature),
            strict=True,
        )
        return ce_hat + o.ucat_weight / largest * sum(naive_dirichlet(p, q) for p, q in rows) / count
    if o.method == "pmg-aft":
        p_original = naive_log_probabilities(original, hat, text)
        pairs = [(p_original, p_hat), (p_clean, p_hat)]
        if o.pmg_direction == "adversarial-first":
            pairs = [(q, p) for p, q in pairs]
        divergence = o.pmg_original * naive_kl(*pairs[0]) + o.pmg_clean * naive_kl(*pairs[1])
        return ce_hat + divergence / (1 if o.pmg_reduction == "sum" else count)
    target = naive_attention(original, images, text[labels])
    distances = {
        "hat": naive_attention(tuned, hat, text[labels]),
        "clean": naive_attention(tuned, images, text[labels]),
    }
    mean = {
        key: sum((a - b).norm() for a, b in zip(maps, target, strict=True)) / count for key, maps in distances.items()
    }
    return ce_hat + o.tga_refinement * mean["hat"] + o.tga_constraint * mean["clean"]


FORMULAS: dict[str, dict[str, Any]] = {
    "pmg-aft": {"method": "pmg-aft"},
    "pmg-aft-weights": {"method": "pmg-aft", "pmg_original": 0.3, "pmg_clean": 2.0},
    "pmg-aft-adversarial-first": {"method": "pmg-aft", "pmg_direction": "adversarial-first", "pmg_original": 0.3},
    "pmg-aft-mean": {"method": "pmg-aft", "pmg_reduction": "mean"},
    "fare": {"method": "fare"},
    "fare-clean": {"method": "fare", "fare_clean": 0.3},
    "tga-zsr": {"method": "tga-zsr"},
    "tga-zsr-weights": {"method": "tga-zsr", "tga_refinement": 0.0, "tga_constraint": 3.0},
    "trades": {"method": "trades"},
    "trades-beta": {"method": "trades", "trades_beta": 0.5},
    "agft": {"method": "agft"},
    "agft-weights": {"method": "agft", "agft_scale": 0.7, "agft_ratio": 1.5},
    "ucat": {"method": "ucat"},
    "ucat-weights": {"method": "ucat", "ucat_weight": 3.0, "ucat_temperature": 0.5},
    "lore": {"method": "lore"},
}
#: These are compared to all digits.
IN_FLOAT64 = {name: options for name, options in FORMULAS.items() if options["method"] in ("agft", "ucat", "lore")}


@pytest.mark.usefixtures("_fixed_attack")
@pytest.mark.parametrize("options", FORMULAS.values(), ids=FORMULAS)
def test_loss_is_its_formula(make_model: MakeModel, shapes_tree: Tree, few: Batch, options: dict[str, Any]) -> None:
    tuned, original = make_model(), make_model()
    method = start(tuned, shapes_tree, few, **options)
    drift(tuned)
    bank = TextBank(original, shapes_tree)
    with torch.no_grad():
        text = bank.features(original)[bank.index.columns[0]].double()
        ours = method.loss(few.images, few.labels, seeds(few)).total
        expected = naive_loss(tuned, original, text, few, method.options)
        undrifted = naive_loss(original, original, text, few, method.options)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-6)
    assert abs(expected - undrifted) > 1e-3 * expected


@pytest.mark.usefixtures("_fixed_attack")
@pytest.mark.parametrize("options", IN_FLOAT64.values(), ids=IN_FLOAT64)
def test_loss_is_its_formula_in_float64(
    make_model: MakeModel, shapes_tree: Tree, few: Batch, options: dict[str, Any]
) -> None:
    tuned, original = make_model().double(), make_model().double()
    method = start(tuned, shapes_tree, few, **options)
    drift(tuned)
    bank = TextBank(original, shapes_tree)
    with torch.no_grad():
        text = bank.features(original)[bank.index.columns[0]]
        ours = method.loss(few.images, few.labels, seeds(few)).total
        expected = naive_loss(tuned, original, text, few, method.options)
    assert ours.dtype == torch.float64
    assert ours.item() == pytest.approx(float(expected), rel=1e-11)


@pytest.mark.parametrize(("p", "q"), [((0.7, 2.0), (3.0, 1.5)), ((12.0, 5.0), (11.0, 7.0)), ((1.0, 1.0), (1.0, 1.0))])
def test_divergence_of_two_classes_is_the_integral(p: tuple[float, float], q: tuple[float, float]) -> None:
    """A Dirichlet distribution over two classes is a Beta distribution."""

    def integrand(x: float) -> float:
        density = stats.beta.pdf(x, *p)
        return float(density * (stats.beta.logpdf(x, *p) - stats.beta.logpdf(x, *q))) if density > 0 else 0.0

    expected, _ = integrate.quad(integrand, 0, 1, epsabs=1e-11, limit=200)
    found = dirichlet_divergence(*(torch.tensor([row], dtype=torch.float64) for row in (p, q)))
    assert found.item() == pytest.approx(expected, abs=1e-8)


def test_gradient_of_the_divergence() -> None:
    """Against finite differences; and at evidence of the size that CLIP has, against its leading term in float64."""
    generator = torch.Generator().manual_seed(0)
    p, q = (5 * torch.rand(3, 4, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2))
    assert torch.autograd.gradcheck(dirichlet_divergence, (p.requires_grad_(), q.requires_grad_()))
    large = torch.full((1, 4), 1e8, dtype=torch.float64).requires_grad_()
    dirichlet_divergence(large, large.detach() * torch.tensor([1.01, 1.0, 1.0, 1.0], dtype=torch.float64)).backward()
    # d/dp_c: (p_c - q_c) ψ'(p_c) - Σ(p - q) ψ'(p₀), with ψ'(x) = 1/x + 1/2x² + …
    expected = [-0.01 + 0.01 / 4, 0.01 / 4, 0.01 / 4, 0.01 / 4]
    assert large.grad is not None
    assert large.grad[0].tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.usefixtures("_fixed_attack")
def test_ucat_sees_evidence_that_a_softmax_does_not(make_model: MakeModel, shapes_tree: Tree, few: Batch) -> None:
    """All cosines raised alike leave every prediction as it is, and raise the evidence."""
    method = start(make_model(), shapes_tree, few, method="ucat")
    q = torch.rand(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(10).add(1)
    surer = 3 * q
    torch.testing.assert_close(surer / surer.sum(1, keepdim=True), q / q.sum(1, keepdim=True))
    assert dirichlet_divergence(surer, q).min() > 0.5
    # Nothing has moved where nothing is attacked.
    method.options = replace(method.options, eps=Fraction(0))
    images = shifted(few.images)
    texts = cast(Any, method).original_texts
    same = [cast(Any, method).concentrations(encode(images), texts)
            for encode in (method.model.encode_image, cast(Any, method).original.encode_image)]  # fmt: skip
    assert dirichlet_divergence(*same).abs().max() <= 1e-9 * same[0].sum(1).max()


@pytest.mark.parametrize("part", ["logit_scale", "text_projection"])
def test_agft_remembers_scale_and_texts_too(make_model: MakeModel, shapes_tree: Tree, few: Batch, part: str) -> None:
    model = make_model()
    method = start(model, shapes_tree, few, method="agft", tune="all", eps=Fraction(0), agft_scale=1.0, agft_ratio=1.0)
    before = method.loss(few.images, few.labels, seeds(few)).log
    assert before["kl"].abs() < 1e-5
    with torch.no_grad():
        p = model.clip.get_parameter(part)
        p += 0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    after = method.loss(few.images, few.labels, seeds(few)).log
    torch.testing.assert_close(after["target_entropy"], before["target_entropy"])
    assert after["kl"] > 1e-3


@pytest.mark.usefixtures("_fixed_attack")
@pytest.mark.parametrize(("method", "terms"), [("pmg-aft", ["kl_original", "kl_clean"]), ("trades", ["kl"])])
def test_divergences_have_the_temperature(
    make_model: MakeModel, shapes_tree: Tree, few: Batch, method: str, terms: list[str]
) -> None:
    """KL grows like the square of a small scale; predictions that lose the temperature would not see it."""
    logs = []
    for factor in (0.1, 0.2):
        model = make_model()
        with torch.no_grad():
            model.clip.logit_scale += torch.tensor(factor).log()
        trained = start(model, shapes_tree, few, method=method)
        drift(model)
        logs.append(trained.loss(few.images, few.labels, seeds(few)).log)
    for term in terms:
        assert logs[1][term] / logs[0][term] == pytest.approx(4, rel=0.1)


@pytest.mark.usefixtures("_fixed_attack")
def test_a_sum_is_that_of_the_whole_step(make_model: MakeModel, shapes_tree: Tree, batch: Batch) -> None:
    """Accumulated in three parts, a batch gives the loss that it has in one."""
    model = make_model()
    method = start(model, shapes_tree, batch, method="pmg-aft")
    drift(model)
    whole = method.loss(batch.images, batch.labels, seeds(batch)).total
    method.options = replace(method.options, accumulate=3)
    torch.testing.assert_close(method.loss(batch.images, batch.labels, seeds(batch)).total, whole)


# -- the original -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HELD)
def test_the_original_stays_and_is_nowhere_saved(
    make_model: MakeModel, shapes: Dataset, shapes_tree: Tree, batch: Batch, tmp_path: Path, name: str
) -> None:
    """Not after steps, not after a resumed start; neither among the parameters nor in any file."""
    before = make_model().clip.visual.state_dict()
    options = TrainOptions(method=name, steps=1, batch_size=16, lr=1e-3)

    def make() -> Trainer:
        return Trainer(make_model(), shapes, shapes_tree, options, tmp_path, save_every=1)

    def is_original(trainer: Trainer) -> bool:
        original = cast(Any, trainer.method).original
        now = original.visual.state_dict()
        return all(torch.equal(now[key], value) for key, value in before.items())

    trainer = make()
    names = set(trainer.model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        trainer.run(_stop)
    original = cast(Any, trainer.method).original
    ours = {id(p) for p in trainer.model.parameters()}
    assert all(id(p) not in ours and not p.requires_grad and p.grad is None for p in original.visual.parameters())
    assert set(trainer.model.state_dict()) == names
    assert is_original(trainer)

    resumed = make()
    assert resumed.resume()
    assert resumed.step == 1
    assert is_original(resumed)
    assert not torch.equal(resumed.model.clip.visual.conv1.weight, before["conv1.weight"])
    resumed.run()
    assert load_file(tmp_path / "model.safetensors").keys() == make_model().clip.state_dict().keys()
    for file in (tmp_path / "checkpoint").glob("step-*.pt"):
        assert torch.load(file, weights_only=True)["model"].keys() == make_model().clip.state_dict().keys()


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("part", ["logit_scale", "text_projection"])
def test_pmg_aft_remembers_scale_and_texts_too(make_model: MakeModel, shapes_tree: Tree, few: Batch, part: str) -> None:
    model = make_model()
    method = start(model, shapes_tree, few, method="pmg-aft", tune="all", eps=Fraction(0))
    before = method.loss(few.images, few.labels, seeds(few)).log["kl_original"]
    assert before.abs() < 1e-4
    with torch.no_grad():
        p = model.clip.get_parameter(part)
        p += 0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    # The image encoder is still the original's, and nothing is attacked.
    log = method.loss(few.images, few.labels, seeds(few)).log
    assert log["kl_original"] > 1e-2
    assert log["kl_clean"].abs() < 1e-4


# -- adversaries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("fare", "adversarial"), ("trades", "kl"), ("pmg-aft", "ce"), ("tga-zsr", "ce"), ("agft", "kl"),
        ("ucat", "ce"), ("lore", "adversarial"),
    ],
)  # fmt: skip
def test_the_adversary_raises_its_own_loss(
    make_model: MakeModel, shapes_tree: Tree, few: Batch, name: str, term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Steps so short that a descent would not leap over its minimum, the clean image.
    attack = {"eps": Fraction(4, 255), "step_size": Fraction(1, 25500), "steps": 5}
    method = start(make_model(), shapes_tree, few, method=name, **attack)
    attacked = method.loss(few.images, few.labels, seeds(few)).log[term]

    def random_start(model: ClipModel, loss: object, images: Tensor, seeds: list[int], **o: Any) -> Tensor:
        return LinfBall(images, o["eps"]).random(seeds)

    for module in ATTACKING:
        monkeypatch.setattr(module, "perturb_images", random_start)
    noise = method.loss(few.images, few.labels, seeds(few)).log[term]
    # Cross-entropy, and a divergence between two temperatures, are far from 0 without an attack too.
    assert attacked > (1.001 if term == "ce" or name == "agft" else 2) * noise


@pytest.mark.parametrize(
    "options",
    [*({"method": name} for name in METHODS), {"method": "fare", "fare_clean": 0.5}, {"perturbation": "per-level"}],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_encodings_are_counted(make_model: MakeModel, shapes_tree: Tree, few: Batch, options: dict[str, Any]) -> None:
    """Whole passes of the tuned encoder, and one forward of the original, in a step with many steps of attack."""
    model = make_model()
    method = start(model, shapes_tree, few, **{"method": "hierarchical"} | options, steps=4)
    passes = {"tuned": 0, "original": 0}

    def count(key: str) -> Callable[..., None]:
        def counted(*_: object) -> None:
            passes[key] += 1

        return counted

    model.clip.visual.conv1.register_forward_hook(count("tuned"))
    if hasattr(method, "original"):
        method.original.visual.conv1.register_forward_hook(count("original"))
    method.loss(few.images, few.labels, seeds(few))
    assert passes["original"] == (1 if method.options.method in HELD else 0)
    expected = method.encodings(method.options, shapes_tree.height)
    assert expected == pytest.approx(passes["tuned"] + passes["original"] / 3)


def test_fare_keeps_a_head_learnt_before(make_model: MakeModel, shapes_tree: Tree, few: Batch) -> None:
    model = make_model()
    model.geometry = head = HyperbolicHead(0.1, 0.1, 2.0)
    method = start(model, shapes_tree, few, method="fare")
    assert model.geometry is head
    method.adopt(HyperbolicHead(0.2, 0.1, 2.0))
    assert isinstance(method, Fare)
    assert not any(p.requires_grad for p in model.geometry.parameters())


# -- tga-zsr --------------------------------------------------------------------------------------------------------


def test_attention_comes_with_the_features(make_model: MakeModel, shapes_tree: Tree, few: Batch) -> None:
    model = make_model()
    method = start(model, shapes_tree, few, method="tga-zsr")
    assert isinstance(method, TGAZSR)
    small = few.images[:, :, :20, :20]
    features, maps = method.attend(model.clip.visual, small, method.original_texts[few.labels])
    torch.testing.assert_close(features, model.encode_image(small))
    assert maps.shape == (7, 32, 32)
    assert maps.amin() >= 0
    assert maps.amax() <= 1


@pytest.mark.parametrize("name", [*METHODS])
def test_small_images_in_bf16(make_model: MakeModel, shapes_tree: Tree, few: Batch, name: str) -> None:
    model = make_model()
    model.precision = "bf16"
    small = Batch(few.images[:, :, :20, :20].contiguous(), few.labels, few.ids)
    loss = start(model, shapes_tree, small, method=name, steps=1).loss(small.images, small.labels, seeds(small))
    assert loss.total.dtype == torch.float32
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.clip.visual.parameters())


def test_flat_attention_stays_flat() -> None:
    tokens = torch.ones(2, 9, 4, requires_grad=True)
    maps = attention(tokens, F.normalize(torch.ones(2, 4), dim=1))
    assert maps.abs().max() < 1e-3
    maps.square().sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()
    assert tokens.grad.abs().max() < 10


# -- every family of image encoders ---------------------------------------------------------------------------------

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": TEXT,
    },
    "vit-average-pool": {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8,
            "pool_type": "avg", "final_ln_after_pool": True,
        },
        "text_cfg": TEXT,
    },
    "resnet": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TEXT,
    },
    "convnext": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": TEXT,
    },
    # SigLIP's: timm's ViT with attention pooling, a bias beside the scale, a text projection with a bias of its own.
    "sigmoid": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {
            **TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
        },
    },
    "coca-pool": {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "attentional_pool": True,
        },
        "text_cfg": TEXT,
    },
}  # fmt: skip
WITH_PATCH_TOKENS = ("vit", "vit-average-pool")


@pytest.fixture(scope="module")
def make_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ClipModel]:
    folder = tmp_path_factory.mktemp("families")

    def make(name: str) -> ClipModel:
        file = folder / f"hrzs-family-{name}.json"
        file.write_text(json.dumps(FAMILIES[name]))
        model = load_model(str(file), "none", seed=0)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            # ResNets begin with blocks that are shut by a gain of 0, where gradients end.
            for p in model.clip.visual.parameters():
                p += 0.02 * torch.randn(p.shape, generator=generator)
        return model

    return make


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_every_family(
    make_family: Callable[[str], ClipModel], shapes_tree: Tree, few: Batch, family: str, name: str
) -> None:
    model = make_family(family)
    if name == "tga-zsr" and family not in WITH_PATCH_TOKENS:
        visual = type(model.clip.visual).__name__
        with pytest.raises(UsageError, match=rf"--method tga-zsr.*hrzs-family-{family} has a {visual}.*--model"):
            start(model, shapes_tree, few, method=name)
        return
    method = start(model, shapes_tree, few, method=name, steps=1)
    loss = method.loss(few.images, few.labels, seeds(few))
    assert loss.total.isfinite()
    loss.total.backward()
    gradients = [p.grad for p in model.clip.visual.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    # Of some encoders a part is not used at all: the class token's output where patches are averaged.
    reached = sum(bool(gradient.any()) for gradient in gradients)
    assert reached > 0.9 * len(list(model.clip.visual.parameters()))
