"""TensorBoard, where it is installed: every number of ``metrics.jsonl`` as a curve below RUN_DIR/tensorboard."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FOLDER = "tensorboard"


class Board:
    """Writes rows of the log as scalars; lists (accuracies by level) become one curve for each entry.

    A curve is no reason to lose a run: what cannot be written is said once, and no more is written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils import tensorboard

        writer: Any = tensorboard.SummaryWriter
        # Hides what was logged after the step from which a resumed run goes on.
        self._writer = writer(str(folder / FOLDER), purge_step=step + 1)
        self._failed = False

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        with self._forgiving():
            for name, value in scalars(row) if not self._failed else ():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        with self._forgiving():
            self._writer.close()

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # its writer has a thread of its own, which raises what went wrong there
            if not self._failed:
                logger.warning("TensorBoard: nothing more is written (%s: %s)", type(error).__name__, error)
            self._failed = True


def open_writer(folder: Path, step: int) -> Board | None:
    """A `Board`; None where tensorboard is not installed (``pip install hrzs[tensorboard]``), or cannot write."""
    if not find_spec("tensorboard"):
        return None
    try:
        return Board(folder, step)
    except OSError as error:
        logger.warning("TensorBoard: nothing is written (%s)", error)
        return None


def scalars(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Names and values: ``validation: {robust: [0.5, 0.6]}`` is ``validation/robust/level_0`` and ``…/level_1``."""
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from scalars(value, f"{name}/")
        elif isinstance(value, list):
            yield from ((f"{name}/level_{i}", float(v)) for i, v in enumerate(value))
        elif isinstance(value, int | float):
            yield name, float(value)
