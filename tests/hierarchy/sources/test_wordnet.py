from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from hrzs.errors import UsageError
from hrzs.hierarchy.sources import SOURCES, ClassSpec, Grown, SourceOptions
from hrzs.hierarchy.tree import Node


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
        {"bass": "bass.n.07", "guitar": "guitar.n.01", "drum": "drum.n.01", "horn": "horn.n.01"},
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
    assert {leaf.class_id: leaf.name for leaf in grown.roots[0].leaves()} == {"n02119789": "kit fox", "n02084071": "dog"}
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


def test_several_hypernyms_take_the_most_shared() -> None:
    # A dog is a canine and a domestic animal; the longer way up shares more with a cat.
    assert parents(grow("dog", "fox", "wolf", "oak"))["dog"].name == "canine"
    carnivore = next(node for node in grow("dog", "cat", "oak").roots[0].walk() if node.name == "carnivore")
    assert {leaf.class_id for leaf in carnivore.leaves()} == {"dog", "cat"}


def test_same_tree_whatever_the_order_of_sets() -> None:
    names = ["star", "square", "bank", "crane", "mouse", "spring", "dog", "n02119789"]
    code = (
        "from hrzs.hierarchy.build import build_trees; from hrzs.hierarchy.sources import ClassSpec\n"
        "from hrzs.hierarchy.yaml_form import dump_trees\n"
        f"(tree,), notes = build_trees([ClassSpec(n) for n in {names}])\n"
        "print(dump_trees([tree])); print(notes)"
    )
    outputs = {_python(["-c", code], seed) for seed in ("1", "2", "3")}
    assert len(outputs) == 1


def _python(arguments: Sequence[str], seed: str) -> bytes:
    environment = os.environ | {"PYTHONHASHSEED": seed}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=True).stdout
