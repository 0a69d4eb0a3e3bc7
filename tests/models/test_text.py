from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F

from hrzs.errors import UsageError
from hrzs.geometry import poincare
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.clip import ClipModel
from hrzs.models.heads import CosineHead, HyperbolicHead
from hrzs.models.text import NodeIndex, NodeTexts, Prompts, TextBank, frozen_texts, resolve_template, same_tokens


def test_nodes_that_pass_through_have_one_text_and_a_column_at_each_level(tree: Tree) -> None:
    index = NodeIndex.of(tree)
    names = [node.name for node in index.nodes]
    assert names == ["dog", "wolf", "cat", "car", "bus", "boat", "canine", "wheeled vehicle", "animal", "vehicle"]
    assert [column.tolist() for column in index.columns] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11]]
    assert index.owner.tolist() == [0, 1, 2, 3, 4, 5, 6, 2, 7, 5, 8, 9]
    assert index.level.tolist() == [0] * 6 + [1] * 4 + [2] * 2
    for level, column in enumerate(index.columns):
        assert all(index.nodes[i] is node for i, node in zip(index.owner[column], tree.levels[level], strict=True))
        assert index.level[column].unique().tolist() == [level]


def test_nodes_are_told_apart_by_identity_not_name() -> None:
    """CLIP_benchmark #109: two classes called `crane`."""
    cranes = tuple(Node("crane", i, class_id=i) for i in ("n02012849", "n03126707"))
    tree = Tree(Node("thing", "thing", (Node("crane", "all-cranes", cranes, level=1), Node("dog", "d", class_id="d")),
                     level=2))  # fmt: skip
    index = NodeIndex.of(tree)
    assert len(index.nodes) == 4
    assert [column.tolist() for column in index.columns] == [[0, 1, 2], [3, 4]]
    assert [index.owner[column].tolist() for column in index.columns] == [[0, 1, 2], [3, 2]]


def test_prompts_fill_every_name_into_every_template(tree: Tree) -> None:
    bus = tree.levels[0][4]
    prompts = Prompts.of([tree.levels[0][0], bus], ("a {}.", "{} and {}"))
    assert prompts.texts == ("a dog.", "dog and dog", "a bus.", "bus and bus", "a coach.", "coach and coach")
    assert prompts.owner.tolist() == [0, 0, 1, 1, 1, 1]
    assert prompts.count == 2


def test_digest_changes_with_the_prompts(tree: Tree) -> None:
    nodes = tree.levels[0]
    digest = Prompts.of(nodes, ("a {}",)).digest
    assert digest == Prompts.of(list(nodes), ["a {}"]).digest
    others = [Prompts.of(nodes, ("an {}",)), Prompts.of(nodes[::-1], ("a {}",)), Prompts.of(nodes[:-1], ("a {}",))]
    assert digest not in {prompts.digest for prompts in others}
    assert len(digest) == 64


def test_digest_knows_whose_a_prompt_is() -> None:
    """Two prompts averaged for one class are another classifier than two classes of a prompt each."""
    one = Prompts.of([Node("a", "a", class_id="a", prompts=("x", "y")), Node("z", "z", class_id="z")], ("{}",))
    two = Prompts.of([Node("x", "a", class_id="a"), Node("z", "z", class_id="z", prompts=("y", "z"))], ("{}",))
    assert one.texts == two.texts
    assert one.digest != two.digest


def test_mean_over_prompts(model: ClipModel, tree: Tree) -> None:
    bank = TextBank(model, tree)
    with torch.no_grad():
        bus, coach = model.encode_text(["a photo of a bus.", "a photo of a coach."])
        raw, unit = bank.features(model)[4], bank.features(model, normalise=True)[4]
        dog = bank.features(model, normalise=True)[0]
        assert torch.allclose(dog, F.normalize(model.encode_text(["a photo of a dog."]))[0], atol=1e-5)
    assert torch.allclose(raw, (bus + coach) / 2, atol=1e-5)
    assert torch.allclose(unit, (F.normalize(bus, dim=0) + F.normalize(coach, dim=0)) / 2, atol=1e-5)


def test_one_prompt_each_is_passed_on() -> None:
    nodes = [Node(name, name, class_id=name) for name in ("a", "b")]
    features = torch.randn(2, 4)
    assert torch.equal(Prompts.of(nodes, ("{}",)).gather(features, normalise=False), features)


def test_features_follow_the_projection(model: ClipModel, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = TextBank(model, tree)
    before = bank.features(model).detach()

    def refuse(*_: object) -> None:
        raise AssertionError("the transformer ran once")

    monkeypatch.setattr(model.clip, "encode_text", refuse)
    (projection,) = model.text_projection_parameters()
    with torch.no_grad():
        projection *= 2
        assert torch.allclose(bank.features(model), 2 * before, atol=1e-6)
        projection /= 2
    (gradient,) = torch.autograd.grad(bank.features(model).sum(), projection)
    assert gradient.abs().max() > 0


def test_an_ensemble_is_clips_zero_shot_weights(model: ClipModel, tree: Tree) -> None:
    """Radford et al. 2021, 3.1.4, as in OpenAI's notebook: unit vectors, their mean, normalised."""
    templates = resolve_template("openai-cifar10")
    bank = TextBank(model, tree, "openai-cifar10")
    head = CosineHead(torch.tensor(1.0))
    with torch.no_grad():
        weights = head.prepare(bank.features(model, normalise=True))
        for row, name in ((0, "dog"), (6, "canine")):
            texts = F.normalize(model.encode_text([t.replace("{}", name) for t in templates]), dim=-1)
            assert torch.allclose(weights[row], F.normalize(texts.mean(0), dim=0), atol=1e-5)
    assert len(bank.prompts.texts) == 18 * 11


def test_an_ensemble_is_averaged_before_it_is_lifted(model: ClipModel, tree: Tree) -> None:
    head = HyperbolicHead(0.1, 0.1, 1.0, 0.5)
    with torch.no_grad():
        texts = model.encode_text([t.replace("{}", "dog") for t in resolve_template("openai-stl10")])
        expected = poincare.expmap0(0.1 * texts.mean(0, keepdim=True), torch.tensor(0.5))[0]
        point = head.prepare(TextBank(model, tree, "openai-stl10").features(model))[0]
    assert torch.allclose(point, expected, atol=1e-6)


# -- kept on disk -----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HRZS_CACHE", raising=False)
    return tmp_path / "hrzs/text"


@pytest.fixture
def transformer(model: ClipModel, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one with every run of the text transformer."""
    runs: list[object] = []
    real: Callable[..., object] = model.clip.encode_text  # type: ignore[assignment]
    monkeypatch.setattr(model.clip, "encode_text", lambda *a, **k: runs.append(a) or real(*a, **k))
    return runs


@pytest.mark.parametrize("normalise", [False, True])
def test_the_second_time_no_transformer_runs(
    model: ClipModel, tree: Tree, cache: Path, transformer: list[object], normalise: bool
) -> None:
    expected = TextBank(model, tree, "openai-stl10").features(model, normalise=normalise).detach()
    transformer.clear()
    first = frozen_texts(model, tree, "openai-stl10", normalise=normalise)
    assert len(transformer) == 1
    second = frozen_texts(model, tree, "openai-stl10", normalise=normalise)
    assert len(transformer) == 1
    assert torch.equal(first.features, expected)
    assert torch.equal(second.features, expected)
    assert not first.features.requires_grad
    assert second.prompts.digest == first.prompts.digest
    assert len(list(cache.iterdir())) == 1


def test_everything_that_changes_the_texts_is_encoded_again(
    model: ClipModel, tree: Tree, cache: Path, transformer: list[object]
) -> None:
    def texts(**options: object) -> NodeTexts:
        return frozen_texts(model, tree, **options)  # type: ignore[arg-type]

    texts()
    texts(normalise=True)
    texts(template="tecoa")
    frozen_texts(model, tree.restrict(["dog", "wolf", "car"]))
    assert len(transformer) == 4
    (projection,) = model.text_projection_parameters()
    with torch.no_grad():
        before = projection[0, 0].clone()
        projection[0, 0] += 1
        changed = texts().features
        projection[0, 0] = before
    assert len(transformer) == 5
    # As it was again, it is known again; the image encoder has no say.
    first_weight = next(model.clip.visual.parameters())
    with torch.no_grad():
        kept_weight = first_weight.clone()
        first_weight += 1
        assert not torch.equal(texts().features, changed)
        first_weight.copy_(kept_weight)
    assert len(transformer) == 5


def test_a_damaged_cache_is_no_harm(model: ClipModel, tree: Tree, cache: Path, transformer: list[object]) -> None:
    expected = frozen_texts(model, tree).features
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(frozen_texts(model, tree).features, expected)
    assert len(transformer) == 2
    frozen_texts(model, tree)
    assert len(transformer) == 2


def test_the_cache_can_be_switched_off(
    model: ClipModel, tree: Tree, cache: Path, transformer: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HRZS_CACHE", "0")
    for _ in range(2):
        frozen_texts(model, tree)
    assert len(transformer) == 2
    assert not cache.exists()


def test_training_keeps_nothing(model: ClipModel, tree: Tree, cache: Path) -> None:
    TextBank(model, tree).features(model)
    assert not cache.exists()


def test_an_unknown_template_is_refused(model: ClipModel, tree: Tree) -> None:
    with pytest.raises(UsageError, match="--template 'phot'"):
        frozen_texts(model, tree, "phot")


# -- prompts that are the same to a tokenizer ----------------------------------------------------------------------


def standing(*nodes: Node) -> Tree:
    return Tree(Node("thing", "thing", nodes, level=1))


def leaf(name: str, class_id: str, *prompts: str) -> Node:
    return Node(name, class_id, class_id=class_id, prompts=prompts)


def tokenizer(length: int) -> Callable[[Sequence[str]], torch.Tensor]:
    return lambda texts: open_clip.tokenizer.tokenize(list(texts), context_length=length)


def test_tokens_have_no_capitals() -> None:
    (same,) = same_tokens(
        standing(leaf("Turkey", "a"), leaf("turkey", "b"), leaf("duck", "c")), ("a {}.",), tokenizer(77)
    )
    assert (same.level, [node.id for node in same.nodes], same.prompt) == (0, ["a", "b"], "a Turkey.")


@pytest.mark.parametrize(("length", "same"), [(77, 0), (24, 1)])
def test_long_prompts_are_cut_to_the_context(length: int, same: int) -> None:
    long = "very " * 25
    tree = standing(leaf(f"{long}big dog", "a"), leaf(f"{long}small dog", "b"))
    assert len(same_tokens(tree, ("a photo of a {}.",), tokenizer(length))) == same


def test_every_template_is_compared() -> None:
    tree = standing(leaf("red dog", "a"), leaf("blue dog", "b"))
    cut = "one two three four five six seven {}."
    assert len(same_tokens(tree, (cut,), tokenizer(8))) == 1
    assert same_tokens(tree, (cut, "{}"), tokenizer(8)) == []
    assert same_tokens(tree, ("{}", cut), tokenizer(8)) == []


def test_names_in_another_order_are_the_same_prompts(tree: Tree) -> None:
    assert same_tokens(tree, ("{}", "a {}"), tokenizer(77)) == []
    (same,) = same_tokens(
        standing(leaf("a", "a", "bus", "coach"), leaf("b", "b", "Coach", "bus")), ("{}",), tokenizer(9)
    )
    assert same.prompt == "bus / coach"


def test_the_models_own_tokenizer_serves(model: ClipModel, tree: Tree) -> None:
    assert same_tokens(tree, resolve_template("photo"), model.tokenize) == []
