from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Maker = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> Maker:
    """Writes small images of random pixels to the paths given, below a new folder."""

    def make(paths: Iterable[str], size: tuple[int, int] = (8, 8), name: str = "pictures") -> Path:
        root = tmp_path / name
        rng = np.random.default_rng(0)
        for path in paths:
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(file)
        return root

    return make


@pytest.fixture
def tree_of_images(make_folder: Maker) -> Path:
    """Two splits, three classes, five images of each."""
    return make_folder(
        f"{s}/{c}/{i}.png" for s in ("train", "val") for c in ("cat", "dog", "n02084071") for i in range(5)
    )
