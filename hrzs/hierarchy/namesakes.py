"""Namesakes: different nodes of one level that have the same prompt.

A model sees a node through its prompt alone. Of two nodes with the same prompt, at most one can be predicted. A node
that passes through several levels is one node, and no namesake of itself. A node and one below it may share a prompt,
since no level holds both.

Names that differ only in case and blanks count as the same, since they are the same to CLIP's tokenizer.
`hrzs.models.text.same_tokens` finds prompts that are the same to a given tokenizer, such as long texts cut alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol, runtime_checkable

from hrzs.classes.specs import is_wnid
from hrzs.hierarchy.tree import Node, Tree

#: The remedy that messages name.
REMEDY = (
    "`prompts: [ANOTHER NAME]` in the tree file tells one from the other; so does, for a class, a NAME of its own "
    "in the file of `hrzs build-tree --classes` (ID<TAB>NAME)"
)
# A text encoder would cut a longer prompt, and with it perhaps what tells the node apart.
_MAX_NAME = 300


@dataclass(frozen=True)
class Namesakes:
    """Nodes of one level, two or more, that all have ``prompt``."""

    level: int
    nodes: tuple[Node, ...]
    prompt: str

    def describe(self) -> dict[str, object]:
        """The namesakes for JSON; a leaf is named by its class, a superclass by its id."""
        nodes = [{"node": node.class_id or node.id, "name": node.name} for node in self.nodes]
        return {"level": self.level, "prompt": self.prompt, "nodes": nodes}


@runtime_checkable
class Meanings(Protocol):
    """A dictionary for `tell_apart`, by synset ids such as ``n02119789``; unknown ids give nothing."""

    def words(self, wnid: str) -> Sequence[str]:
        """All that the synset is called, the usual word first."""

    def kinds(self, wnid: str) -> Sequence[str]:
        """What the synset is a kind of, the nearest first."""


class NoMeanings:
    """No dictionary."""

    def words(self, wnid: str) -> Sequence[str]:  # noqa: ARG002
        return ()

    def kinds(self, wnid: str) -> Sequence[str]:  # noqa: ARG002
        return ()


# -- finding -------------------------------------------------------------------------------------------------------


def namesakes(tree: Tree) -> list[Namesakes]:
    """The nodes of each level below the root whose prompt names are the same, case and blanks aside."""
    return [
        Namesakes(level, nodes, ", ".join(nodes[0].prompt_names))
        for level, nodes in alike(tree, lambda node: frozenset(map(fold, node.prompt_names)))
    ]


def alike(tree: Tree, key: Callable[[Node], Hashable]) -> Iterator[tuple[int, tuple[Node, ...]]]:
    """(level, nodes) for each group of two or more nodes of a level below the root with the same ``key``."""
    known: dict[int, Hashable] = {}
    for level, standing in enumerate(tree.levels[: tree.height]):
        groups: dict[Hashable, list[Node]] = {}
        for node in standing:
            if id(node) not in known:
                known[id(node)] = key(node)
            groups.setdefault(known[id(node)], []).append(node)
        yield from ((level, tuple(group)) for group in groups.values() if len(group) > 1)


def fold(name: str) -> str:
    """``name`` as CLIP's tokenizer sees it: in lower case, with single blanks."""
    return " ".join(name.split()).lower()


def same_names(tree: Tree) -> list[tuple[Node, ...]]:
    """The classes of the same name, case and blanks aside, whatever their prompts are."""
    groups: dict[str, list[Node]] = {}
    for leaf in tree.root.leaves():
        groups.setdefault(fold(leaf.name), []).append(leaf)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def sentences(found: Sequence[Namesakes]) -> list[str]:
    """One sentence for each set of namesakes: the levels where they meet, the nodes, and the prompt they share."""
    levels: dict[tuple[int, ...], list[Namesakes]] = {}
    for each in found:
        levels.setdefault(tuple(map(id, each.nodes)), []).append(each)
    return [
        f"level{'s' * (len(same) > 1)} {_and([str(each.level) for each in same])}: "
        f"{_and([_shown(node) for node in _few(same[0].nodes)])}"
        f"{' and others' * (len(same[0].nodes) > len(_few(same[0].nodes)))} have the same prompt, {same[0].prompt!r}"
        for same in levels.values()
    ]


def _few(nodes: Sequence[Node]) -> Sequence[Node]:
    return nodes if len(nodes) <= 4 else nodes[:3]


def _shown(node: Node) -> str:
    identity = node.class_id or node.id
    return node.name if identity == node.name else f"{node.name} ({identity})"


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


# -- telling apart -------------------------------------------------------------------------------------------------


def tell_apart(tree: Tree, meanings: Meanings | None = None) -> tuple[Tree, list[str]]:
    """``tree`` with prompts that tell namesakes apart, and a note for each node that got a new prompt. Names stay.

    One of the namesakes keeps its name as prompt: a leaf, since the names of classes come with the data; else the node
    with most classes; of equals, a node whose usual word the name is, then the first. Each other node gets another word
    of its synset (railcar, where car is taken). If there is none, it gets its kind (crane, a type of lifting device);
    so does the node that kept its name, if it has as many classes. The kind is a hypernym of the synset, or else a
    superclass in the tree. As a last resort, a superclass is called after its children, and a leaf by any word of its
    synset or by its class id. A new prompt is unlike that of any other node in the tree.

    A node that has prompts of its own keeps them. Namesakes that nothing tells apart stay as they are, and `namesakes`
    finds them.
    """
    if not namesakes(tree):
        return tree, []
    work = _Work(tree, meanings or NoMeanings())
    # New prompts are unique in the whole tree, so the groups found first stay valid, less the nodes renamed meanwhile.
    for level, group in alike(tree, lambda node: frozenset(map(fold, node.prompt_names))):
        work.rename([node for node in group if id(node) not in work.renamed], level)
    return Tree(_with_prompts(tree.root, work.renamed), tree.classes, tree.header), work.notes


class _Work:
    """The prompts given so far."""

    def __init__(self, tree: Tree, meanings: Meanings) -> None:
        self.renamed: dict[int, str] = {}
        self.notes: list[str] = []
        self._meanings = meanings
        self._used = {fold(name) for node in tree.root.walk() for name in node.prompt_names}
        self._sizes: Counter[int] = Counter()
        self._above: dict[int, tuple[str, ...]] = {id(tree.root): ()}
        for node in tree.root.walk():  # parents first
            names = self._above[id(node)] if node is tree.root else (node.name, *self._above[id(node)])
            self._above |= {id(child): names for child in node.children}
        for node in reversed(list(tree.root.walk())):
            self._sizes[id(node)] = 1 if node.is_leaf else sum(self._sizes[id(child)] for child in node.children)

    def rename(self, group: Sequence[Node], level: int) -> None:
        free = [node for node in group if not node.prompts]
        if len(group) < 2 or not free:
            return
        first: Node | None = None
        if len(free) == len(group):
            # `max` keeps the first of equals.
            first = max(free, key=lambda node: (node.is_leaf, self._sizes[id(node)], self._is_usual_word(node)))
            free.remove(first)
        left = [node for node in free if not self._give(node, self._words(node), level)]
        if first is not None and any(self._sizes[id(node)] == self._sizes[id(first)] for node in left):
            left.insert(0, first)
        kinds = {id(node): [*self._kinds(node)] for node in group if id(node) not in self.renamed}
        for node in left:
            others = {fold(kind) for other, known in kinds.items() if other != id(node) for kind in known}
            own = [kind for kind in kinds[id(node)] if fold(kind) not in others]
            last = () if node is first else self._last_resorts(node)
            self._give(node, chain((f"{node.name}, a type of {kind}" for kind in own), last), level)

    def _give(self, node: Node, prompts: Iterator[str], level: int) -> bool:
        """Give ``node`` the first of ``prompts`` that no node of the tree has; False if there is none."""
        prompt = next((p for p in prompts if fold(p) not in self._used and len(p) <= _MAX_NAME), None)
        if prompt is None:
            return False
        self._used.add(fold(prompt))
        self.renamed[id(node)] = prompt
        self.notes.append(
            f"{_shown(node)} is called {prompt!r} in prompts: another node of level {level} is called {node.name!r} too"
        )
        return True

    def _is_usual_word(self, node: Node) -> bool:
        words = self._meanings.words(node.id) if is_wnid(node.id) else ()
        return bool(words) and fold(words[0]) == fold(node.name)

    def _words(self, node: Node) -> Iterator[str]:
        """The words of the synset, without capitalised ones such as the Latin name of a plant."""
        words = self._meanings.words(node.id) if is_wnid(node.id) else ()
        return (word for word in words if word == word.lower())

    def _kinds(self, node: Node) -> Iterator[str]:
        known = self._meanings.kinds(node.id) if is_wnid(node.id) else ()
        return (kind for kind in (*known, *self._above[id(node)]) if fold(kind) != fold(node.name))

    def _last_resorts(self, node: Node) -> Iterator[str]:
        if node.class_id is None:
            yield f"{node.name} such as {_and([child.name for child in node.children[:2]])}"
        else:
            if is_wnid(node.id):
                yield from self._meanings.words(node.id)
            words = " ".join(filter(None, re.split(r"[\s_-]+", node.class_id)))
            # Numbers and single letters mean nothing to a model.
            if len(words) > 2 and not any(map(str.isdigit, words)):
                yield words


def _with_prompts(root: Node, prompts: dict[int, str]) -> Node:
    built: dict[int, Node] = {}
    for node in reversed(list(root.walk())):  # children before parents
        children = tuple(built.pop(id(child)) for child in node.children)
        own = (prompts[id(node)],) if id(node) in prompts else node.prompts
        changed = own != node.prompts or any(a is not b for a, b in zip(children, node.children, strict=True))
        built[id(node)] = replace(node, children=children, prompts=own) if changed else node
    return built[id(root)]
