"""The report of `hrzs eval` as one HTML file: no script, and nothing in it is fetched from anywhere.

What no JSON holds comes beside the report: the trees, what became of every image, and a few adversarial images
(`Pictures`).
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hrzs.attacks.budget import format_eps
from hrzs.hierarchy.tree import Node, Tree
from hrzs.results.average import FIGURES
from hrzs.results.export import Headline, headlines, radii_of_table, sources_of
from hrzs.results.metrics import TOP
from hrzs.results.outcome import Outcome, Pictures
from hrzs.results.pages.charts import Curve, line_chart
from hrzs.results.pages.gallery import magnified
from hrzs.results.pages.templates import render as fill
from hrzs.results.report import AttackLevel, Certificate, Depth, Interval, Report, Row
from hrzs.results.table import lopsided_levels, said_of

#: A tree of so many nodes at most is shown unfolded.
_UNFOLDED = 60
_WORST = 20


def render(report: Report, pictures: Mapping[str, Pictures]) -> str:
    """The page; ``pictures`` go by the dataset's name. A section without anything to show is left out."""
    heads, masking = headlines(report), report.summary.masking
    return fill(
        "evaluation.html.j2",
        report=report,
        heads=heads,
        # The pill of the canaries says where they, and with them the verdicts, were switched off.
        masking=() if isinstance(masking, str) else masking,
        sources=sources_of(report.results),
        figures=FIGURES,
        growths=_growths(heads),
        certificates=_certificates(report.certificates),
        radii_of_table=radii_of_table,
        said_of=said_of,
        matrices=_matrices(report.results),
        lopsided_levels=lopsided_levels,
        worst={
            (name, one.outcome.eps): _worst(one.tree, one.outcome)
            for name, one in pictures.items()
            if one.outcome is not None and 0 in one.outcome.robust
        },
        galleries={name: one for name, one in pictures.items() if one.gallery is not None and one.gallery.examples},
        trees={name: _lines(one.tree, one.outcome) for name, one in pictures.items()},
        radii={name: _radii(depth) for name, depth in report.summary.depth.items()},
        top=TOP,
        versions={"hrzs": report.hrzs, **report.versions, "prompts_digest": report.prompts_digest},
        fields=[name for name in Row.__struct_fields__ if name != "correct"],
        line_chart=line_chart,
        magnified=magnified,
        png=_png,
    )


def short(report: Report) -> str:
    """A table of the headline figures, for a notebook: an HTML fragment without a style of its own."""
    return fill("short.html.j2", report=report, heads=headlines(report))


# -- matrices ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Matrix:
    """The rows of one dataset at one ε, scored in one way."""

    dataset: str
    eps: str
    scoring: str
    rows: Sequence[Row]

    @property
    def by_level(self) -> dict[int, Row]:
        """A row of each, which says what holds for all of the level."""
        return {row.level: row for row in sorted(self.rows, key=lambda row: row.level)}

    @property
    def attacks(self) -> dict[tuple[str, AttackLevel, str | None, str | None], dict[int, Row]]:
        """Rows by level under each attack, the level it aims at, what it goes through, and what it knows."""
        found: dict[tuple[str, AttackLevel, str | None, str | None], dict[int, Row]] = {}
        for row in self.rows:
            key = (row.attack, row.attack_level, row.attacked_through, row.adversary)
            found.setdefault(key, {})[row.level] = row
        return found


def _matrices(rows: Sequence[Row]) -> list[_Matrix]:
    return [
        _Matrix(dataset, eps, scoring, [row for row in here if row.scoring == scoring])
        for dataset, eps in dict.fromkeys((row.dataset, row.eps) for row in rows if row.eps is not None)
        for here in [[row for row in rows if row.dataset == dataset and row.eps in (None, eps)]]
        for scoring in dict.fromkeys(row.scoring for row in here)
    ]


# -- curves -----------------------------------------------------------------------------------------------------------


def _growths(heads: Sequence[Headline]) -> dict[str, tuple[dict[float, str], list[Curve]]]:
    """For datasets with several ε these in words, and curves over them, in %."""
    found = {}
    for dataset in dict.fromkeys(h.dataset for h in heads):
        own = {Fraction(h.eps): h for h in heads if h.dataset == dataset and h.eps is not None}
        if len(own) > 1:
            radii = {0.0: "0"} | {float(eps): format_eps(eps) for eps in sorted(own)}
            found[dataset] = (radii, _curves({float(eps): own[eps] for eps in sorted(own)}))
    return found


def _curves(heads: Mapping[float, Headline]) -> list[Curve]:
    """Of each level, and of any level, from the clean accuracy onwards; none of what was not attacked."""
    first = next(iter(heads.values()))
    found: dict[str, list[tuple[float, float | None, Interval | None]]]
    found = {f"level {level}": [(0.0, row.clean, row.clean_ci95)] for level, row in first.clean.items()}
    found["any level"] = [] if first.summary is None else [(0.0, first.summary.any_level_clean, None)]
    for x, h in heads.items():
        for level, row in h.robust.items():
            found[f"level {level}"].append((x, row.robust, row.robust_ci95))
        if h.summary is not None:
            found["any level"].append((x, h.summary.any_level_robust, h.summary.any_level_robust_ci95))
    curves = []
    for i, (name, values) in enumerate(found.items()):
        colour, kind = (None, "thick") if name == "any level" else (i, "line")
        points = [(x, 100 * value) for x, value, _ in values if value is not None]
        whiskers = [(x, 100 * ci95[0], 100 * ci95[1]) for x, _, ci95 in values if ci95 is not None]
        curves.append(Curve(name, points, colour, kind, whiskers))
    return [curve for curve in curves if len(curve.points) > 1]


@dataclass(frozen=True)
class _Certificates:
    """Those of one dataset, with their curves in % and the radii below the axis in words."""

    levels: Sequence[Certificate]
    curves: Sequence[Curve]
    names: Mapping[float, str]


def _certificates(found: Sequence[Certificate]) -> dict[str, _Certificates]:
    by_dataset = {}
    for dataset in dict.fromkeys(one.dataset for one in found):
        levels = [one for one in found if one.dataset == dataset]
        curves = [
            Curve(f"level {one.level}", [(point.radius, 100 * point.value) for point in one.certified], i)
            for i, one in enumerate(levels)
        ]
        names = {point.radius: f"{point.radius:g}" for point in radii_of_table(levels[0])}
        by_dataset[dataset] = _Certificates(levels, curves, names)
    return by_dataset


def _radii(depth: Depth) -> tuple[list[Curve], dict[float, str]]:
    """Curves of mean radii over the levels, the highest on the left, and what the levels are called there."""
    levels = {-float(level.level): level for level in reversed(depth.levels)}
    texts = Curve("texts", [(x, level.radius_text) for x, level in levels.items()], 0)
    images = Curve("class means of images", [(x, level.radius_image) for x, level in levels.items()], 1)
    return [texts, images], {x: str(level.level) for x, level in levels.items()}


# -- classes and nodes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Share:
    """How many images stand under a node; of these, which share is right when clean, and which robust as well."""

    name: str
    images: int
    clean: float
    #: None: the level was not attacked.
    robust: float | None
    #: What the most images are taken for under attack.
    taken_for: str | None = None


def _worst(tree: Tree, outcome: Outcome) -> tuple[int, list[_Share]]:
    """The number of classes with images, and the least robust at the leaves; among equals, those that lost most."""
    shares = [(c, share) for c, share in enumerate(_shares(tree, outcome, 0)) if share.images]
    shares.sort(key=lambda found: (found[1].robust or 0.0, -found[1].clean))
    return len(shares), [replace(share, taken_for=_taken_for(outcome, c, tree)) for c, share in shares[:_WORST]]


def _taken_for(outcome: Outcome, label: int, tree: Tree) -> str | None:
    if outcome.taken_for is None:
        return None
    wrong = outcome.taken_for[(outcome.labels == label) & (outcome.taken_for != label)].tolist()
    return next((f"{tree.levels[0][c].name} ({times})" for c, times in Counter(wrong).most_common(1)), None)


def _shares(tree: Tree, outcome: Outcome, level: int) -> list[_Share]:
    """Of each node of a level."""
    nodes, held = tree.ancestors[level][outcome.labels], outcome.robust.get(level)

    def per_node(hit: Bool[Tensor, "n"]) -> list[int]:
        found: list[int] = torch.bincount(nodes[hit], minlength=len(tree.levels[level])).tolist()
        return found

    counts, clean = per_node(torch.ones_like(outcome.clean[level])), per_node(outcome.clean[level])
    robust = None if held is None else per_node(held)
    return [
        _Share(node.name, n, clean[i] / max(n, 1), None if robust is None else robust[i] / max(n, 1))
        for i, (node, n) in enumerate(zip(tree.levels[level], counts, strict=True))
    ]


@dataclass(frozen=True)
class _Line:
    """A node in the outline of a tree; None as ``share`` where nothing was measured, as of the root."""

    node: Node
    share: _Share | None
    is_open: bool


def _lines(tree: Tree, outcome: Outcome | None) -> Iterator[_Line | None]:
    """The nodes from the root downwards; None closes the last that is still open and no leaf."""
    shares: dict[int, _Share] = {}
    # Downwards: of a node at several levels the lowest counts.
    for level in reversed(range(tree.height)):
        if outcome is not None:
            shares |= dict(zip(map(id, tree.levels[level]), _shares(tree, outcome, level), strict=True))
    unfolded = sum(len(nodes) for nodes in tree.levels) <= _UNFOLDED
    # By hand, not by recursion: trees may be deep.
    stack: list[Node | None] = [tree.root]
    while stack:
        node = stack.pop()
        yield None if node is None else _Line(node, shares.get(id(node)), unfolded or node is tree.root)
        if node is not None and not node.is_leaf:
            stack += [None, *reversed(node.children)]


def _png(image: Float[Tensor, "3 H W"]) -> str:
    from PIL import Image

    file = io.BytesIO()
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
