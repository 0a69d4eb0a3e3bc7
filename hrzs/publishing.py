"""A model as a folder to publish: in open_clip's layout, in that of transformers, or both, with a model card."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hrzs.errors import HrzsError, UsageError
from hrzs.files import write_text
from hrzs.models.clip import ClipModel
from hrzs.models.loading import file_of, load_model
from hrzs.models.repository import write_repository
from hrzs.models.transformers_form import config_of, write_clip_model
from hrzs.results.pages.card import Card, render
from hrzs.results.pages.training import run_config
from hrzs.results.report import Report
from hrzs.training.methods import METHODS
from hrzs.training.options import TrainOptions

logger = logging.getLogger(__name__)

FORMATS = ("open_clip", "transformers")


def check_export_folder(folder: Path, option: str = "-o") -> None:
    """
    Raises:
        UsageError: something is there already.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"{option} {folder}: something is there already; give a folder that is empty or not there")


def export(
    model: ClipModel | str | Path,
    output: str | Path,
    *,
    reports: Sequence[Report | str | Path] = (),
    formats: Sequence[str] = ("open_clip",),
    name: str | None = None,
) -> Path:
    """Write ``model`` as a folder that ``open_clip.create_model("local-dir:FOLDER")`` loads, and return the folder.

        >>> folder = hrzs.export("tiny", "robust-clip", formats=("open_clip", "transformers"))
        >>> hrzs.load(folder).info.digest == hrzs.load("tiny").info.digest
        True

    The folder is there whole or not at all. It holds the weights of a run to the bit, so their digest stays, with the
    header in which the hyperbolic head is; no checkpoints and no logs.

    Args:
        model: a run folder, or anything else that `hrzs.load` takes, or a model.
        output: a folder that is empty or not there.
        reports: of `hrzs.evaluate` on this very model, or their JSON files: the tables of the card.
        formats: of ``open_clip`` and ``transformers``, whose CLIPModel not every model can be.
        name: of the model on its card, by default that of the folder.

    Raises:
        UsageError: a format that the model cannot have, a report of another model, or an output that holds something.
        HrzsError: the folder cannot be written.
    """
    folder = Path(output)
    check_export_folder(folder)
    if not formats or (unknown := [each for each in formats if each not in FORMATS]):
        raise UsageError(f"--format {(unknown if formats else ['nothing'])[0]!r}: of {', '.join(FORMATS)}")
    loaded = model if isinstance(model, ClipModel) else load_model(str(model))
    read = [one if isinstance(one, Report) else _report(Path(one)) for one in reports]
    for one in read:
        _check_report(one, loaded)
    if "transformers" in formats:
        config_of(loaded.info)  # refuses what none can be
    source = None if isinstance(model, ClipModel) else file_of(str(model))
    settings = {} if isinstance(model, ClipModel) else _settings(Path(model), loaded)
    card = Card(name or folder.resolve().name, loaded, tuple(formats), settings, read)
    try:
        # Aside first, so that the folder is there whole or not at all.
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
            aside = Path(place) / "whole"
            aside.mkdir()
            if "open_clip" in formats:
                write_repository(loaded, aside, source)
            if "transformers" in formats:
                write_clip_model(loaded, aside)
            write_text(aside / "README.md", render(card))
            if folder.is_dir():
                folder.rmdir()
            aside.rename(folder)
    except OSError as error:
        raise HrzsError(f"-o {folder}: cannot be written ({error.strerror or error}); give another folder") from error
    _say_what_is_open(loaded, read)
    return folder


def _report(path: Path) -> Report:
    try:
        return Report.from_json(path)
    except UsageError as error:
        raise UsageError(f"--evaluation {error}") from error


def _check_report(report: Report, model: ClipModel) -> None:
    if report.model.digest != model.info.digest:
        raise UsageError(
            f"--evaluation: a report on other weights ({report.model.source}, digest {report.model.digest[:12]}) than "
            f"those of {model.info.source} (digest {model.info.digest[:12]}); evaluate this model"
        )


def _settings(run: Path, model: ClipModel) -> dict[str, Any]:
    """What of the configuration of a run its method read: data, and no folder of the machine but in their names."""
    method = METHODS.get(model.info.run.get("method", ""))
    config = run_config(run) if run.is_dir() else {}
    if method is None or not config:
        return {}
    of_others = set().union(*(one.reads for one in METHODS.values())) - method.reads
    names = ["data", "split", *(f.name for f in fields(TrainOptions) if f.name not in of_others)]
    found = {name.replace("_", "-"): config.get(name.replace("_", "-")) for name in names}
    return {name: value for name, value in found.items() if value not in (None, "", False)}


def _say_what_is_open(model: ClipModel, reports: Sequence[Report]) -> None:
    """What whoever publishes should know before."""
    info = model.info
    base = str((info.run.get("base") or {}).get("model", ""))
    if model.geometry is not None:
        logger.info("the %s head is in the header of the weights, where hrzs finds it; open_clip and transformers "
                    "score by cosine", model.geometry.name)  # fmt: skip
    if not reports:
        logger.info("the card has no figures; `hrzs eval --json FILE`, then --evaluation FILE, puts them there")
    if info.licence == "unknown":
        logger.warning("the licence of the weights is not known; say it in README.md before you publish them")
    if Path(base).is_absolute():
        logger.warning("the card and the header of the weights say where the original model lay: %s", base)
