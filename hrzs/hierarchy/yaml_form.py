"""The file form of class trees: YAML for people, one node to a line.

.. code-block:: yaml

    hrzs-tree: 1
    source: {name: wordnet, wordnet: '3.0', hrzs: 0.1.0, classes: shapes, levels: 5}
    classes: sorted
    tree:
    - n00027807@3 shape:
      - n13866144 polygon:
        - {class: square, id: n13878634, name: square}
      - n02119789 red fox

- ``hrzs-tree`` is the version of the form; ``source`` says where the tree came from (text, whole numbers, lists
  and maps of them); ``classes`` lists the classes in the dataset's order, or is ``sorted`` (by class id), and is
  left out when the order is that of the leaves below.
- A **leaf** is ``CLASS NAME`` (``CLASS`` alone where the name is the same), or a map of ``class``, ``id``,
  ``name`` and ``prompts``; ``id`` and ``name`` default to the class.
- A **superclass** is ``ID NAME:`` or ``ID@LEVEL NAME:`` over the list of its children, or a map of ``id``,
  ``name``, ``level``, ``prompts`` and ``children``. LEVEL is the lowest level the node stands at; left out, it is
  one below its parent's, and for the root the height of what is below.
- Every scalar of the tree is text: ``no``, ``1e3`` and ``null`` are names like any other.
- A **forest**, several trees over the same classes, has ``trees:`` instead of ``tree:``, a list of maps of
  ``source`` and ``tree``. The order of the classes is then, unless given, that of the first tree's leaves.

Any file is safe to open: see `hrzs.safe_yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Node, Tree
from hrzs.safe_yaml import MAX_TEXT, BadYamlError, List, Map, Scalar, Yaml, parse, read_source

MAX_DEPTH = 100
MAX_FAULTS = 10_000

_TEXT, _INT, _LIST, _MAP = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "seq", "map"))
_LEAF_KEYS = ("class", "id", "name", "prompts")
_INNER_KEYS = ("id", "name", "level", "prompts", "children")
_SHORT = re.compile(r"(?P<id>[^\s@]+)(?:@(?P<level>[0-9]{1,4}))?(?: (?P<name>\S(?:.*\S)?))?")
# A key that is longer, or has a line break in it, takes YAML two lines.
_MAX_KEY = 120
_BREAK = re.compile("[\n\x85\u2028\u2029]")
# Text that PyYAML writes as it is wherever it stands, unless YAML reads it as a truth value or null.
_SIMPLE = re.compile(r"[A-Za-z][A-Za-z0-9_.@'()/+-]*(?: [A-Za-z0-9_.@'()/+-]+)*")
_NOT_TEXT = frozenset(("yes", "no", "on", "off", "true", "false", "null"))
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, order=True)
class Fault:
    """What is wrong with a tree file, and on which line (from 1)."""

    line: int
    message: str


def parse_tree_spec(spec: str | Path) -> tuple[str, int]:
    """Split ``FILE#2`` into the file and the number of the tree in it (from 1; 1 when none is given)."""
    path, mark, index = str(spec).rpartition("#")
    if mark and index.isdecimal() and path:
        if int(index) < 1:
            raise UsageError(f"--tree {spec}: trees are counted from 1; write {path}#1 for the first one")
        return path, int(index)
    return str(spec), 1


def load_tree(path: str | Path, index: int = 1) -> Tree:
    """Read tree number ``index`` (from 1) of a file; ``-`` reads standard input, ``FILE#2`` names the second tree.

    Raises:
        UsageError: the file cannot be read, has faults (each is named with its line), or has fewer trees.
    """
    file, named = parse_tree_spec(path)
    number = named if index == 1 else index
    trees = load_trees(file)
    if number > len(trees):
        raise UsageError(f"{file} has {len(trees)} tree(s), there is no #{number}; write {file}#{len(trees)} at most")
    return trees[number - 1]


def load_trees(path: str | Path) -> list[Tree]:
    """Read every tree of a file, a forest being several over the same classes in the same order.

    Raises:
        UsageError: the file cannot be read or has faults; each is named with its line.
    """
    trees, faults = read(path)
    if faults:
        shown = [f"  {path}:{fault.line}: {fault.message}" for fault in faults[:20]]
        if len(faults) > 20:
            shown.append(f"  … and {len(faults) - 20} more: `hrzs build-tree --check {path}` lists them all")
        raise UsageError(f"{path} is no valid tree file:\n" + "\n".join(shown))
    return trees


def check(path: str | Path) -> list[Fault]:
    """All faults of a tree file, by line; empty when it is valid.

    Reading stops where the text is no YAML at all, and at fault number ``MAX_FAULTS``.

    Raises:
        UsageError: the file cannot be opened.
    """
    return read(path)[1]


def read(path: str | Path) -> tuple[list[Tree], list[Fault]]:
    """The trees of a file and its faults, by line; where there are faults there are no trees.

    Raises:
        UsageError: the file cannot be opened.
    """
    reader = _Reader()
    trees: list[Tree] = []
    try:
        # A superclass takes two collections, itself and its children; `trees:` stands in four more.
        trees = reader.file(parse(read_source(path), 2 * MAX_DEPTH + 6, reader.fault))
    except BadYamlError as error:
        reader.faults.append(Fault(error.line, error.message))
    return trees, sorted(set(reader.faults))


# -- writing ---------------------------------------------------------------------------------------------------


def dump_trees(trees: Sequence[Tree]) -> str:
    """The text of a tree file; the same trees give the same bytes on every machine.

    Raises:
        UsageError: there is no tree, the trees are not over the same classes in the same order, a tree is too deep
            for a file, or a text is too long or no Unicode.
    """
    if not trees:
        raise UsageError("a tree file needs at least one tree")
    classes = trees[0].classes
    if any(tree.classes != classes for tree in trees):
        raise UsageError("the trees of a forest must be over the same classes in the same order")
    if any(tree.height > MAX_DEPTH for tree in trees):
        raise UsageError(f"a tree file holds at most {MAX_DEPTH} levels")
    unwritable = dict.fromkeys(
        text
        for tree in trees
        for part in (tree.header, *tree.root.walk())
        for text in _texts(part)
        if len(text) > MAX_TEXT or not (text.isascii() or _SURROGATE.search(text) is None)
    )
    if unwritable:
        raise UsageError(
            f"a tree file holds Unicode text of at most {MAX_TEXT} characters, and these are none: "
            + ", ".join(map(_brief, unwritable))
        )
    head: dict[str, object] = {"hrzs-tree": 1}
    if len(trees) == 1 and trees[0].header:
        head["source"] = trees[0].header
    if classes != _leaf_order(trees[0].root):
        head["classes"] = "sorted" if classes == tuple(sorted(classes)) else classes
    lines: list[str] = []
    if len(trees) == 1:
        lines.append("tree:")
        _outline(lines, "", trees[0].root, _height(trees[0].root))
    else:
        lines.append("trees:")
        for tree in trees:
            if tree.header:
                lines.append(f"- source: {_emit(_value(tree.header)).rstrip()}")
            lines.append("  tree:" if tree.header else "- tree:")
            _outline(lines, "  ", tree.root, _height(tree.root))
    levels = " and ".join(dict.fromkeys(" ".join(str(len(nodes)) for nodes in tree.levels) for tree in trees))
    return (
        f"# A class tree of hrzs, one node to a line; nodes at each level from the leaves to the root: {levels}.\n"
        "# Edit it by hand as you like: `hrzs build-tree --check FILE` finds every slip and its line.\n"
        + _emit(
            yaml.MappingNode(_MAP, [(_value(key), _value(item)) for key, item in head.items()], flow_style=False), 110
        )
        + "\n".join(lines)
        + "\n"
    )


def _texts(value: object) -> Iterator[str]:
    """Every text in a node (not in those below it) or in a header."""
    if isinstance(value, Node):
        value = (value.id, value.name, value.class_id, value.prompts)
    if isinstance(value, Mapping):
        value = tuple(value.items())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _leaf_order(root: Node) -> tuple[str, ...]:
    return tuple(leaf.class_id for leaf in root.leaves() if leaf.class_id is not None)


def _emit(node: yaml.Node, width: int = 2**30) -> str:
    # PyYAML's own emitter, not libyaml's: which of the two is installed must not change the bytes.
    return str(yaml.serialize(node, Dumper=yaml.SafeDumper, width=width, allow_unicode=True))


def _value(value: object) -> yaml.Node:
    """Header values: maps, lists, whole numbers, and text for anything else."""
    if isinstance(value, Mapping):
        pairs = [(_value(str(key)), _value(item)) for key, item in value.items()]
        return yaml.MappingNode(_MAP, pairs, flow_style=True)
    if isinstance(value, list | tuple):
        return yaml.SequenceNode(_LIST, [_value(item) for item in value], flow_style=True)
    tag = _INT if isinstance(value, int) and not isinstance(value, bool) else _TEXT
    text = str(value)
    # Double quotes escape line breaks; in every other style PyYAML folds some of Unicode's away.
    return yaml.ScalarNode(tag, text, style=None if text.isprintable() else '"')


def _scalar(text: str) -> str:
    """``text`` as a key or an item of a block; PyYAML is asked only where quotes may be needed, for it is slow."""
    if _is_simple(text):
        return text
    return _emit(yaml.SequenceNode(_LIST, [_value(text)], flow_style=False)).removeprefix("- ").removesuffix("\n")


def _flow(value: str | Sequence[str]) -> str:
    """Text, or a list of texts, as it stands within braces."""
    if not isinstance(value, str):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if _is_simple(value):
        return value
    return _emit(yaml.SequenceNode(_LIST, [_value(value)], flow_style=True)).removeprefix("[").removesuffix("]\n")


def _is_simple(text: str) -> bool:
    return _SIMPLE.fullmatch(text) is not None and text.lower() not in _NOT_TEXT


def _height(node: Node) -> int:
    """The level that a reader works out for a root without a written level."""
    return 1 + max(
        _height(child) if child.children and child.level == node.level - 1 else child.level for child in node.children
    )


def _outline(lines: list[str], indent: str, node: Node, implied_level: int) -> None:
    """Add the lines of ``node`` and of all below it."""
    if node.is_leaf:
        lines.append(f"{indent}- {_leaf(node)}")
        return
    mark = f"@{node.level}" if node.level != implied_level else ""
    short = f"{node.id}{mark}" + (f" {node.name}" if node.name != node.id else "")
    is_key = short not in _INNER_KEYS + _LEAF_KEYS and len(short) <= _MAX_KEY and not _BREAK.search(short)
    if is_key and not node.prompts and _reads_as(short, node):
        lines.append(f"{indent}- {_scalar(short)}:")
    else:
        lines += [f"{indent}- id: {_scalar(node.id)}", f"{indent}  name: {_scalar(node.name)}"]
        if mark:
            lines.append(f"{indent}  level: {node.level}")
        if node.prompts:
            lines.append(f"{indent}  prompts: {_flow(node.prompts)}")
        lines.append(f"{indent}  children:")
    for child in node.children:
        _outline(lines, indent + "  ", child, node.level - 1)


def _leaf(node: Node) -> str:
    assert node.class_id is not None
    short = node.class_id + (f" {node.name}" if node.name != node.class_id else "")
    if not node.prompts and node.id == node.class_id and _reads_as(short, node):
        return _scalar(short)
    items: dict[str, str | tuple[str, ...]] = {"class": node.class_id}
    if node.id != node.class_id:
        items["id"] = node.id
    if node.name != node.class_id:
        items["name"] = node.name
    if node.prompts:
        items["prompts"] = node.prompts
    return "{" + ", ".join(f"{key}: {_flow(value)}" for key, value in items.items()) + "}"


def _reads_as(short: str, node: Node) -> bool:
    match = _SHORT.fullmatch(short)
    return match is not None and match["id"] == node.id and (match["name"] or match["id"]) == node.name


# -- reading ---------------------------------------------------------------------------------------------------


@dataclass
class _Draft:
    """A node as written, before the levels that are left out are worked out."""

    line: int
    id: str
    name: str
    class_id: str | None = None
    level: int | None = None
    prompts: tuple[str, ...] = ()
    children: list[_Draft] = field(default_factory=list)


class _Reader:
    """Turns YAML nodes into trees and gathers every fault on the way."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def fault(self, where: Yaml | _Draft | int, message: str) -> None:
        line = where if isinstance(where, int) else where.line
        self.faults.append(Fault(line, message))
        if len(self.faults) >= MAX_FAULTS:
            raise BadYamlError(line, f"{MAX_FAULTS} faults found by here: reading stopped")

    # -- the file ----------------------------------------------------------------------------------------------

    def file(self, top: Yaml | None) -> list[Tree]:
        if top is None:
            self.fault(1, "the file is empty; `hrzs build-tree -o FILE.yaml` writes a tree")
            return []
        if not isinstance(top, Map):
            self.fault(top, "a tree file is a map with the keys hrzs-tree and tree")
            return []
        items = self.mapping(top, ("hrzs-tree", "source", "classes", "tree", "trees"), "the file")
        version = items.get("hrzs-tree")
        if version is None:
            self.fault(top, "`hrzs-tree: 1` is missing at the head of the file")
        elif not (isinstance(version, Scalar) and version.value == "1"):
            self.fault(version, "this version of hrzs reads `hrzs-tree: 1`")
        if ("tree" in items) == ("trees" in items):
            self.fault(top, "a file holds either `tree:`, a list of one root, or `trees:`, a list of several")
            return []
        entries: list[tuple[Yaml, dict[str, object]]] = []
        if "tree" in items:
            entries.append((items["tree"], self.header(items.get("source"))))
        else:
            if "source" in items:
                self.fault(items["source"], "in a forest `source` belongs to each of the trees")
            entries.extend(self.forest(items["trees"]))
        roots = [(node, self.root(node), header) for node, header in entries]
        classes = self.classes(items.get("classes"))
        return self.trees(roots, classes)

    def forest(self, node: Yaml) -> Iterator[tuple[Yaml, dict[str, object]]]:
        if not isinstance(node, List) or not node.items:
            self.fault(node, "`trees` is a list of maps with the keys source and tree")
            return
        for entry in node.items:
            if not isinstance(entry, Map):
                self.fault(entry, "a tree of a forest is a map with the keys source and tree")
                continue
            items = self.mapping(entry, ("source", "tree"), "a tree of a forest")
            if "tree" in items:
                yield items["tree"], self.header(items.get("source"))
            else:
                self.fault(entry, "`tree` is missing")

    def header(self, node: Yaml | None) -> dict[str, object]:
        if node is None:
            return {}
        if not isinstance(node, Map):
            self.fault(node, "`source` is a map, such as {name: wordnet}")
            return {}
        header = self.header_value(node)
        assert isinstance(header, dict)
        return header

    def header_value(self, node: Yaml) -> object:
        if isinstance(node, Map):
            return {key: self.header_value(value) for key, value in self.mapping(node, None, "source").items()}
        if isinstance(node, List):
            return [self.header_value(item) for item in node.items]
        if node.plain and re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", node.value):
            return int(node.value)
        return node.value

    def classes(self, node: Yaml | None) -> dict[str, int] | Literal["sorted"] | None:
        """The listed classes with the line of each."""
        if node is None:
            return None
        if isinstance(node, Scalar) and node.value == "sorted":
            return "sorted"
        if not isinstance(node, List):
            self.fault(node, "`classes` is a list of class ids in the dataset's order, or `sorted`")
            return None
        listed: dict[str, int] = {}
        for item in node.items:
            text = self.text(item, "a class")
            if text is not None and text in listed:
                self.fault(item, f"class {_brief(text)} is listed twice, first on line {listed[text]}")
            elif text is not None:
                listed[text] = item.line
        return listed

    def trees(
        self,
        roots: list[tuple[Yaml, _Draft | None, dict[str, object]]],
        listed: dict[str, int] | Literal["sorted"] | None,
    ) -> list[Tree]:
        found = [(node.line, _leaf_lines(root)) for node, root, _ in roots if root is not None]
        if isinstance(listed, dict):
            expected, source = listed, "listed in `classes`"
        elif found:
            expected, source = found[0][1], "in the first tree"
        for line, leaves in found:
            for missing in expected.keys() - leaves.keys():
                self.fault(
                    expected[missing] if listed else line, f"class {_brief(missing)} is {source} but has no leaf"
                )
            for extra in leaves.keys() - expected.keys():
                self.fault(leaves[extra], f"leaf {_brief(extra)} is not {source}")
        if self.faults:
            return []
        classes = tuple(sorted(expected) if listed == "sorted" else expected)
        return [Tree(_node(root), classes, header) for _, root, header in roots if root is not None]

    # -- the nodes ---------------------------------------------------------------------------------------------

    def root(self, node: Yaml) -> _Draft | None:
        if not isinstance(node, List):
            self.fault(node, "`tree` is a list of exactly one root")
            return None
        roots = self.nodes(node.items)
        if len(node.items) != 1:
            self.fault(node, f"`tree` is a list of exactly one root, and here are {len(node.items)}")
        elif roots and roots[0].class_id is not None:
            self.fault(
                roots[0], f"the root {_brief(roots[0].name)} is a leaf: a tree needs a superclass over its classes"
            )
        elif len(roots) == 1:
            self.levels(roots[0])
            self.unique(roots[0])
            return roots[0]
        return None

    def nodes(self, items: list[Yaml]) -> list[_Draft]:
        """The nodes of a list; a faulty superclass is kept, so that faults below it are found too."""
        drafts: list[_Draft] = []
        for item in items:
            if isinstance(item, Scalar):
                draft = self.short_leaf(item)
            elif isinstance(item, List):
                self.fault(item, "a list stands where a node should: write `ID NAME:` before its children")
                draft = None
                drafts += self.nodes(item.items)
            elif any(isinstance(key, Scalar) and key.value in _INNER_KEYS + _LEAF_KEYS for key, _ in item.pairs):
                draft = self.long_node(item)
            else:
                for key, _ in item.pairs[1:]:
                    self.fault(key, "each superclass is an item of its own: begin its line with `- `")
                if not item.pairs:
                    self.fault(item, "an empty map stands where a node should")
                drafts += [inner for pair in item.pairs if (inner := self.short_inner(*pair)) is not None]
                draft = None
            if draft is not None:
                drafts.append(draft)
        return drafts

    def short_leaf(self, node: Scalar) -> _Draft | None:
        match = _SHORT.fullmatch(node.value)
        if match is None:
            self.fault(node, f"{_brief(node.value)} cannot be read as `CLASS NAME`; write {{class: …, name: …}}")
            return None
        if match["level"]:
            self.fault(node, f"leaf {_brief(match['id'])} stands at level 0: only a superclass has @{match['level']}")
        return _Draft(node.line, match["id"], match["name"] or match["id"], match["id"])

    def short_inner(self, key: Yaml, value: Yaml) -> _Draft | None:
        if not isinstance(key, Scalar):
            self.fault(key, "a superclass begins with `ID NAME:`")
            return None
        if isinstance(value, Scalar) and value.value:
            self.fault(
                key,
                f"{_brief(key.value)} has text after its colon where the list of its children should begin; "
                "a name with a colon is put in quotes",
            )
            return None
        children = self.children(key, value, key.value)
        match = _SHORT.fullmatch(key.value)
        if match is None:
            self.fault(key, f"{_brief(key.value)} cannot be read as `ID NAME`; write {{id: …, name: …, children: …}}")
            return _Draft(key.line, "", key.value, children=children)
        level = None if match["level"] is None else int(match["level"])
        return _Draft(key.line, match["id"], match["name"] or match["id"], None, level, (), children)

    def children(self, owner: Yaml, value: Yaml | None, name: str) -> list[_Draft]:
        if isinstance(value, Map):
            self.fault(owner, f"the children of {_brief(name)} must be a list: begin each with `- `")
            return []
        if not isinstance(value, List) or not value.items:
            self.fault(owner, f"superclass {_brief(name)} has no children; remove it, or make it a leaf: no colon")
            return []
        return self.nodes(value.items)

    def long_node(self, node: Map) -> _Draft | None:
        keys = {key.value for key, _ in node.pairs if isinstance(key, Scalar)}
        leaf = "class" in keys and "children" not in keys
        if leaf:
            items = self.mapping(node, _LEAF_KEYS, "a leaf")
        elif "class" in keys:
            self.fault(node, "a leaf has no `children`: give a superclass an `id` in place of `class`")
            items = self.mapping(node, (*_INNER_KEYS, "class"), "a superclass")
        else:
            items = self.mapping(node, _INNER_KEYS, "a superclass")
        texts = {key: self.text(items[key], f"`{key}`") for key in ("class", "id", "name") if key in items}
        prompts = self.prompts(items.get("prompts"))
        identity = texts.get("class") if leaf else texts.get("id")
        name = texts.get("name") or texts.get("class") or texts.get("id") or ""
        if leaf:
            if identity is None:
                return None
            return _Draft(node.line, texts.get("id") or identity, name, identity, None, prompts)
        if not {"class", "id"} & keys:
            self.fault(node, "a leaf needs `class`, a superclass `id`")
        level = self.level(items.get("level"))
        children = self.children(node, items.get("children"), name)
        return _Draft(node.line, identity or "", name, None, level, prompts, children)

    def prompts(self, node: Yaml | None) -> tuple[str, ...]:
        if node is None:
            return ()
        if not isinstance(node, List):
            self.fault(node, "`prompts` is a list of names, such as [fox, red fox]")
            return ()
        return tuple(text for item in node.items if (text := self.text(item, "a prompt name")) is not None)

    def level(self, node: Yaml | None) -> int | None:
        if node is None:
            return None
        if isinstance(node, Scalar) and re.fullmatch(r"[0-9]{1,4}", node.value):
            return int(node.value)
        self.fault(node, "`level` is a whole number")
        return None

    def text(self, node: Yaml, what: str) -> str | None:
        if isinstance(node, Scalar) and node.value:
            return str(node.value)
        self.fault(node, f"{what} must be text, and not empty")
        return None

    def mapping(self, node: Map, known: tuple[str, ...] | None, what: str) -> dict[str, Yaml]:
        items: dict[str, Yaml] = {}
        for key, value in node.pairs:
            if not isinstance(key, Scalar):
                self.fault(key, "a key must be text")
            elif known is not None and key.value not in known:
                self.fault(key, f"unknown key {_brief(key.value)}: {what} has {', '.join(known)}")
            elif key.value in items:
                self.fault(key, f"key {_brief(key.value)} is there twice, first on line {items[key.value].line}")
            else:
                items[key.value] = value
        return items

    # -- what only the whole tree can tell ---------------------------------------------------------------------

    def levels(self, root: _Draft) -> None:
        """Work out the levels that are left out, and find those that do not fall from parent to child."""
        if root.level is None:
            root.level = _draft_height(root)
        if not 1 <= root.level <= MAX_DEPTH:
            self.fault(root, f"the root is at level {root.level}: a tree file has from 1 to {MAX_DEPTH} levels")
            root.level = _draft_height(root)
        stack = [root]
        while stack:
            parent = stack.pop()
            assert parent.level is not None
            for child in parent.children:
                if child.class_id is not None:
                    child.level = 0
                elif child.level is None:
                    child.level = parent.level - 1
                if child.level >= parent.level or (child.class_id is None and child.level < 1):
                    self.fault(
                        child.line,
                        f"{_brief(child.id)} ({_brief(child.name)}) is at level {child.level}: a superclass stands at "
                        f"1 or above, and below its parent {_brief(parent.id)} (line {parent.line}) at {parent.level}",
                    )
                    if child.level < 1:  # high enough not to make those below it faulty too
                        child.level = _draft_height(child)
                stack.append(child)

    def unique(self, root: _Draft) -> None:
        inner: dict[str, int] = {}
        leaves: dict[str, int] = {}
        above: dict[str, int] = {}  # the superclasses between the root and here, and how often each is there
        stack: list[tuple[_Draft, bool]] = [(root, False)]
        while stack:
            draft, done = stack.pop()
            if done:
                above[draft.id] -= 1
                continue
            if draft.class_id is not None:
                if draft.class_id in leaves:
                    first = leaves[draft.class_id]
                    self.fault(draft, f"class {_brief(draft.class_id)} stands on a second leaf, first on line {first}")
                leaves.setdefault(draft.class_id, draft.line)
                continue
            if draft.id in inner and draft.id:
                first = inner[draft.id]
                if above.get(draft.id):
                    self.fault(draft, f"cycle: {_brief(draft.id)} stands beneath itself, first on line {first}")
                else:
                    self.fault(draft, f"superclass {_brief(draft.id)} is there twice, first on line {first}")
            inner.setdefault(draft.id, draft.line)
            above[draft.id] = above.get(draft.id, 0) + 1
            stack.append((draft, True))
            stack.extend((child, False) for child in reversed(draft.children))


def _brief(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")


def _leaf_lines(root: _Draft) -> dict[str, int]:
    lines: dict[str, int] = {}
    stack = [root]
    while stack:
        draft = stack.pop()
        if draft.class_id is not None:
            lines.setdefault(draft.class_id, draft.line)
        stack.extend(reversed(draft.children))
    return lines


def _draft_height(draft: _Draft) -> int:
    if draft.class_id is not None:
        return 0
    heights = [_draft_height(child) if child.level is None else child.level for child in draft.children]
    return 1 + max(heights, default=0)


def _node(draft: _Draft) -> Node:
    children = tuple(map(_node, draft.children))
    return Node(draft.name, draft.id, children, draft.class_id, draft.level or 0, draft.prompts)
