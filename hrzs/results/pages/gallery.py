"""The picture of an attack: originals, adversarial images, and what the model says of each at every level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor

from hrzs.hierarchy.tree import Tree
from hrzs.results.outcome import Example


def magnified(example: Example) -> tuple[Float[Tensor, "3 H W"], float]:
    """The perturbation, its largest entry spanning the whole range and grey being none; and that entry."""
    delta = example.adversarial - example.clean
    peak = delta.abs().max().item()
    return (0.5 + 0.5 * delta / (peak or 1.0)).clamp(0, 1), peak


def draw_gallery(path: Path, examples: Sequence[Example], tree: Tree, title: str) -> None:
    """A row per example: original, magnified perturbation, adversarial image; green is right, red is wrong."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(examples)
    figure = Figure(figsize=(13, 0.6 + 2.3 * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    with mpl.rc_context({"image.interpolation": "nearest"}):
        axes = figure.subplots(rows, 5, squeeze=False, width_ratios=(1, 1.25, 1, 1, 1.25))
        for row, example in zip(axes, examples, strict=True):
            perturbation, peak = magnified(example)
            pictures = ((0, example.clean, f"original: {tree.levels[0][example.label].name}"),
                        (2, perturbation, f"perturbation, largest {255 * peak:.1f}/255"),
                        (3, example.adversarial, "adversarial"))  # fmt: skip
            for column, picture, caption in pictures:
                row[column].imshow(picture.permute(1, 2, 0).numpy())
                row[column].set_title(caption, fontsize=9)
                row[column].axis("off")
            _predictions(row[1], example.before, example.label, tree)
            _predictions(row[4], example.after, example.label, tree)
    figure.savefig(path)


def _predictions(axis: object, nodes: Int[Tensor, "levels"], label: int, tree: Tree) -> None:
    axis.axis("off")  # type: ignore[attr-defined]
    for level, node in enumerate(nodes.tolist()):
        correct = node == tree.ancestors[level, label].item()
        name = tree.levels[level][node].name
        axis.text(0.0, 0.92 - 0.16 * level, f"level {level}: {name[:26]}", fontsize=9,  # type: ignore[attr-defined]
                  color="#1a7f37" if correct else "#cf222e", va="top")  # fmt: skip
