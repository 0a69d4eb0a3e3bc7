"""The report of a fine-tuning run as one HTML file: no script, and nothing in it is fetched from anywhere.

It is made of what the run folder holds (``metrics.jsonl``, ``config.yaml``, the header of the weights) and of where the
tuned model places the nodes of the tree. Of equal folders the pages are equal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.clip import ClipModel
from hrzs.models.depth import NodePoints, node_points
from hrzs.models.loading import WEIGHTS_FILE, describe, file_digest, read_header
from hrzs.results.metrics import wilson
from hrzs.results.pages.charts import WIDTH, Curve, line_chart, number, smooth
from hrzs.results.pages.disk import geodesic, to_disk
from hrzs.results.pages.markup import Markup, definitions, document, el, join, number_heads, shown, table

FILE = "report.html"
# What the trainer and the command line call theirs; not imported, so that either may call this module.
_METRICS, _CONFIG, _BEST = "metrics.jsonl", "config.yaml", "best"
#: From this share of embeddings at the ball's boundary on, the trainer warns.
_CAP = 0.01
#: So many nodes are drawn at most, the highest ones: the page is to stay one that a phone opens.
_MOST_NODES = 4000
#: In a tree of so many nodes at most, leaves are named in the disk as well; and of so many nodes names are tried.
_NAME_LEAVES, _MOST_NAMES = 60, 300
#: What a row holds beside the parts of the loss, and beginnings of names that belong here too.
_NO_LOSS = {"step", "loss", "lr", "grad_norm", "seconds", "cap_share", "scale_image", "scale_text", "curvature"}
_NO_LOSS_EITHER = ("radius", "margin", "bound", "beta", "depth", "edges_ordered")
_NAMES = {
    "alignment": "alignment over the levels", "ce": "cross-entropy", "vic": "image to its leaf’s text",
    "anchor": "image to the original’s features",
    "gap_label": "norm gap, texts", "gap_intra": "norm gap, image means", "loss": "total", "lr": "learning rate",
    "grad_norm": "gradient norm", "scale_image": "images", "scale_text": "texts", "beta": "β", "curvature": "r",
}  # fmt: skip
#: Parts of the loss with a chart of their own: its title, and what it shows.
_APART = {
    "vic": ("Near the leaf", "Distance of images to the text of their leaf, beyond the margin, by step"),
    "anchor": ("Near the original", "Distance from the original's features, squared, as a share of them, by step"),
}

Row: TypeAlias = Mapping[str, Any]
_ByLevel: TypeAlias = Sequence[tuple[int, Sequence[tuple[float, float]]]]


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
    placed: NodePoints | None
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
    def validations(self) -> list[tuple[int, Row]]:
        """Steps and what was found at them."""
        return [(int(row["step"]), row["validation"]) for row in self.rows if _is_validation(row.get("validation"))]

    @property
    def seconds(self) -> float:
        """A resumed run counts from 0 again."""
        total = last = 0.0
        for _, value in self.series("seconds"):
            if math.isfinite(value):
                total += value if value < last else value - last
                last = value
        return total

    def series(self, key: str) -> list[tuple[float, float]]:
        """Steps and numbers; where one was not logged, or was none, it is NaN. Empty if it was never logged."""
        points = [(float(row["step"]), _number(row.get(key))) for row in self.rows]
        return points if any(key in row for row in self.rows) else []

    def numbered(self, prefix: str) -> list[tuple[int, list[tuple[float, float]]]]:
        """`series` of ``prefix_0``, ``prefix_1``, … for each level that was logged."""
        return [(k, found) for k in range(self.tree.height) if (found := self.series(f"{prefix}_{k}"))]

    def level(self, k: int) -> str:
        return "leaves" if k == 0 else "root" if k == self.tree.height else f"level {k}"


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
    run = _Run(
        rows=_rows(folder / _METRICS),
        config=_config(folder / _CONFIG),
        header=read_header(weights) if weights.is_file() else {},
        model=model,
        tree=tree,
        digest=file_digest(weights) if weights.is_file() else None,
        keeps_best=(folder / _BEST / WEIGHTS_FILE).is_file(),
        placed=None if model.ball is None else node_points(model, tree, template),
        defaults=defaults,
    )
    file = folder / FILE
    write_text(file, _render(run))
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


def _config(path: Path) -> dict[str, Any]:
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


def _is_validation(found: object) -> bool:
    return isinstance(found, Mapping) and bool(found.get("clean")) and bool(found.get("robust"))


# -- the page ---------------------------------------------------------------------------------------------------------


def _render(run: _Run) -> str:
    parts: list[tuple[str, str, Callable[[_Run], list[Markup]]]] = [
        ("headline", "Headline", _headline),
        ("validation", "Accuracy while training", _validation),
        ("loss", "Loss", _loss),
        ("norm", "Norm by depth", _norm),
        ("disk", "The tree in the Poincaré disk", _disk),
        ("schedule", "Learning rate and gradient", _schedule),
        ("head", "The head", _head),
        ("options", "Options", _options),
        ("provenance", "Provenance", _provenance),
    ]
    sections = [(anchor, name, content) for anchor, name, make in parts if (content := make(run))]
    title = f"{run.method}: {_model_name(run)} on {_data_name(run)}"
    page = [
        el("header",
            el("p", f"hrzs {__version__}, a fine-tuning run", class_="soft"),
            el("h1", title),
            _lead(run),
            el("nav", *(el("a", name, href=f"#{anchor}") for anchor, name, _ in sections), aria_label="Sections")),
        el("main", *(el("section", el("h2", name, id=anchor), *content) for anchor, name, content in sections)),
        el("footer", el("p", "Accuracies in %. Level 0 are the leaves of the tree, its root is not scored.")),
    ]  # fmt: skip
    return document(title, page)


def _model_name(run: _Run) -> str:
    base = run.about.get("base") or {}
    name = run.config.get("model") or base.get("model") or run.model.info.arch
    pretrained = run.config.get("pretrained") or base.get("pretrained")
    return f"{name} ({pretrained})" if pretrained else str(name)


def _data_name(run: _Run) -> str:
    return str(run.config.get("data") or run.header.get("training_data") or run.model.info.training_data)


def _lead(run: _Run) -> Markup:
    steps = f"{len(run.rows)} step{'s' if len(run.rows) != 1 else ''}"
    about = f"{steps} in {_duration(run.seconds)}" if run.rows else "no step was logged"
    levels = f"a tree of {len(run.tree.classes)} classes and {run.tree.height} levels below its root"
    over = [(p, v) for p, v in run.series("cap_share") if v > _CAP]
    warning = el("span", "✗ gradients may be masked", class_="pill bad") if over else None
    lead = [el("p", f"{about}; {levels} ", warning)]
    if over:
        step, most = max(over, key=lambda point: point[1])
        said = f"""
            At {len(over)} of {len(run.rows)} steps more than {_CAP:.0%} of the image embeddings were at the ball’s
            boundary, where gradients vanish (most at step {step:.0f}: {_percent(most)}%): robustness may be masked, so
            attack with more than gradients, or train with a lower --radius.
        """
        lead.append(el("p", " ".join(said.split())))
    return join(lead)


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "less than a second"
    if seconds < 60:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "–"


def _card(title: object, *content: object) -> Markup:
    return el("article", el("h3", title), *content, class_="card")


def _cards(cards: Sequence[Markup]) -> list[Markup]:
    return [el("div", *cards, class_="cards")] if cards else []


# -- validation -------------------------------------------------------------------------------------------------------


def _accuracies(found: Row, kind: str) -> list[float]:
    """Of each level; nothing is known of what another hrzs did not log."""
    return [_number(value) for value in found.get(kind) or [math.nan]]


def _mean_of(kind: str) -> Callable[[Row], float]:
    return lambda found: fmean(_accuracies(found, kind))


def _best(run: _Run) -> tuple[int, Row] | None:
    """The last that was better than all before it."""
    return next(((step, found) for step, found in reversed(run.validations) if found.get("best") is True), None)


def _headline(run: _Run) -> list[Markup]:
    validations = run.validations
    if not validations:
        measures = el("code", "hrzs eval"), " measures the model."
        return [el("p", "No held-out images were looked at while training; ", *measures)]
    best, last = _best(run), validations[-1]
    criterion = str(run.config.get("best-by") or "of the run")
    columns = [("last", *last)] + ([("best", *best)] if best is not None else [])
    figures: dict[str, Callable[[Row], float]] = {
        "leaf, clean": lambda found: _accuracies(found, "clean")[0],
        "leaf, robust": lambda found: _accuracies(found, "robust")[0],
        "mean over levels, clean": _mean_of("clean"),
        "mean over levels, robust": _mean_of("robust"),
        "mean over levels, a constant answer": _mean_of("constant"),
        "any level": lambda found: _number(found.get("any_level")),
        "balanced over nodes, clean": _mean_of("clean_balanced"),
        "balanced over nodes, robust": _mean_of("robust_balanced"),
        "balanced over nodes, any level": lambda found: _number(found.get("any_level_balanced")),
        f"criterion: {criterion}": lambda found: _number(found.get("criterion")),
    }
    body = [(name, *(_percent(figure(found)) for _, _, found in columns)) for name, figure in figures.items()]
    body = [row for row in body if set(row[1:]) != {"–"}]  # an older hrzs logged nothing balanced
    heads = number_heads(*(f"{name}, step {step}" for name, step, _ in columns))
    chosen = best or last
    any_level, n = _number(chosen[1].get("any_level")), _number(chosen[1].get("n"))
    if math.isfinite(n) and math.isfinite(any_level):
        ends = wilson(round(any_level * n), int(n))
        interval = f"% [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
    else:
        interval = "%"
    if best is not None and run.keeps_best:
        where = f"The best model by the criterion “{criterion}”, that of step {best[0]}, is in {_BEST}/; "
        where += "that of the last step is in this folder."
    else:
        where = "The model of the last step is in this folder; none was kept as the best."
    caption = f"Accuracy on {number(n)} held-out images, each level attacked in turn"
    return [
        el("article",
           el("div", _percent(any_level), " ", el("small", interval), class_="figure"),
           el("p", f"right at every level whichever is attacked, at step {chosen[0]}; brackets: 95% interval. A short "
                   "attack on few images steers a run and is no result: that takes ", el("code", "hrzs eval"), "."),
           table(caption, ["", *heads], body),
           el("p", where), class_="card"),
    ]  # fmt: skip


def _validation(run: _Run) -> list[Markup]:
    validations = run.validations
    if not validations:
        return []
    levels = max(len(found["clean"]) for _, found in validations)
    best = _best(run)
    marks = [] if best is None or len(validations) < 2 else [(float(best[0]), "best")]

    def curves(kind: str) -> list[Curve]:
        def value(found: Row, k: int) -> float:
            values = _accuracies(found, kind)
            return 100 * values[k] if k < len(values) else math.nan

        return [Curve(run.level(k), [(float(s), value(f, k)) for s, f in validations], k) for k in range(levels)]

    whole = [(float(s), 100 * _number(f.get("any_level"))) for s, f in validations]
    robust = [*curves("robust"), Curve("any level", whole, None, "thick")]
    both_balanced: list[tuple[str, str, list[Curve]]] = []
    if any("robust_balanced" in found for _, found in validations):
        whole = [(float(s), 100 * _number(f.get("any_level_balanced"))) for s, f in validations]
        both_balanced = [
            ("Clean, balanced", "Balanced clean accuracy: every node of a level counts alike,",
             curves("clean_balanced")),
            ("Robust, balanced", "Balanced accuracy under attack: every node of a level counts alike,",
             [*curves("robust_balanced"), Curve("any level", whole, None, "thick")]),
        ]  # fmt: skip
    return _cards([
        _card(name, line_chart(f"{about} in % by step", shown_curves, y=(0.0, 100.0), marks=marks, unit="%"))
        for name, about, shown_curves in (
            ("Clean", "Clean accuracy of each level", curves("clean")),
            ("Robust", "Accuracy of each level under attack", robust),
            *both_balanced,
        )
    ])  # fmt: skip


# -- curves -----------------------------------------------------------------------------------------------------------


def _reach(run: _Run) -> int:
    """How far a smoothed curve looks around each step; short runs are not smoothed."""
    return len(run.rows) // 60


def _smoothing(run: _Run) -> str:
    reach = _reach(run)
    return f"Faint: every step; full, and in the legend: the mean over {2 * reach + 1} steps." if reach else ""


def _smoothed(run: _Run, key: str, colour: int | None = 0, kind: str = "line") -> list[Curve]:
    """A logged number: raw behind, smoothed before it."""
    points, reach, name = run.series(key), _reach(run), _NAMES.get(key, key.replace("_", " "))
    if not points or not reach:
        return [Curve(name, points, colour, kind)] if points else []
    return [Curve(name, points, colour, "faint"), Curve(name, smooth(points, reach), colour, kind)]


def _loss(run: _Run) -> list[Markup]:
    keys = dict.fromkeys(key for row in run.rows for key, value in row.items() if math.isfinite(_number(value)))
    parts = [key for key in keys if key not in _NO_LOSS and not key.startswith(_NO_LOSS_EITHER)]
    gaps = [key for key in parts if key.startswith("gap_")]
    main = [key for key in parts if key not in gaps and key not in _APART]
    cards = []
    if total := _smoothed(run, "loss"):
        # The parts are drawn over the total, which they may equal: dashes let it show.
        over = [curve for i, key in enumerate(main, 1) for curve in _smoothed(run, key, i)[-1:]]
        cards.append(_card("Total", line_chart("The loss and its main parts by step", [*total, *over])))
    for key, (title, about) in _APART.items():
        if key in parts:
            cards.append(_card(title, line_chart(about, _smoothed(run, key))))
    if gaps:
        gap = [curve for i, key in enumerate(gaps) for curve in _smoothed(run, key, i)]
        cards.append(_card("Parents nearer the centre", line_chart("Norm gaps short of the margin by step", gap)))
    note = join(["Parts stand as they are before their weights λ. ", _smoothing(run)])
    return [el("p", note, class_="note"), *_cards(cards)] if cards else []


def _schedule(run: _Run) -> list[Markup]:
    cards = []
    if rate := run.series("lr"):
        cards.append(_card("Learning rate", line_chart("Learning rate by step", [Curve(_NAMES["lr"], rate, 0)])))
    if gradient := _smoothed(run, "grad_norm"):
        chart = line_chart("Norm of the gradient, before clipping, by step", gradient)
        cards.append(
            _card("Gradient norm", chart, el("p", _smoothing(run), class_="note") if _smoothing(run) else None)
        )
    return _cards(cards)


def _head(run: _Run) -> list[Markup]:
    cards = []
    names = [key for key in ("scale_image", "scale_text") if run.series(key)]
    if scales := [Curve(_NAMES[key], run.series(key), i) for i, key in enumerate(names)]:
        cards.append(_card("Scales", line_chart("Factors before the map into the ball by step", scales)))
    one = [Curve("β", points) for points in (run.series("beta"),) if points]
    if beta := one or [Curve(run.level(k), points, k) for k, points in run.numbered("beta")]:
        cards.append(_card("Inverse temperature β", line_chart("Inverse temperature by step", beta)))
    curvature = [(s, v) for s, v in run.series("curvature") if math.isfinite(v)]
    note = []
    if len({v for _, v in curvature}) > 1:
        cards.append(_card("Curvature r", line_chart("Curvature by step", [Curve("r", curvature)])))
    elif curvature:
        flat = curvature[0][1] == 0
        note = [el("p", "The space is flat." if flat else f"The curvature stayed at r = {number(curvature[0][1])}.")]
    if (share := run.series("cap_share")) and run.model.ball is not None:
        cards.append(_at_boundary(share))
    return [*note, *_cards(cards)]


def _at_boundary(share: Sequence[tuple[float, float]]) -> Markup:
    percent = [(s, 100 * v) for s, v in share]
    limit = Curve("the trainer warns", [(share[i][0], 100 * _CAP) for i in (0, -1)], 1, "limit")
    most = max((v for _, v in percent if math.isfinite(v)), default=0.0)
    about = "Share of the image embeddings at the ball’s boundary in % by step"
    bounds = (0.0, 1.05 * max(most, 120 * _CAP))
    return _card(
        "At the ball’s boundary",
        line_chart(about, [Curve("of the images", percent), limit], y=bounds, unit="%"),
        el(
            "p",
            "What lies at the rim has no gradient, so that attacks fail though adversarial images may exist.",
            class_="note",
        ),
    )


# -- norms and the disk -----------------------------------------------------------------------------------------------


def _norm(run: _Run) -> list[Markup]:
    texts, images = run.numbered("radius_text"), run.numbered("radius_image")
    overall = run.series("radius_image")
    if not texts and not images and not overall and run.placed is None:
        return []
    cards = []
    if final := _by_depth(run, texts, images):
        cards.append(_card("At the end", final))
    if texts:
        curves = [Curve(run.level(k), points, k) for k, points in texts]
        cards.append(_card("Texts", line_chart("Mean radius of the text embeddings of each level by step", curves)))
    if margins := run.numbered("margin"):
        curves = [Curve(run.level(k), points, k) for k, points in margins]
        curves += [Curve("", points, k, "faint") for k, points in run.numbered("bound")]
        about = "Largest margin that the texts of each level leave room for, in logits, by step"
        faint = "Faint: what theory allows texts so far out, if two of them were antipodal."
        cards.append(_card("Margins", line_chart(about, curves), el("p", faint, class_="note")))
    shares = {"texts": run.series("edges_ordered"), "class means of images": run.series("edges_ordered_image")}
    if ordered := [Curve(name, [(s, 100 * v) for s, v in p], i) for i, (name, p) in enumerate(shares.items()) if p]:
        about = "Share of the tree’s edges whose parent lies nearer the centre than the child, in %, by step"
        cards.append(_card("Edges in order", line_chart(about, ordered, y=(0.0, 105.0), unit="%")))
    reach = _reach(run)
    by_level = [Curve(run.level(k), smooth(points, reach), k) for k, points in images]
    all_images = [Curve("all images", smooth(overall, reach), None, "thick" if images else "line")] if overall else []
    if by_level or all_images:
        about = "Mean radius of the image embeddings by step, where superclasses have theirs the means of their images"
        note = el("p", f"Each is the mean over {2 * reach + 1} steps.", class_="note") if reach else None
        cards.append(_card("Images", line_chart(about, [*by_level, *all_images]), note))
    unit = "the norm of an embedding" if run.model.ball is None else "the share of the ball’s radius, 1 is its boundary"
    said = [f"Radius: {unit}. In a tree laid out by depth parents lie nearer the centre than their children."]
    if run.placed is not None:
        norms = _norms(run.placed)
        edges = [(norms[id(n)], norms[id(c)]) for n in run.tree.root.walk() for c in n.children]
        nearer = sum(parent < child for parent, child in edges)
        said.append(
            f"Of the {len(edges)} edges between texts, those of the root among them, that holds for {nearer} "
            f"({_percent(nearer / len(edges))}%)."
        )
    return [el("p", " ".join(said)), *_cards(cards)]


def _norms(placed: NodePoints) -> dict[int, float]:
    return {id(n): r for n, r in zip(placed.nodes, placed.points.double().norm(dim=1).tolist(), strict=True)}


def _highest(placed: NodePoints) -> list[Node]:
    """The nodes that are drawn."""
    return sorted(placed.nodes, key=lambda node: -node.level)[:_MOST_NODES]


def _last(points: Sequence[tuple[float, float]]) -> float:
    return next((v for _, v in reversed(points) if math.isfinite(v)), math.nan)


def _by_depth(run: _Run, texts: _ByLevel, images: _ByLevel) -> Markup | None:
    """Levels from the root on the left to the leaves on the right."""
    top = run.tree.height
    curves: list[Curve] = []
    if run.placed is not None:
        norms, drawn = _norms(run.placed), _highest(run.placed)
        for level in range(top, -1, -1):
            here = [norms[id(node)] for node in drawn if node.level == level]
            # A fixed spread sideways, so that equal norms do not hide one another.
            spread = [((0.618034 * i + 0.5) % 1 - 0.5) * 0.45 for i in range(len(here))]
            curves.append(Curve("", [(s - level, r) for s, r in zip(spread, here, strict=True)], level, "cloud"))
        all_of = [[norms[id(n)] for n in run.placed.nodes if n.level == level] for level in range(top + 1)]
        line = [(float(-k), median(all_of[k])) for k in range(top, -1, -1) if all_of[k]]
        curves.append(Curve("texts, median of the level", line, None, "thick"))
    elif texts:
        line = [(float(-k), _last(p)) for k, p in reversed(texts)]
        curves.append(Curve("texts, mean of the level", line, None, "thick"))
    if images:
        curves.append(Curve("image means, last step", [(float(-k), _last(p)) for k, p in reversed(images)], 1))
    if not any(curve.finite for curve in curves):
        return None
    names = {float(-k): run.level(k).removeprefix("level ") for k in range(top + 1)}
    chart = line_chart("Radius of the embeddings by level of the tree, the root on the left, leaves on the right",
                       curves, x="level", x_names=names)  # fmt: skip
    return join([chart, el("p", "A dot is the text of a node, at the lowest level it stands at.", class_="note")]
                if run.placed is not None else [chart])  # fmt: skip


def _disk(run: _Run) -> list[Markup]:
    if run.placed is None:
        kind = "scores by cosine" if run.model.geometry is None else "lives in flat space"
        return [el("p", f"This model {kind}, so its nodes have no place in a Poincaré disk.")]
    disk, share = to_disk(run.placed.points)
    at = {id(node): complex(z) for node, z in zip(run.placed.nodes, disk, strict=True)}
    nodes = _highest(run.placed)
    left_out = len(run.placed.nodes) - len(nodes)
    about = f"The {len(nodes)} {'highest ' if left_out else ''}nodes of the tree in the Poincaré disk"
    levels = [(k, f"{run.level(k)}") for k in range(run.tree.height, -1, -1) if any(n.level == k for n in nodes)]
    legend = el("ul", *(el("li", _swatch(k), name) for k, name in levels), class_="legend")
    said = (
        f"Norms are exact; an angle is that of the first two principal components of the directions, which hold "
        f"{share:.0%} of their variance. Edges are geodesics. Placed by {run.placed.lift}."
    )
    said += f" {left_out} lower nodes are left out." if left_out else ""
    return [
        el("p", said),
        el("article",
           el("div", el("figure", _disk_svg(nodes, at, about), legend), _radii(run, run.placed), class_="pair"),
           class_="card"),
    ]  # fmt: skip


def _radii(run: _Run, placed: NodePoints) -> Markup:
    norms = _norms(placed)
    body = []
    for level in range(run.tree.height, -1, -1):
        if here := sorted(norms[id(node)] for node in placed.nodes if node.level == level):
            body.append((run.level(level), len(here), *(f"{r:.3f}" for r in (here[0], median(here), here[-1]))))
    return table("Radius of the texts by level", ["Level", *number_heads("Nodes", "Lowest", "Median", "Highest")], body)


def _swatch(level: int) -> Markup:
    dot = el("circle", class_="node", style=_colour(level), cx=5, cy=5, r=4)
    return el("svg", dot, class_="swatch round", viewBox="0 0 10 10", aria_hidden="true")


def _colour(level: int) -> str:
    return f"--c:var(--s{level % 6})"


def _disk_svg(nodes: Sequence[Node], at: Mapping[int, complex], about: str) -> Markup:
    """The disk, its names where there is room for them; the title of a node says the others'."""
    middle, radius = WIDTH / 2, WIDTH / 2 - 8

    def place(z: complex) -> tuple[float, float]:
        return round(middle + radius * z.real, 1), round(middle - radius * z.imag, 1)

    drawn_nodes = {id(node) for node in nodes}
    strokes = [
        "M" + "L".join("{} {}".format(*place(complex(z))) for z in geodesic(at[id(node)], at[id(child)], 9))
        for node in nodes
        for child in node.children
        if id(child) in drawn_nodes
    ]
    drawn = [
        el("circle", class_="axis", cx=middle, cy=middle, r=radius),
        el("path", class_="edge", d="".join(strokes)),
    ]
    for node in reversed(nodes):  # high ones over low ones
        x, y = place(at[id(node)])
        title = el("title", f"{node.name}: level {node.level}, radius {abs(at[id(node)]):.3f}")
        size = 3 + min(node.level, 4)
        drawn.append(el("circle", title, class_="node", style=_colour(node.level), cx=x, cy=y, r=size))
    drawn += _names(nodes, {key: place(z) for key, z in at.items()})
    return el("svg", *drawn, viewBox=f"0 0 {WIDTH} {WIDTH}", role="img", aria_label=about, class_="disk")


def _names(nodes: Sequence[Node], places: Mapping[int, tuple[float, float]]) -> Iterator[Markup]:
    """From the root downwards, each name that has a place free of points and of the names before it.

    In a large tree the leaves go without, and names may lie over their points.
    """
    few = len(nodes) <= _NAME_LEAVES
    named = [node for node in nodes if few or not node.is_leaf][:_MOST_NAMES]
    points = [places[id(node)] for node in (nodes if few else named)]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    for node in named:
        x, y = places[id(node)]
        name = node.name if len(node.name) <= 24 else f"{node.name[:23]}…"
        width = 6.2 * len(name)
        for right in (True, False):
            for base in (y + 4, y - 6, y + 14):
                start = x + 9 if right else x - 9 - width
                box = (start, base - 10, start + width, base + 3)
                if box[0] < 0 or box[2] > WIDTH or any(_overlap(box, other) for other in taken):
                    continue
                taken.append(box)
                yield el("text", name, x=round(start if right else start + width, 1), y=round(base, 1),
                         text_anchor=None if right else "end")  # fmt: skip
                break
            else:
                continue
            break


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# -- tables -----------------------------------------------------------------------------------------------------------


def _options(run: _Run) -> list[Markup]:
    if not run.config:
        return []
    usual = run.defaults
    everything, changed = [], []
    for name, value in run.config.items():
        default = _option(usual[name]) if name in usual else ""
        row = (f"--{name}", el("td", _option(value)), el("td", default))
        everything.append(row)
        if not _equal(value, usual.get(name)):
            changed.append(row)
    header = ["Option", "Value", "Default"]
    whole = table(f"Every option, as {_CONFIG} keeps them", header, everything)
    return [
        el("article",
           table("Options of the run but for those at the trainer’s defaults", header, changed),
           el("details", el("summary", f"all {len(everything)} options"), whole), class_="card"),
    ]  # fmt: skip


def _equal(a: object, b: object) -> bool:
    try:
        return a == b or (a is not None and b is not None and Fraction(str(a)) == Fraction(str(b)))
    except (ValueError, ZeroDivisionError):
        return False


def _option(value: object) -> object:
    if value is None:
        return "–"
    return '""' if value == "" else shown(value)


def _provenance(run: _Run) -> list[Markup]:
    about = describe(run.model)
    about = {k: about[k] for k in ("arch", "licence", "training_data", "image_size", "embed_dim")}
    about |= {k: run.header[k] for k in ("licence", "training_data") if k in run.header}
    # Not that of the model in memory, which is still called what training started from.
    about["digest"] = run.digest
    started = run.about.get("base") or {}
    digest = run.about.get("tree_digest")
    tree = {"digest": run.tree.digest, "classes": len(run.tree.classes), "levels below the root": run.tree.height,
            "nodes at each level": [len(level) for level in run.tree.levels[: run.tree.height]]}  # fmt: skip
    versions = {"hrzs": __version__, "torch": torch.__version__, "open_clip": open_clip.__version__}
    parts = [
        _card("Model", definitions(about)),
        _card("Trained from", definitions(started)) if started else None,
        _card("Tree", definitions(tree)),
        _card("Versions", definitions(versions)),
    ]
    other = digest is not None and digest != run.tree.digest
    warning = [el("p", el("span", f"✗ the weights were tuned on a tree of digest {digest}", class_="pill bad"))]
    return [
        el("p", "The versions are those that this page was written with."),
        *(warning if other else ()),
        *_cards([part for part in parts if part is not None]),
    ]
