"""The class tree: nodes, levels, and the lookups that losses, attacks and metrics need.

Conventions, stated once:

- Level 0 holds the leaves (the dataset's classes, in the dataset's order), level ``L = tree.height`` the root.
- A node *stands* at every level from its own ``level`` up to the one below its parent's ``level``; so a shallow
  leaf passes through as its own superclass, and every level is a partition of the leaves.
- Nodes are told apart by identifier, never by name: leaves by their class id, superclasses by their node id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Int

from hrzs.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
else:
    # Importing torch takes seconds, and `hrzs build-tree` has no use for it; shapes are checked all the same.
    Tensor = Any


@dataclass(frozen=True, slots=True)
class Node:
    """One node: a leaf carries ``class_id``, a superclass carries ``children``.

    ``id`` is a synset id such as ``n02119789`` or any other word unique among the superclasses (in a tree file, a
    leaf's defaults to its class id). ``prompts`` are the node's own prompt names; empty means ``(name,)``.
    ``level`` is the lowest level the node stands at: 0 for a leaf.
    """

    name: str
    id: str
    children: tuple[Node, ...] = ()
    class_id: str | None = None
    level: int = 0
    prompts: tuple[str, ...] = ()

    @property
    def is_leaf(self) -> bool:
        return self.class_id is not None

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """The names to fill into a template, at least one."""
        return self.prompts or (self.name,)

    def walk(self) -> Iterator[Node]:
        """This node and all below it, parents first, without recursion (trees may be deep)."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            if node.children:
                stack.extend(reversed(node.children))

    def leaves(self) -> Iterator[Node]:
        return (node for node in self.walk() if node.is_leaf)


@dataclass(frozen=True)
class Tree:
    """A levelled class tree over ordered leaves.

    Args:
        root: the root node; its ``level`` is the number of levels above the leaves.
        classes: the leaves' class ids in the dataset's order; by default the order in the tree.
        header: where the tree came from (source, versions, options): kept in the file, no part of the digest.

    Raises:
        UsageError: every fault found, one to a line: duplicate or empty ids, a superclass without children, levels
            that do not fall from parent to child, a leaf above level 0, a class without a leaf.
    """

    root: Node
    classes: tuple[str, ...] = ()
    header: dict[str, object] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        nodes = list(self.root.walk())
        if not self.classes:
            object.__setattr__(self, "classes", tuple(n.class_id for n in nodes if n.class_id is not None))
        faults = list(self._faults(nodes))
        if faults:
            raise UsageError("the tree is not valid:\n" + "\n".join(f"  {fault}" for fault in faults))

    def _faults(self, nodes: list[Node]) -> Iterator[str]:
        leaf_ids = [node.class_id for node in nodes if node.class_id is not None]
        if self.root.is_leaf:
            yield f"the root {self.root.name!r} is a leaf: a tree needs a superclass over at least two classes"
        yield from (f"class {c!r} stands on more than one leaf" for c in _repeated(leaf_ids))
        inner_ids = [node.id for node in nodes if node.class_id is None]
        yield from (f"node id {i!r} is used by more than one superclass" for i in _repeated(inner_ids))
        for node in nodes:
            if node.class_id is not None:
                if node.children:
                    yield f"leaf {node.class_id!r} has children"
                if node.level:
                    yield f"leaf {node.class_id!r} stands at level {node.level}, not 0"
            elif not node.children:
                yield f"superclass {node.id!r} ({node.name}) has no children"
            for child in node.children:
                if child.level >= node.level:
                    yield (
                        f"{child.id!r} ({child.name}) stands at level {child.level}, not below its parent "
                        f"{node.id!r} ({node.name}) at level {node.level}"
                    )
            if not (node.id and node.name and node.class_id != "" and all(node.prompts)):
                yield f"node {node.id!r} ({node.name!r}) has an empty id, name, class or prompt"
        yield from (f"class {c!r} is listed more than once" for c in _repeated(self.classes))
        missing = sorted(set(self.classes) - set(leaf_ids))
        yield from (f"class {c!r} has no leaf" for c in missing)
        extra = sorted(set(leaf_ids) - set(self.classes))
        yield from (f"leaf {c!r} is not among the classes" for c in extra)

    # -- levels ------------------------------------------------------------------------------------------------

    @property
    def height(self) -> int:
        """``L``: the level of the root. Levels 0 … L-1 can be scored; levels 1 … L-1 are the superclasses."""
        return self.root.level

    @cached_property
    def levels(self) -> tuple[tuple[Node, ...], ...]:
        """The nodes of each level 0 … L, in the order of the first of their leaves."""
        paths = self._paths
        levels = range(self.height + 1)
        return tuple(tuple({id(path[level]): path[level] for path in paths}.values()) for level in levels)

    @cached_property
    def _paths(self) -> list[list[Node]]:
        """For each class its ancestor at every level 0 … L."""
        paths: dict[str, list[Node]] = {}
        stack: list[tuple[Node, list[Node]]] = [(self.root, [])]
        while stack:
            node, above = stack.pop()
            # From the top level downwards: `above` ends at the parent's level, this node fills the gap to its own.
            path = above + [node] * (self.height + 1 - len(above) - node.level)
            if node.class_id is not None:
                paths[node.class_id] = path[::-1]
            stack.extend((child, path) for child in node.children)
        return [paths[c] for c in self.classes]

    @cached_property
    def ancestors(self) -> Int[Tensor, "levels C"]:
        """``ancestors[l, c]``: index among ``levels[l]`` of the ancestor of class ``c``; shape ``(L+1, C)``."""
        import torch

        index = [{id(node): i for i, node in enumerate(nodes)} for nodes in self.levels]
        levels = range(self.height + 1)
        return torch.tensor([[index[level][id(path[level])] for path in self._paths] for level in levels])

    def parents(self, level: int) -> Int[Tensor, "nodes"]:
        """For each node of ``level`` (< L) the index of its parent, or of itself, at ``level + 1``."""
        import torch

        parents = torch.empty(len(self.levels[level]), dtype=torch.long)
        parents[self.ancestors[level]] = self.ancestors[level + 1]
        return parents

    def passes_through(self, level: int) -> Bool[Tensor, "nodes"]:
        """Which nodes of ``level`` (< L) stand at ``level + 1`` too, and so have no edge there."""
        import torch

        above = {id(node) for node in self.levels[level + 1]}
        return torch.tensor([id(node) in above for node in self.levels[level]])

    def lca_height(self, a: Int[Tensor, "*batch"], b: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """Level of the lowest common ancestor of classes ``a`` and ``b`` (indices): 0 when they are the same."""
        return (self._narrow_ancestors[:, a] != self._narrow_ancestors[:, b]).sum(0)

    @cached_property
    def _narrow_ancestors(self) -> Int[Tensor, "levels C"]:
        """``ancestors`` in a small integer type, since `lca_height` reads them twice per pair and level."""
        import torch

        return self.ancestors.to(torch.int16 if len(self.classes) <= torch.iinfo(torch.int16).max else torch.int32)

    # -- identity and change -----------------------------------------------------------------------------------

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the structure, names, prompts and class order: the same tree, the same digest."""
        # `repr` escapes what Unicode calls unprintable, and the Unicode tables of two Pythons may differ.
        sha = hashlib.sha256(ascii(self.classes).encode())
        for n in self.root.walk():
            sha.update(ascii((n.id, n.name, n.class_id, n.level, n.prompt_names, len(n.children))).encode())
        return sha.hexdigest()

    def restrict(self, classes: Sequence[str]) -> Tree:
        """The tree over ``classes`` only, in that order, without superclasses that have no leaf left.

        Levels that no longer differ from the one below are dropped, so that each stays strictly coarser.

        Raises:
            UsageError: a class has no leaf in this tree (all of them are named), or fewer than two are left.
        """
        missing = sorted(set(classes) - set(self.classes))
        if missing:
            shown = ", ".join(repr(c) for c in missing[:5]) + (", …" if len(missing) > 5 else "")
            raise UsageError(
                f"the tree does not belong to this data: {len(missing)} of {len(classes)} classes have no leaf "
                f"({shown}); the tree's classes begin {', '.join(map(repr, self.classes[:3]))}. "
                "Build one for it with `hrzs build-tree --classes …` and pass it as --tree."
            )
        keep = set(classes)
        paths = [path for c, path in zip(self.classes, self._paths, strict=True) if c in keep]
        sizes = [len({id(path[level]) for path in paths}) for level in range(self.height + 1)]
        # A level survives if it is strictly coarser than the one below; the root always has one node.
        survives = [0] + [level for level in range(1, self.height + 1) if sizes[level] < sizes[level - 1]]
        if tuple(classes) == self.classes and len(survives) == self.height + 1:
            return self
        if sizes[0] < 2 or len(survives) < 2:
            raise UsageError(f"a tree needs at least two classes; {len(keep)} would be left of {len(self.classes)}")
        root = _prune(self.root, keep, {level: new for new, level in enumerate(survives)})
        return Tree(root, tuple(classes), self.header)


def _repeated(ids: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for i in ids:
        if i in seen:
            repeated[i] = None
        seen.add(i)
    return list(repeated)


def _prune(root: Node, keep: set[str], new_level: dict[int, int]) -> Node:
    """The part of ``root`` over the classes in ``keep``, levels renumbered; a level not in ``new_level`` is gone.

    A superclass whose own level is gone moves up to the next surviving one; if its parent stands there already, its
    children join the parent.
    """
    height = max(new_level.values())

    def lifted(level: int) -> int:
        return min((new for old, new in new_level.items() if old >= level), default=height)

    pruned: dict[int, list[Node]] = {}
    for node in reversed(list(root.walk())):  # children before parents
        if node.is_leaf:
            pruned[id(node)] = [node] if node.class_id in keep else []
            continue
        children: list[Node] = []
        level = height if node is root else lifted(node.level)
        for child in node.children:
            for kept in pruned.pop(id(child)):
                if kept.level >= level:
                    children.extend(kept.children)
                else:
                    children.append(kept)
        pruned[id(node)] = [replace(node, children=tuple(children), level=level)] if children else []
    return pruned[id(root)][0]
