"""The trees we publish, found by the name of the dataset they belong to."""

from pathlib import Path

from hrzs.files import exists

_PACKAGE = Path(__file__).resolve().parent.parent
# A wheel carries the trees inside the package; in a checkout they stand beside it.
_FOLDERS = (_PACKAGE / "hierarchies", _PACKAGE.parent / "hierarchies")


def find_tree(dataset: str) -> Path | None:
    """The published tree file of ``dataset``; None if there is none."""
    if not dataset or Path(dataset).name != dataset:
        return None
    for folder in _FOLDERS:
        file = folder / f"{dataset}.yaml"
        if exists(file):
            return file
    return None
