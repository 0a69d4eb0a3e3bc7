"""The report of `hrzs eval` as one HTML file: no script, and nothing in it is fetched from anywhere.

What no JSON holds comes beside the report: the trees, what became of every image, and a few adversarial images
(`Pictures`).
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from msgspec.structs import asdict
from torch import Tensor

from hrzs.attacks.budget import format_eps
from hrzs.hierarchy.tree import Node, Tree
from hrzs.results.average import FIGURES
from hrzs.results.export import Headline, headlines, sources_of
from hrzs.results.masking import ADVICE, INCONCLUSIVE, NONE_FOUND, SUSPECTED, Canary, Masking
from hrzs.results.metrics import TOP
from hrzs.results.outcome import Example, Gallery, Outcome, Pictures
from hrzs.results.pages.charts import Curve, line_chart
from hrzs.results.pages.markup import Markup, definitions, document, el, image_element, join, number_heads, table
from hrzs.results.report import AttackLevel, Comparison, Data, Depth, Interval, Mean, Overall, Report, Row, Summary
from hrzs.results.table import lopsided_levels

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


def render(report: Report, pictures: Mapping[str, Pictures]) -> str:
    """The page; ``pictures`` go by the dataset's name. A section without anything to show is left out."""
    heads, summary = headlines(report), report.summary
    trees = {name: one.tree for name, one in pictures.items()}
    outcomes = {name: one.outcome for name, one in pictures.items() if one.outcome is not None}
    galleries = {name: one.gallery for name, one in pictures.items() if one.gallery is not None}
    sections = [
        section
        for section in (
            ("headline", "Headline", _headline(heads, summary.mean)),
            ("curves", "Accuracy as ε grows", _curves(heads)),
            ("matrix", "Every attack at every level", _matrices(report.results)),
            ("classes", "Worst classes", _worst(outcomes, trees)),
            ("gallery", "Adversarial images", _galleries(galleries, trees)),
            ("tree", "The tree", _trees(trees, outcomes)),
            ("depth", "Where levels lie", _depth(summary.depth)),
            ("against", "Against another model", _against(summary.against)),
            ("mistakes", "How bad the mistakes are", _mistakes(summary.levels)),
            ("canaries", "Canaries", _canaries(summary.canaries, _masking(summary))),
            ("further", "Further findings", _further(summary, report.tasks)),
            ("provenance", "Provenance", _provenance(report)),
            ("rows", "All rows", _rows(report.results)),
        )
        if section[2]
    ]
    title = f"{report.model.source} on {', '.join(dict.fromkeys(h.dataset for h in heads))}"
    page = [
        el("header",
            el("p", f"hrzs {report.hrzs}, robustness over a class tree", class_="soft"),
            el("h1", title),
            _lead(report, heads),
            el("nav", *(el("a", name, href=f"#{anchor}") for anchor, name, _ in sections), aria_label="Sections")),
        el("main", *(_section(anchor, name, *content) for anchor, name, content in sections)),
        el("footer", el("p", "Accuracies in %; brackets hold Wilson’s 95% interval. Level 0 are the leaves of the "
                               "tree, its root is not scored.")),
    ]  # fmt: skip
    return document(title, page)


def _lead(report: Report, heads: Sequence[Headline]) -> Markup:
    attacks = dict.fromkeys(row.attack for row in report.results if row.attack != "none")
    radii = dict.fromkeys(h.eps for h in heads if h.eps is not None)
    about = f"{report.model.arch}; "
    norms = dict.fromkeys(row.norm for row in report.results if row.norm) or (report.config.get("norm", "linf"),)
    about += f"{', '.join(attacks)} at ε {', '.join(radii)} ({', '.join(norms)})" if attacks else "clean only"
    if sources := sources_of(report.results):
        about += f"; the images are saved ones, made against {', '.join(sources)}"
    masking = _masking(report.summary)
    pills = [_verdict(report.summary.canaries), *map(_masking_pill, masking)]
    advice = dict.fromkeys(ADVICE[found.verdict] for found in masking if found.verdict != NONE_FOUND)
    return join([
        el("p", about, *(join([" ", el("span", said, class_=f"pill {kind}")]) for kind, said in pills)),
        *(el("p", text) for text in advice),
    ])  # fmt: skip


def _verdict(canaries: Sequence[Canary] | str) -> tuple[str, str]:
    if isinstance(canaries, str):
        return "unsure", f"canaries {canaries}"
    canaries = [c for c in canaries if c.applicable]
    bad = sum(c.ok is False for c in canaries)
    good = sum(c.ok is True for c in canaries)
    if bad:
        return "bad", f"✗ {bad} of {len(canaries)} canaries unexpected"
    if not canaries:
        return "unsure", "no canaries"
    if good < len(canaries):
        return "unsure", f"{good} of {len(canaries)} canaries as expected, the others not run"
    return "good", f"✓ all {good} canaries as expected"


def _masking(summary: Summary) -> Sequence[Masking]:
    """The verdicts on gradient masking; none where the canaries were switched off, which their own pill says."""
    return () if isinstance(summary.masking, str) else summary.masking


def _masking_pill(found: Masking) -> tuple[str, str]:
    kind, said = {
        NONE_FOUND: ("good", "✓ no sign of gradient masking"),
        SUSPECTED: ("bad", "✗ gradient masking suspected"),
        INCONCLUSIVE: ("unsure", "gradient masking: inconclusive"),
    }[found.verdict]
    return kind, f"{said} ({found.dataset})"


#: The heads of columns with `FIGURES`.
_FIGURES = ("Clean", "Robust", "Clean, balanced", "Robust, balanced", "Constant answer", "Constant, balanced")


def _headline(heads: Sequence[Headline], mean: Mean | None) -> list[object]:
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


def _mean(mean: Mean | None) -> list[Markup]:
    if mean is None:
        return []
    body = [
        ("clean" if row.attack == "none" else f"{row.attack}, ε {row.eps}",
         *(_percent(getattr(row, name)) for name in FIGURES))
        for row in mean.rows
    ]  # fmt: skip
    caption = f"Mean over {', '.join(mean.over)}, at the leaves"
    caption += f"; missing: {', '.join(mean.missing)}" if mean.missing else ""
    return [el("article", table(caption, ["Attack", *number_heads(*_FIGURES)], body), class_="card")]


def _headline_card(h: Headline) -> Markup:
    s = h.summary
    if h.eps is None:
        figure = el("p", "Clean only: no attack was run.", class_="soft")
    elif s is None or s.any_level_robust is None:
        figure = el("p", "No any-level figure: the suite was not run in full.", class_="soft")
    else:
        interval = el("small", f"% {_interval(s.any_level_robust_ci95)}")
        figure = join([
            el("div", _percent(s.any_level_robust), " ", interval, class_="figure"),
            el("p", f"any-level robust at ε {h.eps}; right at every level when clean: {_percent(s.any_level_clean)}%; "
                    f"a constant answer: {_percent(s.any_level_constant)}%"),
            el("p", "balanced over nodes, in the mean over levels: ",
               _with_interval(s.any_level_robust_balanced, s.any_level_robust_balanced_ci95),
               f"; clean: {_percent(s.any_level_clean_balanced)}; a constant answer: "
               f"{_percent(s.any_level_constant_balanced)}"),
        ])  # fmt: skip
    body = []
    for level, row in h.clean.items():
        hit = h.robust.get(level)
        clean, robust = row.clean_figure, None if hit is None else hit.figure
        body.append((
            join([f"{level} ", el("small", f"({row.classes})")]),
            el("td", _with_interval(clean.value, clean.ci95), class_="n"),
            el("td", "–" if robust is None else _with_interval(robust.value, robust.ci95), class_="n"),
            el("td", _with_interval(clean.balanced, clean.balanced_ci95), class_="n"),
            el("td", "–" if robust is None else _with_interval(robust.balanced, robust.balanced_ci95), class_="n"),
            el("td", f"{_percent(row.constant)} / {_percent(row.constant_balanced)}", class_="n"),
            el("td", _bars(row.clean, None if hit is None else hit.robust), class_="bars"),
        ))  # fmt: skip
    caption = f"Accuracy at each level of {h.dataset}" + ("" if h.eps is None else f", robust at ε {h.eps}")
    header = ["Level (nodes)", *number_heads(*_FIGURES[:4], "Constant answer, balanced too"), el("td", class_="bars")]
    levels = table(caption, header, body, "wide")
    images = el("small", f"{h.split}, {h.n} images", class_="soft")
    return el("article", el("h3", f"{h.dataset} ", images), figure, levels, class_="card")


# -- matrices ---------------------------------------------------------------------------------------------------------


def _matrices(rows: Sequence[Row]) -> list[object]:
    cards = []
    for dataset, eps in dict.fromkeys((row.dataset, row.eps) for row in rows if row.eps is not None):
        here = [row for row in rows if row.dataset == dataset and row.eps in (None, eps)]
        for scoring in dict.fromkeys(row.scoring for row in here):
            cards.append(_matrix(dataset, eps, scoring, [row for row in here if row.scoring == scoring]))
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


def _matrix(dataset: str, eps: str, scoring: str, rows: Sequence[Row]) -> Markup:
    levels = {row.level: row.classes for row in sorted(rows, key=lambda row: row.level)}
    groups: dict[tuple[str, AttackLevel, str | None], dict[int, Row]] = {}
    for row in rows:
        groups.setdefault((row.attack, row.attack_level, row.attacked_through), {})[row.level] = row
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


def _constant_row(rows: Sequence[Row], levels: Mapping[int, int], lopsided: set[int]) -> list[list[Markup]]:
    by_level = {row.level: row for row in rows}
    if any(row.constant is None for row in rows):
        return []
    cells = []
    for k in levels:
        balanced = el("small", f"balanced {_percent(by_level[k].constant_balanced)}") if k in lopsided else None
        cells.append(el("td", _percent(by_level[k].constant), balanced, class_="none"))
    return [[join(["constant answer", Markup("<br>"), el("small", "the largest node")]), *cells]]


def _heat(row: Row | None, lopsided: bool) -> Markup:
    if row is None:
        return el("td", "·", class_="none")
    figure = row.figure
    half = None if figure.ci95 is None else el("small", f"±{50 * (figure.ci95[1] - figure.ci95[0]):.1f}")
    about = f"95% interval {_interval(figure.ci95)}"
    balanced = None
    if lopsided:
        balanced = el("small", f"balanced {_percent(figure.balanced)}")
        about += f"; balanced {_interval(figure.balanced_ci95)}"
    aimed, share = "aimed" if row.transfer is False else None, f"--v:{_percent(figure.value)}%"
    return el("td", _percent(figure.value), half, balanced, style=share, class_=aimed, title=about)


# -- curves -----------------------------------------------------------------------------------------------------------

#: Words below the axis keep this share of its length from one another.
_APART = 0.12


@dataclass(frozen=True)
class _Point:
    eps: Fraction
    value: float
    interval: Interval | None


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
    """By level, and at any level: what the legend calls it, and its points from the clean one onwards."""
    radii = {h.eps: Fraction(str(h.eps)) for h in heads}
    series: dict[str, list[_Point]] = {}
    for level, row in heads[0].clean.items():
        points = [_Point(Fraction(0), row.clean, row.clean_ci95)]
        points += [_Point(radii[h.eps], r.robust, r.robust_ci95)
                   for h in heads if (r := h.robust.get(level)) is not None and r.robust is not None]  # fmt: skip
        if len(points) > 1:
            series[f"level {level}"] = sorted(points, key=lambda p: p.eps)
    points = [
        _Point(radii[h.eps], s.any_level_robust, s.any_level_robust_ci95)
        for h in heads
        if (s := h.summary) is not None and s.any_level_robust is not None
    ]
    if points and heads[0].summary is not None and heads[0].summary.any_level_clean is not None:
        points.append(_Point(Fraction(0), heads[0].summary.any_level_clean, None))
        series["any level"] = sorted(points, key=lambda p: p.eps)
    return series


def _chart(dataset: str, series: Mapping[str, Sequence[_Point]]) -> Markup:
    radii = sorted({p.eps for points in series.values() for p in points})
    names: dict[float, str] = {}
    for eps in radii:
        if not names or float(eps) - max(names) >= _APART * radii[-1]:
            names[float(eps)] = format_eps(eps) if eps else "0"
    curves = [
        Curve(name, [(float(p.eps), 100 * p.value) for p in points], None if name == "any level" else i,
              "thick" if name == "any level" else "line",
              [(float(p.eps), 100 * p.interval[0], 100 * p.interval[1]) for p in points if p.interval is not None])
        for i, (name, points) in enumerate(series.items())
    ]  # fmt: skip
    about = f"Accuracy on {dataset} as ε grows; the table beside holds the values"
    return line_chart(about, curves, x="ε", y=(0.0, 100.0), x_names=names, unit="%")


def _values_table(dataset: str, series: Mapping[str, Sequence[_Point]]) -> Markup:
    radii = sorted({p.eps for points in series.values() for p in points})
    body = []
    for name, points in series.items():
        values = {p.eps: p.value for p in points}
        body.append([name, *(_percent(values.get(eps)) for eps in radii)])
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
    counts = [] if outcome is None else [_counts(tree, outcome, level) for level in range(tree.height)]
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


def _mark(correct: bool) -> Markup:
    return el("span", "✓ " if correct else "✗ ", class_="good" if correct else "bad", role="img",
               aria_label="right: " if correct else "wrong: ")  # fmt: skip


def _png(image: Float[Tensor, "3 H W"]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# -- tables -----------------------------------------------------------------------------------------------------------

_MISTAKES = {
    "lca_height_mistakes": "LCA height, mistakes", "lca_height_all": "LCA height, all images",
    **{f"hd@{k}": f"HD@{k}" for k in TOP},
}  # fmt: skip


def _depth(found: Mapping[str, Depth]) -> list[object]:
    """Radii, margins and the order of edges, of a model whose head tells levels apart or might."""
    if not found:
        return []
    cards: list[Markup] = []
    for dataset, depth in found.items():
        curves = [
            Curve(name, [(-float(level.level), getattr(level, key)) for level in reversed(depth.levels)], i)
            for i, (name, key) in enumerate((("texts", "radius_text"), ("class means of images", "radius_image")))
        ]
        names = {-float(level.level): str(level.level) for level in depth.levels}
        chart = line_chart("Mean radius by level, the highest on the left", curves, x="level", x_names=names)
        body = [
            (level.level, f"{level.radius_text:.3f}", f"{level.radius_image:.3f}", f"{level.margin:.1f}",
             f"{level.bound:.1f}")
            for level in depth.levels
        ]  # fmt: skip
        heads = number_heads("Texts", "Images", "Margin", "Bound")
        ordered = [f"no {name}" if share is None else f"{_percent(share)} % of {name}"
                   for share, name in ((depth.edges_ordered, "edges between texts"),
                                       (depth.edges_ordered_image, "edges between steady class means"))]  # fmt: skip
        cards.append(
            el("article", el("h3", dataset), chart, table("Radius and margin by level", ["Level", *heads], body),
               el("p", f"The parent lies nearer the centre than the child for {' and '.join(ordered)}."), class_="card")
        )  # fmt: skip
    unit = "its norm" if depth.head == "euclidean" else "its share of the ball’s radius"
    said = (
        f"The radius of an embedding is {unit}. The margin is the largest that the texts of a level leave room for, in "
        "logits; the bound is what theory allows texts so far out."
    )
    return [el("p", said), *cards]


def _mistakes(summary: Sequence[Overall]) -> list[object]:
    cards = []
    for s in summary:
        columns = [name for name in _MISTAKES if any(name in found for found in s.severity.values())]
        above = max(map(len, s.consistency.values()), default=0)
        body = []
        for title, severity in s.severity.items():
            agree = s.consistency.get(title, ())
            body.append((
                title.removesuffix(f", ε {s.eps}"),
                *(_number(severity.get(name), 1) for name in columns),
                *(_number(agree[k] if k < len(agree) else None, 100) for k in range(above)),
            ))  # fmt: skip
        if body:
            heads = [*(_MISTAKES[name] for name in columns), *(f"agree at level {k + 1}" for k in range(above))]
            caption = f"{s.dataset}, ε {s.eps}"
            cards.append(el("article", table(caption, ["Attack", *number_heads(*heads)], body), class_="card"))
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


def _number(value: float | None, unit: int) -> str:
    return "–" if value is None else f"{unit * value:.{1 if unit == 100 else 2}f}"


def _canaries(canaries: Sequence[Canary] | str, masking: Sequence[Masking]) -> list[object]:
    if isinstance(canaries, str) or not canaries:
        return [el("p", f"The canaries were not run: {canaries or 'nothing was attacked'}.")]
    body = []
    for c in canaries:
        kind, said = _canary_verdict(c)
        value = "–" if c.value is None else f"{c.value:.3f}"
        pill = el("span", said, class_=f"pill {kind}")
        body.append((c.name, c.dataset, value, *(el("td", part) for part in (c.expected, pill, c.note))))
    header = ["Canary", "Dataset", *number_heads("Measured"), "Expected", "Verdict", "Note"]
    return [
        el("p", "Would this set-up notice a model that is not robust? Each canary has an expectation, stated "
                "beforehand; at most 64 images each. It counts as unexpected only where chance cannot explain it."),
        *map(_masking_card, masking),
        el("article", table("Canaries", header, body, "wide"), class_="card"),
    ]  # fmt: skip


def _against(against: Comparison | None) -> list[object]:
    if against is None:
        return []
    words = {True: ("good", "✓ significant"), False: ("unsure", "not shown")}
    body = [
        (
            f"{row.dataset}, {row.title}",
            _percent(row.this),
            _percent(row.other),
            _difference(row.difference, row.difference_ci95),
            _difference(row.difference_balanced, row.difference_balanced_ci95),
            f"{row.only_this} / {row.only_other}",
            f"{row.p_holm:.2g}",
            el("td", el("span", said, class_=f"pill {kind}")),
        )
        for row in against.rows
        for kind, said in [words[row.p_holm < 0.05]]
    ]
    header = ["", *number_heads("This", "Other", "Difference", "Balanced difference", "Right in one only",
                                "p, corrected"), "At 5%"]  # fmt: skip
    return [
        el("p", f"Paired with {against.model}, image by image: McNemar's exact test, corrected for the number of "
                "comparisons by Holm's method; intervals of differences are Newcombe's. Where a difference is not "
                "shown, these images do not tell the models apart. The balanced difference weighs all nodes of a level "
                "alike; its interval is normal, from the weighted variance of the differences of single images. The "
                "test is about the difference per image."),
        *(el("p", f"Not compared: {reason}.") for reason in against.left_out),
        el("article", table("Differences in points", header, body, "wide"), class_="card"),
    ]  # fmt: skip


def _difference(value: float | None, ci: Sequence[float] | None) -> Markup:
    if value is None:
        return el("td", "–", class_="n")
    return el("td", f"{100 * value:+.1f} ", el("small", _interval(ci)), class_="n")


def _canary_verdict(canary: Canary) -> tuple[str, str]:
    if canary.ok is None:
        return "unsure", "not run" if canary.applicable else "not applicable"
    return ("good", "✓ as expected") if canary.ok else ("bad", "✗ unexpected")


def _masking_card(found: Masking) -> Markup:
    kind, said = _masking_pill(found)
    reasons = el("ul", *(el("li", reason) for reason in found.reasons)) if found.reasons else None
    about = "Are the gradients masked, so that attacks fail although adversarial images exist? "
    return el(
        "article", el("h3", "Gradient masking"), el("p", about, el("span", said, class_=f"pill {kind}")),
        reasons, el("p", ADVICE[found.verdict]), class_="card",
    )  # fmt: skip


def _further(summary: Summary, tasks: Sequence[Data]) -> list[object]:
    found: list[object] = []
    for task in tasks:
        for same in task.same_prompts:
            names = ", ".join(f"{node['name']} ({node['node']})" for node in same["nodes"])
            where = f"{task.dataset}: at level {same['level']} the model cannot tell {names} apart."
            found.append(el("p", f"{where} It reads “{same['prompt']}” for each, so all but one are always wrong."))
    for dataset, attacks in summary.not_applicable.items():
        found.append(el("p", f"{dataset}: its tree has no superclass, so not applicable: {', '.join(attacks)}."))
    for dataset, notes in summary.stand_ins.items():
        found.append(el("p", f"{dataset}: a loss stood in for one that needs more classes: {'; '.join(notes)}."))
    found += [el("p", f"Missing: {reason}") for reason in summary.missing.values()]
    for title, saved in (summary.adversarial or {}).items():
        found.append(el("article", el("h3", f"Saved images: {title}"), definitions(saved), class_="card"))
    return found


def _provenance(report: Report) -> list[object]:
    parts = [
        el("article", el("h3", "Model"), definitions(asdict(report.model)), class_="card"),
        *(el("article", el("h3", f"Data: {task.dataset}"), definitions(asdict(task)), class_="card")
          for task in report.tasks),
        el("article", el("h3", "Command"), definitions(report.config), class_="card"),
        el("article", el("h3", "Versions"), definitions(
            {"hrzs": report.hrzs, **report.versions, "prompts_digest": report.prompts_digest}), class_="card"),
    ]  # fmt: skip
    return [
        el("p", "What it takes to measure this again. Options that are not listed stood at their defaults; image ids "
                "is a digest of the ids of the images, in order."),
        el("div", *parts, class_="cards"),
    ]  # fmt: skip


def _rows(rows: Sequence[Row]) -> list[object]:
    names = [name for name in Row.__struct_fields__ if name != "correct"]
    body = [[_raw(name, getattr(row, name)) for name in names] for row in rows]
    whole = table("The rows of the report, as in the JSON but in %", [n.replace("_", " ") for n in names], body)
    return [el("details", el("summary", f"{len(rows)} rows"), whole, class_="card")]


def _raw(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name.endswith("_ci95"):
        return _interval(value)
    return _percent(value) if name in FIGURES else str(value)


# -- the short form ---------------------------------------------------------------------------------------------------


def short(report: Report) -> str:
    """A table of the headline figures, for a notebook: an HTML fragment without a style of its own."""
    body = []
    for h in headlines(report):
        for level, row in h.clean.items():
            hit, constant = h.robust.get(level), f"{_percent(row.constant)} / {_percent(row.constant_balanced)}"
            figures = (row.clean_figure, None if hit is None else hit.figure)
            shown = (
                "–" if figure is None else f"{_percent(value)} {_interval(ci95)}".strip()
                for balanced in (False, True)
                for figure in figures
                for value, ci95 in [(None, None) if figure is None else figure[2:] if balanced else figure[:2]]
            )  # fmt: skip
            body.append((f"{h.dataset}, level {level} ({row.classes})", h.eps or "–", *shown, constant))
    header = ["", "ε", *number_heads(*_FIGURES[:4], "Constant answer, balanced too")]
    return str(table(f"{report.model.source}: accuracy in %, robust under attack at the level itself", header, body))
