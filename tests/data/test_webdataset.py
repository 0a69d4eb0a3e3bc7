"""Shards in the form of webdataset, and as CLIP_benchmark's webdataset_builder writes them."""

import io
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hrzs.classes.folders import TWICE
from hrzs.classes.specs import ClassSpec, dataset_classes
from hrzs.data import describe_datasets, loader, open_dataset, subset
from hrzs.errors import UsageError
from hrzs.sources.classes import read_classes

Shard = Mapping[str, bytes | str | int]


def picture(value: int, form: str = "png") -> bytes:
    stream = io.BytesIO()
    options = {"lossless": True} if form == "webp" else {}
    Image.new("RGB", (8, 8), (value, 0, 0)).save(stream, form, **options)
    return stream.getvalue()


def write_shard(path: Path, members: Shard) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else str(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """As CLIP_benchmark exports: 24 images in two shards, three to each of eight classes."""
    root = tmp_path / "wds_toys"
    for shard in range(2):
        members: dict[str, bytes | int] = {}
        for i in range(12 * shard, 12 * shard + 12):
            members[f"s{i:07d}.webp"] = picture(i, "webp")
            members[f"s{i:07d}.cls"] = i % 8
        write_shard(root / f"test/{shard}.tar", members)
    (root / "test/nshards.txt").write_text("2\n")
    (root / "classnames.txt").write_text("".join(f"toy {c}\n" for c in "abcdefgh"))
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    return root


@pytest.mark.parametrize("form", ["folder", "split folder", "pattern", "name"])
def test_an_export_of_clip_benchmark(export: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"folder": export, "split folder": export / "test", "pattern": export / "test/{0..1}.tar"}.get(
        form, "cifar10"
    )
    if form == "name":
        export.rename(export.parent / "cifar10")
        monkeypatch.setenv("HRZS_DATA", str(export.parent))
    data = open_dataset(str(spec))
    assert data.name == {"folder": "wds_toys", "pattern": "wds_toys", "split folder": "test"}.get(form, "cifar10")
    assert (data.split, len(data), data.native_size) == ("test", 24, 8)
    assert data.classes == data.class_names == tuple(f"toy {c}" for c in "abcdefgh")
    assert Counter(data.labels) == dict.fromkeys(range(8), 3)
    assert data.ids[:4] == ["0/s0000000.webp", "0/s0000008.webp", "1/s0000016.webp", "0/s0000001.webp"]
    for i in range(24):
        assert data[i].image[0, 0, 0].mul(255).round() == int(data.ids[i][3:10])


def test_limit_is_balanced_over_classes_and_shards(export: Path) -> None:
    data = open_dataset(str(export))
    taken = subset(data, limit=16)
    assert Counter(taken.labels) == dict.fromkeys(range(8), 2)
    assert {i[0] for i in taken.ids} == {"0", "1"}


def test_every_worker_reads_in_place(export: Path) -> None:
    data = open_dataset(str(export))
    one, two = (torch.cat([b.images for b in loader(data, 5, workers)]) for workers in (0, 2))
    assert torch.equal(one, two)


def test_the_index_is_read_once(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: opened.append(a) or real(*a, **k))
    data = open_dataset(str(export))
    for i in range(len(data)):
        data[i]
    assert len(opened) == 2


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ({"a.cls": "dog", "b.cls": "cat"}, None, ("cat", "dog")),
        ({"a.cls": "2", "b.cls": "0\n"}, None, ("0", "1", "2")),
        ({"a.json": {"label": 1, "caption": "x"}, "b.json": {"cls": "Cat"}}, "cat\ndog\n", ("cat", "dog")),
        ({"a.json": {"class": "n02084071"}, "b.json": {"classname": "cat"}}, "n02121620 cat\nn02084071 dog\n",
         ("n02121620", "n02084071")),
    ],
    ids=["names", "numbers", "json", "ids"],
)  # fmt: skip
@pytest.mark.parametrize("file", ["classnames.txt", "classes.txt"])
def test_labels(labels: dict, classes: str | None, expected: tuple[str, ...], file: str, tmp_path: Path) -> None:
    texts = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in labels.items()}
    write_shard(tmp_path / "toys/00.tar", {"a.png": picture(1), "b.jpg": picture(2, "jpeg"), **texts})
    if classes:
        (tmp_path / "toys" / file).write_text(classes)
    data = open_dataset(str(tmp_path / "toys/{00..00}.tar"))
    assert data.classes == expected
    assert {i: data.classes[k] for i, k in zip(data.ids, data.labels, strict=True)} == {
        "00/a.png": expected[-1],
        "00/b.jpg": expected[0],
    }


def test_line_n_is_label_n(tmp_path: Path) -> None:
    write_shard(tmp_path / "toys/00.tar", {"a.png": picture(1), "a.cls": "0", "b.png": picture(2), "b.cls": "2"})
    names = tmp_path / "toys/classnames.txt"
    names.write_text("# teapot\nschool bus\nbarn\n\n")
    data = open_dataset(str(tmp_path / "toys"))
    assert [data.class_names[label] for label in data.labels] == ["# teapot", "barn"]
    names.write_text("teapot\n\nbarn\n")
    with pytest.raises(UsageError, match=r"classnames\.txt:2: the line is empty, so label 1 has no name"):
        open_dataset(str(tmp_path / "toys"))


def test_a_single_shard(export: Path, tmp_path: Path) -> None:
    assert len(open_dataset(str(export / "test/1.tar"))) == 12
    assert open_dataset(str(export / "test/1.tar")).name == "wds_toys"
    lone = write_shard(tmp_path / "mine.tar", {"x/a.png": picture(1), "x/a.cls": "cat", "x/b.seg.png": picture(2)})
    data = open_dataset(str(lone))
    assert (data.name, data.classes, data.ids) == ("mine", ("cat",), ["mine/x/a.png"])


def test_a_tar_of_class_folders_stays_one(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "p.tar", {"cat/1.png": picture(1), "dog/1.png": picture(2), "notes.json": "{}"})
    assert open_dataset(str(path)).classes == ("cat", "dog")


def test_train_and_test_shards(tmp_path: Path) -> None:
    for split, n in (("train", 20), ("test", 3)):
        members = {f"{i}.{e}": v for i in range(n) for e, v in (("png", picture(i)), ("cls", 0))}
        write_shard(tmp_path / f"toys/{split}/0.tar", members)
    data = [
        open_dataset(str(tmp_path / "toys"), s, purpose=p)
        for s, p in ((None, "eval"), (None, "train"), ("val", "train"))
    ]
    assert [(d.split, len(d)) for d in data] == [("test", 3), ("train", 18), ("val", 2)]


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for shard in range(11):
        write_shard(tmp_path / f"toys/{shard}.tar", {"a.png": picture(1), "a.cls": "cat"})
    assert open_dataset(str(tmp_path / "toys")).ids == [f"{shard}/a.png" for shard in range(11)]
    assert len(open_dataset(str(tmp_path / "toys/{2..10}.tar"))) == 9


def test_names_of_a_known_dataset_become_its_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """CLIP_benchmark #109: two classes of ImageNet are called `missile`; by their places they are told apart."""
    listed = dataset_classes("imagenet") or []
    pair = [i for i, spec in enumerate(listed) if spec.name == "missile"]
    members = {f"{i}.{e}": v for i in pair for e, v in (("png", picture(i % 256)), ("cls", i))}
    write_shard(tmp_path / "wds_imagenet1k/test/0.tar", members)
    (tmp_path / "wds_imagenet1k/classnames.txt").write_text("".join(f"{spec.name}\n" for spec in listed))
    with caplog.at_level(logging.INFO):
        data = open_dataset(str(tmp_path / "wds_imagenet1k"))
    assert (data.name, data.like) == ("wds_imagenet1k", "imagenet")
    assert [data.classes[k] for k in data.labels] == ["n03773504", "n04008634"]
    assert data.class_names[data.labels[0]] == "missile"
    assert "those of imagenet" in caplog.text
    assert subset(data, limit=1).like == "imagenet"


def test_equal_names_of_an_unknown_list_keep_their_labels(tmp_path: Path) -> None:
    write_shard(tmp_path / "toys/0.tar", {"a.png": picture(1), "a.cls": 0, "b.png": picture(2), "b.cls": 2})
    (tmp_path / "toys/classnames.txt").write_text("crane\ndog\ncrane\n")
    data = open_dataset(str(tmp_path / "toys"))
    assert data.classes == ("crane 0", "dog", "crane 2")
    assert data.labels == [0, 2]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"a.png": picture(1)},
            r"0\.tar:a\.png has no label: expected a\.cls beside it, or a\.json with one of cls, label",
        ),
        ({"a.png": picture(1), "a.cls": ""}, r"a\.png has no label"),
        ({"a.png": picture(1), "a.json": '{"text": "x"}'}, r"a\.png has no label"),
        ({"a.png": picture(1), "a.json": "{"}, r"0\.tar:a\.json is not JSON"),
        ({"a.png": picture(1), "a.cls": 3}, r"has the label 3, but there are 2 classes.*classnames\.txt"),
        ({"a.png": picture(1), "a.cls": "doh"}, r"label 'doh'.* none of them\. Did you mean dog"),
        ({"a.txt": "x", "a.cls": 0}, r"no image in its shards"),
    ],
)
def test_members_that_cannot_be_used(members: Shard, message: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "toys/0.tar", members)
    (tmp_path / "toys/classnames.txt").write_text("cat\ndog\n")
    with pytest.raises(UsageError, match=message):
        open_dataset(str(tmp_path / "toys/{0..0}.tar"))


def test_a_missing_shard_is_named(export: Path) -> None:
    pattern = f"{export}/test/{{0..3}}.tar"
    with pytest.raises(UsageError, match=r"2 of 4 shards are missing: .*/test/2\.tar, .*/test/3\.tar\. Put"):
        open_dataset(pattern)


@pytest.mark.parametrize("pattern", ["{0..}.tar", "x/{a..b}.tar", "{3..1}.tar", "{0..1}", "{0..1}.tar.gz", "{0,1}.tar"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match=r"not a pattern of shards; one looks like DIR/\{0000\.\.0099\}\.tar"):
        open_dataset(pattern)


@pytest.mark.parametrize("cut", ["in data", "in a header", "before the end", "garbage"])
def test_a_truncated_shard_is_named(export: Path, cut: str) -> None:
    """tarfile takes a header cut short, or none at all, for the end of the archive and says nothing."""
    path = export / "test/1.tar"
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    whole = path.read_bytes()
    end = {"in data": last.offset_data, "in a header": last.offset + 100, "before the end": last.offset_data + 512}
    path.write_bytes(whole[: end.get(cut, 0)] if cut in end else whole[: last.offset] + b"x" * 2048)
    with pytest.raises(UsageError, match=r"test/1\.tar: .*cut short"):
        open_dataset(str(export))


@pytest.mark.parametrize("form", ["folder", "pattern", "tar"])
def test_shards_of_two_splits_in_one_folder_do_not_mix(tmp_path: Path, form: str) -> None:
    for shard, n in (("train-0000", 4), ("train-0001", 5), ("validation-00", 3)):
        members = {f"{i}.{e}": v for i in range(n) for e, v in (("png", picture(i)), ("cls", i % 2))}
        write_shard(tmp_path / f"demo/demo-{shard}.tar", members)
    spec = {"folder": "demo", "pattern": "demo/demo-train-{0000..0001}.tar", "tar": "demo/demo-validation-00.tar"}[form]
    if form != "pattern":
        val = open_dataset(str(tmp_path / spec), "val", purpose="train")
        assert {i.split("/")[0] for i in val.ids} == {"demo-validation-00"}
        assert len(val) == 3
    if form == "folder":
        train = open_dataset(str(tmp_path / spec), "train", purpose="train")
        assert {i.split("/")[0] for i in train.ids} == {"demo-train-0000", "demo-train-0001"}
        assert len(train) == 9
        assert read_classes(str(tmp_path / spec))[0] == [ClassSpec("0"), ClassSpec("1")]
    if form == "pattern":
        parts = [open_dataset(str(tmp_path / spec), split, purpose="train") for split in ("train", "val")]
        assert [len(part) for part in parts] == [7, 2]
        assert not set(parts[0].ids) & set(parts[1].ids)


def test_line_n_of_the_classes_is_label_n(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "toys/0.tar", {f"{i}.{e}": v for i in (0, 2, 3) for e, v in (("png", picture(i)), ("cls", i))}
    )
    (tmp_path / "toys/classnames.txt").write_text("school bus\nlamp\n# 1\nteapot\n\n")
    data = open_dataset(str(tmp_path / "toys"))
    assert [(data.ids[i], data.class_names[k]) for i, k in enumerate(data.labels)] == [
        ("0/0.png", "school bus"), ("0/2.png", "# 1"), ("0/3.png", "teapot")
    ]  # fmt: skip
    (tmp_path / "toys/classnames.txt").write_text("school bus\nlamp\n\nteapot\n")
    with pytest.raises(UsageError, match=r"classnames.txt:3: "):
        open_dataset(str(tmp_path / "toys"))


def test_keys_with_a_dot(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = ("val_1", "val_1.v2", "val_2.v2", "val_2.v3.x")
    members: dict[str, bytes | int] = {f"{key}.png": picture(i) for i, key in enumerate(images)}
    members |= {f"{key}.cls": i for i, key in enumerate(images)}
    members |= {"val_1.seg.png": picture(9), "._val_1.png": picture(9), "val_9.cls": 1, "val_8.heic": b""}
    write_shard(tmp_path / "toys/0.tar", members)
    data = open_dataset(str(tmp_path / "toys"))
    assert {i: data.classes[k] for i, k in zip(data.ids, data.labels, strict=True)} == {
        f"0/{key}.png": str(i) for i, key in enumerate(images)
    }
    assert data.left_out.counts == {
        "hidden image": 1,
        "image beyond the first of its key": 1,
        "label without an image that is read": 1,
        ".heic file, which is not read": 1,
    }
    assert "image beyond the first of its key: 1 (0/val_1.seg.png)" in caplog.text


def test_hard_links_and_members_met_twice(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "toys/0.tar", {"a.png": picture(1), "a.cls": 0, "b.cls": 1})
    with tarfile.open(path, "a") as tar:
        for name in ("b.png", "c.png", "c.cls"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.LNKTYPE, "a" + name[1:]
            tar.addfile(link)
        again = tarfile.TarInfo("a.cls")
        again.size = 1
        tar.addfile(again, io.BytesIO(b"1"))
    data = open_dataset(str(tmp_path / "toys"))
    assert dict(zip(data.ids, data.labels, strict=True)) == {"0/a.png": 1, "0/b.png": 1, "0/c.png": 1}
    assert data.left_out.counts == {TWICE: 2, "member met twice, of which the last counts": 1}


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("30000000", r"the largest label is 30000000: of more than 100,000 classes, the names are needed"),
        ("1" * 5000, r"a\.cls is more than a label: it has 5000 bytes"),
        ("9" * 900, r"the largest label is 9{40}… \(900 characters\)"),
        ("-1", r"the label -1: labels count from 0"),
        (b"caf\xe9", r"a\.cls is not UTF-8"),
        ("cat\ndog", r"a\.cls is more than a label"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, label: str | bytes, message: str) -> None:
    write_shard(tmp_path / "toys/0.tar", {"a.png": picture(1), "a.cls": label})
    with pytest.raises(UsageError, match=message):
        open_dataset(str(tmp_path / "toys"))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"label": [3]}', '{"label": true}', '{"label": 3.5}'])
def test_json_without_a_label(tmp_path: Path, text: str) -> None:
    write_shard(tmp_path / "toys/0.tar", {"a.png": picture(1), "a.json": text})
    with pytest.raises(UsageError, match=r"0\.tar:a\.json (is not JSON|has the label)"):
        open_dataset(str(tmp_path / "toys"))


def test_the_forms_are_described() -> None:
    assert "DIR/{0000..0099}.tar" in dict(describe_datasets())


def test_large_and_small_shards_of_many_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = picture(7)
    for shard in range(4):
        members: dict[str, bytes | int] = {}
        for i in range(int(rng.integers(1, 300))):
            members |= {f"{shard}-{i}.png": data, f"{shard}-{i}.cls": i % 5}
        write_shard(tmp_path / f"toys/{shard:04d}.tar", members)
    opened = open_dataset(str(tmp_path / "toys/{0000..0003}.tar"))
    assert len(set(opened.ids)) == len(opened)
    assert max(Counter(subset(opened, limit=50).labels).values()) == 10
