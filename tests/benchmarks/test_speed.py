"""Speed, as ratios within one run (`make bench`); the bounds are those the project promises."""

from __future__ import annotations

import copy
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import pytest
import torch
from measures import ratio, training_step, wordnet_ids
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import Transformer
from torch import nn

from hrzs.attacks import ATTACKS, Budget
from hrzs.attacks.base import features_of
from hrzs.models.bf16 import bf16_speed
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import frozen
from hrzs.models.faster import FirstToken, OneQueryPool
from hrzs.models.loading import load_model

pytestmark = pytest.mark.benchmark


def test_pgd_step_costs_no_more_than_the_encoder(model, tree, batch) -> None:
    images, labels, seeds = batch
    classifier = ZeroShotClassifier(model, tree)
    spec, steps = ATTACKS["leaf-pgd"], 4
    # ε so small that nothing is fooled early and every image is attacked for all steps.
    attack = spec.optimiser(Budget(Fraction(1, 2550), Fraction(1, 2550), steps), early_stop=False)
    objective = spec.objective(classifier, 0)

    def bare() -> None:
        with frozen(model):
            for _ in range(steps):
                x = images.clone().requires_grad_(True)
                torch.autograd.grad(model.encode_image(x).sum(), x)
            with torch.no_grad():
                model.encode_image(images)  # the last forward, which judges

    measured = ratio(lambda: attack(model, objective, images, labels, seeds), bare)
    print(
        f"\nPGD-{steps} / {steps} × (forward + input gradient) + judging forward, ViT-B-32: {measured:.3f} (bound 1.05)"
    )
    assert measured <= 1.05


def test_bf16_trains_and_attacks_twice_as_fast_where_the_cpu_does(model, tree, batch) -> None:
    product = bf16_speed()
    if product < 1:
        pytest.skip(f"on this CPU a bf16 matrix product itself runs at {product:.2f} × the speed of fp32")
    # Nine tenths of the work are matrix products: without an AMX unit these alone may fall short of twice the speed.
    bound = min(2.0, 0.9 * product)
    slow = training_step(model, tree, batch, "tecoa")
    fast = training_step(model, tree, batch, "tecoa", "bf16")
    training = ratio(slow, fast, rounds=2)
    images, _, seeds = batch
    spec = ATTACKS["leaf-pgd"]
    classifier = ZeroShotClassifier(model, tree)
    objective = spec.objective(classifier, 0)
    with torch.no_grad():
        labels = classifier.logits(model.encode_image(images)).argmax(1)
    # No image falls: what seems to is judged again in fp32, which is no part of the ratio wanted here.
    eps = Fraction(1, 10**9)
    attack = spec.optimiser(Budget(eps, eps, 4), early_stop=False)

    def run(precision: str) -> None:
        model.precision = precision
        attack(model, objective, images, labels, seeds)
        model.precision = "fp32"

    attacking = ratio(lambda: run("fp32"), lambda: run("bf16"), rounds=2)
    print(f"\nfp32 / bf16, ViT-B-32: training {training:.2f}, PGD-4 {attacking:.2f} (bound {bound:.2f})")
    assert training >= bound
    assert attacking >= bound


def test_convolutions_are_faster_channels_last(tree) -> None:
    ours = load_model("RN50", "none")
    usual = copy.deepcopy(ours)
    usual.clip.to(memory_format=torch.contiguous_format)
    batch = torch.rand(8, 3, 224, 224), torch.arange(8), list(range(8))
    for precision, bound in (("fp32", 1.0), ("bf16", 1.3 if bf16_speed() > 1 else 1.0)):
        steps = [training_step(model, tree, batch, "tecoa", precision) for model in (usual, ours)]
        measured = ratio(*steps, rounds=1)
        print(f"\nusual layout / channels last, training step of RN50, {precision}: {measured:.2f} (bound {bound})")
        assert measured >= bound


def test_the_class_token_alone_is_faster_than_the_last_block(model, batch) -> None:
    for name, ours, images in (("ViT-B-32", model, batch[0]), ("tiny", load_model("tiny"), torch.rand(16, 3, 64, 64))):
        usual = copy.deepcopy(ours)
        assert type(usual.clip.visual.transformer) is FirstToken
        usual.clip.visual.transformer.__class__ = Transformer
        measured = ratio(lambda: features_of(usual, images), lambda: features_of(ours, images), rounds=10)  # noqa: B023 -- called at once
        print(f"\nwhole last block / its class token alone, forward pass of {name}: {measured:.2f} (bound 1)")
        assert measured >= 1


def test_the_last_attention_of_a_resnet_is_faster_for_one_query() -> None:
    ours = load_model("RN50", "none").clip.visual.attnpool.requires_grad_(False)
    usual = copy.deepcopy(ours)
    assert type(usual) is OneQueryPool
    usual.__class__ = AttentionPool2d
    found = torch.rand(8, 2048, 7, 7)

    def gradient(pool: nn.Module) -> None:
        x = found.clone().requires_grad_(True)
        torch.autograd.grad(pool(x).sum(), x)

    works: dict[str, Callable[[nn.Module], object]] = {"forward pass": lambda pool: pool(found), "gradient": gradient}
    for what, work in works.items():
        measured = ratio(partial(work, usual), partial(work, ours), rounds=5)
        print(f"\nall queries / the one that is read, last attention of RN50, {what}, fp32: {measured:.1f} (bound 3)")
        assert measured >= 3


def test_texts_are_faster_without_their_padding() -> None:
    model = load_model("ViT-B-32", "none")
    tokens = model.tokenize([f"a photo of a thing called {i}." for i in range(32)])
    with torch.no_grad():
        measured = ratio(lambda: model.clip.encode_text(tokens), lambda: model.encode_tokens(tokens), rounds=3)
    print(f"\nopen_clip's 77 tokens / those that are needed, 32 prompts, ViT-B-32: {measured:.2f} (bound 4)")
    assert measured >= 4


def test_an_attack_on_a_resnet_is_faster_with_its_norms_folded(monkeypatch) -> None:
    if bf16_speed() < 1:
        pytest.skip("bf16 is slower than fp32 on this CPU, and fp32 folds nothing")
    model = load_model("RN50", "none")
    model.precision = "bf16"
    images = torch.rand(8, 3, 224, 224)

    def steps() -> None:
        with frozen(model):
            for _ in range(2):
                x = images.clone().requires_grad_(True)
                torch.autograd.grad(model.encode_image(x).sum(), x)

    def unfolded() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("hrzs.models.clip.folded", lambda _: {})
            steps()

    measured = ratio(unfolded, steps)
    print(f"\nbatch norms computed / folded, PGD on RN50, bf16: {measured:.2f} (bound 1.2)")
    assert measured >= 1.2


def test_build_tree_for_a_thousand_ids_takes_five_seconds(tmp_path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(wordnet_ids(1000)))
    command = [sys.executable, "-m", "hrzs", "build-tree", "--classes", str(ids), "-o", str(tmp_path / "tree.yaml")]
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    print(f"\nbuild-tree, 1000 WordNet ids, from process start: {min(seconds):.2f} s (bound 5)")
    assert min(seconds) < 5


def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    """CPU time, from process start to exit."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    seconds = []
    for _ in range(5):
        began = spent()
        subprocess.run([sys.executable, "-m", "hrzs", "--help"], check=True, capture_output=True)
        seconds.append(spent() - began)
    print(f"\nhrzs --help, CPU time from process start: {min(seconds):.2f} s (bound 0.3)")
    assert min(seconds) < 0.3
