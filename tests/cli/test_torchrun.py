"""A run by several real processes: how it is started, stopped, killed and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

Options = tuple[str, ...]
Hrzs = Callable[..., Any]
FINETUNE = ("finetune", "--method", "tecoa", "--steps", "1", "--batch-size", "12", "--save-every", "3", "--validate-every", "0")  # fmt: skip
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HRZS_CACHE": "0"}
#: A job that meets a fault is over by then.
MINUTE = 60


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "hrzs"]


@contextmanager
def started(command: Sequence[str], errors: Path) -> Iterator[subprocess.Popen[str]]:
    """A job, which does not outlive the test; what it says on stderr is in ``errors``."""
    with errors.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, env=ENV)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=MINUTE)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    log = folder / "metrics.jsonl"
    while not (log.is_file() and log.read_text().count("\n") >= step):
        assert process.poll() is None, "the job has ended early"
        time.sleep(0.05)


def worker(rank: int, folder: Path) -> int:
    """The process id of one of the processes that write to ``folder``."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (place / "environ").read_bytes(), (place / "cmdline").read_bytes()
        except OSError:
            continue
        if f"\0RANK={rank}\0".encode() in b"\0" + environment and str(folder).encode() in command:
            return int(place.name)
    raise AssertionError(f"no process of rank {rank}")


def steps_of(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def faults(said: str) -> list[str]:
    """What hrzs itself calls an error; torchrun's report comes on top."""
    return [line for line in said.splitlines() if line.startswith("Error")]


@pytest.fixture(scope="module")
def whole(small: Options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes of one machine made in six steps, without a break."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run = (*FINETUNE, *small, "--epochs", "3")
    with started([*torchrun("--nproc-per-node", "2"), *run, "-o", str(folder)], folder.parent / "errors") as job:
        out, _ = job.communicate(timeout=MINUTE)
    assert (job.returncode, out) == (0, f"{folder}\n")
    return folder


def assert_same(folder: Path, whole: Path) -> None:
    assert steps_of(folder) == steps_of(whole) == [1, 2, 3, 4, 5, 6]
    one, other = (load_file(place / "model.safetensors") for place in (folder, whole))
    assert_close(one, other, rtol=0, atol=0)


def test_a_job_that_is_stopped_says_how_to_go_on(small: Options, tmp_path: Path) -> None:
    """SIGTERM to one process: all of them stop after the same step, with status 143. The first one alone speaks."""
    folder, errors = tmp_path / "run", tmp_path / "errors"
    run = (*FINETUNE, *small, "--epochs", "5000", "-o", str(folder))
    with started([*torchrun("--nproc-per-node", "2"), *run], errors) as job:
        wait_for_step(folder, 2, job)
        os.kill(worker(1, folder), signal.SIGTERM)
        out, _ = job.communicate(timeout=MINUTE)
    said = errors.read_text()
    assert job.returncode != 0
    assert out == ""
    assert "exitcode  : 143" in said
    assert said.count("Stopped by SIGTERM") == 1
    assert f"To go on: torchrun --nproc-per-node 2 -m hrzs {' '.join(run)} --resume" in said
    last = steps_of(folder)[-1]
    assert last >= 2
    assert any(f"step-{last:08d}" in file.name for file in (folder / "checkpoint").iterdir())


def test_a_restart_goes_on(small: Options, tmp_path: Path, whole: Path) -> None:
    folder, errors = tmp_path / "run", tmp_path / "errors"
    run = (*FINETUNE, *small, "--epochs", "3", "-o", str(folder))
    with started([*torchrun("--nproc-per-node", "2", "--max-restarts", "1"), *run], errors) as job:
        wait_for_step(folder, 3, job)
        os.kill(worker(1, folder), signal.SIGKILL)
        out, _ = job.communicate(timeout=MINUTE)
    assert (job.returncode, out) == (0, f"{folder}\n"), errors.read_text()
    assert_same(folder, whole)


def test_a_process_that_is_killed_ends_the_job(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    """Within a minute, with the reason; what was done is kept. Before that, a second run into its folder is refused."""
    folder, errors = tmp_path / "run", tmp_path / "errors"
    run = (*FINETUNE, *small, "--epochs", "5000", "-o", str(folder))
    with started([*torchrun("--nproc-per-node", "2"), *run], errors) as job:
        wait_for_step(folder, 1, job)
        second = hrzs(*run, "--resume")
        assert second.status == 2
        assert "another hrzs is at work on it" in second.err
        done = steps_of(folder)[-1]
        os.kill(worker(1, folder), signal.SIGKILL)
        job.communicate(timeout=MINUTE)
    said = errors.read_text()
    assert job.returncode != 0
    assert [line[:52] for line in faults(said)] == ["Error: another process of this job has ended, or can"]
    assert "--resume goes on with it" in said
    assert said.rstrip("=\n").rstrip().splitlines()[-1].strip().startswith("traceback : Signal 9 (SIGKILL) received")
    assert max(int(file.name[5:13]) for file in (folder / "checkpoint").glob("step-*")) >= done


def test_a_fault_of_one_process_is_that_of_the_job(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    """An image of step 2 that the second process cannot decode: named once, and the state before it is kept."""
    for i in range(24):
        place = tmp_path / "data" / f"class {i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (9 * i, 80, 120)).save(place / f"{i}.png")
    tree = tmp_path / "tree.yaml"
    (tmp_path / "tree.json").write_text(json.dumps({"thing": ["class 0", "class 1"]}))
    assert hrzs("build-tree", "--source", "file", "--tree", tmp_path / "tree.json", "-o", tree).status == 0
    bad = _image_of_step_2(tmp_path / "data")
    bad.write_bytes(b"no image")
    folder, errors = tmp_path / "run", tmp_path / "errors"
    data = (
        "--epochs",
        "3",
        "--data",
        str(tmp_path / "data"),
        "--split",
        "train",
        "--tree",
        str(tree),
        *small[:4],
        "--device",
        "cpu",
    )
    with started([*torchrun("--nproc-per-node", "2"), *FINETUNE, *data, "-o", str(folder)], errors) as job:
        job.communicate(timeout=MINUTE)
    (fault,) = faults(errors.read_text())
    assert job.returncode != 0
    assert f"{bad.name} cannot be decoded" in fault
    assert steps_of(folder) == [1]
    assert len(list((folder / "checkpoint").glob("step-00000001*"))) == 1


def _image_of_step_2(folder: Path) -> Path:
    """One that the second of two processes reads in step 2, the first of the second epoch, and none in step 1."""
    from hrzs.data import open_dataset

    data = open_dataset(str(folder), "train", purpose="train")
    assert len(data) // 12 == 1
    first, second = (torch.randperm(len(data), generator=torch.Generator().manual_seed(epoch)) for epoch in (0, 1))
    chosen = next(i for i in second[6:12].tolist() if i not in first[:12])
    return next(folder.rglob(Path(data.ids[chosen]).name))


# -- two machines ---------------------------------------------------------------------------------------------------

HOSTS = ("10.77.31.1", "10.77.31.2")


@pytest.fixture
def hosts() -> Iterator[list[list[str]]]:
    """Two network namespaces with a cable between them: commands that run what follows in one or the other."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` to make network namespaces with")
    names = [f"hrzs{os.getpid()}{side}" for side in "ab"]
    cables = [f"v{os.getpid() % 100_000}{side}" for side in "ab"]

    def ip(*arguments: str, check: bool = True) -> None:
        subprocess.run(["ip", *arguments], check=check, capture_output=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
            for name, cable, address in zip(names, cables, HOSTS, strict=True):
                ip("link", "set", cable, "netns", name)
                ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
                ip("-n", name, "link", "set", cable, "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this system gives no network namespaces: {error.stderr.decode().strip()}")
        yield [
            ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={cable}"]
            for name, cable in zip(names, cables, strict=True)
        ]
    finally:
        ip("link", "del", cables[0], check=False)
        for name in names:
            ip("netns", "del", name, check=False)


def test_two_machines(small: Options, hosts: list[list[str]], tmp_path: Path, whole: Path) -> None:
    """A process each, with networks of their own: the weights are those of two processes of one machine."""
    run = (*FINETUNE, *small, "--epochs", "3")
    across = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", HOSTS[0], "--master-port", "29517"]
    commands = [
        [*host, *torchrun(*across, "--node-rank", str(rank)), *run, "-o", str(tmp_path / "two")]
        for rank, host in enumerate(hosts)
    ]
    with started(commands[0], tmp_path / "first") as first, started(commands[1], tmp_path / "second") as second:
        out, _ = first.communicate(timeout=2 * MINUTE)
        silence, _ = second.communicate(timeout=MINUTE)
    assert first.returncode == second.returncode == 0, (tmp_path / "first").read_text()
    assert (out, silence) == (f"{tmp_path / 'two'}\n", "")
    assert_same(tmp_path / "two", whole)
