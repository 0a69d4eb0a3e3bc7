from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hrzs.data_options import DataOptions
from hrzs.errors import UsageError
from hrzs.hierarchy.published import find_tree
from hrzs.hierarchy.yaml_form import load_tree
from hrzs.sources.classes import read_classes


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, DataOptions()),
        ({"data": None, "limit": 3}, DataOptions(limit=3)),
        ({"data": "shapes"}, DataOptions(("shapes",))),
        ({"data": "shapes, cifar10"}, DataOptions(("shapes", "cifar10"))),
        ({"data": [Path("photos"), "shapes"]}, DataOptions(("photos", "shapes"))),
        ({"data_root": "data"}, DataOptions(data_root=Path("data"))),
        ({"classes": "cat, dog"}, DataOptions(classes=("cat", "dog"))),
        ({"classes": ["cat", "dog"]}, DataOptions(classes=("cat", "dog"))),
        ({"tree": Path("t.yaml")}, DataOptions(tree="t.yaml")),
        ({"tree": ["t.yaml", Path("u.yaml#2")]}, DataOptions(tree=("t.yaml", "u.yaml#2"))),
    ],
)
def test_options_as_the_command_line_and_python_have_them(given: dict[str, Any], expected: DataOptions) -> None:
    assert DataOptions.of(given) == expected


def test_a_folder_with_a_comma_in_its_name_is_one_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "cats, dogs"
    folder.mkdir()
    assert DataOptions.of({"data": str(folder)}).spec == str(folder)


def test_a_path_that_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cats, dogs", "a,b,c"):
        Path(name).mkdir()
    for given, expected in (
        ("cats, dogs", ["cats, dogs"]),
        ("shapes, cats, dogs,cifar10", ["shapes", "cats, dogs", "cifar10"]),
        ("a,b,c,shapes", ["a,b,c", "shapes"]),
        ("a,b", ["a", "b"]),
    ):
        options = DataOptions.of({"data": given})
        assert list(options.specs) == expected
        assert DataOptions.of({"data": options.as_config()["data"]}) == options


def test_classes_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("n02119789\tkit fox\ncat\n")
    for spec in (file, str(file)):
        assert DataOptions.of({"classes": spec}).classes == ("n02119789", "cat")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classes": "cat"}, "--classes 'cat': at least two classes"),
        ({"classes": ["cat"]}, "at least two classes"),
        ({"resize": "later"}, "--resize 'later': one of auto, in-graph, before"),
        ({"bad_images": "keep"}, "--bad-images 'keep': one of stop, skip"),
    ],
)
def test_refusals_name_the_option(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DataOptions.of(given)


def test_several_datasets_are_refused_where_one_is_needed() -> None:
    assert DataOptions().spec == "shapes"
    with pytest.raises(UsageError, match="--data shapes,cifar10: one dataset, not 2"):
        _ = DataOptions(("shapes", "cifar10")).spec


@pytest.mark.parametrize(
    "options",
    [
        DataOptions(),
        DataOptions(("a", "b"), Path("root"), "val", ("x", "y"), 5, 2, "before", "t.yaml", "skip", True),
        DataOptions(tree=("t.yaml", "u.yaml")),
    ],
)
def test_what_is_written_into_a_configuration_reads_back_the_same(options: DataOptions) -> None:
    config = options.as_config()
    given = {name.replace("-", "_"): value for name, value in config.items()}
    assert DataOptions.of(given) == (options if options.data else DataOptions.of({**given, "data": "shapes"}))
    assert DataOptions.of(given).as_config() == config


def test_a_tree_in_memory_has_no_name_for_a_configuration() -> None:
    file = find_tree("shapes")
    assert file is not None
    assert DataOptions(tree=load_tree(file)).as_config()["tree"] is None


def test_classes_are_read_as_build_tree_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes(b"\xef\xbb\xbfn02119789 1 kit_fox, Vulpes macrotis\r\nn02084071 2 dog\r\n")
    for given in (file, str(file), "shapes", "n02119789 kit fox,n02084071"):
        assert DataOptions.of({"classes": given}).classes == tuple(s.class_id for s in read_classes(str(given))[0])
    assert DataOptions.of({"classes": ["2 of clubs", "cat"]}).classes == ("2 of clubs", "cat")
    file.write_text("1 cent\n5 cent\n")
    with pytest.raises(UsageError, match=r":1: the number in '1 cent'"):
        DataOptions.of({"classes": file})
