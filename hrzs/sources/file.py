"""Trees out of files: converted, cut down to the classes that are asked for, and levelled anew.

`hrzs.sources.formats` says which files and folders can be read. ``FILE`` gives all the trees in it,
``FILE#2`` the second one; several files give the trees of all.

**Which leaf is a class.** The one with its class id; else the one with its WordNet id; else, of those that no other
class has taken so far, the one called what the class is called, where ids and names are alike, and so are capitals and
small letters, and ``_``, ``-`` and blanks. A WordNet id is called by the words of its synset as well.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from hrzs.classes.specs import is_wnid
from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Node
from hrzs.hierarchy.yaml_form import parse_tree_spec
from hrzs.sources.base import ClassSpec, Grown, SourceOptions
from hrzs.sources.formats import FORMATS, Contents, Fault, read
from hrzs.wordnet.meanings import Meanings


class _Found(NamedTuple):
    """One tree of a file, and what the file says of it."""

    spec: str
    root: Node
    classes: tuple[str, ...]
    said: dict[str, object]


def grow(classes: Sequence[ClassSpec], options: SourceOptions) -> Grown:
    """A tree in a file: YAML, a table of paths, JSON, parent-child lists, nested folders (--tree FILE)."""
    words = _Words(options.wordnet)
    found, notes = _read(options.files, options.has_header)
    classes = classes or _specs(found[0], words)
    roots: list[Node] = []
    faults: list[Fault] = []
    for tree in found:
        chosen = _match(tree, classes, words, faults)
        if not faults:
            roots.append(_cut(tree.root, chosen, words))
    _stop_at(faults)
    notes += [
        f"{tree.spec} has no superclasses: every class hangs on its root"
        for tree, root in zip(found, roots, strict=True)
        if all(child.is_leaf for child in root.children)
    ]
    if len(roots) < options.trees:
        notes.append(f"--trees {options.trees}: the files hold {len(roots)}; name more files with --tree")
    return Grown(tuple(roots), {}, tuple(notes), tuple(tree.said for tree in found))


def classes_of(files: Sequence[str], has_header: bool | None = None) -> list[ClassSpec]:
    """The classes of the first tree in ``files``, in the order of its file, for want of other ones.

    Raises:
        UsageError: no file is named, or one cannot be read; every fault is listed.
    """
    found, _ = _read(files, has_header)
    return _specs(found[0], _Words(None))


def _specs(tree: _Found, words: _Words) -> list[ClassSpec]:
    leaves = {leaf.class_id: leaf for leaf in tree.root.leaves()}
    specs = []
    for class_id in tree.classes:
        leaf = leaves[class_id]
        name = words.name(leaf)
        synset = leaf.id if is_wnid(leaf.id) and leaf.id != class_id else None
        specs.append(ClassSpec(class_id, None if name == class_id else name, synset))
    return specs


# -- files -------------------------------------------------------------------------------------------------------


def _read(specs: Sequence[str], has_header: bool | None) -> tuple[list[_Found], list[str]]:
    """The trees in all the files, and what the user should know about them."""
    if not specs:
        raise UsageError(f"--source file reads a tree: name it with --tree FILE.yaml; FILE can be {FORMATS}")
    found: list[_Found] = []
    notes: list[str] = []
    faults: list[Fault] = []
    for spec in specs:
        file, number = _split(spec)
        contents, wrong = read(file, has_header)
        faults += wrong
        if contents is None:
            continue
        if number > len(contents.roots):
            faults.append(Fault(file, 0, f"it holds {len(contents.roots)} tree(s), there is no #{number}"))
            continue
        notes += contents.notes
        found += [
            _found(file, contents, index)
            for index in range(len(contents.roots))
            if number in (0, index + 1)
        ]  # fmt: skip
    _stop_at(faults)
    return found, notes


def _split(spec: str) -> tuple[str, int]:
    """The file and the number of the tree in it; 0 for all. A name may end in ``#2`` of its own."""
    file, number = parse_tree_spec(spec)
    return (spec, 0) if file == spec or Path(spec).exists() else (file, number)


def _found(file: str, contents: Contents, index: int) -> _Found:
    # The path would differ from machine to machine, and the same command must write the same bytes.
    name = "standard input" if file == "-" else Path(file).name or Path(file).resolve().name
    mark = f"#{index + 1}" if len(contents.roots) > 1 else ""
    said: dict[str, object] = {"file": name + mark, "format": contents.format}
    if contents.headers and contents.headers[index]:
        said["from"] = contents.headers[index]
    return _Found(file + mark, contents.roots[index], contents.classes, said)


def _stop_at(faults: Sequence[Fault]) -> None:
    if not faults:
        return
    unique = list(dict.fromkeys(map(str, faults)))
    files = ", ".join(dict.fromkeys(fault.file for fault in faults[:20]))
    more = f"\n  … and {len(unique) - 20} more" if len(unique) > 20 else ""
    raise UsageError(f"--tree {files}: {len(unique)} fault(s)\n  " + "\n  ".join(unique[:20]) + more)


# -- classes and leaves --------------------------------------------------------------------------------------------


class _Words:
    """Names for WordNet ids; WordNet is opened only when there is one."""

    def __init__(self, wordnet: str | None) -> None:
        self.lemmas = lru_cache(None)(Meanings(wordnet).words)

    def name(self, node: Node) -> str:
        """What the node is called; a WordNet id is no name."""
        if is_wnid(node.name) and (lemmas := self.lemmas(node.name)):
            return lemmas[0]
        return node.name

    def of(self, spec: ClassSpec) -> Iterator[str]:
        """All that a class may be called, the surest first."""
        yield spec.class_id
        if spec.name:
            yield spec.name
        for wnid in filter(None, (spec.synset, spec.class_id)):
            if is_wnid(wnid):
                yield from self.lemmas(wnid)


def _match(tree: _Found, classes: Sequence[ClassSpec], words: _Words, faults: list[Fault]) -> dict[str, ClassSpec]:
    """The class of each leaf, by the leaf's class id in the file."""
    leaves = list(tree.root.leaves())
    by_class = {leaf.class_id or "": leaf.class_id or "" for leaf in leaves}
    counts = Counter(leaf.id for leaf in leaves)
    by_synset = {
        leaf.id: leaf.class_id or "" for leaf in leaves if is_wnid(leaf.id) and counts[leaf.id] == 1
    }  # fmt: skip
    chosen: dict[str, ClassSpec] = {}
    for index, lookup in enumerate((by_class, by_synset, by_synset)):
        taken = {spec.class_id for spec in chosen.values()}
        for spec in classes:
            leaf = lookup.get((spec.class_id, spec.class_id, spec.synset or "")[index])
            if leaf is not None and spec.class_id not in taken and leaf not in chosen:
                chosen[leaf] = spec
    taken = {spec.class_id for spec in chosen.values()}
    rest = [spec for spec in classes if spec.class_id not in taken]
    if rest:
        free = [leaf for leaf in leaves if leaf.class_id not in chosen]
        _match_names(tree, rest, free, words, chosen, faults)
    return chosen


def _match_names(
    tree: _Found,
    classes: Sequence[ClassSpec],
    leaves: Sequence[Node],
    words: _Words,
    chosen: dict[str, ClassSpec],
    faults: list[Fault],
) -> None:
    called: defaultdict[str, dict[str, None]] = defaultdict(dict)  # as ordered sets
    for leaf in leaves:
        for word in (leaf.class_id or "", words.name(leaf)):
            called[_key(word)][leaf.class_id or ""] = None
    above: set[str] = set()
    for spec in classes:
        found = next((called[key] for key in map(_key, words.of(spec)) if key in called), {})
        shown = ", ".join(map(repr, list(found)[:5]))
        if len(found) > 1:
            faults.append(
                Fault(tree.spec, 0, f"class {spec.class_id!r} may be any of the leaves {shown}: use their ids")
            )
        elif not found:
            above = above or _superclasses(tree.root.walk(), words)
            hint = "; it is a superclass there" if not above.isdisjoint(map(_key, words.of(spec))) else ""
            faults.append(Fault(tree.spec, 0, f"there is no leaf for class {spec.class_id!r}{hint}"))
        elif (other := chosen.setdefault(next(iter(found)), spec)) is not spec:
            faults.append(
                Fault(tree.spec, 0, f"classes {other.class_id!r} and {spec.class_id!r} are both leaf {shown}")
            )


def _superclasses(nodes: Iterable[Node], words: _Words) -> set[str]:
    return {_key(word) for node in nodes if not node.is_leaf for word in (node.id, words.name(node))}


def _key(word: str) -> str:
    return " ".join(re.split(r"[\s_-]+", unicodedata.normalize("NFKC", word).casefold())).strip()


def _cut(root: Node, chosen: Mapping[str, ClassSpec], words: _Words) -> Node:
    """The tree over the chosen leaves alone, now with the ids of their classes."""
    built: dict[int, Node] = {}
    for node in reversed(list(root.walk())):  # children before parents
        if node.class_id is not None:
            if (spec := chosen.get(node.class_id)) is not None:
                built[id(node)] = _leaf(node, spec, words)
            continue
        children = tuple(built.pop(id(child)) for child in node.children if id(child) in built)
        if children:
            built[id(node)] = replace(node, name=words.name(node), children=children)
    return built[id(root)]


def _leaf(node: Node, spec: ClassSpec, words: _Words) -> Node:
    """The file's name and id stay where it has some besides the class id, or else the data's do."""
    named = _key(node.name) != _key(node.class_id or "")
    identity = spec.class_id if node.id == node.class_id and not is_wnid(node.id) else node.id
    name = (None if named else spec.name) or words.name(node)
    return replace(node, name=name, id=identity, class_id=spec.class_id)
