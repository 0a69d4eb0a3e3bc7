"""What a tree source is: classes in, an unlevelled tree out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hrzs.classes.specs import ClassSpec
from hrzs.hierarchy.tree import Node

__all__ = ["ClassSpec", "Grown", "Source", "SourceOptions"]


@dataclass(frozen=True)
class SourceOptions:
    """What the user asked for; a source takes what concerns it.

    Args:
        trees: how many different trees over the same classes are wanted.
        seed: for a source that draws at random.
        senses: class id or name -> synset (``star.n.05`` or ``n13881644``), as given.
        wordnet: where to find WordNet (see `hrzs.wordnet.open_wordnet`).
        files: what ``--source file`` reads (``FILE``, or ``FILE#2`` of a forest); several make a forest.
        has_header: whether tables among them have a header; None: it has to show.
        endpoint: base URL of an OpenAI-compatible server (``http://127.0.0.1:8000/v1``).
        llm_model: what that server calls its model.
        cache: folder for answers and transcripts; None for none.
        model, pretrained: the CLIP whose embeddings are clustered, as on the command line.
        data, data_root, limit: images whose class means are clustered instead of the texts' embeddings.
        distance: ``hyperbolic`` or ``cosine``.
    """

    trees: int = 1
    seed: int = 0
    senses: Mapping[str, str] = field(default_factory=dict)
    wordnet: str | None = None
    files: tuple[str, ...] = ()
    has_header: bool | None = None
    endpoint: str | None = None
    llm_model: str | None = None
    cache: Path | None = None
    model: str = "tiny"
    pretrained: str | None = None
    data: str | None = None
    data_root: Path | None = None
    limit: int | None = None
    distance: str = "hyperbolic"


@dataclass(frozen=True)
class Grown:
    """Unlevelled trees over exactly the classes that were asked for.

    Args:
        roots: ``options.trees`` different trees, or fewer with a note that says why, the best first; their levels
            mean nothing yet: `hrzs.hierarchy.levelling` sets them.
        source: what the header of the file should say besides the options: versions and such.
        notes: what the user should know, such as how an ambiguous word was read; one paragraph each.
        each: what the header of each tree should say beyond that; empty, or one for each root.
    """

    roots: tuple[Node, ...]
    source: dict[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    each: tuple[dict[str, object], ...] = ()


class Source(Protocol):
    """A function that finds superclasses for ``classes``; the first line of its docstring describes it to users.

    The same classes and options must give the same tree.

    Raises:
        UsageError: a class that the source cannot place; all such classes are named at once.
    """

    def __call__(self, classes: Sequence[ClassSpec], options: SourceOptions) -> Grown: ...
