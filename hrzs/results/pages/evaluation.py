"""The report of `hrzs eval` as one HTML file: no script, and nothing in it is fetched from anywhere.

`write_report` reads the report as ``--json`` writes it. What that does not hold comes beside it: the trees, what became
of every image (`outcome_of`), and a few adversarial images (`gallery_of`).
"""

from __future__ import annotations

import html
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.attacks.budget import format_eps
from hrzs.files import write_text
from hrzs.hierarchy.tree import Node, Tree
from hrzs.results.average import FIGURES
from hrzs.results.export import Headline, headlines, sources_of
from hrzs.results.masking import ADVICE, INCONCLUSIVE, NONE_FOUND, SUSPECTED
from hrzs.results.metrics import TOP
from hrzs.results.outcome import Example, Gallery, Outcome
from hrzs.results.pages.charts import Curve, line_chart
from hrzs.results.pages.markup import Markup, definitions, document, el, image_element, join, number_heads, table
from hrzs.results.table import comparison_title, lopsided_levels

#: A tree of so many nodes at most is shown unfolded.
_UNFOLDED = 60
_WORST = 20


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _interval(ci: Sequence[float] | None) -> str:
    return "" if ci is None else f"[{100 * ci[0]:.1f}, {100 * ci[1]:.1f}]"


def _with_interval(value: float | None, ci: Sequence[float] | None) -> Markup:
    return join([_percent(value), " ", el("small", _interval(ci))])


def _bars(clean: float, robust: float | None, class_: str = "bar") -> Markup:
    widths = [clean] if robust is None else [clean, robust]
    return el("span", *(el("i", style=f"--v:{100 * v:.1f}%") for v in widths), class_=class_, aria_hidden="true")


def _key(name: str, text: str) -> Markup:
    return join([el("span", class_="key", style=f"background:var(--{name})"), text])


def _section(anchor: str, title: str, *content: object) -> Markup:
    return el("section", el("h2", title, id=anchor), *content)


# -- the page ---------------------------------------------------------------------------------------------------------


def write_report(
    report: Mapping[str, Any],
    trees: Mapping[str, Tree],
    file: Path,
    *,
    outcomes: Mapping[str, Outcome] | None = None,
    galleries: Mapping[str, Gallery] | None = None,
) -> None:
    """Write the report as one HTML file; ``trees``, ``outcomes`` and ``galleries`` go by the dataset's name.

    Raises:
        HrzsError: the file cannot be written; what was there is untouched.
    """
    write_text(file, render(report, trees, outcomes or {}, galleries or {}), f"--report {file}")


def render(
    report: Mapping[str, Any],
    trees: Mapping[str, Tree],
    outcomes: Mapping[str, Outcome],
    galleries: Mapping[str, Gallery],
) -> str:
    """The page itself; a section without anything to show is left out."""
    heads = headlines(report)
    sections = [
        section
        for section in (
            ("headline", "Headline", _headline(heads, report["summary"].get("mean"))),
            ("curves", "Accuracy as ε grows", _curves(heads)),
            ("matrix", "Every attack at every level", _matrices(report["results"])),
            ("classes", "Worst classes", _worst(outcomes, trees)),
            ("gallery", "Adversarial images", _galleries(galleries, trees)),
            ("tree", "The tree", _trees(trees, outcomes)),
            ("depth", "Where levels lie", _depth(report["summary"].get("depth") or {})),
            ("against", "Against another model", _against(report["summary"].get("against"))),
            ("mistakes", "How bad the mistakes are", _mistakes(report["summary"]["levels"])),
            ("canaries", "Canaries", _canaries(report["summary"]["canaries"], _masking(report["summary"]))),
            ("further", "Further findings", _further(report["summary"], report["config"].get("tasks", ()))),
            ("provenance", "Provenance", _provenance(report)),
            ("rows", "All rows", _rows(report["results"])),
        )
        if section[2]
    ]
    title = f"{report['model']['source']} on {', '.join(dict.fromkeys(h.dataset for h in heads))}"
    page = [
        el("header",
            el("p", f"hrzs {report['hrzs']}, robustness over a class tree", class_="soft"),
            el("h1", title),
            _lead(report, heads),
            el("nav", *(el("a", name, href=f"#{anchor}") for anchor, name, _ in sections), aria_label="Sections")),
        el("main", *(_section(anchor, name, *content) for anchor, name, content in sections)),
        el("footer", el("p", "Accuracies in %; brackets hold Wilson’s 95% interval. Level 0 are the leaves of the "
                               "tree, its root is not scored.")),
    ]  # fmt: skip
    return document(title, page)


def _lead(report: Mapping[str, Any], heads: Sequence[Headline]) -> Markup:
    attacks = dict.fromkeys(row["attack"] for row in report["results"] if row["attack"] != "none")
    radii = dict.fromkeys(h.eps for h in heads if h.eps is not None)
    about = f"{report['model']['arch']}; "
    norms = dict.fromkeys(row["norm"] for row in report["results"] if row.get("norm"))
    norms = norms or {report["config"].get("norm", "linf"): None}
    about += f"{', '.join(attacks)} at ε {', '.join(radii)} ({', '.join(norms)})" if attacks else "clean only"
    if sources := sources_of(report["results"]):
        about += f"; the images are saved ones, made against {', '.join(sources)}"
    masking = _masking(report["summary"])
    pills = [_verdict(report["summary"]["canaries"]), *map(_masking_pill, masking)]
    advice = dict.fromkeys(ADVICE[found["verdict"]] for found in masking if found["verdict"] != NONE_FOUND)
    return join([
        el("p", about, *(join([" ", el("span", said, class_=f"pill {kind}")]) for kind, said in pills)),
        *(el("p", text) for text in advice),
    ])  # fmt: skip


def _verdict(canaries: Sequence[Mapping[str, Any]] | str) -> tuple[str, str]:
    if isinstance(canaries, str):
        return "unsure", f"canaries {canaries}"
    canaries = [c for c in canaries if c.get("applicable", True)]
    bad = sum(c["ok"] is False for c in canaries)
    good = sum(c["ok"] is True for c in canaries)
    if bad:
        return "bad", f"✗ {bad} of {len(canaries)} canaries unexpected"
    if not canaries:
        return "unsure", "no canaries"
    if good < len(canaries):
        return "unsure", f"{good} of {len(canaries)} canaries as expected, the others not run"
    return "good", f"✓ all {good} canaries as expected"


def _masking(summary: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The verdicts on gradient masking; none where the canaries were switched off, which their own pill says."""
    found = summary.get("masking", ())
    return () if isinstance(found, str) else found


def _masking_pill(found: Mapping[str, Any]) -> tuple[str, str]:
    kind, said = {
        NONE_FOUND: ("good", "✓ no sign of gradient masking"),
        SUSPECTED: ("bad", "✗ gradient masking suspected"),
        INCONCLUSIVE: ("unsure", "gradient masking: inconclusive"),
    }[found["verdict"]]
    return kind, f"{said} ({found['dataset']})"


#: The heads of columns with `FIGURES`.
_FIGURES = ("Clean", "Robust", "Clean, balanced", "Robust, balanced", "Constant answer", "Constant, balanced")


def _headline(heads: Sequence[Headline], mean: Mapping[str, Any] | None) -> list[object]:
    first = {h.dataset: h for h in reversed(heads)}
    return [
        el("p", "An image counts for the any-level figure if it is right at every level, clean and under every attack "
                "of the suite: on the leaves, on each superclass level, on all levels at once, and on the margin of "
                "every level. Per image, all images count alike; balanced, all nodes of a level do, however few images "
                "they have. A constant answer names the largest node for every image: what does not beat it has learnt "
                "nothing of that level."),
        el("p", _key("clean", "clean"), "  ", _key("robust", "robust, attacked at that very level"), class_="note"),
        el("div", *(_headline_card(h) for h in reversed(first.values())), class_="cards"),
        *_mean(mean),
    ]  # fmt: skip


def _mean(mean: Mapping[str, Any] | None) -> list[Markup]:
    if mean is None:
        return []
    body = [
        ("clean" if row["attack"] == "none" else f"{row['attack']}, ε {row['eps']}",
         *(_percent(row.get(name)) for name in FIGURES))
        for row in mean["rows"]
    ]  # fmt: skip
    caption = f"Mean over {', '.join(mean['over'])}, at the leaves"
    caption += f"; missing: {', '.join(mean['missing'])}" if mean["missing"] else ""
    return [el("article", table(caption, ["Attack", *number_heads(*_FIGURES)], body), class_="card")]


def _headline_card(h: Headline) -> Markup:
    robust = h.summary.get("any_level_robust")
    if h.eps is None:
        figure = el("p", "Clean only: no attack was run.", class_="soft")
    elif robust is None:
        figure = el("p", "No any-level figure: the suite was not run in full.", class_="soft")
    else:
        interval = el("small", f"% {_interval(h.summary['any_level_robust_ci95'])}")
        clean = _percent(h.summary["any_level_clean"])
        figure = join([
            el("div", _percent(robust), " ", interval, class_="figure"),
            el("p", f"any-level robust at ε {h.eps}; right at every level when clean: {clean}%; a constant answer: "
                    f"{_percent(h.summary.get('any_level_constant'))}%"),
            el("p", "balanced over nodes, in the mean over levels: ",
               _with_interval(*(h.summary.get(f"any_level_robust_balanced{part}") for part in ("", "_ci95"))),
               f"; clean: {_percent(h.summary.get('any_level_clean_balanced'))}; a constant answer: "
               f"{_percent(h.summary.get('any_level_constant_balanced'))}"),
        ])  # fmt: skip
    body = []
    for level, row in h.clean.items():
        hit = h.robust.get(level)
        figures = [(row, "clean"), (hit, "robust"), (row, "clean_balanced"), (hit, "robust_balanced")]
        constants = (_percent(row.get(name)) for name in ("constant", "constant_balanced"))
        body.append((
            join([f"{level} ", el("small", f"({row['classes']})")]),
            *(el("td", "–" if one is None else _with_interval(one.get(name), one.get(f"{name}_ci95")), class_="n")
              for one, name in figures),
            el("td", " / ".join(constants), class_="n"),
            el("td", _bars(row["clean"], None if hit is None else hit["robust"]), class_="bars"),
        ))  # fmt: skip
    caption = f"Accuracy at each level of {h.dataset}" + ("" if h.eps is None else f", robust at ε {h.eps}")
    header = ["Level (nodes)", *number_heads(*_FIGURES[:4], "Constant answer, balanced too"), el("td", class_="bars")]
    levels = table(caption, header, body, "wide")
    images = el("small", f"{h.split}, {h.n} images", class_="soft")
    return el("article", el("h3", f"{h.dataset} ", images), figure, levels, class_="card")


# -- matrices ---------------------------------------------------------------------------------------------------------


def _matrices(rows: Sequence[Mapping[str, Any]]) -> list[object]:
    cards = []
    for dataset, eps in dict.fromkeys((row["dataset"], row["eps"]) for row in rows if row["eps"] is not None):
        here = [row for row in rows if row["dataset"] == dataset and row["eps"] in (None, eps)]
        for scoring in dict.fromkeys(row["scoring"] for row in here):
            cards.append(_matrix(dataset, eps, scoring, [row for row in here if row["scoring"] == scoring]))
    if not cards:
        return []
    return [
        el("p", "Down: the attack and the level it aims at. Across: the level at which predictions are scored, and its "
                "number of nodes. A framed cell was attacked at this very level through this very scoring; any other "
                "shows what an attack made for another aim does here, by transfer. Under each figure stands half of "
                "its 95% interval, and, where the nodes of a level have unequally many images, the same balanced over "
                "them. The first row is what the best constant answer scores."),
        el("div", *cards, class_="cards"),
    ]  # fmt: skip


def _matrix(dataset: str, eps: str, scoring: str, rows: Sequence[Mapping[str, Any]]) -> Markup:
    levels = {row["level"]: row["classes"] for row in sorted(rows, key=lambda row: int(row["level"]))}
    groups: dict[tuple[Any, ...], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["attack"], row["attack_level"], row.get("attacked_through")), {})[row["level"]] = row
    by = "by its own prompt" if scoring == "prompt" else "by summing its leaves"
    lopsided = lopsided_levels(rows)
    body = _constant_row(rows, levels, lopsided)
    for (attack, aim, through), by_level in groups.items():
        about = "not attacked" if aim is None else "all levels" if aim == "all" else f"level {aim}"
        if through not in (None, scoring):
            about += f", through {through}"
        name = "clean" if attack == "none" else attack
        cells = [_heat(by_level.get(k), k in lopsided) for k in levels]
        body.append([join([name, Markup("<br>"), el("small", about)]), *cells])
    nodes = {k: el("small", f"({n})") for k, n in levels.items()}
    header = ["Attack", *(el("th", f"level {k}", Markup("<br>"), nodes[k], scope="col") for k in levels)]
    return el(
        "article",
        el("h3", f"{dataset}, ε {eps}"),
        table(f"Accuracy in %, a superclass scored {by}", header, body, "heat"),
        class_="card",
    )


def _constant_row(
    rows: Sequence[Mapping[str, Any]], levels: Mapping[int, int], lopsided: set[int]
) -> list[list[Markup]]:
    by_level = {row["level"]: row for row in rows}
    if any(row.get("constant") is None for row in rows):
        return []
    cells = []
    for k in levels:
        balanced = el("small", f"balanced {_percent(by_level[k]['constant_balanced'])}") if k in lopsided else None
        cells.append(el("td", _percent(by_level[k]["constant"]), balanced, class_="none"))
    return [[join(["constant answer", Markup("<br>"), el("small", "the largest node")]), *cells]]


def _heat(row: Mapping[str, Any] | None, lopsided: bool) -> Markup:
    if row is None:
        return el("td", "·", class_="none")
    kind = "clean" if row["robust"] is None else "robust"
    value, ci = row[kind], row[f"{kind}_ci95"]
    aimed = "aimed" if row.get("transfer") is False else None
    half = el("small", f"±{50 * (ci[1] - ci[0]):.1f}")
    about = f"95% interval {_interval(ci)}"
    balanced = None
    if lopsided:
        balanced = el("small", f"balanced {_percent(row[f'{kind}_balanced'])}")
        about += f"; balanced {_interval(row[f'{kind}_balanced_ci95'])}"
    return el("td", _percent(value), half, balanced, style=f"--v:{100 * value:.1f}%", class_=aimed, title=about)


# -- curves -----------------------------------------------------------------------------------------------------------

#: Drawing area of a chart, in its own units: small, so that its words stay legible on a phone.
_WIDTH, _HEIGHT = 420, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 36, 26, 10, 40
_ANY_LEVEL = "any level"
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 2", "1 4")


@dataclass(frozen=True)
class _Point:
    eps: Fraction
    value: float
    interval: Sequence[float] | None


def _curves(heads: Sequence[Headline]) -> list[object]:
    cards = []
    for dataset in dict.fromkeys(h.dataset for h in heads):
        own = [h for h in heads if h.dataset == dataset and h.eps is not None]
        if len(own) > 1:
            series = _series(own)
            both = el("div", _chart(dataset, series), _values_table(dataset, series), class_="pair")
            cards.append(el("article", el("h3", dataset), both, class_="card"))
    if not cards:
        return []
    return [
        el("p", "Robust accuracy per image at the level attacked; ε 0 is the clean accuracy, whiskers are 95% "
                "intervals. A curve that does not fall is a sign of a blocked attack."),
        *cards,
    ]  # fmt: skip


def _series(heads: Sequence[Headline]) -> dict[str, list[_Point]]:
    radii = {h.eps: Fraction(str(h.eps)) for h in heads}
    series: dict[str, list[_Point]] = {}
    for level, row in heads[0].clean.items():
        points = [_Point(Fraction(0), row["clean"], row["clean_ci95"])]
        points += [_Point(radii[h.eps], r["robust"], r["robust_ci95"]) for h in heads if (r := h.robust.get(level))]
        if len(points) > 1:
            series[f"level {level}"] = sorted(points, key=lambda p: p.eps)
    whole = [h for h in heads if h.summary.get("any_level_robust") is not None]
    if whole:
        points = [_Point(Fraction(0), whole[0].summary["any_level_clean"], None)]
        points += [
            _Point(radii[h.eps], h.summary["any_level_robust"], h.summary["any_level_robust_ci95"]) for h in whole
        ]
        series[_ANY_LEVEL] = sorted(points, key=lambda p: p.eps)
    return series


def _chart(dataset: str, series: Mapping[str, Sequence[_Point]]) -> Markup:
    radii = sorted({p.eps for points in series.values() for p in points})

    def x(eps: Fraction) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * float(eps / radii[-1]), 1)

    def y(value: float) -> float:
        return round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - value), 1)

    drawn: list[Markup] = []
    for quarter in range(5):
        at = y(quarter / 4)
        drawn.append(el("line", class_="axis", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=at, y2=at))
        drawn.append(el("text", 25 * quarter, x=_LEFT - 6, y=at + 4, text_anchor="end"))
    last = -100.0
    for eps in radii:
        if x(eps) - last >= 44:  # the room that a label takes
            last = x(eps)
            drawn.append(el("text", format_eps(eps) if eps else "0", x=last, y=_HEIGHT - 22, text_anchor="middle"))
    drawn.append(el("text", "ε", x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 4, text_anchor="middle"))
    for name, points in series.items():
        line = " ".join(f"{x(p.eps)},{y(p.value)}" for p in points)
        drawn.append(el("polyline", points=line, **_stroke(name, series)))
        colour = _stroke(name, series)["style"]
        for p in points:
            if p.interval is not None:
                ends = {"y1": y(p.interval[0]), "y2": y(p.interval[1])}
                drawn.append(el("line", class_="whisker", style=colour, x1=x(p.eps), x2=x(p.eps), **ends))
            drawn.append(el("circle", class_="dot", style=colour, cx=x(p.eps), cy=y(p.value), r=3))
    about = f"Curves of accuracy on {dataset} as ε grows; the table beside holds their values."
    return el("svg", *drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=about)


def _stroke(name: str, series: Mapping[str, object]) -> dict[str, str | None]:
    """What tells a curve from the others: colour and dashes; the any-level curve is the thick one."""
    if name == _ANY_LEVEL:
        return {"class_": "curve thick", "style": "--c:var(--ink)", "stroke_dasharray": None}
    i = list(series).index(name) % len(_DASHES)
    return {"class_": "curve", "style": f"--c:var(--s{i})", "stroke_dasharray": _DASHES[i] or None}


def _values_table(dataset: str, series: Mapping[str, Sequence[_Point]]) -> Markup:
    """The legend of the chart and its numbers in one."""
    radii = sorted({p.eps for points in series.values() for p in points})
    body = []
    for name, points in series.items():
        line = el("line", x1=0, x2=34, y1=5, y2=5, **_stroke(name, series))
        swatch = el("svg", line, class_="swatch", viewBox="0 0 34 10", aria_hidden="true")
        values = {p.eps: p.value for p in points}
        body.append([join([swatch, name]), *(_percent(values.get(eps)) for eps in radii)])
    header = ["Robust at ε", *number_heads(*(format_eps(eps) if eps else "0 (clean)" for eps in radii))]
    return table(f"Accuracy on {dataset} in %", header, body)


# -- classes and nodes ------------------------------------------------------------------------------------------------


def _worst(outcomes: Mapping[str, Outcome], trees: Mapping[str, Tree]) -> list[object]:
    cards = []
    for dataset, outcome in outcomes.items():
        tree, labels, held = trees[dataset], outcome.labels, outcome.robust.get(0)
        if held is None:
            continue
        count, clean, robust = (_per(labels, hit, len(tree.classes)) for hit in (None, outcome.clean[0], held))
        classes = [c for c in range(len(count)) if count[c]]
        # Among equals, those that lost most come first.
        classes.sort(key=lambda c: (robust[c] / count[c], -clean[c] / count[c], c))
        body = []
        for c in classes[:_WORST]:
            taken = "–"
            if outcome.taken_for is not None:
                wrong = outcome.taken_for[(labels == c) & (outcome.taken_for != c)].tolist()
                ((other, times),) = Counter(wrong).most_common(1) or [(c, 0)]
                taken = f"{tree.levels[0][other].name} ({times})" if times else "–"
            shares = [_percent(hits[c] / count[c]) for hits in (clean, robust)]
            body.append((tree.levels[0][c].name, count[c], *shares, el("td", taken)))
        caption = f"{dataset}, ε {outcome.eps}: {len(body)} of {len(classes)} classes, least robust at the leaves first"
        header = ["Class", *number_heads("Images", "Clean", "Robust"), "Most often taken for"]
        cards.append(el("article", table(caption, header, body, "wide"), class_="card"))
    return [el("div", *cards, class_="cards")] if cards else []


def _per(nodes: Int[Tensor, "n"], hit: Bool[Tensor, "n"] | None, size: int) -> list[int]:
    """For each of ``size`` nodes, how many images stand under it, or how many of those are hit."""
    found: list[int] = torch.bincount(nodes if hit is None else nodes[hit], minlength=size).tolist()
    return found


def _trees(trees: Mapping[str, Tree], outcomes: Mapping[str, Outcome]) -> list[object]:
    cards = [
        el("article", el("h3", dataset), _tree(tree, outcomes.get(dataset)), class_="card")
        for dataset, tree in trees.items()
    ]
    if not cards:
        return []
    return [
        el("p", "Each node at its own level: the share of the images beneath it that are right when clean, then of "
                "those that hold against the attack on that level."),
        *cards,
    ]  # fmt: skip


def _tree(tree: Tree, outcome: Outcome | None) -> Markup:
    index = [{id(node): i for i, node in enumerate(nodes)} for nodes in tree.levels]
    counts = [] if outcome is None else [_counts(tree, outcome, level) for level in range(tree.top)]
    unfolded = sum(len(nodes) for nodes in tree.levels) <= _UNFOLDED

    def figures(node: Node) -> Markup | None:
        if not counts or node is tree.root:
            return None
        count, clean, robust = (None if c is None else c[index[node.level][id(node)]] for c in counts[node.level])
        if not count:
            return el("span", "no images", class_="figures")
        assert clean is not None
        said = f"{100 * clean / count:.1f}" + ("" if robust is None else f" → {100 * robust / count:.1f}")
        bars = _bars(clean / count, None if robust is None else robust / count, "bar thin")
        return el("span", bars, f"{said} of {count}", class_="figures")

    # By hand, not by recursion: trees may be deep. A closing tag waits on the stack until its node is done.
    lines = ['<ul class="tree">']
    stack: list[Node | str] = ["</ul>", tree.root]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            lines.append(node)
            continue
        # Figures come first, for they float to the right.
        name = join([figures(node), el("b", node.name, title=node.class_id or node.id)])
        if node.is_leaf:
            lines.append(el("li", name, class_="leaf"))
            continue
        opened = " open" if unfolded or node is tree.root else ""
        level = el("small", f" level {node.level}")
        lines.append(f"<li><details{opened}><summary>{join([name, level])}</summary><ul>")
        stack.append("</ul></details></li>")
        stack.extend(reversed(node.children))
    return Markup("\n".join(lines))


def _counts(tree: Tree, outcome: Outcome, level: int) -> tuple[list[int], list[int], list[int] | None]:
    """For each node of a level: images beneath it, right when clean, robust (None: the level was not attacked)."""
    nodes, size = tree.ancestors[level][outcome.labels], len(tree.levels[level])
    held = outcome.robust.get(level)
    return (
        _per(nodes, None, size),
        _per(nodes, outcome.clean[level], size),
        None if held is None else _per(nodes, held, size),
    )


# -- adversarial images -----------------------------------------------------------------------------------------------


def _galleries(galleries: Mapping[str, Gallery], trees: Mapping[str, Tree]) -> list[object]:
    found: list[object] = []
    for dataset, gallery in galleries.items():
        examples = [_example(example, trees[dataset]) for example in gallery.examples]
        if examples:
            found += [el("h3", f"{dataset}: {gallery.title}"), el("div", *examples, class_="gallery")]
    if not found:
        return []
    return [
        el("p", "The images that lost most levels, each class once before any comes twice. The perturbation is "
                "magnified until its largest entry spans the whole range, grey is none; images are shown in 8 bits, "
                "predictions are those in float32."),
        *found,
    ]  # fmt: skip


def _example(example: Example, tree: Tree) -> Markup:
    delta = example.adversarial - example.clean
    peak = delta.abs().max().item()
    magnified = (0.5 + 0.5 * delta / (peak or 1.0)).clamp(0, 1)
    truth = tree.levels[0][example.label].name
    before, after = (tree.levels[0][int(nodes[0])].name for nodes in (example.before, example.after))
    pictures = [
        (example.clean, "clean", f"Clean image of {truth}, taken for {before}"),
        (magnified, f"perturbation, ≤ {255 * peak:.1f}/255", "The perturbation, magnified"),
        (example.adversarial, "adversarial", f"The same image after the attack, taken for {after}"),
    ]
    figures = [el("figure", image_element(_png(image), said), el("figcaption", name)) for image, name, said in pictures]
    body = []
    for level in range(len(example.before)):
        node = int(tree.ancestors[level, example.label])
        names = [tree.levels[level][i].name for i in (node, int(example.before[level]), int(example.after[level]))]
        marks = [el("td", _mark(int(nodes[level]) == node), name)
                 for nodes, name in zip((example.before, example.after), names[1:], strict=True)]  # fmt: skip
        body.append((level, el("td", names[0]), *marks))
    predictions = table(f"Predictions for {example.id}", ["Level", "Truth", "Clean", "Adversarial"], body, "wide")
    return el("article", el("h3", truth), el("div", *figures, class_="pictures"), predictions, class_="card")


def _mark(right: bool) -> Markup:
    return el("span", "✓ " if right else "✗ ", class_="good" if right else "bad", role="img",
               aria_label="right: " if right else "wrong: ")  # fmt: skip


def _png(image: Float[Tensor, "3 H W"]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# -- tables -----------------------------------------------------------------------------------------------------------

_MISTAKES = {
    "lca_height_mistakes": "LCA height, mistakes", "lca_height_all": "LCA height, all images",
    "consistency": "agree at level", **{f"hd@{k}": f"HD@{k}" for k in TOP},
}  # fmt: skip


def _depth(found: Mapping[str, Mapping[str, Any]]) -> list[object]:
    """Radii, margins and the order of edges, of a model whose head tells levels apart or might."""
    if not found:
        return []
    cards: list[Markup] = []
    for dataset, depth in found.items():
        levels = depth["levels"]
        flat = depth["head"] == "euclidean"
        curves = [
            Curve(name, [(-float(level["level"]), level[key]) for level in reversed(levels)], i)
            for i, (name, key) in enumerate((("texts", "radius_text"), ("class means of images", "radius_image")))
        ]
        names = {-float(level["level"]): str(level["level"]) for level in levels}
        chart = line_chart("Mean radius by level, the highest on the left", curves, x="level", x_names=names)
        body = [
            (level["level"], *(f"{level[key]:.3f}" for key in ("radius_text", "radius_image")),
             *(f"{level[key]:.1f}" for key in ("margin", "bound")))
            for level in levels
        ]  # fmt: skip
        heads = number_heads("Texts", "Images", "Margin", "Bound")
        ordered = [f"{_percent(depth[key])} % of {name}" if depth[key] is not None else f"no {name}"
                   for key, name in (("edges_ordered", "edges between texts"),
                                     ("edges_ordered_image", "edges between steady class means"))]  # fmt: skip
        cards.append(
            el("article", el("h3", dataset), chart, table("Radius and margin by level", ["Level", *heads], body),
               el("p", f"The parent lies nearer the centre than the child for {' and '.join(ordered)}."), class_="card")
        )  # fmt: skip
        unit = "its norm" if flat else "its share of the ball’s radius"
    said = (
        f"The radius of an embedding is {unit}. The margin is the largest that the texts of a level leave room for, in "
        "logits; the bound is what theory allows texts so far out."
    )
    return [el("p", said), *cards]


def _mistakes(summary: Sequence[Mapping[str, Any]]) -> list[object]:
    cards = []
    for s in summary:
        per_attack = {name: found for name, found in s.items() if isinstance(found, Mapping)}
        columns = {name: _columns(name, next(iter(found.values()), None)) for name, found in per_attack.items()}
        titles = dict.fromkeys(title for found in per_attack.values() for title in found)
        body = [
            (title.removesuffix(f", ε {s['eps']}"), *(_number(value, name) for name, found in per_attack.items()
                      for value in _values(found.get(title), len(columns[name]))))
            for title in titles
        ]  # fmt: skip
        if body:
            header = ["Attack", *number_heads(*(column for name in per_attack for column in columns[name]))]
            caption = f"{s['dataset']}, ε {s['eps']}"
            cards.append(el("article", table(caption, header, body), class_="card"))
    if not cards:
        return []
    return [
        el("p", "LCA height: the level of the lowest common ancestor of the leaf predicted and the true one, in the "
                "mean over mistakes and over all images (the first alone can fall only because easy images became "
                "mistakes). HD@k: the mean of that level over the k likeliest leaves, and over images. Agreement, in "
                "%: how often the superclass predicted is the ancestor of the leaf "
                "predicted."),
        *cards,
    ]  # fmt: skip


def _columns(name: str, found: Any) -> list[str]:
    """The columns of one figure: of each part of a mapping, of each superclass level of a list, or of itself."""
    if isinstance(found, Mapping):
        return [_MISTAKES.get(key, f"{name} {key}".replace("_", " ")) for key in found]
    shown = _MISTAKES.get(name, name.replace("_", " "))
    return [f"{shown} {level}" for level in range(1, len(found) + 1)] if isinstance(found, list) else [shown]


def _values(found: Any, columns: int) -> list[Any]:
    values = list(found.values()) if isinstance(found, Mapping) else found if isinstance(found, list) else [found]
    return [*values, *[None] * (columns - len(values))]


def _number(value: Any, figure: str) -> str:
    if not isinstance(value, (int, float)):
        return "–" if value is None else str(value)
    return f"{100 * value:.1f}" if figure == "consistency" else f"{value:.2f}"


def _canaries(canaries: Sequence[Mapping[str, Any]] | str, masking: Sequence[Mapping[str, Any]] = ()) -> list[object]:
    if isinstance(canaries, str) or not canaries:
        return [el("p", f"The canaries were not run: {canaries or 'nothing was attacked'}.")]
    body = []
    for c in canaries:
        kind, said = _canary_verdict(c)
        value = "–" if c["value"] is None else f"{c['value']:.3f}"
        pill = el("span", said, class_=f"pill {kind}")
        body.append(
            (c["name"], c.get("dataset", ""), value, *(el("td", part) for part in (c["expected"], pill, c["note"])))
        )
    header = ["Canary", "Dataset", *number_heads("Measured"), "Expected", "Verdict", "Note"]
    return [
        el("p", "Would this set-up notice a model that is not robust? Each canary has an expectation, stated "
                "beforehand; at most 64 images each. It counts as unexpected only where chance cannot explain it."),
        *map(_masking_card, masking),
        el("article", table("Canaries", header, body, "wide"), class_="card"),
    ]  # fmt: skip


def _against(against: Mapping[str, Any] | None) -> list[object]:
    if against is None:
        return []
    words = {True: ("good", "✓ significant"), False: ("unsure", "not shown")}
    body = [
        (
            f"{row['dataset']}, {comparison_title(row)}",
            *(_percent(row[who]) for who in ("this", "other")),
            _difference(row["difference"], row["difference_ci95"]),
            _difference(row.get("difference_balanced"), row.get("difference_balanced_ci95")),
            f"{row['only_this']} / {row['only_other']}",
            f"{row['p_holm']:.2g}",
            el("td", el("span", said, class_=f"pill {kind}")),
        )
        for row in against["rows"]
        for kind, said in [words[row["p_holm"] < 0.05]]
    ]
    header = ["", *number_heads("This", "Other", "Difference", "Balanced difference", "Right in one only",
                                "p, corrected"), "At 5%"]  # fmt: skip
    return [
        el("p", f"Paired with {against['model']}, image by image: McNemar's exact test, corrected for the number of "
                "comparisons by Holm's method; intervals of differences are Newcombe's. Where a difference is not "
                "shown, these images do not tell the models apart. The balanced difference weighs all nodes of a level "
                "alike; its interval is normal, from the weighted variance of the differences of single images. The "
                "test is about the difference per image."),
        *(el("p", f"Not compared: {reason}.") for reason in against.get("left_out", ())),
        el("article", table("Differences in points", header, body, "wide"), class_="card"),
    ]  # fmt: skip


def _difference(value: float | None, ci: Sequence[float] | None) -> Markup:
    if value is None:
        return el("td", "–", class_="n")
    return el("td", f"{100 * value:+.1f} ", el("small", _interval(ci)), class_="n")


def _canary_verdict(canary: Mapping[str, Any]) -> tuple[str, str]:
    if canary["ok"] is None:
        return "unsure", "not run" if canary.get("applicable", True) else "not applicable"
    return ("good", "✓ as expected") if canary["ok"] else ("bad", "✗ unexpected")


def _masking_card(found: Mapping[str, Any]) -> Markup:
    kind, said = _masking_pill(found)
    reasons = el("ul", *(el("li", reason) for reason in found["reasons"])) if found["reasons"] else None
    about = "Are the gradients masked, so that attacks fail although adversarial images exist? "
    return el(
        "article", el("h3", "Gradient masking"), el("p", about, el("span", said, class_=f"pill {kind}")),
        reasons, el("p", ADVICE[found["verdict"]]), class_="card",
    )  # fmt: skip


def _further(summary: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> list[object]:
    found: list[object] = []
    for task in tasks:
        for same in task.get("same_prompts", ()):
            names = ", ".join(f"{node['name']} ({node['node']})" for node in same["nodes"])
            where = f"{task['dataset']}: at level {same['level']} the model cannot tell {names} apart."
            found.append(el("p", f"{where} It reads “{same['prompt']}” for each, so all but one are always wrong."))
    for dataset, attacks in summary.get("not_applicable", {}).items():
        found.append(el("p", f"{dataset}: its tree has no superclass, so not applicable: {', '.join(attacks)}."))
    for dataset, notes in summary.get("stand_ins", {}).items():
        found.append(el("p", f"{dataset}: a loss stood in for one that needs more classes: {'; '.join(notes)}."))
    found += [el("p", f"Missing: {reason}") for reason in summary.get("missing", {}).values()]
    above = ("levels", "truth", "depth", "canaries", "masking", "against", "mean")  # in sections of their own
    others = {k: v for k, v in summary.items() if k not in (*above, "not_applicable", "missing", "stand_ins")}
    found += [el("article", el("h3", k.replace("_", " ")), _pre(v), class_="card") for k, v in others.items()]
    return found


def _provenance(report: Mapping[str, Any]) -> list[object]:
    config = dict(report["config"])
    tasks, versions = config.pop("tasks", []), config.pop("versions", {})
    parts = [
        el("article", el("h3", "Model"), definitions(report["model"]), class_="card"),
        *(el("article", el("h3", f"Data: {task['dataset']}"), definitions(task), class_="card") for task in tasks),
        el("article", el("h3", "Command"), definitions(config), class_="card"),
        el("article", el("h3", "Versions"), definitions({"hrzs": report["hrzs"], **versions}), class_="card"),
    ]
    return [
        el("p", "What it takes to measure this again. Options that are not listed stood at their defaults; image ids "
                "is a digest of the ids of the images, in order."),
        el("div", *parts, class_="cards"),
    ]  # fmt: skip


def _pre(value: Any) -> Markup:
    return Markup(f"<pre>{html.escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre>")


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[object]:
    names = list(dict.fromkeys(name for row in rows for name in row if name != "right"))
    body = [[_raw(name, row.get(name)) for name in names] for row in rows]
    whole = table("The rows of the report, as in the JSON but in %", [n.replace("_", " ") for n in names], body)
    return [el("details", el("summary", f"{len(rows)} rows"), whole, class_="card")]


def _raw(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name.endswith("_ci95"):
        return _interval(value)
    return _percent(value) if name in FIGURES else str(value)
