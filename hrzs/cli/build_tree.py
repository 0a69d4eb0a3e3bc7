"""`hrzs build-tree`: from class names to a tree file."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrzs.cli import console, options
from hrzs.data_options import DataOptions
from hrzs.errors import HrzsError, UsageError
from hrzs.files import write_text

if TYPE_CHECKING:
    from hrzs.hierarchy.namesakes import Namesakes
    from hrzs.hierarchy.tree import Tree
    from hrzs.sources import SourceOptions


def build_tree(
    config: options.Config = None,
    source: Annotated[str, typer.Option(help="Where superclasses come from; `list` names them all.")] = "wordnet",
    classes: Annotated[
        str | None,
        typer.Option(
            help="The classes: a dataset name, a folder with one subfolder per class, a text file with one class "
            "(or ID<TAB>NAME<TAB>SYNSET) per line, or a,b,c. [default: shapes]",
        ),
    ] = None,
    levels: Annotated[
        int | None,
        typer.Option(help="The level of the root at most; leaves are level 0.", show_default="5, or a tree file's own"),
    ] = None,
    depths: Annotated[
        str | None,
        typer.Option(metavar="8,6,4", help="Cut at these depths below the source's root instead of by entropy."),
    ] = None,
    trees: Annotated[int, typer.Option(min=1, help="How many different trees over the same classes.")] = 1,
    sense: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SYNSET", help="Which synset a class means; repeatable.")
    ] = None,
    wordnet: Annotated[
        str | None,
        typer.Option(metavar="PATH|nltk", help="A WordNet other than the one in hrzs: its folder, or NLTK's corpus."),
    ] = None,
    tree: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="What `--source file` reads: YAML, CSV, TSV, JSON or a folder; repeatable."),
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option("--header/--no-header", help="Whether a table of --tree has a header, where it does not show."),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="For `--source llm`: an OpenAI-compatible server.")
    ] = None,
    llm_model: Annotated[str | None, typer.Option(metavar="NAME", help="For `--source llm`: the server's model.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For `--source llm`: answers and transcript.", show_default="beside -o"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="For `--source cluster` (default tiny), and for --plot and --stats to say what a model makes "
                          "of the tree."),
    ] = None,
    pretrained: options.Pretrained = None,
    data: Annotated[
        str | None,
        typer.Option(help="With a model: cluster the class means of these images; measure each level on them."),
    ] = None,
    data_root: options.DataRoot = None,
    limit: options.Limit = None,
    distance: Annotated[str, typer.Option(help="For `--source cluster`: hyperbolic or cosine.")] = "hyperbolic",
    seed: options.Seed = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE.yaml", help="Write here.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Draw the tree on stderr.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg|png", help="Draw the tree; with --model its Poincaré disk too (FILE-disk.svg)."),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print figures of the tree, as JSON.")] = False,
    check: Annotated[str | None, typer.Option(metavar="FILE.yaml", help="Only find faults in a tree file.")] = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:  # fmt: skip
    """Build a class tree: superclasses over the classes, in nested levels."""
    console.set_up(quiet=quiet, debug=debug)
    if options.wants_list(source, model, data):
        _print_list(source, model, data)
        return
    from hrzs.hierarchy.describe import check_picture
    from hrzs.hierarchy.yaml_form import dump_trees
    from hrzs.sources import SourceOptions

    if plot is not None:
        check_picture(plot)
    if check is not None:
        made = _check(check)
    else:
        if tree and source != "file":
            raise UsageError(f"--tree {tree[0]} is read by --source file, and the source is {source}")
        asked = SourceOptions(
            trees=trees, seed=seed, senses=_senses(sense or []), wordnet=wordnet, files=tuple(tree or ()), has_header=header,
            endpoint=endpoint, llm_model=llm_model, cache=cache or _beside(output), model=model or "tiny",
            pretrained=pretrained, data=data, data_root=data_root, limit=limit, distance=distance,
        )  # fmt: skip
        made = _make(source, classes, levels, _depths(depths), asked)
        if output is not None:
            _write(output, dump_trees(made))
    judge = _Judge(model, pretrained, data, data_root, limit) if model is not None else None
    _warn_of_namesakes(made, judge)
    _draw(made, show, plot, judge)
    if stats:
        _print_statistics(made, judge)
    elif check is None:
        console.emit(dump_trees(made) if output is None else str(output))


def _print_list(source: str, model: str | None, data: str | None) -> None:
    if options.wants_list(source):
        from hrzs.sources import SOURCES

        console.print_names([(name, (grow.__doc__ or "").splitlines()[0]) for name, grow in SOURCES.items()])
    else:
        options.print_models_or_data(model or "", data or "")


def _depths(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"--depths {text!r}: falling numbers from the leaves up, such as 8,6,4") from None


def _beside(output: Path | None) -> Path:
    """Where answers of a language model are kept unless ``--cache`` says: beside the tree, or in the user's cache."""
    if output is not None:
        return output.parent / f"{output.stem}.llm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hrzs" / "llm"


def _make(
    source: str, classes: str | None, levels: int | None, depths: tuple[int, ...], asked: SourceOptions
) -> list[Tree]:
    from hrzs.classes.specs import dataset_classes, is_wnid
    from hrzs.hierarchy.namesakes import same_names
    from hrzs.hierarchy.published import find_tree
    from hrzs.sources.build import build_trees
    from hrzs.sources.classes import read_classes
    from hrzs.sources.file import classes_of

    if source == "file" and not asked.files:
        published = find_tree(classes or "shapes")
        if published is None:
            raise UsageError(f"--source file: no tree is published for {classes}; name one with --tree FILE")
        asked = replace(asked, files=(str(published),))
    if source == "file" and classes is None:
        specs, label = classes_of(asked.files, asked.has_header), None
    else:
        specs, label = read_classes(classes or "shapes", asked.data_root)
    made, notes = build_trees(specs, source=source, levels=levels, depths=depths, options=asked, label=label)
    for note in notes:
        console.note(note)
    # Who says what such classes mean knows of them, and so does who takes a known dataset.
    if classes is not None and dataset_classes(classes) is None:
        meant = {spec.class_id for spec in specs if spec.synset or is_wnid(spec.class_id)} | asked.senses.keys()
        for group in same_names(made[0]):
            if all(leaf.class_id in meant for leaf in group):
                continue
            ids = " and ".join(repr(leaf.class_id) for leaf in group[:4]) + (" and others" if len(group) > 4 else "")
            console.warn(
                f"the classes {ids} have the same name, {group[0].name!r}: --sense CLASS=SYNSET says what one means, and "
                "ID<TAB>NAME in a file of --classes what it is called"
            )
    return made


def _senses(given: list[str]) -> dict[str, str]:
    senses: dict[str, str] = {}
    for text in given:
        name, equals, synset = text.rpartition("=")
        if not (equals and name and synset):
            raise UsageError(f"--sense {text}: write NAME=SYNSET, such as star=star.n.05 or star=n13881644")
        senses[name] = synset
    return senses


def _check(file: str) -> list[Tree]:
    """The trees of a file without a fault; of ``FILE#2`` only that one. (Namesakes are no fault, but warned of.)"""
    from hrzs.hierarchy.yaml_form import parse_tree_spec, read

    path, number = parse_tree_spec(file)
    trees, faults = read(path)
    if faults:
        lines = "\n".join(f"{path}:{fault.line}: {fault.message}" for fault in faults)
        raise UsageError(f"--check {path}: {len(faults)} fault(s)\n{lines}")
    if number > len(trees):
        raise UsageError(f"--check {file}: {path} has {len(trees)} tree(s)")
    if "#" in file and path != file:
        trees = [trees[number - 1]]
    for tree in trees:
        sizes = " ".join(str(len(nodes)) for nodes in tree.levels)
        console.note(f"{file}: valid; nodes at each level from the leaves to the root: {sizes}")
    return trees


def _warn_of_namesakes(trees: list[Tree], judge: _Judge | None) -> None:
    """A tree with nodes of the same prompt is valid; a model makes less of it. With one at hand, as that one reads."""
    from hrzs.hierarchy.namesakes import REMEDY, namesakes, sentences

    for number, tree in enumerate(trees, 1):
        where = f"tree {number}, " if len(trees) > 1 else ""
        for sentence in sentences(namesakes(tree) if judge is None else judge.namesakes(tree)):
            console.warn(f"{where}{sentence}: a model can predict one of them at most; {REMEDY}")


def _draw(trees: list[Tree], show: bool, plot: Path | None, judge: _Judge | None) -> None:
    from hrzs.hierarchy import describe

    if show:
        for tree in trees:
            console.stderr.print(describe.outline(tree))
    if plot is None:
        return
    try:
        for number, tree in enumerate(trees, 1):
            file = plot if len(trees) == 1 else plot.with_stem(f"{plot.stem}-{number}")
            describe.plot(tree, file)
            console.note(f"drawn: {file}")
            if judge is not None:
                disk = file.with_stem(f"{file.stem}-disk")
                judge.plot_disk(tree, disk)
                console.note(f"drawn: {disk}")
    except OSError as error:
        raise HrzsError(f"--plot {plot}: cannot write it: {error.strerror}") from error


def _print_statistics(trees: list[Tree], judge: _Judge | None) -> None:
    from hrzs.hierarchy.describe import forest_statistics, statistics

    each = [statistics(tree) | (judge.statistics(tree) if judge is not None else {}) for tree in trees]
    figures = each[0] if len(trees) == 1 else {"trees": each, **forest_statistics(trees)}
    console.emit(json.dumps(figures, indent=2, ensure_ascii=False))


class _Judge:
    """What a model makes of a tree."""

    def __init__(
        self, model: str, pretrained: str | None, data: str | None, data_root: Path | None, limit: int | None
    ) -> None:
        from hrzs.models.loading import load_model

        self.model = load_model(model, pretrained)
        self.data, self.data_root, self.limit = data, data_root, limit

    def namesakes(self, tree: Tree) -> list[Namesakes]:
        """Nodes whose prompts are the same to the model."""
        from hrzs.models.templates import resolve_template
        from hrzs.models.text import same_tokens

        return same_tokens(tree, resolve_template("photo"), self.model.tokenize)

    def plot_disk(self, tree: Tree, file: Path) -> None:
        from hrzs.models.depth import node_points
        from hrzs.results.pages.disk import plot_disk

        plot_disk(node_points(self.model, tree), tree, file)

    def statistics(self, tree: Tree) -> dict[str, object]:
        """Zero-shot accuracy of each level's prompts; empty without ``--data``."""
        if self.data is None:
            return {}
        from hrzs.evaluation.tree_view import level_accuracy
        from hrzs.tasks import open_task

        where = DataOptions(data_root=self.data_root, tree=tree, limit=self.limit)
        task = open_task(self.data, self.model, where, purpose="eval")
        return {"zero_shot": level_accuracy(self.model, task)}


def _write(file: Path, text: str) -> None:
    """Write the tree."""
    if file.is_dir():
        raise UsageError(f"-o {file} is a folder; name a file in it, such as {file / 'tree.yaml'}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HrzsError(f"-o {file}: cannot make the folder: {error.strerror}") from error
    write_text(file, text, f"-o {file}")
