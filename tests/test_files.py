from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hrzs.errors import HrzsError, UsageError
from hrzs.files import locked, output_folder, replacing, whole_lines, write_config, write_text


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def test_text_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    for text in ("before", "é\r\nafter"):
        write_text(file, text)
        assert file.read_bytes() == text.encode()
    assert names(tmp_path) == ["a.txt"]
    (tmp_path / "usual").touch()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_what_did_not_end_well(tmp_path: Path, error: type[BaseException]) -> None:
    file = tmp_path / "a.txt"
    file.write_text("before")

    def write() -> None:
        with replacing(file) as aside:
            aside.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert file.read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(HrzsError, match=r"--json x: cannot be written \(No such file or directory\)"):
        write_text(tmp_path / "none" / "a.txt", "", "--json x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(HrzsError, match="folder: cannot be written"):
        write_text(tmp_path / "folder", "")
    assert names(tmp_path) == ["folder"]


def test_many_processes_write_the_same_file(tmp_path: Path) -> None:
    """A reader sees what one of them wrote, at any moment."""
    code = "import sys; from hrzs.files import write_text\nfrom pathlib import Path\nfor _ in range(50): write_text(Path('a'), sys.argv[1] * 200_000)"
    write_text(tmp_path / "a", "0" * 200_000)
    writers = [subprocess.Popen([sys.executable, "-c", code, letter], cwd=tmp_path) for letter in "abc"]
    while any(writer.poll() is None for writer in writers):
        text = (tmp_path / "a").read_text()
        assert len(text) == 200_000
        assert len(set(text)) == 1
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert names(tmp_path) == ["a"]


def test_a_lock_is_for_one_at_a_time_and_leaves_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "file"):
        with locked(path), pytest.raises(UsageError, match="another hrzs is at work on it"), locked(path):
            pytest.fail("it was taken twice")
        with locked(path):
            pass
        assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with pytest.raises(HrzsError, match=r"plain/file: cannot be written"), locked(tmp_path / "plain" / "file"):
        pytest.fail("it was taken")


@pytest.mark.parametrize("torn", [b"", b'{"b": 2', b'{"b": 2}', b"\0\0\n"])
def test_lines_are_read_up_to_a_torn_one(tmp_path: Path, torn: bytes) -> None:
    file = tmp_path / "lines"
    assert list(whole_lines(file)) == []
    file.write_bytes(b'{"a": 1}\n[2]\n' + torn)
    assert list(whole_lines(file)) == [({"a": 1}, 9), ([2], 13)]


def test_a_folder_with_a_run_is_taken_only_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with output_folder(folder, resume=False):
        write_config(folder, {"lr": 0.1})
    with pytest.raises(UsageError, match="holds a run already"), output_folder(folder, resume=False):
        pytest.fail("it was taken")
    with output_folder(folder, resume=True):
        assert (folder / "config.yaml").read_text() == "lr: 0.1\n"


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert sorted(names(tmp_path)) == ["link", "real"]


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        write_text(pipe, "text\n")
        assert reader.communicate()[0] == "text\n"
    assert pipe.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="only Linux has /dev/full")
def test_a_full_device_is_named_and_stays(tmp_path: Path) -> None:
    link = tmp_path / "full"
    link.symlink_to("/dev/full")
    with pytest.raises(HrzsError, match="No space left on device"):
        write_text(link, "text")
    assert link.is_symlink()
    assert Path("/dev/full").is_char_device()
