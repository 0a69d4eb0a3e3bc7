from __future__ import annotations

import pytest

from hrzs.data import class_names
from hrzs.hierarchy.build import build_trees
from hrzs.hierarchy.published import find_tree
from hrzs.hierarchy.sources import ClassSpec
from hrzs.hierarchy.yaml_form import dump_trees, load_tree


def test_shapes_tree_belongs_to_the_data() -> None:
    file = find_tree("shapes")
    assert file is not None
    tree = load_tree(file)
    assert list(tree.classes) == [class_id for class_id, _ in class_names("shapes")]
    assert tree.root.name == "shape"
    assert [len(nodes) for nodes in tree.levels] == [24, 14, 10, 5, 1]


def test_shapes_tree_is_what_build_tree_makes() -> None:
    file = find_tree("shapes")
    assert file is not None
    classes = [ClassSpec(class_id, name) for class_id, name in class_names("shapes")]
    (tree,), _ = build_trees(classes, label="shapes")
    assert dump_trees([tree]) == file.read_text("utf-8")


@pytest.mark.parametrize("name", ["none", "../shapes", "", "/etc/passwd"])
def test_no_tree_of_that_name(name: str) -> None:
    assert find_tree(name) is None
