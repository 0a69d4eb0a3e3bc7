import io
import logging
import os
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hrzs.data import open_dataset
from hrzs.data.base import ImageError
from hrzs.data.folder import Tar
from hrzs.errors import HrzsError, UsageError

Maker = Callable[..., Path]


def tar_of(folder: Path, arcname: str = ".") -> Path:
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname=arcname)
    return path


def test_order_labels_and_ids(tree_of_images: Path) -> None:
    data = open_dataset(str(tree_of_images), "val")
    assert data.classes == ("cat", "dog", "n02084071")
    assert data.class_names == data.classes
    assert data.labels == [0] * 5 + [1] * 5 + [2] * 5
    assert data.ids == [f"{c}/{i}.png" for c in data.classes for i in range(5)]
    assert (data.name, data.split, data.native_size) == ("pictures", "val", 8)


@pytest.mark.parametrize("arcname", [".", "pictures", "archive/of/pictures"])
def test_tar_is_the_same_dataset(tree_of_images: Path, arcname: str) -> None:
    folder, tar = (open_dataset(str(p), "train") for p in (tree_of_images, tar_of(tree_of_images, arcname)))
    assert (folder.ids, folder.labels, folder.classes) == (tar.ids, tar.labels, tar.classes)
    assert folder.name == tar.name
    assert all(torch.equal(folder[i].image, tar[i].image) for i in range(len(folder)))


def test_split_folder_given_directly_has_the_same_ids(tree_of_images: Path) -> None:
    assert open_dataset(str(tree_of_images / "val")).ids == open_dataset(str(tree_of_images), "val").ids


def test_classes_are_those_of_all_splits(make_folder: Maker) -> None:
    root = make_folder(["train/a/1.png", "train/b/1.png", "test/b/2.png"])
    assert open_dataset(str(root), "test").classes == ("a", "b")
    assert open_dataset(str(root), "test").labels == [1]


def test_a_class_may_be_called_train(make_folder: Maker) -> None:
    root = make_folder(["train/1.png", "car/1.png"])
    assert open_dataset(str(root)).classes == ("car", "train")


def test_deeper_images_belong_to_the_class_above(make_folder: Maker) -> None:
    root = make_folder(["train/n01440764/images/1.png", "train/n01443537/images/1.png"])
    assert set(open_dataset(str(root), "train", purpose="train").classes) == {"n01440764", "n01443537"}


def test_hidden_and_other_files_are_passed_over(make_folder: Maker) -> None:
    root = make_folder(["a/1.png", "b/1.png"])
    for name in ("a/._1.png", "a/notes.txt", ".cache.png"):
        (root / name).write_bytes(b"no image")
    assert open_dataset(str(root)).ids == ["a/1.png", "b/1.png"]


def test_folder_beside_the_splits_is_left_out_aloud(make_folder: Maker, caplog: pytest.LogCaptureFixture) -> None:
    root = make_folder(["val/a/1.png", "samples/a/2.png"])
    with caplog.at_level(logging.WARNING):
        assert open_dataset(str(root)).ids == ["a/1.png"]
    assert "image outside of the split folders: 1 (samples/a/2.png)" in caplog.text


@pytest.mark.parametrize(
    ("size", "native"), [((64, 64), 64), ((96, 96), 96), ((97, 97), None), ((64, 48), None)], ids=str
)
def test_native_size(make_folder: Maker, size: tuple[int, int], native: int | None) -> None:
    assert open_dataset(str(make_folder(["a/1.png", "a/2.png"], size))).native_size == native


def test_native_size_of_mixed_images(make_folder: Maker) -> None:
    make_folder(["a/1.png"], (8, 8))
    assert open_dataset(str(make_folder(["a/2.png"], (9, 9)))).native_size is None


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a").mkdir()
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new(mode, (8, 8)).save(tmp_path / f"a/1.{suffix}")
    assert open_dataset(str(tmp_path))[0].image.shape == (3, 8, 8)


def test_a_class_met_twice_is_counted(make_folder: Maker) -> None:
    data = open_dataset(
        "imagenet", root=make_folder(["imagenet/n01440764/1.png", "imagenet/tench/2.png", "imagenet/n01443537/1.png"])
    )
    assert (data.classes, data.labels) == (("n01440764", "n01443537"), [0, 0, 1])
    assert data.left_out.counts == {"class met twice, in folders of different names (both are read)": 1}


@pytest.mark.parametrize("form", ["png", "tif", "pgm"])
def test_of_16_bits_the_upper_8_count(tmp_path: Path, form: str) -> None:
    grey = np.array([[0, 255, 256], [30_000, 65_279, 65_535]], dtype=np.uint16)
    (tmp_path / "a").mkdir()
    Image.fromarray(grey).save(tmp_path / f"a/1.{form}")
    pixels = open_dataset(str(tmp_path))[0].image.mul(255).round()
    assert pixels[0].tolist() == [[0, 0, 1], [117, 254, 255]]
    assert torch.equal(pixels[0], pixels[2])


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_range_are_refused(tmp_path: Path, kind: type) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32).astype(kind)).save(tmp_path / "a/1.tif")
    with pytest.raises(
        ImageError, match=r"a/1\.tif cannot be decoded \(pixels of mode [FI] have no range that is known"
    ):
        open_dataset(str(tmp_path))[0]


def test_a_gif_is_its_first_frame(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a/1.gif", save_all=True, append_images=frames[1:])
    assert open_dataset(str(tmp_path))[0].image[:, 0, 0].tolist() == [1, 0, 0]


def test_the_rotation_in_exif_is_ignored(tmp_path: Path) -> None:
    """As open_clip's preprocessing ignores it."""
    (tmp_path / "a").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (8, 4)).save(tmp_path / "a/1.jpg", exif=exif)
    assert open_dataset(str(tmp_path))[0].image.shape == (3, 4, 8)


def test_no_other_program_decodes_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match=r"a/1\.jpg cannot be decoded \(none of JPEG, PNG"):
        open_dataset(str(tmp_path))[0]


def test_kaggles_imagenet(make_folder: Maker) -> None:
    train = [f"imagenet/train/{c}/{i}.JPEG" for c in ("n01440764", "n01443537") for i in range(2)]
    root = make_folder([*train, "imagenet/val/v_1.JPEG", "imagenet/test/t_1.JPEG"])
    for spec, data_root in ((str(root / "imagenet"), None), ("imagenet", root)):
        assert len(open_dataset(spec, "train", root=data_root)) == 4
        for split in ("val", "test", None):
            with pytest.raises(UsageError, match=r"/ has images but no folder per class"):
                open_dataset(spec, split, root=data_root)
    (root / "imagenet/LOC_val_solution.csv").write_text("ImageId,PredictionString\nv_1,n01443537 85 1 499 272 \n")
    for spec, data_root in ((str(root / "imagenet"), None), ("imagenet", root)):
        data = open_dataset(spec, root=data_root)
        assert (data.split, data.ids, data.labels) == ("val", ["n01443537/v_1.JPEG"], [1])


def test_a_tar_that_is_sparse_is_refused(tmp_path: Path) -> None:
    """An image of 32 TB that takes no room: to read it would be the end of the memory."""
    info = tarfile.TarInfo("a/1.png")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "a/1.png",
                        "GNU.sparse.size": str(1 << 45), "GNU.sparse.map": f"{1 << 44},0"}  # fmt: skip
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    with pytest.raises(UsageError, match=r"a/1\.png is stored as a sparse file.*without --sparse"):
        open_dataset(str(tmp_path / "x.tar"))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("is_kept", [False, True])
def test_the_index_is_what_tarfile_finds(
    form: int, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its order, whether a header is plain or not, and also when it comes from the disk."""
    monkeypatch.setenv("HRZS_CACHE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("hrzs.data.folder._WORTH_AN_INDEX", 0 if is_kept else 2**24)
    names = ["b/1.png", "a/ö.png", f"{'d' * 60}/{'e' * 60}.png", "a/2.cls", "a/0.png", "c.txt", "a/7.json"]
    path, contents = tmp_path / "x.tar", {}
    with tarfile.open(path, "w", format=form) as tar:
        for size, name in enumerate(names * 3):
            info = tarfile.TarInfo(f"{size}{name}")
            info.size = size * 211
            contents[info.name] = (name.encode() * size * 211)[: info.size]
            tar.addfile(info, io.BytesIO(contents[info.name]))
    for _ in range(2):
        found = Tar(path)
        assert list(found.members()) == list(contents)
        assert {name: found.read(name) for name in contents} == contents
        files = found.files(contents)
        assert [files.read(i) for i in range(len(contents))] == list(contents.values())
    kept = [*(tmp_path / "cache").rglob("*.json")]
    assert len(kept) == is_kept
    time.sleep(0.01)
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("new.png"))
    assert [*Tar(path).members()][-1] == "new.png"


def test_a_tar_that_says_more_than_it_holds(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a/1.png")
    info.size = 1 << 45
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(UsageError, match=r"x\.tar: .*cut short"):
        open_dataset(str(tmp_path / "x.tar"))


def test_a_fifo_is_no_tar(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(UsageError, match="no folder and no regular file"):
        open_dataset(str(tmp_path / "x.tar"))


@pytest.mark.parametrize("kept", [0, 20, 150])
@pytest.mark.parametrize("form", ["folder", "tar"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_broken_image_is_named(make_folder: Maker, form: str, kept: int, suffix: str) -> None:
    root = make_folder([f"a/1.{suffix}", f"a/2.{suffix}"], (32, 32))
    broken = root / f"a/2.{suffix}"
    broken.write_bytes(broken.read_bytes()[:kept])
    data = open_dataset(str(root if form == "folder" else tar_of(root)))
    assert data[0].image.shape == (3, 32, 32)
    with pytest.raises(HrzsError, match=rf"a/2\.{suffix} cannot be decoded .* Replace it"):
        data[1]


def test_vanished_image_is_named(make_folder: Maker) -> None:
    root = make_folder(["a/1.png"])
    data = open_dataset(str(root))
    (root / "a/1.png").unlink()
    with pytest.raises(HrzsError, match=r"a/1\.png cannot be read: No such file"):
        data[0]


def test_tar_cut_short(make_folder: Maker) -> None:
    tar = tar_of(make_folder([f"a/{i}.png" for i in range(4)], (64, 64)))
    tar.write_bytes(tar.read_bytes()[:20000])
    with pytest.raises(UsageError, match=r"pictures\.tar: .*cut short"):
        open_dataset(str(tar))


def test_compressed_tar_says_how_to_unpack(make_folder: Maker) -> None:
    root = make_folder(["a/1.png"])
    path = root.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz") as tar:
        tar.add(root, arcname=".")
    with pytest.raises(UsageError, match=r"gunzip -k pictures\.tar\.gz"):
        open_dataset(str(path))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no images"),
        (["a/readme.txt", "b/readme.txt"], "no images"),
        (["data/train-0.parquet"], r"no images, but 1 \.parquet files; parquet is not read\. Write the images"),
        (["1.png", "2.png"], "2 images but no folder per class"),
    ],
)
def test_folder_without_classes_of_images(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=rf"{tmp_path}: {message}.*<class>/<image>"):
        open_dataset(str(tmp_path))
