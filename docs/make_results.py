"""Tables of docs/results.md from the JSON that `hrzs eval` wrote: `python docs/make_results.py docs/results`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MODELS = {"untouched": "untouched", "tecoa-2e-4": "TeCoA, lr 2e-4", "tecoa": "TeCoA, lr 4e-4",
          "hierarchical": "hierarchical, lr 3e-4, β 12"}  # fmt: skip


def rows_of(report: dict[str, Any], attack: str, attack_level: object) -> list[dict[str, Any]]:
    found = [
        r
        for r in report["results"]
        if (r["attack"], r["attack_level"], r["scoring"]) == (attack, attack_level, "prompt")
    ]
    return sorted(found, key=lambda row: row["level"])


def percent(values: list[float]) -> str:
    return " / ".join(f"{100 * v:.1f}" for v in values)


def main(folder: Path) -> None:
    for part in ("seen", "unseen"):
        reports = {name: json.loads((folder / f"{name}-{part}.json").read_text()) for name in MODELS}
        task = reports["untouched"]["config"]["tasks"][0]
        print(
            f"\n**{part}** classes: {task['n']} images, levels of {' / '.join(map(str, task['levels'][:-1]))} nodes\n"
        )
        print("| | clean, level 0 / 1 / 2 / 3 | robust at the level attacked | leaf attack, scored at 0 / 1 / 2 / 3 "
              "| any-level clean | any-level robust (95%) |")  # fmt: skip
        print("|---|---|---|---|---|---|")
        for name, report in reports.items():
            summary = report["summary"]["levels"][0]
            top = len(task["levels"]) - 1
            direct = [next(r["robust"] for r in rows_of(report, "leaf-pgd" if level == 0 else "superclass-pgd", level)
                           if r["level"] == level) for level in range(top)]  # fmt: skip
            low, high = summary["any_level_robust_ci95"]
            print(f"| {MODELS[name]} | {percent([r['clean'] for r in rows_of(report, 'none', None)])} | {percent(direct)} "
                  f"| {percent([r['robust'] for r in rows_of(report, 'leaf-pgd', 0)])} | {100 * summary['any_level_clean']:.1f} "
                  f"| {100 * summary['any_level_robust']:.1f} ({100 * low:.1f}–{100 * high:.1f}) |")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
