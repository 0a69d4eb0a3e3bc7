"""One call from classes to levelled trees: what `hrzs build-tree` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hrzs._version import __version__
from hrzs.errors import UsageError
from hrzs.hierarchy.levelling import level_at_depths, level_tree
from hrzs.hierarchy.namesakes import tell_apart
from hrzs.hierarchy.tree import Tree
from hrzs.sources import SOURCES, ClassSpec, SourceOptions
from hrzs.wordnet.meanings import Meanings

#: The level of the root unless told otherwise.
LEVELS = 5


def build_trees(
    classes: Sequence[ClassSpec],
    *,
    source: str = "wordnet",
    levels: int | None = None,
    depths: Sequence[int] = (),
    options: SourceOptions | None = None,
    label: str | None = None,
) -> tuple[list[Tree], tuple[str, ...]]:
    """Different trees over ``classes`` in their order, and what the user should know about how they were made.

    As many as ``options.trees`` asks for, or fewer where the source has no more; trees that levelling makes equal count
    once, and a note says so. Nodes of one level that would have the same prompt get prompts that tell them apart
    (`hrzs.hierarchy.namesakes`), and a note says that too.

    Args:
        source: a name in `SOURCES`.
        levels: the level of the root at most, by default `LEVELS`; the leaves are level 0. Trees of tree files keep
            their own levels, and their headers, unless it is given.
        depths: cut at these depths of the hypernym tree instead of by entropy.
        label: what to call the set of classes in the header of the file; None for a tree file's own.

    Raises:
        UsageError: an unknown source, a class given twice, classes that the source does not know (all are named),
            fewer than two classes, or ``levels`` below 1.
    """
    if source not in SOURCES:
        raise UsageError(f"--source {source}: there is no such source; there are {', '.join(SOURCES)}")
    twice = [class_id for class_id, count in Counter(spec.class_id for spec in classes).items() if count > 1]
    if twice:
        shown = ", ".join(map(repr, twice[:10])) + (", …" if len(twice) > 10 else "")
        raise UsageError(
            f"--classes names {shown} more than once; a class id stands for one class "
            "(give each an id of its own in a text file: ID<TAB>NAME)"
        )
    if options is not None and options.trees < 1:
        raise UsageError(f"--trees {options.trees}: at least one")
    if len(classes) < 2:
        raise UsageError(f"a tree needs at least two classes, and --classes gave {len(classes)}")
    options = options or SourceOptions()
    grown = SOURCES[source](classes, options)
    header: dict[str, object] = {"name": source, **grown.source, "hrzs": __version__}
    if label is not None:
        header["classes"] = label
    if options.senses:
        header["sense"] = [f"{name}={synset}" for name, synset in sorted(options.senses.items())]
    if options.trees > 1:
        header["trees"] = options.trees
    order = [spec.class_id for spec in classes]
    made: dict[str, Tree] = {}
    for number, root in enumerate(grown.roots):
        said = grown.each[number] if grown.each else {}
        if depths:
            tree = level_at_depths(root, depths, order, header | said | {"depths": list(depths)})
        elif levels is None and root.level > 0:
            own = said.get("from") if label is None else None
            tree = Tree(root, tuple(order), own if isinstance(own, dict) else header | said).restrict(order)
        else:
            top = LEVELS if levels is None else levels
            tree = level_tree(root, top, order, header | said | {"levels": top})
        made.setdefault(tree.digest, tree)
    notes = list(grown.notes)
    if len(made) < len(grown.roots):
        notes.append(f"{len(grown.roots)} trees were grown, {len(made)} differ at the levels asked for: those are kept")
    meanings = Meanings(options.wordnet)
    told = [tell_apart(tree, meanings) for tree in made.values()]
    # In a forest the same is said of many trees.
    notes += dict.fromkeys(note for _, each in told for note in each)
    return [tree for tree, _ in told], tuple(notes)
