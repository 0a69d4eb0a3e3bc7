from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Node
from hrzs.sources import SOURCES, ClassSpec, Grown, SourceOptions


def grow(*names: str, **senses: str) -> Grown:
    return SOURCES["wordnet"]([ClassSpec(name) for name in names], SourceOptions(senses=senses))


def leaf_ids(grown: Grown) -> dict[str | None, str]:
    return {leaf.class_id: leaf.id for leaf in grown.roots[0].leaves()}


def parents(grown: Grown) -> dict[str | None, Node]:
    return {child.class_id: node for node in grown.roots[0].walk() for child in node.children if child.is_leaf}


SHAPES = {
    "square": "n13878634", "rectangle": "n13883346", "rhombus": "n13882961", "parallelogram": "n13881175",
    "trapezoid": "n13881512", "equilateral_triangle": "n13879947", "isosceles_triangle": "n13880199",
    "right_triangle": "n13880551", "pentagon": "n13882201", "hexagon": "n13882276", "octagon": "n13882563",
    "circle": "n13873502", "ellipse": "n13878306", "semicircle": "n13874251", "sector": "n13875027",
    "crescent": "n13896217", "ring": "n13875392", "star": "n13881644", "pentagram": "n13882008",
    "hexagram": "n13880811", "heart": "n13865904", "spiral": "n13876371", "zigzag": "n13887319",
    "teardrop": "n13901925",
}  # fmt: skip


@pytest.mark.parametrize(
    "meant",
    [
        SHAPES,
        {"dog": "dog.n.01", "cat": "cat.n.01", "fox": "fox.n.01", "crane": "crane.n.05", "seal": "seal.n.09"},
        {"crane": "crane.n.04", "bulldozer": "bulldozer.n.01", "truck": "truck.n.01", "excavator": "power_shovel.n.01"},
        {"bass": "bass.n.08", "trout": "trout.n.02", "perch": "perch.n.06", "pike": "pike.n.05"},
        {"bass": "bass.n.07", "guitar": "guitar.n.01", "drum": "drum.n.01", "horn": "cornet.n.01"},
        {"star": "star.n.01", "sun": "sun.n.01", "moon": "moon.n.01", "planet": "planet.n.01", "comet": "comet.n.01"},
        {"hammer": "hammer.n.02", "saw": "saw.n.02", "drill": "drill.n.01", "file": "file.n.04"},
    ],
    ids=["shapes", "animals", "machines", "fish", "music", "sky", "tools"],
)
def test_senses_fit_one_another(meant: dict[str, str]) -> None:
    assert leaf_ids(grow(*meant)) == leaf_ids(grow(*meant, **meant))


@pytest.mark.parametrize("name", ["Red Fox", "red_fox", "red-fox", "RED FOX", "red foxes", "  red  fox "])
def test_spelling_does_not_matter(name: str) -> None:
    assert leaf_ids(grow(name, "cat"))[name] == leaf_ids(grow("red fox", "cat"))["red fox"]


def test_wordnet_ids_are_exact_and_take_their_first_lemma() -> None:
    grown = grow("n02119789", "n02084071")
    assert {leaf.class_id: leaf.name for leaf in grown.roots[0].leaves()} == {
        "n02119789": "kit fox",
        "n02084071": "dog",
    }
    assert grown.notes == ()


def test_ambiguous_words_are_reported_with_the_flag_that_changes_them() -> None:
    grown = grow("star", "square", "circle")
    note = next(note for note in grown.notes if note.startswith("star"))
    assert "star.n.05 (plane figure) n13881644: sense 5 of 8" in note
    assert "--sense star=star.n.01" in note
    changed = grow("star", "square", "circle", star="star.n.01")
    assert leaf_ids(changed)["star"] == "n09444100"
    assert not any(note.startswith("star") for note in changed.notes)
    assert leaf_ids(grow("star", "square", "circle", star="n09444100")) == leaf_ids(changed)


def test_unknown_classes_come_with_near_matches() -> None:
    with pytest.raises(UsageError, match=r"(?s)2 of the classes.*elefant \(near: .*elephant.*n99999999.*--sense"):
        grow("cat", "elefant", "n99999999")


@pytest.mark.parametrize("sense", ["cat.n.99", "n00000001", "nonsense", "run.v.01", "a.b", ""])
def test_bad_sense_names_the_choices(sense: str) -> None:
    with pytest.raises(UsageError, match=r"--sense star=.*star\.n\.01 \(celestial body\)"):
        grow("star", "square", star=sense)


def test_sense_for_no_class() -> None:
    with pytest.raises(UsageError, match="no class is called 'sun'"):
        grow("star", "square", sun="sun.n.01")


def test_class_above_another_is_a_leaf_beneath_itself() -> None:
    grown = grow("rectangle", "square", "rhombus", "circle")
    rectangle = parents(grown)["rectangle"]
    assert rectangle.id == leaf_ids(grown)["rectangle"] == "n13883346"
    assert [child.class_id for child in rectangle.children] == ["rectangle", "square"]


def test_two_names_of_one_synset_are_two_leaves() -> None:
    grown = grow("car", "automobile", "dog")
    assert parents(grown)["car"] is parents(grown)["automobile"]
    assert leaf_ids(grown)["car"] == leaf_ids(grown)["automobile"] == parents(grown)["car"].id


def test_last_word_stands_in_for_a_name_wordnet_lacks() -> None:
    grown = grow("aquarium_fish", "trout", "dog")
    assert any("no 'aquarium fish'" in note and "fish.n.01" in note for note in grown.notes)
    assert leaf_ids(grown)["aquarium_fish"] == "aquarium_fish"
    assert parents(grown)["aquarium_fish"].id == "n02512053"


def test_flags_of_the_notes_can_be_pasted() -> None:
    grown = grow("Bengal (cat)", "bulldozer", "crane")
    assert any(
        "no 'Bengal'" in n and "beneath 'cat', cat.n.01" in n and "'Bengal (cat)=SYNSET'" in n for n in grown.notes
    )


def test_several_hypernyms_take_the_most_shared() -> None:
    # A dog is a canine and a domestic animal; the longer way up shares more with a cat.
    assert parents(grow("dog", "fox", "wolf", "oak"))["dog"].name == "canine"
    carnivore = next(node for node in grow("dog", "cat", "oak").roots[0].walk() if node.name == "carnivore")
    assert {leaf.class_id for leaf in carnivore.leaves()} == {"dog", "cat"}


def test_same_tree_whatever_the_order_of_sets() -> None:
    names = ["star", "square", "bank", "crane", "mouse", "spring", "dog", "n02119789"]
    code = (
        "from hrzs.sources.build import build_trees; from hrzs.sources import ClassSpec\n"
        "from hrzs.hierarchy.yaml_form import dump_trees\n"
        f"(tree,), notes = build_trees([ClassSpec(n) for n in {names}])\n"
        "print(dump_trees([tree])); print(notes)"
    )
    outputs = {_python(["-c", code], seed) for seed in ("1", "2")}
    assert len(outputs) == 1


def _python(arguments: Sequence[str], seed: str) -> bytes:
    environment = os.environ | {"PYTHONHASHSEED": seed}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=True).stdout


def test_synset_of_the_class_list_wins_over_the_name_and_sense_over_both() -> None:
    crane = ClassSpec("crane", None, "n03126707")
    assert leaf_ids(grow_specs([crane, ClassSpec("heron")]))["crane"] == "n03126707"
    named = ClassSpec("17", "crane", "crane.n.05")
    grown = grow_specs([named, ClassSpec("truck")])
    assert leaf_ids(grown)["17"] == leaf_ids(grow("crane", "truck", crane="crane.n.05"))["crane"]
    assert [leaf.name for leaf in grown.roots[0].leaves()] == ["crane", "truck"]
    assert leaf_ids(grow_specs([named, ClassSpec("truck")], senses={"crane": "crane.n.04"}))["17"] == "n03126707"
    assert (
        leaf_ids(grow_specs([ClassSpec("n02084071", None, "cat.n.01"), ClassSpec("fox")]))["n02084071"] == "n02121620"
    )


def test_leaves_are_named_as_people_write() -> None:
    grown = grow("015.bonsai-101", "kit fox, Vulpes macrotis", "AnnualCrop", "Bengal (cat)", "252.car-side-101")
    names = {leaf.class_id: leaf.name for leaf in grown.roots[0].leaves()}
    assert list(map(names.__getitem__, sorted(names, key=str))) == [
        "bonsai", "car side", "Annual Crop", "Bengal", "kit fox",
    ]  # fmt: skip
    fixed = grow("015.bonsai-101", "oak", **{"015.bonsai-101": "oak.n.02"})
    assert {leaf.name for leaf in fixed.roots[0].leaves()} == {"bonsai", "oak"}


def test_bad_synsets_of_the_class_list_are_named_together() -> None:
    bad = [ClassSpec("a", "cat", "n00000001"), ClassSpec("b", "dog", "dog.v.01"), ClassSpec("c", "fox")]
    with pytest.raises(UsageError, match=r"(?s)2 of the classes.*a as n00000001.*b as dog\.v\.01"):
        grow_specs(bad)


def grow_specs(specs: list[ClassSpec], trees: int = 1, senses: dict[str, str] | None = None) -> Grown:
    return SOURCES["wordnet"](specs, SourceOptions(trees=trees, senses=senses or {}))


def groups(root: Node) -> set[frozenset[str | None]]:
    return {frozenset(leaf.class_id for leaf in node.leaves()) for node in root.walk()}


MIXED = [
    "dog",
    "wolf",
    "domestic cat",
    "lion",
    "cow",
    "bison",
    "piano",
    "drum",
    "accordion",
    "lamp",
    "apple",
    "lettuce",
    "oak",
]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_trees_over_the_same_classes_differ(count: int) -> None:
    grown = grow_specs([ClassSpec(name) for name in MIXED], trees=count)
    assert len(grown.roots) == count
    assert len({frozenset(groups(root)) for root in grown.roots}) == count
    for root in grown.roots:
        assert sorted(leaf.class_id or "" for leaf in root.leaves()) == sorted(MIXED)
    assert grown.roots[0] == grow(*MIXED).roots[0]
    assert grown.roots[0] == grow_specs([ClassSpec(name) for name in MIXED], trees=2).roots[0]
    assert sum(note.startswith("tree ") for note in grown.notes) == count - 1


def test_another_tree_takes_another_hypernym() -> None:
    first, second = grow_specs([ClassSpec(name) for name in ("dog", "wolf", "domestic cat", "lion")], trees=2).roots
    assert {frozenset({"dog", "wolf"}), frozenset({"domestic cat", "lion"})} <= groups(first)
    assert frozenset({"dog", "domestic cat"}) in groups(second)


def test_fewer_trees_than_asked_for_are_explained() -> None:
    grown = grow_specs([ClassSpec(name) for name in ("oak", "maple")], trees=3)
    assert len(grown.roots) == 1
    assert any("--trees 3" in note and "1 different tree" in note for note in grown.notes)
    every = grow_specs([ClassSpec(name) for name in MIXED], trees=1000)
    assert 5 <= len(every.roots) == len({frozenset(groups(root)) for root in every.roots}) < 1000
