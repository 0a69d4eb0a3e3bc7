"""What a tree source is: classes in, an unlevelled tree out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from hrzs.hierarchy.tree import Node


class ClassSpec(NamedTuple):
    """A class of the dataset: its id, and its name where the dataset gives one of its own."""

    class_id: str
    name: str | None = None


@dataclass(frozen=True)
class SourceOptions:
    """What the user asked for; a source takes what concerns it.

    Args:
        senses: class id or name -> synset (``star.n.05`` or ``n13881644``), as given.
        wordnet: where to find WordNet (see `hrzs.hierarchy.wordnet.open_wordnet`).
        tree: the tree file to read (``FILE`` or ``FILE#2``).
    """

    senses: Mapping[str, str] = field(default_factory=dict)
    wordnet: str | None = None
    tree: str | None = None


@dataclass(frozen=True)
class Grown:
    """An unlevelled tree over exactly the classes that were asked for.

    Args:
        root: its levels mean nothing yet: `hrzs.hierarchy.levelling` sets them.
        source: what the header of the file should say besides the options: versions and such.
        notes: what the user should know, such as how an ambiguous word was read; one paragraph each.
    """

    root: Node
    source: dict[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """A function that finds superclasses for ``classes``; the first line of its docstring describes it to users.

    The same classes and options must give the same tree.

    Raises:
        UsageError: a class that the source cannot place; all such classes are named at once.
    """

    def __call__(self, classes: Sequence[ClassSpec], options: SourceOptions) -> Grown: ...
