from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hrzs.errors import HrzsError, UsageError
from hrzs.evaluation.store import Store

ABOUT = {"model": "m", "seed": 0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of two batches of one unit, and one of another."""
    store = Store(tmp_path / "report.json.partial", ABOUT)
    with store.opened():
        for i, unit in enumerate(("a", "b", "a")):
            store.write("one", unit, {"i": i})
    assert store.path is not None
    return store.path


def numbers(store: Store) -> list[int]:
    return [record["i"] for record in store.read("one", "a")]


def test_batches_are_read_back_by_unit_in_order(path: Path) -> None:
    store = Store(path, ABOUT)
    with store.opened():
        assert numbers(store) == [0, 2]
        assert store.read("another", "a") == []
    store.remove()
    assert list(path.parent.iterdir()) == []


def test_a_store_without_a_file_keeps_nothing() -> None:
    store = Store(None)
    with store.opened():
        store.write("one", "a", {"i": 0})
        assert store.read("one", "a") == []
    store.remove()


@pytest.mark.parametrize("torn", ['{"identity": "one", "unit"', "\0\0\0\0\n", '{"identity": "one"}'])
def test_a_torn_line_is_cut_off(path: Path, torn: str) -> None:
    whole = path.read_text()
    path.write_text(whole + torn)
    store = Store(path, ABOUT)
    with store.opened():
        assert numbers(store) == [0, 2]
        assert path.read_text() == whole


def test_what_another_call_has_done_is_left_alone(path: Path) -> None:
    before = path.read_text()
    with (
        pytest.raises(UsageError, match=r"another call has done, with seed 0 \(now 1\)"),
        Store(path, ABOUT | {"seed": 1}).opened(),
    ):
        pytest.fail("it was opened")  # fmt: skip
    assert path.read_text() == before


def test_the_form_of_another_version_is_refused(path: Path) -> None:
    path.write_text(json.dumps({"identity": "one", "unit": "a"}) + "\n")
    with pytest.raises(UsageError, match="not written by this version"), Store(path, ABOUT).opened():
        pytest.fail("it was opened")


def test_only_one_process_at_a_time(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hrzs.files import locked\n"
        "with locked(Path(sys.argv[1])): print('got it', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "got it\n"
        with pytest.raises(UsageError, match="another hrzs is at work on it"), Store(path, ABOUT).opened():
            pytest.fail("it was opened")
    finally:
        other.kill()
        other.communicate()
    with Store(path, ABOUT).opened():  # a process that was killed leaves no lock behind
        pass
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_full_disk_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(path, ABOUT)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hrzs.evaluation.store.fsync", full)
    with store.opened(), pytest.raises(HrzsError, match=r"report.json.partial could not be written .*No space left"):
        store.write("one", "a", {"i": 3})
