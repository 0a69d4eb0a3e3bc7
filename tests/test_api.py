"""`hrzs.load`, `build_tree`, `attack`, `evaluate`, `finetune` and `export` do what the command line does."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import open_clip
import pytest
import torch
from torch import Tensor, nn

import hrzs
from hrzs import api
from hrzs.data import Batch
from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel


def test_import_is_light() -> None:
    code = "import hrzs, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_all_that_is_promised_is_there() -> None:
    assert all(getattr(hrzs, name) for name in hrzs.__all__)
    with pytest.raises(AttributeError, match="no attribute 'attak'"):
        hrzs.attak  # noqa: B018 -- asking for it is the test


@pytest.mark.parametrize("name", ["load", "build_tree", "attack", "evaluate", "finetune", "export"])
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the docstrings."""
    monkeypatch.chdir(tmp_path)
    tests = doctest.DocTestFinder(recurse=False).find(getattr(api, name), name, globs={"hrzs": hrzs, "torch": torch})
    assert sum(len(test.examples) for test in tests) > 0
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0


# -- models -----------------------------------------------------------------------------------------------------------


def test_a_model_in_memory_is_the_one_of_its_name() -> None:
    clip = open_clip.create_model("RN50", pretrained=None)
    model = hrzs.load(clip, arch="RN50")
    assert model.clip is clip
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    expected = clip.eval().encode_image((images - mean) / std)
    torch.testing.assert_close(model.encode_image(images), expected, rtol=1e-4, atol=1e-5)


def test_a_model_in_memory_that_is_another(small: ClipModel) -> None:
    with pytest.raises(UsageError, match=r"arch None: .*CLIP is needed, such as"):
        hrzs.load(small.clip)
    with pytest.raises(UsageError, match=r"arch 'ViT-B-23': .*ViT-B-32"):
        hrzs.load(small.clip, arch="ViT-B-23")
    with pytest.raises(UsageError, match=r"arch .ViT-B-32.: .*tensors differ; .* has the shape \(.*\), not \("):
        hrzs.load(small.clip, arch="ViT-B-32")
    with pytest.raises(UsageError, match="a model in memory has its own"):
        hrzs.load(small.clip, "openai", arch="ViT-B-32")
    with pytest.raises(UsageError, match="arch 'ViT-B-32': is for a model in memory"):
        hrzs.load("tiny", arch="ViT-B-32")


# -- trees ------------------------------------------------------------------------------------------------------------


def test_trees_from_names_maps_and_datasets() -> None:
    nested = {"animal": {"canine": ["dog", "wolf"], "feline": ["cat"]}, "vehicle": ["car", "bus"]}
    assert hrzs.build_tree(nested).classes == ("dog", "wolf", "cat", "car", "bus")
    by_wordnet = hrzs.build_tree(["cat", "dog", "car"])
    assert by_wordnet.classes == ("cat", "dog", "car")
    assert by_wordnet.digest == hrzs.build_tree("cat,dog,car").digest
    assert len(hrzs.build_tree("shapes", levels=2).levels) <= 3
    with pytest.raises(UsageError, match="'cat' more than once"):
        hrzs.build_tree(["cat", "cat"])


# -- attacks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def under_attack(small: ClipModel, batch: Batch) -> tuple[ClipModel, Tensor, Tensor]:
    return small, batch.images[:4], batch.labels[:4]


def test_radii_may_be_numbers(under_attack: tuple[ClipModel, Tensor, Tensor]) -> None:
    """The float 2 / 255 is that fraction, to the bit of the images."""
    options: dict[str, Any] = {"tree": "shapes", "attack": "superclass-pgd", "level": 2, "steps": 2}
    results = [hrzs.attack(*under_attack, eps=eps, **options).images for eps in ("2/255", 2 / 255, Fraction(2, 255))]
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert 0 < Fraction((results[0].double() - under_attack[1].double()).abs().max().item()) <= Fraction(2, 255)


def test_labels_may_be_a_list(under_attack: tuple[ClipModel, Tensor, Tensor], shapes_tree: Tree) -> None:
    model, images, labels = under_attack
    found = [hrzs.attack(model, images, given, tree=shapes_tree, steps=1).images for given in (labels, labels.tolist())]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1, 2, 24], {}, r"labels\[3\] is 24: the tree has classes 0 … 23"),
        ([0, -1, 2, 3], {}, r"labels\[1\] is -1"),
        ([0, 1], {}, "labels: 4 whole numbers are needed"),
        ([0.0, 1.0, 2.0, 3.0], {}, "labels: 4 whole numbers are needed"),
        ([0, 1, 2, 3], {"tree": None}, "tree: a CLIP needs to know its classes"),
        ([0, 1, 2, 3], {"tree": "no-such"}, "cannot read the tree file no-such"),
        ([0, 1, 2, 3], {"level": 2}, "leaf-pgd has no level 2"),
        ([0, 1, 2, 3], {"eps": 2.0}, "--eps '2': must be more than 0 and at most 1 .*write 2/255"),
        ([0, 1, 2, 3], {"eps": float("nan")}, "--eps 'nan': not a number"),
        ([0, 1, 2, 3], {"step_size": -0.5}, "--step-size '-1/2': must be more than 0"),
        ([0, 1, 2, 3], {"attack": "pgd"}, "--attack 'pgd': one of"),
    ],
)
def test_a_wrong_attack(
    under_attack: tuple[ClipModel, Tensor, Tensor], labels: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        hrzs.attack(under_attack[0], under_attack[1], labels, **{"tree": "shapes", **options})


class Linear(nn.Module):
    """Logits of six classes, from the means of eight patches."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(6, 3 * 16, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) @ self.weight.T


def test_any_module_with_logits(tree: Tree) -> None:
    """A linear model falls where its gradient says; superclasses sum their leaves."""
    module, images = Linear().eval(), torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = module(images).argmax(1)
    result = hrzs.attack(module, images, labels, eps=0.1, steps=10, random_start=False)
    assert torch.equal(result.success, module(result.images).argmax(1) != labels)
    assert result.success.any()
    assert all(p.grad is None for p in module.parameters())
    above = hrzs.attack(module, images, labels, tree=tree, attack="superclass-pgd", level=2, eps=0.3, steps=10)
    groups = tree.ancestors[2]
    probabilities = module(above.images).softmax(1)
    predicted = torch.stack([probabilities[:, groups == g].sum(1) for g in range(2)], 1).argmax(1)
    assert torch.equal(above.success, predicted != groups[labels])
    assert above.success.any()


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 8, 8), torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)]
)
def test_images_that_are_none(images: Tensor) -> None:
    with pytest.raises(UsageError, match=r"images: floating-point numbers in \[0, 1\] of B × 3 × H × W, not torch\."):
        hrzs.attack(Linear().eval(), images, [0, 1])


def test_modules_that_give_no_logits(tree: Tree) -> None:
    images, labels = torch.rand(2, 3, 8, 8), [0, 1]
    with pytest.raises(UsageError, match=r"Linear is in training mode.*\.eval\(\)"):
        hrzs.attack(Linear(), images, labels)
    with pytest.raises(UsageError, match=r"Flatten gives .* logits|gives 192 logits, the tree has 6 classes"):
        hrzs.attack(nn.Flatten().eval(), images, labels, tree=tree)
    with pytest.raises(UsageError, match=r"Identity gives \(2, 3, 8, 8\) for 2 images; a tensor of logits"):
        hrzs.attack(nn.Identity().eval(), images, labels, tree=tree)


# -- evaluations ------------------------------------------------------------------------------------------------------


def timeless(report: hrzs.Report) -> list[Any]:
    return [msgspec.structs.replace(row, seconds=None) for row in report.results]


def test_the_report_is_that_of_the_command(
    small: ClipModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hrzs.cli import main

    config = tmp_path / "config.json"
    config.write_text(json.dumps(small.info.config))
    command = ["eval", "--model", str(config), "--pretrained", "none", "--limit", "24", "--attack", "leaf-pgd,superclass-pgd",
               "--steps", "2", "--eps", "2/255,4/255", "--level", "all", "--device", "cpu", "--json", "-"]  # fmt: skip
    with pytest.raises(SystemExit):
        main([*command, "--no-canaries"])
    there = capsys.readouterr().out
    here = hrzs.evaluate(hrzs.load(config, "none"), limit=24, attack="leaf-pgd,superclass-pgd", steps=2, level="all",
                         eps=(2 / 255, "4/255"), canaries=False)  # fmt: skip
    assert json.loads(here.to_json()).keys() == json.loads(there).keys()
    there = hrzs.Report.from_json(there)
    assert timeless(here) == timeless(there)
    assert here.summary == there.summary
    assert (here.tasks, here.model, here.prompts_digest) == (there.tasks, there.model, there.prompts_digest)
    for name in ("attack", "eps", "level", "limit"):
        assert here.config[name] == there.config[name]


def test_progress_is_silence_or_one_line(small: ClipModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A notebook is not flooded."""
    for progress, lines in ((None, 0), (True, 1)):
        hrzs.evaluate(small, limit=12, attack="none", batch_size=2, canaries=False, progress=progress)
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", lines)
    run = {"max_steps": 2, "batch_size": 8, "limit": 24, "validate_every": 0}
    hrzs.finetune(small, tmp_path / "run", method="clean", progress=True, **run)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "2/2, " in err
    assert "loss " in err


def test_an_evaluation_has_its_verdict_and_progress(small: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hrzs.evaluation.canaries.QUERIES", 1)
    seen: list[tuple[int, int]] = []
    report = hrzs.evaluate(small, data=["shapes"], limit=12, attack=("leaf-pgd",), steps=1,
                           progress=lambda done, total, _: seen.append((done, total)))  # fmt: skip
    assert seen[-1][0] == seen[-1][1] > 0
    assert {found.verdict for found in report.summary.masking} <= {"none found", "suspected", "inconclusive"}
    assert report.summary.canaries


def test_a_stopped_evaluation_goes_on(small: ClipModel, tmp_path: Path) -> None:
    options: dict[str, Any] = {"limit": 12, "attack": "leaf-pgd", "steps": 1, "batch_size": 4, "canaries": False}

    def stop(done: int, total: int, _: str) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    store = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        hrzs.evaluate(small, store=store, progress=stop, **options)
    assert store.is_file()
    seen: list[int] = []
    report = hrzs.evaluate(small, store=store, progress=lambda done, *_: seen.append(done), **options)
    assert not store.exists()
    assert timeless(report) == timeless(hrzs.evaluate(small, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scoring": "leaf"}, "--scoring 'leaf': one of prompt, leaves, both"),
        ({"attack": "leaf-pgd", "adversarial": "x"}, "attack with adversarial: "),
        ({"data": ["shapes", "no-such"]}, "no dataset of this name"),
        ({"head": "hyperbolic"}, "has no such head"),
    ],
)
def test_a_wrong_evaluation(small: ClipModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        hrzs.evaluate(small, **options)


@pytest.mark.parametrize(
    "call", [hrzs.evaluate, lambda model: hrzs.finetune(model, "run")], ids=["evaluate", "finetune"]
)
def test_a_model_that_is_none_of_ours(call: Callable[[Any], object]) -> None:
    with pytest.raises(UsageError, match=r"a ClipModel is needed, not a Identity; hrzs\.load makes one"):
        call(nn.Identity())


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_is_that_of_the_command(
    make_model: Callable[[], ClipModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hrzs.cli import main

    model = make_model()
    config = tmp_path / "config.json"
    config.write_text(json.dumps(model.info.config))
    options = {"max-steps": 2, "batch-size": 8, "steps": 1, "limit": 24, "validate-every": 0, "eps": "2/255"}
    with pytest.raises(SystemExit):
        main(["finetune", "--model", str(config), "--pretrained", "none", "--device", "cpu", "-o", str(tmp_path / "there"),
              *(str(word) for name, value in options.items() for word in (f"--{name}", value))])  # fmt: skip
    assert capsys.readouterr().out
    seen: list[int] = []
    given: dict[str, Any] = {name.replace("-", "_"): value for name, value in options.items()} | {"eps": 2 / 255}
    model = hrzs.load(config, "none")
    run = hrzs.finetune(model, tmp_path / "here", progress=lambda step, *_: seen.append(step), **given)
    assert seen == [1, 2]
    here, there = (hrzs.load(folder) for folder in (run, tmp_path / "there"))
    assert all(torch.equal(a, b) for a, b in zip(here.state_dict().values(), there.state_dict().values(), strict=True))
    assert here.info.run["base"] == there.info.run["base"]
    # Its configuration is one of the command line's.
    with pytest.raises(SystemExit):
        main(["finetune", "--config", str(run / "config.yaml"), "--device", "cpu", "-o", str(tmp_path / "again")])
    again = hrzs.load(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(here.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_step": 1}, "max_step: no option of a run; did you mean max_steps"),
        ({"method": "tecoa", "hnsa": "none"}, "--hnsa: --method tecoa does not read it"),
        ({"recipe": "papers"}, "--recipe 'papers'"),
        ({"lr": -1.0}, "--lr -1.0: must be more than 0"),
    ],
)
def test_a_wrong_run(small: ClipModel, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        hrzs.finetune(small, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
