import hashlib
import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hrzs.data import Dataset, ImageError, decodable, digest, held_out, pick, resize_to, subset
from hrzs.errors import UsageError


class Plain(Dataset):
    """Images of one colour, the size of each as told."""

    name, split = "plain", "all"

    def __init__(self, counts: Sequence[int], sizes: Sequence[tuple[int, int]] = ((6, 6),)) -> None:
        self.classes = tuple(f"c{i}" for i in range(len(counts)))
        self.class_names = tuple(f"thing {i}" for i in range(len(counts)))
        self.labels = [i for i, n in enumerate(counts) for _ in range(n)]
        self.ids = [f"c{i}/{k}.png" for i, n in enumerate(counts) for k in range(n)]
        self.native_size = 6
        self.sizes = sizes

    def picture(self, index: int) -> Image.Image:
        return Image.new("RGB", self.sizes[index % len(self.sizes)], (index % 256, 255, 0))


class Broken(Plain):
    def picture(self, index: int) -> Image.Image:
        if index == 3:
            raise ImageError(f"Image {self.ids[index]} cannot be decoded.")
        return super().picture(index)


COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any)


def test_sample_is_exact_pixels_over_255() -> None:
    sample = Plain([300])[77]
    expected = torch.tensor([77, 255, 0]).float().div(255)[:, None, None].expand(3, 6, 6)
    assert torch.equal(sample.image, expected)
    assert (sample.label, sample.id) == (0, "c0/77.png")


@pytest.mark.parametrize("index", [-1, 4])
def test_index_out_of_range(index: int) -> None:
    with pytest.raises(IndexError, match="has 4 images"):
        Plain([4])[index]


@given(COUNTS, st.integers(1, 40))
def test_limit_and_skip_are_disjoint_and_cover(counts: list[int], n: int) -> None:
    data = Plain(counts)
    first = subset(data, limit=n).ids
    rest = subset(data, limit=None, skip=n).ids if n < len(data) else []
    assert len(first) == min(n, len(data))
    assert Counter([*first, *rest]) == Counter(data.ids)


@given(COUNTS, st.integers(1, 40))
def test_subset_is_as_balanced_as_the_data_allows(counts: list[int], n: int) -> None:
    taken = np.bincount(subset(Plain(counts), limit=n).labels, minlength=len(counts))
    open_classes = [k for k, count in zip(taken, counts, strict=True) if k < count]
    # A class with images left is at most one turn behind the fullest.
    assert all(k >= taken.max() - 1 for k in open_classes)


@given(st.integers(1, 200), st.data())
def test_fewer_images_than_classes_are_spread_over_them(count: int, data: st.DataObject) -> None:
    limit = data.draw(st.integers(1, count))
    labels = subset(Plain([1] * count), limit=limit).labels
    gaps = np.diff([*labels, count + labels[0]])
    # Multiples of the golden ratio leave no gap above 2.62 times the mean; the last class cuts one short, or joins two.
    assert max(gaps) <= 2 * 2.62 * count / limit


@given(COUNTS)
def test_subset_order_comes_from_ids_alone(counts: list[int]) -> None:
    data = Plain(counts)
    shuffled = Plain(counts)
    shuffled.ids, shuffled.labels = data.ids[::-1], data.labels[::-1]
    assert list(subset(data, limit=None).ids) == list(subset(shuffled, limit=None).ids)


def test_subset_keeps_the_image_with_its_id() -> None:
    data = Plain([5, 5])
    view = subset(data, limit=4, skip=2)
    for i in range(4):
        original = data[list(data.ids).index(view.ids[i])]
        assert torch.equal(view[i].image, original.image)
        assert view[i].label == original.label


def test_subset_of_classes_relabels_in_the_order_given() -> None:
    view = subset(Plain([2, 3, 4]), limit=None, classes=["c2", "c0"])
    assert view.classes == ("c2", "c0")
    assert view.class_names == ("thing 2", "thing 0")
    assert Counter(view.labels) == {0: 4, 1: 2}
    assert all(view.ids[i].startswith(view.classes[view.labels[i]]) for i in range(len(view)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "--limit 0"),
        ({"limit": None, "skip": -1}, "--skip -1"),
        ({"limit": None, "skip": 5}, "--skip 5"),
        ({"limit": None, "classes": ["c1", "c11"]}, r"no class 'c11'\. Did you mean c1"),
        ({"limit": None, "classes": ["zebra"]}, r"no class 'zebra'\. There are: c0, c1"),
        ({"limit": None, "classes": ["c1", "c1"]}, "'c1' is named twice"),
    ],
)
def test_subset_refuses(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        subset(Plain([2, 3]), **options)


def test_pick_takes_the_images_named_in_that_order() -> None:
    data = Plain([3, 3])
    view = pick(data, ["c1/2.png", "c0/0.png", "c1/0.png"])
    assert (list(view.ids), view.labels) == (["c1/2.png", "c0/0.png", "c1/0.png"], [1, 0, 1])
    assert torch.equal(view[0].image, data[5].image)
    with pytest.raises(UsageError, match=r"--data plain \(all\): it has no image 'c2/0.png'; 2 of the 3 wanted"):
        pick(data, ["c0/0.png", "c2/0.png", "c1/9.png"])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5).filter(lambda counts: max(counts) > 1))
def test_held_out_divides_every_class(counts: list[int]) -> None:
    data = Plain(counts)
    train, val = held_out(data, "train"), held_out(data, "val")
    assert (train.split, val.split) == ("train", "val")
    assert Counter([*train.ids, *val.ids]) == Counter(data.ids)
    kept = np.bincount(val.labels, minlength=len(counts))
    assert kept.tolist() == [0 if n == 1 else max(1, n // 10) for n in counts]


def test_held_out_needs_more_than_one_image() -> None:
    with pytest.raises(UsageError, match="one image per class"):
        held_out(Plain([1, 1]), "val")


def test_digest_tells_images_apart_but_not_orders() -> None:
    data = Plain([5, 5])
    assert digest(data) == digest(subset(data, limit=None))
    assert digest(data) != digest(subset(data, limit=9))


@given(counts=COUNTS, skip=st.integers(0, 5), limit=st.integers(1, 20))
def test_orders_are_what_they_have_always_been(counts: list[int], skip: int, limit: int) -> None:
    """Results name a subset by its numbers: another order would make other subsets of them."""
    data = Plain(counts)

    def ordered(label: int, salt: bytes) -> list[str]:
        names = [name for name, of in zip(data.ids, data.labels, strict=True) if of == label]
        return sorted(names, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8, person=salt).digest())

    groups = [ordered(label, b"subset") for label in range(len(counts))]
    turns = [group[turn] for turn in range(max(counts)) for group in groups if turn < len(group)]
    first = sum(map(bool, groups))
    spread = sorted(range(first), key=lambda k: k * (5**0.5 - 1) / 2 % 1)
    chosen = [turns[i] for i in sorted([*spread, *range(first, len(turns))][skip : skip + limit])]
    if chosen:
        assert list(subset(data, limit=limit, skip=skip).ids) == chosen
    val = {name for label in range(len(counts)) if (group := ordered(label, b"held out"))
           for name in group[: min(max(1, len(group) // 10), len(group) - 1)]}  # fmt: skip
    if val:
        assert list(held_out(data, "val").ids) == [name for name in data.ids if name in val]
    assert list(held_out(data, "train").ids) == [name for name in data.ids if name not in val]
    assert digest(data) == hashlib.sha256("\n".join(sorted(data.ids)).encode()).hexdigest()[:16]


@pytest.mark.parametrize("size", [(40, 20), (21, 33), (7, 7), (5, 16), (8, 9)], ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resize_is_that_of_torchvision(size: tuple[int, int], interpolation: str) -> None:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)

    class Noise(Plain):
        def picture(self, _: int) -> Image.Image:
            return Image.fromarray(pixels)

    view = resize_to(Noise([1]), 8, interpolation)
    reference = Compose([Resize(8, InterpolationMode(interpolation)), CenterCrop(8)])(Image.fromarray(pixels))
    assert view.native_size == 8
    assert np.array_equal(np.asarray(view.picture(0)), np.asarray(reference))


@pytest.mark.parametrize("size", [(40, 20), (21, 33), (7, 7), (8, 8)], ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_resize_is_what_open_clip_evaluates_with(size: tuple[int, int], interpolation: str, mode: str) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))

    class Noise(Plain):
        def picture(self, _: int) -> Image.Image:
            return pixels

    cfg = PreprocessCfg(size=8, mean=(0, 0, 0), std=(1, 1, 1), interpolation=interpolation, resize_mode=mode)
    assert torch.equal(
        resize_to(Noise([1]), 8, interpolation, mode)[0].image, image_transform_v2(cfg, is_train=False)(pixels)
    )


def test_resize_leaves_the_right_size_alone() -> None:
    data = Plain([3])
    assert torch.equal(resize_to(data, 6)[2].image, data[2].image)


def test_images_that_cannot_be_decoded_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    data = Broken([6, 6])
    with caplog.at_level(logging.WARNING):
        found = decodable(data, "skip")
    assert list(found.ids) == [name for name in data.ids if name != "c0/3.png"]
    assert found.unreadable == ("c0/3.png",)
    assert subset(found, limit=2).unreadable == ("c0/3.png",)
    assert digest(found) != digest(data)
    assert "plain (all): 1 of 12 images cannot be decoded, and are left out. Image c0/3.png" in caplog.text
    whole = Plain([6])
    assert decodable(whole, "skip") is whole


@pytest.mark.parametrize(
    ("bad_images", "n", "message"),
    [
        ("stop", 12, r"--check-images: plain \(all\): 1 of 12 images cannot be decoded\. Image c0/3\.png"),
        ("skip", 9, r"--bad-images skip: plain \(all\): 1 of 9 images cannot be decoded, more than 10%"),
    ],
)
def test_bad_images_are_refused_beforehand(bad_images: str, n: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        decodable(Broken([n]), bad_images)
