"""Tables of docs/results.md from the JSON that `hrzs eval` wrote: `python docs/make_results.py docs/results`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

# A row of the table: its runs, one for each seed.
MODELS = {
    "untouched": ["untouched"],
    "TeCoA, lr 2e-4": ["tecoa-2e-4"],
    "TeCoA, lr 4e-4": ["tecoa", "tecoa-s1"],
    "TeCoA at every level, lr 3e-4": ["tecoa-every"],
    "hierarchical, lr 3e-4, β 12": ["hierarchical", "hierarchical-s1"],
}


def rows_of(report: dict[str, Any], attack: str, attack_level: object) -> list[dict[str, Any]]:
    found = [
        r
        for r in report["results"]
        if (r["attack"], r["attack_level"], r["scoring"]) == (attack, attack_level, "prompt")
    ]
    return sorted(found, key=lambda row: row["level"])


def direct(report: dict[str, Any]) -> list[float]:
    """Robust accuracy of each level under the attack that aims at it."""
    rows = [("leaf-pgd" if level == 0 else "superclass-pgd", level) for level in range(len(rows_of(report, "none", None)))]
    return [next(r["robust"] for r in rows_of(report, *row) if r["level"] == row[1]) for row in rows]


def cell(seeds: list[list[float]]) -> str:
    """Percentages of each level; with several seeds their mean ± standard deviation."""
    columns = [[100 * v for v in column] for column in zip(*seeds, strict=True)]
    return " / ".join(f"{mean(c):.1f}" + (f" ± {stdev(c):.1f}" if len(c) > 1 else "") for c in columns)


def main(folder: Path) -> None:
    for part in ("seen", "unseen"):
        reports = {
            model: [json.loads((folder / f"{run}-{part}.json").read_text()) for run in runs]
            for model, runs in MODELS.items()
        }
        task = reports["untouched"][0]["config"]["tasks"][0]
        print(f"\n**{part}** classes: {task['n']} images, levels of {' / '.join(map(str, task['levels'][:-1]))} nodes\n")
        print("| | seeds | clean, level 0 / 1 / 2 / 3 | robust at the level attacked | leaf attack, scored at 0 / 1 / 2 / 3 "
              "| any-level clean | any-level robust |")  # fmt: skip
        print("|---|---|---|---|---|---|---|")
        for model, seeds in reports.items():
            cells = [
                cell([[r["clean"] for r in rows_of(report, "none", None)] for report in seeds]),
                cell([direct(report) for report in seeds]),
                cell([[r["robust"] for r in rows_of(report, "leaf-pgd", 0)] for report in seeds]),
                cell([[report["summary"]["levels"][0]["any_level_clean"]] for report in seeds]),
                cell([[report["summary"]["levels"][0]["any_level_robust"]] for report in seeds]),
            ]
            print(f"| {model} | {len(seeds)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
