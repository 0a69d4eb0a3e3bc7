from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.clip import ClipModel
from hrzs.models.text import TEMPLATES, NodeIndex, Prompts, TextBank, resolve_template


@pytest.mark.parametrize("name", TEMPLATES)
def test_named_templates(name: str) -> None:
    assert resolve_template(name) == TEMPLATES[name]
    assert all("{}" in template for template in TEMPLATES[name])


def test_a_text_is_its_own_template() -> None:
    assert resolve_template("a drawing of a {}!") == ("a drawing of a {}!",)


@pytest.mark.parametrize("spec", ["", "phot", "a photo of a", "a photo of a {name}"])
def test_neither_name_nor_text(spec: str) -> None:
    with pytest.raises(UsageError, match=r"--template .*photo, tecoa, name.*\{\}") as error:
        resolve_template(spec)
    assert repr(spec) in str(error.value)


def test_nodes_that_pass_through_stand_once(tree: Tree) -> None:
    index = NodeIndex.of(tree)
    names = [node.name for node in index.nodes]
    assert names == ["dog", "wolf", "cat", "car", "bus", "boat", "canine", "wheeled vehicle", "animal", "vehicle"]
    assert [column.tolist() for column in index.columns] == [[0, 1, 2, 3, 4, 5], [6, 2, 7, 5], [8, 9]]
    for level, column in enumerate(index.columns):
        assert [index.nodes[i] for i in column] == list(tree.levels[level])


def test_nodes_are_told_apart_by_identity_not_name() -> None:
    """CLIP_benchmark #109: two classes called `crane`."""
    cranes = tuple(Node("crane", i, class_id=i) for i in ("n02012849", "n03126707"))
    tree = Tree(Node("thing", "thing", (Node("crane", "all-cranes", cranes, level=1), Node("dog", "d", class_id="d")),
                     level=2))  # fmt: skip
    index = NodeIndex.of(tree)
    assert len(index.nodes) == 4
    assert [column.tolist() for column in index.columns] == [[0, 1, 2], [3, 2]]


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
