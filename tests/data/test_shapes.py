import subprocess
import sys

import numpy as np
import pytest

from hrzs.data.shapes import CLASSES, SPLITS, Shapes, render

PRINT_DIGEST = """
import hashlib
from hrzs.data.shapes import render
print(hashlib.sha256(b"".join(render(3, i).tobytes() for i in range(48))).hexdigest())
"""


def pixels(image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / 255


@pytest.mark.parametrize("split", SPLITS)
def test_balanced_and_of_the_promised_size(split: str) -> None:
    shapes = Shapes(split)
    assert len(shapes) == SPLITS[split]
    assert set(np.bincount(shapes.labels)) == {SPLITS[split] // 24}
    assert len(set(shapes.ids)) == len(shapes)


def test_same_images_in_fresh_processes() -> None:
    runs = [subprocess.run([sys.executable, "-c", PRINT_DIGEST], capture_output=True, check=True) for _ in range(2)]
    assert len(runs[0].stdout.strip()) == 64
    assert runs[0].stdout == runs[1].stdout


def test_image_depends_on_split_and_index_only() -> None:
    forwards, backwards = Shapes("val"), Shapes("val")
    there = [forwards.picture(i).tobytes() for i in range(30)]
    back = [backwards.picture(i).tobytes() for i in reversed(range(30))]
    assert there == back[::-1]
    assert len(set(there)) == 30
    assert there[0] != Shapes("test").picture(0).tobytes() != Shapes("train").picture(0).tobytes()


@pytest.mark.parametrize("label", range(24), ids=CLASSES)
def test_figure_stands_out_and_varies(label: int) -> None:
    images = [pixels(render(9, label + 24 * k)) for k in range(8)]
    assert all(image.shape == (64, 64, 3) for image in images)
    # A figure and its ground differ by 0.45 in some channel; textures and grain take at most 0.3 of that away.
    assert min(np.ptp(image, axis=(0, 1)).max() for image in images) > 0.3
    assert np.std(images, axis=0).mean() > 0.1


def outline(name: str, seed: int) -> np.ndarray:
    from hrzs.data.shapes import _FIGURES

    points = _FIGURES[name](np.random.default_rng(seed)).outline
    assert points is not None
    return points


def sides(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.roll(points, -1, axis=0) - points, axis=1)


def angles(points: np.ndarray) -> np.ndarray:
    a, b = np.roll(points, 1, axis=0) - points, np.roll(points, -1, axis=0) - points
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return np.degrees(np.arccos(cosine))


@pytest.mark.parametrize("seed", range(20))
def test_an_ancestor_shows_no_member_of_its_descendant(seed: int) -> None:
    """issue 2: a square is a rectangle, yet no image of `rectangle` may show a square."""

    def ratio(lengths: np.ndarray) -> float:
        return float(lengths.max() / lengths.min())

    def extent_ratio(name: str) -> float:
        return ratio(np.ptp(outline(name, seed), axis=0))

    assert ratio(sides(outline("square", seed))) == pytest.approx(1)
    assert extent_ratio("rectangle") >= 1.4
    assert extent_ratio("circle") == pytest.approx(1, abs=0.01)
    assert extent_ratio("ellipse") >= 1.4

    rhombus, parallelogram = outline("rhombus", seed), outline("parallelogram", seed)
    assert ratio(sides(rhombus)) == pytest.approx(1)
    assert np.abs(angles(rhombus) - 90).min() > 15
    assert ratio(sides(parallelogram)) > 1.3
    assert np.abs(angles(parallelogram) - 90).min() > 15

    isosceles, right = outline("isosceles_triangle", seed), outline("right_triangle", seed)
    assert np.diff(np.sort(angles(isosceles))).min() == pytest.approx(0, abs=1e-6)
    assert np.abs(angles(isosceles)[:, None] - [60, 90]).min() > 8
    assert angles(right).max() == pytest.approx(90)
    assert np.diff(np.sort(angles(right))).min() > 8
    assert sides(outline("star", seed)).size // 2 not in (5, 6)
