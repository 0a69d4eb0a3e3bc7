"""`hrzs export` and `hrzs finetune --export`: stdout has the folder, stderr says what to do with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hrzs as package

Hrzs = Callable[..., Any]
Options = tuple[str, ...]


def test_export(hrzs: Hrzs, tmp_path: Path) -> None:
    ended = hrzs("export", "tiny", "-o", tmp_path / "out", "--format", "open_clip,transformers")
    assert (ended.status, ended.out) == (0, f"{tmp_path / 'out'}\n")
    assert f"hf upload OWNER/NAME {tmp_path / 'out'}" in ended.err
    assert "the card has no figures" in ended.err
    again = hrzs("export", "tiny", "-o", tmp_path / "out")
    assert again.status == 2
    assert "something is there already" in again.err


def test_export_of_what_needs_options(hrzs: Hrzs, config_file: Path, tmp_path: Path) -> None:
    ended = hrzs("export", config_file, "--pretrained", "none", "--mean", "0.5", "-o", tmp_path / "out", "--quiet")
    assert (ended.status, ended.out) == (0, f"{tmp_path / 'out'}\n")
    assert "licence of the weights is not known" in ended.err
    info = package.load(tmp_path / "out").info
    assert (info.arch, info.mean) == ("cli-small", (0.5, 0.5, 0.5))


def test_finetune_exports(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    call = ("finetune", "--steps", "1", "--batch-size", "8", "--max-steps", "1", "--validate-every", "0", *small)
    ended = hrzs(*call, "-o", tmp_path / "run", "--export", tmp_path / "out")
    assert (ended.status, ended.out.splitlines()[-1]) == (0, str(tmp_path / "run"))
    assert package.load(tmp_path / "out").info.digest == package.load(tmp_path / "run").info.digest
    resumed = hrzs(*call, "-o", tmp_path / "run", "--export", tmp_path / "out", "--resume")
    assert (resumed.status, "is exported already" in resumed.err) == (0, True)
    assert "export" not in (tmp_path / "run" / "config.yaml").read_text()
    refused = hrzs(*call, "-o", tmp_path / "other", "--export", tmp_path / "out")
    assert (refused.status, (tmp_path / "other").exists()) == (2, False)
    assert f"--export {tmp_path / 'out'}: something is there already" in refused.err
