from __future__ import annotations

from pathlib import Path

import pytest

from hrzs.classes.folders import Folder, class_folders
from hrzs.classes.specs import prompt_name
from hrzs.errors import UsageError


@pytest.mark.parametrize(
    ("class_id", "name"),
    [
        ("aquarium_fish", "aquarium fish"),
        ("001.ak47", "ak47"),
        ("AnnualCrop", "Annual Crop"),
        ("SeaLake", "Sea Lake"),
        ("McLaren MP4-12C", "McLaren MP4-12C"),
        ("n02119789", "n02119789"),
        ("n02085620-Chihuahua", "Chihuahua"),
        ("n02085782-Japanese_spaniel", "Japanese spaniel"),
        ("golden_retriever_n02099601", "golden retriever"),
    ],
)
def test_prompt_name(class_id: str, name: str) -> None:
    assert prompt_name(class_id) == name


def test_folders_of_letters_are_refused(tmp_path: Path) -> None:
    def image(name: str) -> None:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").touch()

    for name in ("a/alcove", "a/attic", "b/barn"):
        image(name)
    with pytest.raises(UsageError, match=r"its folders are letters, as in Places365.* move the class folders up"):
        class_folders(Folder(tmp_path))
    image("c/user1")
    assert class_folders(Folder(tmp_path)) == ["a", "b", "c"]
