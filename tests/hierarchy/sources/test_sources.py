"""The contract of every source: whatever is in SOURCES has to pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrzs.errors import UsageError
from hrzs.hierarchy.build import build_trees
from hrzs.hierarchy.sources import SOURCES, ClassSpec, SourceOptions
from hrzs.hierarchy.yaml_form import dump_trees

CLASSES = [ClassSpec(name) for name in ("truck", "cat", "airplane", "dog", "horse", "n02119789")]

TREE = """\
hrzs-tree: 1
tree:
- r root:
  - a animal:
    - c carnivore:
      - cat
      - dog
      - n02119789 kit fox
    - horse
  - v vehicle:
    - truck
    - airplane
    - ship
"""


@pytest.fixture
def options(tmp_path: Path) -> SourceOptions:
    file = tmp_path / "tree.yaml"
    file.write_text(TREE)
    return SourceOptions(files=(str(file),))


@pytest.mark.parametrize("source", SOURCES)
def test_leaves_are_the_classes(source: str, options: SourceOptions) -> None:
    grown = SOURCES[source](CLASSES, options)
    for root in grown.roots:
        assert sorted(leaf.class_id or "" for leaf in root.leaves()) == sorted(spec.class_id for spec in CLASSES)
        assert not root.is_leaf


@pytest.mark.parametrize("source", SOURCES)
def test_same_call_same_bytes(source: str, options: SourceOptions) -> None:
    first, second = (build_trees(CLASSES, source=source, levels=3, options=options)[0][0] for _ in range(2))
    assert dump_trees([first]) == dump_trees([second])
    assert first.classes == tuple(spec.class_id for spec in CLASSES)
    assert first.header["name"] == source


@pytest.mark.parametrize("source", SOURCES)
def test_unknown_classes_are_named(source: str, options: SourceOptions) -> None:
    with pytest.raises(UsageError, match=r"(?s)(?=.*qwertyx).*asdfx"):
        build_trees([*CLASSES, ClassSpec("qwertyx"), ClassSpec("asdfx")], source=source, options=options)


@pytest.mark.parametrize("source", SOURCES)
def test_has_a_line_about_itself(source: str) -> None:
    assert (SOURCES[source].__doc__ or "").splitlines()[0]


def test_bad_calls() -> None:
    with pytest.raises(UsageError, match=r"--source oracle: .*wordnet, file"):
        build_trees(CLASSES, source="oracle")
    with pytest.raises(UsageError, match="'cat' more than once"):
        build_trees([*CLASSES, ClassSpec("cat")])
    with pytest.raises(UsageError, match="at least two classes"):
        build_trees(CLASSES[:1])
    with pytest.raises(UsageError, match=r"--tree FILE\.yaml"):
        build_trees(CLASSES, source="file")


def test_file_source_levels_anew(options: SourceOptions) -> None:
    (tree,), _ = build_trees(CLASSES, source="file", levels=2, options=options)
    assert tree.top == 2
    assert "ship" not in tree.classes
