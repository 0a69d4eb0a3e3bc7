"""What ``--classes`` stands for: the classes of a dataset, a folder, a tar, a file or a list of names."""

from __future__ import annotations

from pathlib import Path

from hrzs.classes.folders import Folder, class_folders, shards_in
from hrzs.classes.specs import ClassSpec, dataset_classes, read_class_list, split_of
from hrzs.errors import UsageError


def read_classes(spec: str, data_root: Path | None = None) -> tuple[list[ClassSpec], str]:
    """The classes that ``--classes`` stands for, in order, and what to call them in the header of a tree file.

    Raises:
        UsageError: there is no such dataset, folder or file, or the file is no text.
    """
    path = Path(spec)
    if path.is_dir() and not shards_in(folder := Folder(path))[0]:
        label = path.resolve().name
        if split_of(label):
            label = f"{path.resolve().parent.name}/{label}"
        return [ClassSpec(name) for name in class_folders(folder)], label
    if path.exists() and not path.is_dir() and path.suffix != ".tar":
        return read_class_list(path), path.name
    if "," in spec and not path.exists():
        names = [name.strip() for name in spec.split(",")]
        if "" in names:
            raise UsageError(f"--classes {spec}: there is an empty name between the commas")
        return [ClassSpec(name) for name in names], f"{len(names)} names"
    if (listed := dataset_classes(spec)) is not None:
        return listed, spec
    # A tar has to be opened to know its classes, and a misspelt name is answered with the datasets there are.
    from hrzs.data import open_dataset  # torch, which takes longer to import than a tree to build

    try:
        data = open_dataset(spec, root=data_root)
    except UsageError as error:
        raise UsageError(
            f"--classes {spec}: {error} A text file with one class per line and a,b,c are understood as well."
        ) from error
    return [ClassSpec(class_id) for class_id in data.classes], path.name
