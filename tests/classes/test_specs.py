from __future__ import annotations

import pytest

from hrzs.classes.specs import prompt_name


@pytest.mark.parametrize(
    ("class_id", "name"),
    [
        ("aquarium_fish", "aquarium fish"),
        ("001.ak47", "ak47"),
        ("AnnualCrop", "Annual Crop"),
        ("SeaLake", "Sea Lake"),
        ("McLaren MP4-12C", "McLaren MP4-12C"),
        ("n02119789", "n02119789"),
    ],
)
def test_prompt_name(class_id: str, name: str) -> None:
    assert prompt_name(class_id) == name
