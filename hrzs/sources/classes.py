"""What ``--classes`` stands for: the classes of a dataset, a folder, a tar, a file or a list of names."""

from __future__ import annotations

from pathlib import Path

from hrzs.classes.forms import named_classes
from hrzs.classes.specs import ClassSpec, folder_class
from hrzs.errors import UsageError


def read_classes(spec: str, data_root: Path | None = None) -> tuple[list[ClassSpec], str]:
    """The classes that ``--classes`` stands for, in order, and what to call them in the header of a tree file.

    Raises:
        UsageError: there is no such dataset, folder or file, or the file is no text.
    """
    if (found := named_classes(spec)) is not None:
        return found
    # A tar has to be opened to know its classes, and a misspelt name is answered with the datasets there are.
    from hrzs.data import open_dataset  # torch, which takes longer to import than a tree to build

    try:
        data = open_dataset(spec, root=data_root)
    except UsageError as error:
        raise UsageError(
            f"--classes {spec}: {error} A text file with one class per line and a,b,c are understood as well."
        ) from error
    return [folder_class(class_id) for class_id in data.classes], Path(spec).name
