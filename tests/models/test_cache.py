from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hrzs.models.cache import cache_folder, digest_of, kept, kept_json


class Costly:
    def __init__(self, rows: int = 3) -> None:
        self.calls = 0
        self.value = torch.arange(rows * 2.0).view(rows, 2)

    def __call__(self) -> Tensor:
        self.calls += 1
        return self.value


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HRZS_CACHE", raising=False)
    return tmp_path / "hrzs"


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_second_time_it_is_read(folder: Path) -> None:
    costly = Costly()
    first, second = (kept("text", {"a": 1}, 3, costly) for _ in range(2))
    assert costly.calls == 1
    assert torch.equal(first, second)
    (file,) = files(folder)
    assert (file.parent, file.suffix) == (folder / "text", ".safetensors")


def test_what_it_depends_on_tells_tensors_apart(folder: Path) -> None:
    costly = Costly()
    abouts: list[dict[str, Any]] = [{"a": 1}, {"a": 2}, {"b": 1}]
    for about in abouts:
        kept("text", about, 3, costly)
    assert costly.calls == len(files(folder)) == 3


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "shape", "nan", "other"])
def test_a_corrupt_file_is_ignored_and_written_anew(folder: Path, damage: str) -> None:
    costly = Costly()
    kept("text", {"a": 1}, 3, costly)
    (file,) = files(folder)
    whole = file.read_bytes()
    if damage in ("shape", "nan", "other"):
        with safe_open(file, framework="pt") as content:
            about = content.metadata()["about"]
        wrong = {"shape": torch.zeros(5, 2), "nan": torch.full((3, 2), torch.nan)}.get(damage, costly.value)
        save_file({"tensor": wrong}, file, {"about": about.replace("1", "2") if damage == "other" else about})
    else:
        file.write_bytes({"cut": whole[:-5], "garbage": b"x" * len(whole), "empty": b""}[damage])
    costly.calls = 0
    assert torch.equal(kept("text", {"a": 1}, 3, costly), costly.value)
    assert costly.calls == 1
    assert file.read_bytes() == whole
    assert files(folder) == [file]


def test_zeros_of_a_power_failure_are_not_taken(folder: Path) -> None:
    """The header is whole, and so is the shape; the last 4 KB are zeros."""
    costly = Costly(rows=2000)
    kept("text", {"a": 1}, 2000, costly)
    (file,) = files(folder)
    whole = file.read_bytes()
    file.write_bytes(whole[:-4096] + bytes(4096))
    assert torch.equal(kept("text", {"a": 1}, 2000, costly), costly.value)
    assert (costly.calls, file.read_bytes()) == (2, whole)
    kept("text", {"a": 1}, 2000, costly)
    assert costly.calls == 2


def test_what_is_not_finite_is_not_kept(folder: Path) -> None:
    costly = Costly()
    costly.value = torch.full((3, 2), torch.nan)
    for _ in range(2):
        kept("text", {}, 3, costly)
    assert costly.calls == 2
    assert files(folder) == []


def test_another_version_of_hrzs_computes_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costly = Costly()
    kept("text", {}, 3, costly)
    monkeypatch.setattr("hrzs.models.cache.__version__", "another")
    kept("text", {}, 3, costly)
    assert costly.calls == len(files(folder)) == 2


# -- values of JSON --------------------------------------------------------------------------------------------------

VALUE = [{"name": "π", "value": 0.1, "ok": None}]


class CostlyValue:
    def __init__(self, value: Any = VALUE) -> None:
        self.calls = 0
        self.value = value

    def __call__(self) -> Any:
        self.calls += 1
        return self.value


def test_a_value_is_read_the_second_time(folder: Path) -> None:
    costly = CostlyValue()
    assert [kept_json("values", {"a": 1}, costly) for _ in range(2)] == [VALUE, VALUE]
    assert costly.calls == 1
    (file,) = files(folder)
    assert (file.parent, file.suffix) == (folder / "values", ".json")
    kept_json("values", {"a": 2}, costly)
    assert costly.calls == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"value": 1}', '{"value": [], "about": "another"}', "\x00"]
)
def test_a_damaged_value_is_computed_anew(folder: Path, content: str) -> None:
    costly = CostlyValue()
    kept_json("values", {}, costly)
    (file,) = files(folder)
    whole = file.read_bytes()
    file.write_text(content)
    assert kept_json("values", {}, costly) == VALUE
    assert costly.calls == 2
    assert file.read_bytes() == whole


def test_a_changed_value_is_computed_anew(folder: Path) -> None:
    costly = CostlyValue()
    kept_json("values", {}, costly)
    (file,) = files(folder)
    whole = file.read_text()
    file.write_text(whole.replace("0.1", "0.2"))
    assert kept_json("values", {}, costly) == VALUE
    assert (costly.calls, file.read_text()) == (2, whole)


def test_what_does_not_fit_is_neither_kept_nor_taken(folder: Path) -> None:
    costly = CostlyValue([])
    for _ in range(2):
        assert kept_json("values", {}, costly, fits=bool) == []
    assert (costly.calls, files(folder)) == (2, [])
    kept_json("values", {}, costly)
    assert kept_json("values", {}, CostlyValue(), fits=bool) == VALUE


def test_digest_of_tensors() -> None:
    one = torch.arange(6.0)
    others = [[("b", one)], [("a", one.double())], [("a", one.view(2, 3))], [("a", -one)], [("a", one), ("b", one)]]
    assert digest_of([("a", one.view(2, 3).T)]) != digest_of([("a", one.view(3, 2))])
    assert digest_of([("a", one)]) == digest_of([("a", one.clone().requires_grad_())])
    assert digest_of([("a", one)]) not in {digest_of(named) for named in others}
    assert len(digest_of([])) == 64


def test_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HRZS_CACHE", "0")
    costly = Costly()
    for _ in range(2):
        kept("text", {}, 3, costly)
    assert costly.calls == 2
    assert not folder.exists()


def test_what_cannot_be_written_is_no_error(folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    assert torch.equal(kept("text", {}, 3, Costly()), Costly().value)


def test_an_interrupted_write_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    kept("text", {}, 3, Costly())
    assert files(folder) == []


def test_deleting_it_is_safe(folder: Path) -> None:
    costly = Costly()
    kept("text", {}, 3, costly)
    for file in files(folder):
        file.unlink()
    kept("text", {}, 3, costly)
    assert costly.calls == 2


def test_where_it_lies(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == folder
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == tmp_path / "home/.cache/hrzs"
