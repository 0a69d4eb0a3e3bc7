from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrzs.classes.specs import ClassSpec
from hrzs.hierarchy.namesakes import Namesakes, fold, namesakes, sentences, tell_apart
from hrzs.hierarchy.tree import Node, Tree
from hrzs.sources.build import build_trees
from hrzs.sources.classes import read_classes
from hrzs.wordnet import open_wordnet
from hrzs.wordnet.meanings import Meanings

from .conftest import trees


def leaf(name: str, class_id: str | None = None, *, id: str | None = None, prompts: tuple[str, ...] = ()) -> Node:
    return Node(name, id or class_id or name, class_id=class_id or name, prompts=prompts)


def over(name: str, *children: Node, id: str | None = None, level: int = 1, prompts: tuple[str, ...] = ()) -> Node:
    return Node(name, id or f"{name} of {children[0].id}", children, level=level, prompts=prompts)


def of(*children: Node, top: int = 2) -> Tree:
    return Tree(Node("entity", "root", children, level=top))


class Stub:
    """Words and kinds by the number in an id such as n00000001."""

    def __init__(self, words: Mapping[int, tuple[str, ...]], kinds: Mapping[int, tuple[str, ...]]) -> None:
        self._words, self._kinds = words, kinds

    def words(self, wnid: str) -> tuple[str, ...]:
        return self._words.get(int(wnid[1:]), ())

    def kinds(self, wnid: str) -> tuple[str, ...]:
        return self._kinds.get(int(wnid[1:]), ())


def wnid(number: int) -> str:
    return f"n{number:08d}"


def prompts_of(tree: Tree) -> dict[str, tuple[str, ...]]:
    """Of the nodes that have some of their own."""
    return {node.class_id or node.id: node.prompts for node in tree.root.walk() if node.prompts}


def told(*children: Node, meanings: Stub | None = None) -> dict[str, tuple[str, ...]]:
    tree, notes = tell_apart(of(*children), meanings)
    before = prompts_of(of(*children))
    changed = {key: prompts for key, prompts in prompts_of(tree).items() if before.get(key) != prompts}
    assert len(notes) == len(changed)
    return changed


# -- finding -------------------------------------------------------------------------------------------------------


def test_two_of_one_level() -> None:
    tree = of(over("vessel", leaf("jug"), leaf("vase")), over("vessel", leaf("ship"), leaf("boat")))
    (found,) = namesakes(tree)
    assert (found.level, found.nodes, found.prompt) == (1, tree.levels[1], "vessel")
    assert found.describe() == {
        "level": 1,
        "prompt": "vessel",
        "nodes": [{"node": "vessel of jug", "name": "vessel"}, {"node": "vessel of ship", "name": "vessel"}],
    }


def test_a_node_that_passes_through_is_one_node() -> None:
    assert namesakes(of(over("bird", leaf("owl"), leaf("hen")), leaf("cat"), top=4)) == []


def test_a_node_and_one_below_it_may_share_a_prompt() -> None:
    assert namesakes(of(over("rectangle", leaf("rectangle", "r"), leaf("square")), leaf("star"))) == []


def test_a_leaf_that_passes_through_meets_superclasses() -> None:
    tree = of(over("crane", leaf("tower crane"), leaf("ship crane")), leaf("crane", "bird"))
    assert [(each.level, len(each.nodes)) for each in namesakes(tree)] == [(1, 2)]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (("Crane",), ("crane",), True),
        (("kit  fox",), (" kit fox",), True),
        (("bus", "coach"), ("coach", "bus"), True),
        (("bus", "coach"), ("bus",), False),
        (("kit-fox",), ("kit fox",), False),
    ],
)
def test_what_counts_as_the_same(a: tuple[str, ...], b: tuple[str, ...], same: bool) -> None:
    assert bool(namesakes(of(leaf("x", prompts=a), leaf("y", prompts=b), top=1))) is same


@settings(max_examples=100)
@given(trees(st.sampled_from([*"aAbc", "a ", "a b"] + [str(i) for i in range(30)])))
def test_found_is_what_comparing_every_two_finds(tree: Tree) -> None:
    def key(node: Node) -> set[str]:
        return {" ".join(name.split()).lower() for name in node.prompt_names}

    pairs = {
        (level, a.class_id or a.id, b.class_id or b.id)
        for level, nodes in enumerate(tree.levels[:-1])
        for a, b in combinations(nodes, 2)
        if key(a) == key(b)
    }
    found = {
        (each.level, a.class_id or a.id, b.class_id or b.id)
        for each in namesakes(tree)
        for a, b in combinations(each.nodes, 2)
    }
    assert found == pairs


def test_sentences_name_levels_nodes_and_prompt() -> None:
    a, b = leaf("crane", "n02012849"), leaf("crane")
    assert sentences([Namesakes(0, (a, b), "crane"), Namesakes(1, (a, b), "crane")]) == [
        "levels 0 and 1: crane (n02012849) and crane have the same prompt, 'crane'"
    ]
    many = tuple(leaf("x", f"x{i}") for i in range(9))
    assert sentences([Namesakes(2, many, "x")]) == [
        "level 2: x (x0), x (x1) and x (x2) and others have the same prompt, 'x'"
    ]


# -- telling apart -------------------------------------------------------------------------------------------------


def test_a_tree_without_namesakes_stays_the_very_same() -> None:
    tree = of(leaf("dog"), leaf("cat"), top=1)
    assert tell_apart(tree) == (tree, [])
    assert tell_apart(tree)[0] is tree


def test_the_one_with_most_classes_keeps_its_name() -> None:
    small = over("car", leaf("wagon"), leaf("tram"), id=wnid(1))
    big = over("car", leaf("taxi"), leaf("jeep"), leaf("racer"), id=wnid(2))
    meanings = Stub({1: ("car", "railcar", "railway car"), 2: ("car", "auto")}, {})
    assert told(small, big, meanings=meanings) == {wnid(1): ("railcar",)}


def test_a_class_keeps_its_name_before_a_superclass() -> None:
    meanings = Stub({1: ("gown", "robe")}, {})
    robes = over("gown", leaf("academic gown"), leaf("vestment"), id=wnid(1))
    assert told(robes, leaf("gown", "g"), meanings=meanings) == {wnid(1): ("robe",)}


def test_the_usual_word_stays_with_its_synset() -> None:
    lens, glasses = leaf("sunglasses", wnid(1)), leaf("sunglasses", wnid(2))
    meanings = Stub({1: ("sunglass",), 2: ("sunglasses", "shades")}, {})
    assert told(lens, glasses, meanings=meanings) == {wnid(1): ("sunglass",)}


def test_a_word_that_is_taken_anywhere_or_is_latin_is_passed_over() -> None:
    meanings = Stub({1: ("daisy",), 2: ("daisy", "Bellis perennis", "oxeye", "white daisy")}, {})
    daisies = (leaf("daisy", "d", id=wnid(1)), leaf("daisy", "e", id=wnid(2)))
    nodes = (*daisies, over("flower", leaf("Oxeye"), leaf("rose")))
    assert told(*nodes, meanings=meanings) == {"e": ("white daisy",)}


def test_kinds_tell_where_words_do_not() -> None:
    meanings = Stub({}, {1: ("wading bird", "bird", "entity"), 2: ("lifting device", "device", "entity")})
    bird, machine = leaf("crane", "a", id=wnid(1)), leaf("crane", "b", id=wnid(2))
    assert told(bird, machine, meanings=meanings) == {
        "a": ("crane, a type of wading bird",),
        "b": ("crane, a type of lifting device",),
    }


def test_a_kind_that_both_are_tells_nothing() -> None:
    meanings = Stub({}, {1: ("crane", "device", "tool"), 2: ("device", "machine")})
    nodes = (leaf("crane", "a", id=wnid(1)), leaf("crane", "b", id=wnid(2)))
    assert told(*nodes, meanings=meanings) == {"a": ("crane, a type of tool",), "b": ("crane, a type of machine",)}


def test_without_a_dictionary_the_tree_tells() -> None:
    birds = over("bird", leaf("crane", "c1"), leaf("owl"))
    machines = over("machine", leaf("crane", "c2"), leaf("digger"))
    assert told(birds, machines) == {"c1": ("crane, a type of bird",), "c2": ("crane, a type of machine",)}


def test_superclasses_side_by_side_are_told_by_what_is_below() -> None:
    fruit = over("food", leaf("apple"), leaf("pear"), leaf("fig"))
    meals = over("food", leaf("pizza"), leaf("soup"))
    assert told(fruit, meals) == {"food of pizza": ("food such as pizza and soup",)}


def test_classes_side_by_side_are_told_by_their_ids() -> None:
    assert told(leaf("crane", "crane_bird"), leaf("crane", "crane-machine"), leaf("owl")) == {
        "crane-machine": ("crane machine",)
    }


def test_prompts_of_ones_own_are_kept() -> None:
    nodes = (leaf("crane", "crane_a", prompts=("crane",)), leaf("crane", "crane_b"), leaf("owl"))
    assert told(*nodes) == {"crane_b": ("crane b",)}
    both = of(leaf("x", prompts=("crane",)), leaf("y", prompts=("Crane",)), top=1)
    assert tell_apart(both) == (both, [])


def test_what_nothing_tells_apart_stays_and_is_found() -> None:
    tree = of(leaf("crane", "1"), leaf("crane", "2"), leaf("owl"), top=1)
    assert tell_apart(tree) == (tree, [])
    assert len(namesakes(tree)) == 1


def test_notes_say_which_and_why() -> None:
    tree = of(leaf("crane", "crane_bird"), leaf("crane", "crane-machine"), top=1)
    assert tell_apart(tree)[1] == [
        "crane (crane-machine) is called 'crane machine' in prompts: another node of level 0 is called 'crane' too"
    ]


@settings(max_examples=100)
@given(trees(st.sampled_from([*"aAbcd", "a b", "c_d"] + [str(i) for i in range(30)])))
def test_names_and_levels_stay_and_nothing_new_collides(tree: Tree) -> None:
    after, notes = tell_apart(tree)
    pairs = list(zip(tree.root.walk(), after.root.walk(), strict=True))
    for a, b in pairs:
        assert (a.name, a.id, a.class_id, a.level, len(a.children)) == (b.name, b.id, b.class_id, b.level, len(b.children))  # fmt: skip
        assert a.prompts in ((), b.prompts)
    new = [fold(b.prompts[0]) for a, b in pairs if a.prompts != b.prompts]
    assert len(new) == len(set(new)) == len(notes)
    assert not {fold(name) for a, _ in pairs for name in a.prompt_names} & set(new)
    groups = [(each.level, {n.class_id or n.id for n in each.nodes}) for each in namesakes(tree)]
    for left in namesakes(after):
        assert any(left.level == level and {n.class_id or n.id for n in left.nodes} <= group for level, group in groups)


# -- building ------------------------------------------------------------------------------------------------------

HOMONYMS = ("crane", "star", "food", "vessel", "car", "gown", "seal", "bank", "mouse", "bat")
MEANINGS = Meanings()


@st.composite
def homonyms(draw: st.DrawFn) -> list[ClassSpec]:
    """Classes with few names in any of their senses, whose ids say nothing."""
    reader = open_wordnet()
    senses = [(name, wnid(synset.offset())) for name in HOMONYMS for synset in reader.synsets(name, "n")]
    chosen = draw(st.lists(st.sampled_from(senses), min_size=2, max_size=25))
    return [ClassSpec(f"c{i}", name, synset) for i, (name, synset) in enumerate(chosen)]


@settings(max_examples=60)
@given(homonyms(), st.integers(1, 6))
def test_whatever_is_built_has_no_namesakes_that_wordnet_can_tell_apart(classes: list[ClassSpec], levels: int) -> None:
    (tree,), notes = build_trees(classes, levels=levels)
    assert [leaf.name for leaf in tree.levels[0]] == [spec.name for spec in classes]
    for left in namesakes(tree):
        # What is left is one synset twice, or synsets that are of the same kinds and have the same words.
        kinds = [frozenset(MEANINGS.kinds(node.id)) for node in left.nodes]
        assert any(a <= frozenset().union(*kinds[:i], *kinds[i + 1 :]) for i, a in enumerate(kinds))
        assert {fold(node.name) for node in left.nodes} == {fold(left.prompt)}
    assert build_trees(classes, levels=levels)[0] == [tree]
    assert all(any(repr(node.prompts[0]) in note for note in notes) for node in tree.root.walk() if node.prompts)


@pytest.mark.parametrize("depths", [(8, 6, 4), (7, 5), (9, 6, 3)])
def test_tiny_imagenet_at_depths(depths: tuple[int, ...]) -> None:
    """Two of its superclasses are called food at depth 4."""
    classes, label = read_classes("tiny_imagenet")
    (tree,), _ = build_trees(classes, depths=depths, label=label)
    assert namesakes(tree) == []
    foods = {node.id: (len(list(node.leaves())), node.prompt_names) for node in tree.root.walk() if node.name == "food"}
    if depths == (8, 6, 4):
        assert foods["n07555863"][1] == ("solid food",)
        assert foods["n00021265"][1] == ("food",)
        assert foods["n00021265"][0] > foods["n07555863"][0]
