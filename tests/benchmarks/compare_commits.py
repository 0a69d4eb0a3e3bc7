"""Do two checkouts compute the same? For changes that move code and no figure.

    python tests/benchmarks/compare_commits.py BEFORE AFTER [--steps 20] [--limit 40] [--only eval,attack]

Both run in this environment's Python. Compared are the trees made anew, the tensors of a run of each method on
`shapes`, the rows and verdicts of an evaluation under every attack, and the images of `hrzs attack`, all to the bit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from safetensors import safe_open

from hrzs.attacks import ATTACKS
from hrzs.results.report import Report

METHODS = ("hierarchical", "tecoa", "pmg-aft", "fare", "clean", "tga-zsr", "trades")
TREES = ("shapes", "tiny_imagenet", "cifar10", "stl10", "caltech101", "caltech256", "imagenet")


def run(checkout: Path, folder: Path, *arguments: object) -> None:
    """A command of that checkout, in ``folder``."""
    env = os.environ | {"PYTHONPATH": str(checkout), "HRZS_CACHE": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hrzs", *map(str, arguments), "--quiet"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{checkout}: {' '.join(map(str, arguments))}\n{done.stderr}")


def tensors(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name).numpy().tobytes() for name in opened.keys()}  # noqa: SIM118 -- it is no mapping


def figures(file: Path) -> Any:
    """Rows and summary in today's form, whichever form a commit writes."""
    report = Report.from_json(file)
    return [replace(row, seconds=None) for row in report.results], report.summary


def cases(steps: int, limit: int) -> Iterator[tuple[str, tuple[object, ...], str, Callable[[Path], Any]]]:
    """What to run, what it is called, the file that it leaves and how that is read."""
    for name in TREES:
        yield f"tree {name}", ("build-tree", "--classes", name, "-o", "tree.yaml"), "tree.yaml", Path.read_bytes
    for method in METHODS:
        command = ("finetune", "--method", method, "--max-steps", steps, "--batch-size", 24, "-o", "run")
        yield f"finetune {method}", (*command, "--device", "cpu"), "run/model.safetensors", tensors
    attacks = ",".join(ATTACKS)
    command = (
        "eval",
        "--attack",
        attacks,
        "--level",
        "all",
        "--limit",
        limit,
        "--steps",
        steps,
        "--device",
        "cpu",
        "--json",
        "report.json",
    )
    yield "eval", command, "report.json", figures
    command = ("attack", "--attack", "superclass-pgd", "--limit", limit, "--device", "cpu", "-o", "set")
    yield "attack", command, "set/adversarial.safetensors", tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--only", default="tree,finetune,eval,attack", help="kinds of comparisons")
    options = parser.parse_args()
    differing = []
    for title, command, file, read in cases(options.steps, options.limit):
        if title.split()[0] not in options.only.split(","):
            continue
        found = []
        for checkout in (options.before, options.after):
            with tempfile.TemporaryDirectory() as folder:
                run(checkout.resolve(), Path(folder), *command)
                found.append(read(Path(folder) / file))
        same = found[0] == found[1]
        print(f"{title}: {'the same' if same else 'DIFFERENT'}", flush=True)
        differing += [] if same else [title]
    sys.exit(f"different: {', '.join(differing)}" if differing else 0)


if __name__ == "__main__":
    main()
