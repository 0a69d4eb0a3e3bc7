"""The report of a fine-tuning run as one HTML file: no script, and nothing in it is fetched from anywhere.

It is made of what the run folder holds (``metrics.jsonl``, ``config.yaml``, the header of the weights) and of where the
tuned model places the nodes of the tree. Of equal folders the pages are equal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeAlias

import open_clip
import torch
import yaml

from hrzs._version import __version__
from hrzs.errors import HrzsError
from hrzs.files import write_text
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.models.depth import node_points
from hrzs.models.loading import describe
from hrzs.models.saving import WEIGHTS_FILE, file_digest, read_header
from hrzs.progress import in_words
from hrzs.results.metrics import wilson
from hrzs.results.pages.charts import WIDTH, Curve, line_chart, smooth
from hrzs.results.pages.disk import Disk, level_name, spread
from hrzs.results.pages.templates import render
from hrzs.results.report import model_name

FILE = "report.html"
# What the trainer and the command line call theirs; not imported, so that either may call this module.
_METRICS, _CONFIG, _BEST = "metrics.jsonl", "config.yaml", "best"
#: From this share of embeddings at the ball's boundary on, the trainer warns.
_CAP = 0.01
#: So many nodes are drawn at most, the highest ones: the page is to stay one that a phone opens.
_MOST_NODES = 4000
#: What a row holds beside the parts of the loss, and beginnings of names that belong here too.
_NO_LOSS = {"step", "loss", "lr", "grad_norm", "seconds", "cap_share", "scale_image", "scale_text", "curvature"}
_NO_LOSS_EITHER = ("radius", "margin", "bound", "beta", "depth", "edges_ordered")
_NAMES = {
    "alignment": "alignment over the levels", "ce": "cross-entropy", "vic": "image to its leaf’s text",
    "anchor": "image to the original’s features",
    "gap_label": "norm gap, texts", "gap_intra": "norm gap, image means", "loss": "total", "lr": "learning rate",
    "grad_norm": "gradient norm", "scale_image": "images", "scale_text": "texts", "beta": "β", "curvature": "r",
    "edges_ordered": "texts", "edges_ordered_image": "class means of images", "cap_share": "of the images",
}  # fmt: skip
#: Parts of the loss with a chart of their own.
_APART = ("vic", "anchor")
#: What the headline shows of a validation.
_FIGURES = {
    "leaf, clean": "clean_0",
    "leaf, robust": "robust_0",
    "mean over levels, clean": "clean",
    "mean over levels, robust": "robust",
    "mean over levels, a constant answer": "constant",
    "any level": "any_level",
    "balanced over nodes, clean": "clean_balanced",
    "balanced over nodes, robust": "robust_balanced",
    "balanced over nodes, any level": "any_level_balanced",
}

Row: TypeAlias = Mapping[str, Any]
#: What held-out images said at a step, whether that was best so far, and its numbers: of a list, ``clean``, the mean,
#: and each as ``clean_0``, ``clean_1``, …
_Validation: TypeAlias = tuple[int, bool, Mapping[str, float]]
_Points: TypeAlias = list[tuple[float, float]]


@dataclass(frozen=True)
class _Run:
    """What is known of a run."""

    rows: Sequence[Row]
    config: Mapping[str, Any]
    header: Mapping[str, Any]
    model: ClipModel
    tree: Tree
    #: Of the weights in the folder, if there are any.
    digest: str | None
    keeps_best: bool
    #: None where the model has no Poincaré ball.
    disk: Disk | None
    defaults: Mapping[str, object]

    @property
    def about(self) -> Mapping[str, Any]:
        """What the weights say of the run."""
        about: Mapping[str, Any] = self.header.get("run") or self.model.info.run
        return about

    @property
    def method(self) -> str:
        return str(self.config.get("method") or self.about.get("method") or "fine-tuning")

    @property
    def model_name(self) -> str:
        base = self.about.get("base") or {}
        name = self.config.get("model") or base.get("model") or self.model.info.arch
        pretrained = self.config.get("pretrained") or base.get("pretrained")
        return model_name(f"{name}:{pretrained}" if pretrained else str(name))

    @property
    def data_name(self) -> str:
        if data := self.config.get("data"):
            return Path(str(data)).name
        return str(self.header.get("training_data") or self.model.info.training_data)

    @property
    def criterion(self) -> str:
        return str(self.config.get("best-by") or "of the run")

    @property
    def validations(self) -> list[_Validation]:
        return [
            (int(row["step"]), found.get("best") is True, _numbers(found))
            for row in self.rows
            if isinstance(found := row.get("validation"), Mapping) and found.get("clean") and found.get("robust")
        ]

    @property
    def duration(self) -> str:
        """In words; a resumed run counts from 0 again."""
        total = last = 0.0
        for _, value in self.series("seconds"):
            if math.isfinite(value):
                total += value if value < last else value - last
                last = value
        return in_words(total)

    @property
    def reach(self) -> int:
        """How far a smoothed curve looks around each step; short runs are not smoothed."""
        return len(self.rows) // 60

    def level(self, k: int) -> str:
        return level_name(k, self.tree)

    def series(self, key: str, unit: int = 1) -> _Points:
        """Steps and numbers; where one was not logged, or was none, it is NaN. Empty if it was never logged."""
        points = [(float(row["step"]), unit * _number(row.get(key))) for row in self.rows]
        return points if any(key in row for row in self.rows) else []

    # Of curves there are none where nothing was logged.

    def curves(self, *keys: str, unit: int = 1, kind: str = "line") -> list[Curve]:
        """Numbers as they were logged, in this unit."""
        names = [_NAMES.get(key, key.replace("_", " ")) for key in keys]
        found = [Curve(names[i], self.series(key, unit), i, kind) for i, key in enumerate(keys)]
        return [curve for curve in found if curve.points]

    def by_level(self, prefix: str, kind: str = "line") -> list[Curve]:
        """Of ``prefix_0``, ``prefix_1``, …, which were logged for each level."""
        found = self.curves(*(f"{prefix}_{k}" for k in range(self.tree.height)), kind=kind)
        return [replace(curve, name=self.level(curve.colour or 0)) for curve in found]

    def smoothed(self, *keys: str) -> list[Curve]:
        """Numbers as they were logged, and before each of them a smoothed one where the run is long."""
        raw = [replace(curve, kind="faint") for curve in self.curves(*keys) if self.reach]
        over = [replace(curve, points=smooth(curve.points, self.reach)) for curve in self.curves(*keys)]
        return [*raw, *over]

    @property
    def parts(self) -> list[str]:
        """What the loss was logged to consist of."""
        keys = dict.fromkeys(key for row in self.rows for key, value in row.items() if math.isfinite(_number(value)))
        return [key for key in keys if key not in _NO_LOSS and not key.startswith(_NO_LOSS_EITHER)]

    @property
    def gaps(self) -> list[Curve]:
        return self.smoothed(*(key for key in self.parts if key.startswith("gap_")))

    @property
    def loss(self) -> list[Curve]:
        """The total, and over it, since they may equal it, its main parts: their dashes let it show."""
        main = [key for key in self.parts if not key.startswith("gap_") and key not in _APART]
        return [curve for curve in self.smoothed("loss", *main) if curve.kind != "faint" or not curve.colour]

    @property
    def boundary(self) -> list[Curve]:
        """The share of embeddings at the ball's boundary in %, and where the trainer warns."""
        share = [] if self.model.ball is None else self.curves("cap_share", unit=100)
        ends = [(curve.points[i][0], 100 * _CAP) for curve in share for i in (0, -1)]
        return [*share, Curve("the trainer warns", ends, 1, "limit")] if share else []

    @property
    def curvature(self) -> list[float]:
        """The values it took, without those that are no number."""
        return list(dict.fromkeys(v for _, v in self.series("curvature") if math.isfinite(v)))

    @property
    def image_radii(self) -> list[Curve]:
        """Smoothed, of each level and of all images."""
        levels, overall = self.by_level("radius_image"), self.series("radius_image")
        every = Curve("all images", overall, None, "thick" if levels else "line")
        found = [*levels, every] if overall else levels
        return [replace(curve, points=smooth(curve.points, self.reach)) for curve in found]

    @property
    def radii(self) -> list[Curve]:
        """At the end, by level: the root on the left, leaves on the right."""
        texts, images = (_at_the_end(self.by_level(key)) for key in ("radius_text", "radius_image"))
        curves = []
        if self.disk is not None:
            for level in self.disk.norms:
                drawn = [dot.radius for dot in self.disk.dots if dot.node.level == level]
                curves.append(Curve("", [(s - level, r) for s, r in spread(drawn)], level, "cloud"))
            line = [(-float(level), median(norms)) for level, norms in self.disk.norms.items()]
            curves.append(Curve("texts, median of the level", line, None, "thick"))
        elif texts:
            curves.append(Curve("texts, mean of the level", texts, None, "thick"))
        if images:
            curves.append(Curve("image means, last step", images, 1))
        return curves if any(curve.finite for curve in curves) else []

    @property
    def level_names(self) -> dict[float, str]:
        return {float(-k): self.level(k).removeprefix("level ") for k in range(self.tree.height + 1)}

    # -- validation --

    @property
    def best(self) -> _Validation | None:
        """The last that was better than all before it."""
        return next((found for found in reversed(self.validations) if found[1]), None)

    @property
    def any_level_ci95(self) -> tuple[float, float] | None:
        """Of the best or else the last."""
        _, _, found = self.best or self.validations[-1]
        share, n = (found.get(key, math.nan) for key in ("any_level", "n"))
        return wilson(round(share * n), int(n)) if math.isfinite(share) and math.isfinite(n) else None

    @property
    def figures(self) -> dict[str, list[float]]:
        """Of the last validation, and of the best if there is one; an older hrzs logged nothing balanced."""
        columns = [self.validations[-1], *filter(None, [self.best])]
        keys = _FIGURES | {f"criterion: {self.criterion}": "criterion"}
        figures = {name: [found.get(key, math.nan) for _, _, found in columns] for name, key in keys.items()}
        return {name: values for name, values in figures.items() if any(map(math.isfinite, values))}

    def validated(self, kind: str, any_level: str = "") -> list[Curve]:
        """Accuracies in % of each level, and right at every level."""
        looks = [(float(step), found) for step, _, found in self.validations]
        colours = {self.level(k): (f"{kind}_{k}", k, "line") for k in range(self.tree.height)}
        curves = [
            Curve(name, [(step, 100 * found.get(key, math.nan)) for step, found in looks], colour, line)
            for name, (key, colour, line) in (colours | {"any level": (any_level, None, "thick")}).items()
            if any(key in found for _, found in looks)
        ]
        return curves if any(kind in found for _, found in looks) else []

    # -- tables --

    @property
    def changed(self) -> set[str]:
        """The options that are not at the trainer's defaults."""
        return {name for name, value in self.config.items() if not _equal(value, self.defaults.get(name))}

    @property
    def provenance(self) -> dict[str, Mapping[str, Any]]:
        about = describe(self.model)
        about = {k: about[k] for k in ("arch", "licence", "training_data", "image_size", "embed_dim")}
        about |= {k: self.header[k] for k in ("licence", "training_data") if k in self.header}
        # Not that of the model in memory, which is still called what training started from.
        about["digest"] = self.digest
        height, nodes = self.tree.height, [len(level) for level in self.tree.levels]
        tree = {"digest": self.tree.digest, "classes": nodes[0], "levels below the root": height,
                "nodes at each level": nodes[:height]}  # fmt: skip
        versions = {"hrzs": __version__, "torch": torch.__version__, "open_clip": open_clip.__version__}
        return {"Model": about, "Trained from": self.about.get("base") or {}, "Tree": tree, "Versions": versions}


# -- reading ----------------------------------------------------------------------------------------------------------


def write_report(folder: Path, model: ClipModel, tree: Tree, *, template: str, defaults: Mapping[str, object]) -> Path:
    """Write ``report.html`` into the folder of a run, and say where that is.

    Args:
        folder: of a run; its ``metrics.jsonl``, its ``config.yaml`` or its weights may be missing.
        model: as the run left it, such as ``hrzs.load(folder)``.
        tree: the one trained on; of a forest the first, which is what the log speaks of.
        template: that of the prompts.
        defaults: of the options by name, such as ``batch-size``; the page shows what differs.

    Raises:
        HrzsError: a file of the folder cannot be read, or the page cannot be written; what was there is untouched.
        UsageError: an unknown template.
    """
    weights = folder / WEIGHTS_FILE
    placed = None if model.ball is None else node_points(model, tree, template)
    run = _Run(
        rows=_rows(folder / _METRICS),
        config=run_config(folder),
        header=read_header(weights) if weights.is_file() else {},
        model=model,
        tree=tree,
        digest=file_digest(weights) if weights.is_file() else None,
        keeps_best=(folder / _BEST / WEIGHTS_FILE).is_file(),
        disk=None if placed is None else Disk.of(placed, WIDTH, 9, _MOST_NODES),
        defaults=defaults,
    )
    file = folder / FILE
    data = {"run": run, "hrzs": __version__, "cap": _CAP, "line_chart": line_chart, "median": median}
    write_text(file, render("training.html.j2", **data))
    return file


def _read(path: Path) -> str | None:
    """The text of a file; None if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise HrzsError(f"{path}: cannot be read ({error})") from error


def _rows(path: Path) -> list[Row]:
    """The lines of the log; a last one without an end was cut off while it was written."""
    rows: list[Row] = []
    *whole, _ = (_read(path) or "").split("\n")
    for n, line in enumerate(whole, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise HrzsError(f"{path}, line {n}: not JSON ({error}); the trainer writes one row a line") from error
        if not isinstance(row, dict) or not math.isfinite(_number(row.get("step"))):
            raise HrzsError(f'{path}, line {n}: no row of a run, such as {{"step": 1, "loss": 2.5}}')
        rows.append(row)
    return rows


def run_config(folder: Path) -> dict[str, Any]:
    """The options that a run was made with; empty where its ``config.yaml`` is missing.

    Raises:
        HrzsError: the file cannot be read.
    """
    path = folder / _CONFIG
    text = _read(path)
    if text is None:
        return {}
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise HrzsError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise HrzsError(f"{path}: a mapping of option names to values is needed")
    return {str(name): value for name, value in config.items()}


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _numbers(found: Row) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for key, value in found.items():
        each = [_number(v) for v in value] if isinstance(value, list) else [_number(value)]
        numbers |= {key: fmean(each or [math.nan])} | {f"{key}_{k}": v for k, v in enumerate(each)}
    return numbers


def _at_the_end(levels: Sequence[Curve]) -> _Points:
    """The last values by level, of the highest first."""
    return [(-float(c.colour or 0), c.last if c.finite else math.nan) for c in reversed(levels)]


def _equal(a: object, b: object) -> bool:
    try:
        return a == b or (a is not None and b is not None and Fraction(str(a)) == Fraction(str(b)))
    except (ValueError, ZeroDivisionError):
        return False
