"""From an uneven hypernym tree to a few nested levels.

Hypernym paths differ in length from class to class, so depth does not make comparable levels. Size does:

1. *Collapse chains.* A superclass with a single child says nothing new about the classes; of a chain, only
   the lowest node stays: the most specific one that still has two children.
2. *Cut by size.* For a bound ``T``, the largest superclasses with at most ``T`` classes, together with the classes
   that stand in none of them, form a partition. A larger ``T`` gives a coarsening of it, so all these cuts are
   nested; there are as many different ones as there are sizes of superclasses.
3. *Choose the cuts.* With classes taken as equally frequent, the entropy of a partition falls from ``log C`` at the
   leaves to 0 at the root. Of ``L`` levels, level ``l`` takes the cut whose entropy is nearest to
   ``(1 - l/L) log C``, the finer one of two equally near. ``L`` is the largest number, up to the one asked for, for
   which these cuts are all different: every level is strictly coarser than the one below, the entropy falls evenly,
   and a small or flat tree has fewer levels.

`level_at_depths` cuts at given depths below WordNet's root instead, the older custom of the field: names then mean
the same from one set of classes to the next, sizes do not.

A superclass that is in no chosen cut is dropped and its children join the next one above. A class without a small
enough superclass passes through as its own. No step is random, and the order of children is that of the classes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from math import log

from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Node, Tree


def level_tree(root: Node, levels: int, classes: Sequence[str] = (), header: dict[str, object] | None = None) -> Tree:
    """The levelled tree over the leaves of ``root``, whose own levels are ignored.

    Args:
        root: any tree of at least two leaves.
        levels: the highest level that the root may have (``L``), at least 1.
        classes: the class ids in the dataset's order; by default the order of the leaves.
        header: goes into the tree as it is.

    Raises:
        UsageError: ``levels`` is below 1, or there are fewer than two leaves.
    """
    if levels < 1:
        raise UsageError(f"--levels {levels}: a tree needs the root above the leaves, so 1 at least; 5 is the default")
    order = tuple(classes) or tuple(leaf.class_id or "" for leaf in root.leaves())
    if len(order) < 2:
        raise UsageError(f"a tree needs at least two classes, and --classes gave {len(order)}")
    root = _collapse(root, {class_id: position for position, class_id in enumerate(order)})
    sizes: dict[int, int] = {}
    for node in reversed(list(root.walk())):  # children before parents
        sizes[id(node)] = 1 if node.is_leaf else sum(sizes[id(child)] for child in node.children)
    bounds = _choose_bounds(root, sizes, levels)
    return Tree(_place(root, sizes, bounds), order, header or {})


def level_at_depths(
    root: Node, depths: Sequence[int], classes: Sequence[str] = (), header: dict[str, object] | None = None
) -> Tree:
    """The tree whose level ``l`` holds the superclasses ``depths[l - 1]`` edges below the top of the hypernym tree.

    A class less deep than that passes through; a level that is not coarser than the one below is left out.

    Args:
        depths: falling, at least 1 each: ``(8, 6, 4)`` gives levels 1 to 3, and the root above them.

    Raises:
        UsageError: ``depths`` do not fall, or no superclass lies at any of them.
    """
    if not depths or min(depths) < 1 or any(a <= b for a, b in pairwise(depths)):
        raise UsageError(f"--depths {','.join(map(str, depths))}: falling numbers from the leaves up, such as 8,6,4")
    order = tuple(classes) or tuple(leaf.class_id or "" for leaf in root.leaves())
    depth = {id(root): 0}
    for node in root.walk():
        depth |= {id(child): depth[id(node)] + 1 for child in node.children}
    level = {d: i + 1 for i, d in enumerate(depths)}
    placed: dict[int, list[Node]] = {}
    for node in reversed(list(root.walk())):
        children = tuple(kept for child in node.children for kept in placed.pop(id(child)))
        if node.is_leaf:
            placed[id(node)] = [node]
        elif node is root or depth[id(node)] in level:
            placed[id(node)] = [replace(node, children=children, level=level.get(depth[id(node)], len(depths) + 1))]
        else:
            placed[id(node)] = list(children)
    return Tree(placed[id(root)][0], order, header or {}).restrict(order)


def _collapse(root: Node, position: dict[str, int]) -> Node:
    """``root`` without single-child superclasses, children in the order of the first of their classes."""
    built: dict[int, tuple[int, Node]] = {}  # by identity: the first class beneath, the node
    for node in reversed(list(root.walk())):  # children before parents
        if node.class_id is not None:
            built[id(node)] = position[node.class_id], node
            continue
        children = sorted((built.pop(id(child)) for child in node.children), key=lambda pair: pair[0])
        first, only = children[0]
        whole = only if len(children) == 1 else replace(node, children=tuple(child for _, child in children))
        built[id(node)] = first, whole
    return built[id(root)][1]


def _choose_bounds(root: Node, sizes: dict[int, int], levels: int) -> list[int]:
    """The size bound of each level between leaves and root, rising."""
    total = sizes[id(root)]
    # A node is in the cuts from its own size up to below its parent's: add its term at the first, take it away after.
    change = dict.fromkeys(sizes.values(), 0.0)
    for node in root.walk():
        for child in node.children:
            size = sizes[id(child)]
            change[size] += size * log(size)
            change[sizes[id(node)]] -= size * log(size)
    # For each cut, the share of log C that the entropy of its partition has lost. Rounded, because the error of
    # a running sum must not part two cuts that are equally near.
    bounds = sorted(change)
    running = accumulate(change[bound] for bound in bounds)
    lost = {bound: round(gone / (total * log(total)), 9) for bound, gone in zip(bounds, running, strict=True)}
    lost = {bound: share for bound, share in lost.items() if 1 < bound < total}
    for count in range(min(levels, len(lost) + 1), 1, -1):
        nearest = {min(lost, key=lambda bound: (abs(lost[bound] - level / count), bound)) for level in range(1, count)}
        if len(nearest) == count - 1:
            return sorted(nearest)
    return []


def _place(root: Node, sizes: dict[int, int], bounds: list[int]) -> Node:
    """``root`` with the levels that ``bounds`` give; a superclass in none of the cuts is replaced by its children."""
    placed: dict[int, list[Node]] = {}
    above = {id(child): node for node in root.walk() for child in node.children}
    for node in reversed(list(root.walk())):
        if node.is_leaf:
            placed[id(node)] = [node]
            continue
        children = tuple(kept for child in node.children for kept in placed.pop(id(child)))
        # The lowest level whose bound admits the node; if it admits the parent as well, the parent takes its place.
        level = 1 + bisect_left(bounds, sizes[id(node)])
        if node is root or level < 1 + bisect_left(bounds, sizes[id(above[id(node)])]):
            placed[id(node)] = [replace(node, children=children, level=level)]
        else:
            placed[id(node)] = list(children)
    return placed[id(root)][0]
