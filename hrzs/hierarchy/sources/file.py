"""Trees from a tree file, to be levelled anew or cut down to some of its classes."""

from __future__ import annotations

from collections.abc import Sequence

from hrzs.errors import UsageError
from hrzs.hierarchy.sources.base import ClassSpec, Grown, SourceOptions
from hrzs.hierarchy.yaml_form import load_tree


def grow(classes: Sequence[ClassSpec], options: SourceOptions) -> Grown:
    """An existing tree file (--tree FILE), levelled anew; --classes keeps some of its classes."""
    if not options.files:
        raise UsageError("--source file reads a tree: name it with --tree FILE.yaml")
    tree = load_tree(options.files[0])
    wanted = [spec.class_id for spec in classes]
    return Grown((tree.restrict(wanted).root,), {"tree": tree.digest[:16]})
