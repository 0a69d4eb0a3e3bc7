"""`make demo`: the main job on embedded defaults, as a user would type it; ends with one table and a picture."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

#: One adversary before and after. PGD-10 on a fixed subset: a demonstration, not a result.
ADVERSARY = ("--steps", "10", "--limit", "192", "--scoring", "prompt")


def main(folder: Path) -> None:
    """Tree, evaluation, fine-tuning, attack, evaluation; everything lands in ``folder``, which is made anew."""
    console, began = Console(), time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tree, run, attacked = folder / "tree.yaml", folder / "run", folder / "attack"
    before, after = folder / "before.json", folder / "after.json"
    evaluate = ("eval", "--tree", str(tree), *ADVERSARY)
    for arguments in (
        ("build-tree", "--source", "wordnet", "--show", "-o", str(tree)),
        (*evaluate, "--json", str(before)),
        ("finetune", "--tree", str(tree), "--max-steps", "100", "--batch-size", "64", "-o", str(run)),
        ("attack", "--model", str(run), "--tree", str(tree), "--attack", "superclass-pgd", "--limit", "48",
         "-o", str(attacked)),
        (*evaluate, "--model", str(run), "--json", str(after)),
    ):  # fmt: skip
        console.rule(f"[bold]$ hrzs {' '.join(arguments)}", align="left")
        subprocess.run([sys.executable, "-m", "hrzs", *arguments], check=True)
    console.rule("[bold]before and after", align="left")
    console.print(compare(json.loads(before.read_text()), json.loads(after.read_text())))
    console.print(f"picture: {attacked / 'gallery.png'}   run: {run}   {time.monotonic() - began:.0f} s")


def compare(before: dict[str, Any], after: dict[str, Any]) -> Table:
    """Clean and robust accuracy at every level, each attacked at that very level, before and after.

    Per image, then balanced over the nodes of each level, then what a constant answer scores.
    """
    rows = before["results"]
    levels = sorted({row["level"] for row in rows})
    eps = next(row["eps"] for row in rows if row["eps"])
    table = Table(title=f"accuracy in %, untouched → fine-tuned; robust at ε {eps}, attacked at the level itself")
    table.add_column("")
    for level in levels:
        nodes = next(row["classes"] for row in rows if row["level"] == level)
        table.add_column(f"level {level} ({nodes})", justify="right")
    table.add_column("any level", justify="right")

    def value(report: dict[str, Any], level: int, figure: str) -> float:
        wanted = "none" if not figure.startswith("robust") else ("leaf-pgd" if level == 0 else "superclass-pgd")
        return next(
            float(row[figure])
            for row in report["results"]
            if row["attack"] == wanted and row["level"] == level and row["attack_level"] in (None, level)
            and row["scoring"] == "prompt"
        )  # fmt: skip

    for figure in ("clean", "robust", "clean_balanced", "robust_balanced"):
        pairs = [(value(before, level, figure), value(after, level, figure)) for level in levels]
        any_level = [r["summary"]["levels"][0][f"any_level_{figure}"] for r in (before, after)]
        name = figure.replace("_", ", ")
        table.add_row(name, *(f"{100 * a:.1f} → {100 * b:.1f}" for a, b in [*pairs, any_level]))
    for figure in ("constant", "constant_balanced"):
        answers = [value(before, level, figure) for level in levels]
        answers.append(before["summary"]["levels"][0][f"any_level_{figure}"])
        name = f"a {figure.split('_')[0]} answer" + ", balanced" * figure.endswith("balanced")
        table.add_row(name, *(f"{100 * answer:.1f}" for answer in answers))
    return table


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
