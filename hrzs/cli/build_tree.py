"""`hrzs build-tree`: from class names to a tree file."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrzs.cli import console, options
from hrzs.errors import HrzsError, UsageError

if TYPE_CHECKING:
    from hrzs.hierarchy.sources import ClassSpec
    from hrzs.hierarchy.tree import Tree

_SPLIT_FOLDERS = ("train", "val", "validation", "valid", "test")
_WNID = re.compile(r"n\d{8}")


def build_tree(
    config: options.Config = None,
    source: Annotated[str, typer.Option(help="Where superclasses come from; `list` names them all.")] = "wordnet",
    classes: Annotated[
        str | None,
        typer.Option(
            help="The classes: a dataset name, a folder with one subfolder per class, a text file with one class "
            "(or ID<TAB>NAME) per line, or a,b,c. [default: shapes]",
        ),
    ] = None,
    data_root: options.DataRoot = None,
    levels: Annotated[int, typer.Option(help="The level of the root at most; leaves are level 0.")] = 5,
    depths: Annotated[
        str | None,
        typer.Option(metavar="8,6,4", help="Cut at these depths below WordNet's root instead of by entropy."),
    ] = None,
    trees: Annotated[int, typer.Option(help="How many trees over the same classes.")] = 1,
    sense: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SYNSET", help="Which synset a class means; repeatable.")
    ] = None,
    wordnet: Annotated[
        str | None,
        typer.Option(metavar="PATH|nltk", help="A WordNet other than the one in hrzs: its folder, or NLTK's corpus."),
    ] = None,
    tree: Annotated[str | None, typer.Option(metavar="FILE", help="The tree that `--source file` reads.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE.yaml", help="Write here.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Draw the tree on stderr.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg|png", help="Draw the tree as a picture.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print figures of the tree, as JSON.")] = False,
    check: Annotated[str | None, typer.Option(metavar="FILE.yaml", help="Only find faults in a tree file.")] = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Build a class tree: superclasses over the classes, in nested levels."""
    from hrzs.hierarchy.yaml_form import dump_trees

    console.set_up(quiet=quiet, debug=debug)
    if options.wants_list(source):
        _list_sources()
        return
    if check is not None:
        checked = _check(check)
        _draw(checked, show, plot)
        if stats:
            _print_statistics(checked)
        return
    if trees != 1:
        raise UsageError(f"--trees {trees}: the sources of this version give one tree each; leave it out or say 1")
    made = _make(source, classes, data_root, levels, _depths(depths), sense or [], wordnet, tree)
    if output is not None:
        _write(output, dump_trees([made]))
    _draw(made, show, plot)
    if stats:
        _print_statistics(made)
    elif output is not None:
        console.emit(str(output))
    else:
        console.emit(dump_trees([made]))


def _list_sources() -> None:
    from hrzs.hierarchy.sources import SOURCES

    console.print_names([(name, (source.__doc__ or "").splitlines()[0]) for name, source in SOURCES.items()])


def _depths(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"--depths {text!r}: falling numbers from the leaves up, such as 8,6,4") from None


def _make(
    source: str,
    classes: str | None,
    data_root: Path | None,
    levels: int,
    depths: tuple[int, ...],
    sense: list[str],
    wordnet: str | None,
    tree: str | None,
) -> Tree:
    from hrzs.hierarchy import build
    from hrzs.hierarchy.published import find_tree
    from hrzs.hierarchy.sources import ClassSpec, SourceOptions
    from hrzs.hierarchy.yaml_form import load_tree

    if tree is not None and source != "file":
        raise UsageError(f"--tree {tree} is read by --source file, and the source is {source}")
    if source == "file" and tree is None:
        published = find_tree(classes or "shapes")
        if published is None:
            raise UsageError(f"--source file: no tree is published for {classes}; name one with --tree FILE.yaml")
        tree = str(published)
    if tree is not None and classes is None:
        specs, label = [ClassSpec(class_id) for class_id in load_tree(tree).classes], None
    else:
        specs, label = read_classes(classes or "shapes", data_root)
    asked = SourceOptions(senses=_senses(sense), wordnet=wordnet, tree=tree)
    made, notes = build.build_tree(specs, source=source, levels=levels, depths=depths, options=asked, label=label)
    for note in notes:
        console.note(note)
    return made


def _senses(given: list[str]) -> dict[str, str]:
    senses: dict[str, str] = {}
    for text in given:
        name, equals, synset = text.rpartition("=")
        if not (equals and name and synset):
            raise UsageError(f"--sense {text}: write NAME=SYNSET, such as star=star.n.05 or star=n13881644")
        senses[name] = synset
    return senses


def read_classes(spec: str, data_root: Path | None = None) -> tuple[list[ClassSpec], str]:
    """The classes that ``--classes`` stands for, in order, and what to call them in the file's header.

    Raises:
        UsageError: there is no such dataset, folder or file, or the file is no text.
    """
    from hrzs.hierarchy.sources import ClassSpec

    path = Path(spec)
    if path.exists() and not path.is_dir() and path.suffix != ".tar":
        return _classes_of_file(path), path.name
    if "," in spec and not path.exists():
        names = [name.strip() for name in spec.split(",")]
        if "" in names:
            raise UsageError(f"--classes {spec}: there is an empty name between the commas")
        return [ClassSpec(name) for name in names], f"{len(names)} names"
    label = path.name
    if path.is_dir():
        label = path.resolve().name
        if label in _SPLIT_FOLDERS:
            label = f"{path.resolve().parent.name}/{label}"
        folders = _class_folders(path)
        # Importing the datasets, and torch with them, takes longer than all the rest; WordNet ids need no names.
        if all(map(_WNID.fullmatch, folders)):
            return [ClassSpec(class_id) for class_id in folders], label
    from hrzs.data import class_names

    try:
        found = class_names(spec, root=data_root)
    except UsageError as error:
        raise UsageError(
            f"--classes {spec}: {error} A text file with one class per line and a,b,c are understood as well."
        ) from error
    # A name that only repeats the id is none; a WordNet id then takes its synset's.
    return [ClassSpec(class_id, None if name == class_id else name) for class_id, name in found], label


def _class_folders(path: Path) -> list[str]:
    """The class folders in label order, by the rule of `hrzs.data.class_names`."""

    def inside(folder: Path) -> list[Path]:
        return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))

    folders = inside(path)
    while len(folders) == 1 and folders[0].name not in _SPLIT_FOLDERS and inside(folders[0]):
        folders = inside(folders[0])
    in_splits = [f for split in folders if split.name in _SPLIT_FOLDERS for f in inside(split)]
    if not folders:
        raise UsageError(f"--classes {path}: it has no subfolders; one per class is needed, as in {path}/<class>/")
    return sorted({f.name for f in in_splits or folders})


def _classes_of_file(path: Path) -> list[ClassSpec]:
    from hrzs.hierarchy.sources import ClassSpec

    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UsageError(f"--classes {path}: cannot read it: {reason}; it should have one class per line") from error
    specs: list[ClassSpec] = []
    for line in filter(None, lines):
        class_id, _, name = line.partition("\t")
        # The lists of synsets of this field: `n02119789 kit fox, Vulpes macrotis`.
        if match := re.fullmatch(rf"({_WNID.pattern})\s+(.+)", line):
            class_id, name = match[1], match[2].split(",")[0]
        specs.append(ClassSpec(class_id.strip(), name.strip() or None))
    if not specs:
        raise UsageError(f"--classes {path}: the file is empty; it should have one class per line")
    return specs


def _check(file: str) -> Tree:
    from hrzs.hierarchy.yaml_form import parse_tree_spec, read

    path, number = parse_tree_spec(file)
    trees, faults = read(path)
    if faults:
        lines = "\n".join(f"{path}:{fault.line}: {fault.message}" for fault in faults)
        raise UsageError(f"--check {path}: {len(faults)} fault(s)\n{lines}")
    if number > len(trees):
        raise UsageError(f"--check {file}: {path} has {len(trees)} tree(s)")
    tree = trees[number - 1]
    sizes = " ".join(str(len(nodes)) for nodes in tree.levels)
    console.note(f"{file}: valid; nodes at each level from the leaves to the root: {sizes}")
    return tree


def _draw(tree: Tree, show: bool, plot: Path | None) -> None:
    from hrzs.hierarchy import describe

    if show:
        console.stderr.print(describe.outline(tree))
    if plot is not None:
        try:
            describe.plot(tree, plot)
        except OSError as error:
            raise HrzsError(f"--plot {plot}: cannot write it: {error.strerror}") from error
        console.note(f"drawn: {plot}")


def _print_statistics(tree: Tree) -> None:
    from hrzs.hierarchy.describe import statistics

    console.emit(json.dumps(statistics(tree), indent=2, ensure_ascii=False))


def _write(file: Path, text: str) -> None:
    """Write ``file`` whole or not at all: aside first, then renamed over what was there."""
    if file.is_dir():
        raise UsageError(f"-o {file} is a folder; name a file in it, such as {file / 'tree.yaml'}")
    aside: str | None = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(text.encode())
        # mkstemp lets only the owner read; a tree is for everybody, as the umask allows.
        umask = os.umask(0)
        os.umask(umask)
        Path(aside).chmod(0o666 & ~umask)
        Path(aside).replace(file)
    except OSError as error:
        if aside is not None:
            Path(aside).unlink(missing_ok=True)
        raise HrzsError(f"-o {file}: cannot write it: {error.strerror}; what was there is untouched") from error
