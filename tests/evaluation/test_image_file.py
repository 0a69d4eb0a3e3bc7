from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hrzs.errors import HrzsError
from hrzs.evaluation import image_file
from hrzs.evaluation.image_file import allocate, bytes_of, read_images, write_images
from hrzs.models.saving import read_header

HEADER = {"attack": "leaf-pgd", "task": {"name": "Straße", "levels": [3, 1]}, "nothing": None}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    allocate(tmp_path / "f.safetensors", torch.tensor([3, 1, 4, 1, 5]), (3, 4, 2), HEADER)
    return tmp_path / "f.safetensors"


def test_is_a_safetensors_file_from_the_start(file: Path) -> None:
    with safe_open(file, "pt") as opened:
        assert sorted(opened.keys()) == ["images", "labels"]
    tensors = load_file(file)
    assert tensors["labels"].tolist() == [3, 1, 4, 1, 5]
    assert tensors["labels"].dtype == torch.int64
    assert torch.equal(tensors["images"], torch.zeros(5, 3, 4, 2))
    assert read_header(file) == HEADER
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert header % 8 == 0
    assert file.stat().st_size == header + bytes_of(5, (3, 4, 2))


def test_every_image_in_its_place_in_any_order(file: Path) -> None:
    images = torch.randn(5, 3, 4, 2)
    write_images(file, 3, images[3:])
    write_images(file, 0, torch.randn(2, 3, 4, 2))
    write_images(file, 0, images[:3].transpose(2, 3).contiguous().transpose(2, 3))  # again, and not contiguous
    assert torch.equal(load_file(file)["images"], images)
    assert load_file(file)["labels"].tolist() == [3, 1, 4, 1, 5]
    assert torch.equal(read_images(file, [4, 0, 4]), images[[4, 0, 4]])
    assert torch.equal(read_images(file, range(1, 3)), images[1:3])


def test_no_room_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(HrzsError, match=r"50000 images need 30\.1 GB, the disk has 1\.0 GB left"):
        allocate(tmp_path / "f", torch.zeros(50000, dtype=torch.int64), (3, 224, 224), {})
    assert list(tmp_path.iterdir()) == []
