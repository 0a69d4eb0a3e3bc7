"""The largest margin that two prototypes of a given norm can have.

The margin of an image ``x`` between two prototypes is the difference of its logits, the log-odds. Norms are
Euclidean; ``scale`` is the logits' factor (λ or β); ``curvature`` is r > 0 as in `hrzs.geometry.poincare`.
The proof is in docs/method.md. ``python -m hrzs.geometry.margin PATH`` draws the three margins.

Source: Dong et al., CVPR 2026, arXiv 2604.18867.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from hrzs.geometry.poincare import Curvature

__all__ = ["euclidean_margin_distance", "euclidean_margin_inner", "max_margin", "plot_margin"]


def max_margin(
    norm: Float[Tensor, "..."], curvature: Curvature, scale: float | Float[Tensor, ""]
) -> Float[Tensor, "..."]:
    """The largest margin for logits ``-scale · d`` in the Poincaré ball: ``scale (4/√r) artanh(√r η)``.

    Args:
        norm: η, the largest norm of images and prototypes.
        curvature: r > 0.
        scale: The logits' factor.

    Returns:
        The margin, in logits: infinite at the boundary ``η = 1/√r``, nan outside of the ball.
    """
    root = curvature**0.5
    return scale * (4 / root) * torch.atanh(root * norm)


def euclidean_margin_inner(norm: Float[Tensor, "..."], scale: float | Float[Tensor, ""]) -> Float[Tensor, "..."]:
    """The largest margin, in logits, for inner products ``scale ⟨u, v⟩``, norms at most η: ``2 scale η²``."""
    return 2 * scale * norm.square()


def euclidean_margin_distance(norm: Float[Tensor, "..."], scale: float | Float[Tensor, ""]) -> Float[Tensor, "..."]:
    """The largest margin, in logits, for distances ``-scale ‖u - v‖``, norms at most η: ``2 scale η``."""
    return 2 * scale * norm


def plot_margin(path: Path, curvature: float) -> None:
    """Draw the three margins at scale 1 over the norm, 0 to the ball's boundary, as an SVG file at ``path``.

    Raises:
        OSError: ``path`` cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    boundary = curvature**-0.5
    norm = torch.linspace(0, 1, 2001, dtype=torch.float64)[:-1] * boundary
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(norm, max_margin(norm, curvature, 1.0), label=f"hyperbolic distance, r = {curvature:g}")
    axes.plot(norm, euclidean_margin_distance(norm, 1.0), "--", label="Euclidean distance")
    axes.plot(norm, euclidean_margin_inner(norm, 1.0), ":", label="inner product")
    axes.axvline(boundary, color="grey", linewidth=0.8)
    axes.set(xlabel="norm η of image and prototypes", ylabel="largest margin / scale", xlim=(0, 1.02 * boundary))
    axes.set_ylim(bottom=0)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without date and random ids, the same figure gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "hrzs"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the margins over the norm, as an SVG file.")
    parser.add_argument("path", type=Path, help="the SVG file to write")
    parser.add_argument("--curvature", type=float, default=1.0, help="r > 0 of the ball (default: 1)")
    arguments = parser.parse_args()
    plot_margin(arguments.path, arguments.curvature)
