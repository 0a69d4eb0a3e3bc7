"""The command line in process, on a model that takes milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def hrzs(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run ``hrzs ARGUMENT…`` in this process."""
    from hrzs.cli import main

    def run(*arguments: object) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        streams = capsys.readouterr()
        status = ended.value.code
        return Ended(0 if status is None else int(status), streams.out, streams.err)

    return run


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file: Path = tmp_path_factory.mktemp("cli") / "cli-small.json"
    file.write_text(json.dumps(CONFIG))
    return file


@pytest.fixture(scope="session")
def small(config_file: Path) -> tuple[str, ...]:
    """The options of an untrained model on a few shapes."""
    return ("--model", str(config_file), "--pretrained", "none", "--limit", "24", "--device", "cpu")
