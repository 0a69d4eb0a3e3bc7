"""`hrzs export`: a model as a folder to publish; prints the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hrzs.cli import console, options


def export(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or anything else that --model takes.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to make.")],
    pretrained: options.Pretrained = None,
    visual: options.Visual = None,
    tokenizer: options.Tokenizer = None,
    mean: options.Mean = None,
    std: options.Std = None,
    interpolation: options.Interpolation = None,
    resize_mode: options.ResizeMode = None,
    evaluation: Annotated[list[Path] | None, typer.Option("--evaluation", metavar="REPORT.json", help="A report of `hrzs eval --json` on this model, for the card; may be given several times.")] = None,
    formats: Annotated[str, typer.Option("--format", help="open_clip, transformers, or both with a comma.")] = "open_clip",
    name: Annotated[str | None, typer.Option("--name", help="Of the model, on its card.", show_default="the name of DIR")] = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:  # fmt: skip
    """Write a model as a folder that open_clip loads and that can be uploaded: weights, config and model card."""
    console.set_up(quiet=quiet, debug=debug)
    import hrzs
    from hrzs.models.loading import load_model

    # What the name alone stands for is copied, where it is a file of hrzs.
    given: dict[str, Any] = {"visual": visual, "tokenizer": tokenizer, "mean": mean, "std": std,
                             "interpolation": interpolation, "resize_mode": resize_mode}  # fmt: skip
    plain = pretrained is None and not any(given.values())
    folder = hrzs.export(
        model if plain else load_model(model, pretrained, **given), output,
        reports=evaluation or (), formats=tuple(formats.split(",")), name=name,
    )  # fmt: skip
    console.note(f"read {folder / 'README.md'} before you publish, then: hf upload OWNER/NAME {folder}")
    console.emit(str(folder))
