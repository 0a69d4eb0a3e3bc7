"""TensorBoard, where it is installed: every number of ``metrics.jsonl`` as a curve below RUN_DIR/tensorboard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


class Board:
    """Writes rows of the log as scalars; lists (accuracies by level) become one curve for each entry."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils import tensorboard

        writer: Any = tensorboard.SummaryWriter
        # Hides what was logged after the step from which a resumed run goes on.
        self._writer = writer(str(folder / FOLDER), purge_step=step + 1)

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        for name, value in scalars(row):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def open_writer(folder: Path, step: int) -> Board | None:
    """A `Board`; None where tensorboard is not installed (``pip install hrzs[tensorboard]``)."""
    return Board(folder, step) if find_spec("tensorboard") else None


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
