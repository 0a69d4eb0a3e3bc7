from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

import pytest
from torch import Tensor
from torchvision import datasets

from hrzs.classes.specs import dataset_classes
from hrzs.data import DATASETS
from hrzs.hierarchy.describe import agreement
from hrzs.hierarchy.namesakes import namesakes
from hrzs.hierarchy.published import find_tree
from hrzs.hierarchy.yaml_form import dump_trees, load_trees
from hrzs.models.text import resolve_template, same_tokens
from hrzs.sources import SourceOptions
from hrzs.sources.build import build_trees
from hrzs.sources.classes import read_classes

FOLDER = Path(__file__).parents[2] / "hierarchies"
PUBLISHED = sorted(file.stem for file in FOLDER.glob("*.yaml"))
# OpenAI's names for ImageNet, which the field uses, say these of two classes each.
TWICE = {"imagenet": {"missile", "sunglasses"}}


def test_every_dataset_has_a_tree_and_a_list() -> None:
    assert set(PUBLISHED) == {*DATASETS, "tiny_imagenet", "cifar100_coarse"}
    for name in PUBLISHED:
        assert dataset_classes(name) or name == "cifar100_coarse"


@pytest.mark.parametrize("name", PUBLISHED)
def test_trees_have_exactly_the_classes_of_their_dataset_in_order(name: str) -> None:
    file = find_tree(name)
    assert file == FOLDER / f"{name}.yaml"
    trees = load_trees(file)
    assert dump_trees(trees) == file.read_text("utf-8")
    for tree in trees:
        listed = dataset_classes(str(tree.header["classes"]))
        assert listed is not None
        assert tree.classes == tuple(spec.class_id for spec in listed)
        assert tree.header["name"] in ("wordnet", "curated")
        assert tree.header["name"] == "wordnet" or {"from", "how"} <= tree.header.keys()
        assert not [node.id for node in tree.root.walk() if len(node.children) == 1]
        names = Counter(node.name for node in tree.root.leaves())
        assert {n for n, count in names.items() if count > 1} == TWICE.get(name, set())


@pytest.mark.parametrize("name", PUBLISHED)
def test_generated_trees_are_what_build_tree_makes(name: str) -> None:
    """What `make hierarchies` writes, from what the file itself says."""
    generated = [tree for tree in load_trees(FOLDER / f"{name}.yaml") if tree.header["name"] == "wordnet"]
    if not generated:
        return
    classes, label = read_classes(name)
    made, _ = build_trees(classes, label=label, options=SourceOptions(trees=len(generated)))
    assert dump_trees(made) == dump_trees(generated)


@pytest.fixture(scope="module")
def tokenize() -> Callable[[Sequence[str]], Tensor]:
    """CLIP's own tokenizer, with its context of 77 tokens."""
    import open_clip

    return lambda texts: open_clip.tokenizer.tokenize(list(texts), context_length=77)


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_level_has_two_nodes_with_one_prompt(name: str, tokenize: Callable[[Sequence[str]], Tensor]) -> None:
    """Issue 14: ImageNet had two gowns, two cars, two missiles and two sunglasses."""
    for tree in load_trees(FOLDER / f"{name}.yaml"):
        assert namesakes(tree) == []
        assert same_tokens(tree, resolve_template("photo"), tokenize) == []


@pytest.mark.parametrize("name", ["caltech256", "imagenet"])
def test_nor_has_one_over_a_part_of_the_classes(name: str) -> None:
    """Levels fall away when classes do, and nodes move up."""
    for tree in load_trees(FOLDER / f"{name}.yaml"):
        for step in (2, 3, 10):
            assert namesakes(tree.restrict(tree.classes[::step])) == []


def test_cifar100_has_the_official_superclasses_as_its_second_tree() -> None:
    first, second = load_trees(FOLDER / "cifar100.yaml")
    assert [second] == load_trees(FOLDER / "cifar100_coarse.yaml")
    sizes = [len(list(node.leaves())) for node in second.levels[1]]
    assert sizes == [5] * 20
    assert agreement(first, second)["same_lca_height"] < 1


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("flowers102", lambda: datasets.Flowers102.classes),
        ("eurosat", lambda: sorted(spec.class_id for spec in dataset_classes("eurosat") or ())),
        ("imagenet", lambda: resource("imagenet_synsets.txt")),
    ],
)
def test_lists_agree_with_other_peoples(name: str, theirs: Callable[[], list[str]]) -> None:
    listed = dataset_classes(name)
    assert listed is not None
    assert [spec.class_id for spec in listed] == list(theirs())


def resource(name: str) -> list[str]:
    """A list in timm, which open_clip needs."""
    return files("timm.data._info").joinpath(name).read_text().split()


@pytest.mark.parametrize("name", ["none", "../shapes", "", "/etc/passwd"])
def test_no_tree_of_that_name(name: str) -> None:
    assert find_tree(name) is None
