from __future__ import annotations

import html
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from html.parser import HTMLParser
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
import torch

from hrzs.evaluation.outcome import gallery_of, outcome_of, pictures_of
from hrzs.evaluation.rows import overall_of, rows_of
from hrzs.evaluation.runner import Evaluation
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.classifier import SCORINGS
from hrzs.results import metrics
from hrzs.results.certificates import certificate, smoothed
from hrzs.results.outcome import Example, Gallery, Outcome, Pictures, most_instructive
from hrzs.results.report import Report

# An element, the end of an attribute and another one, an entity, a template's expression, a command to a terminal.
HOSTILE = "<script>alert('x')</script>\" onload='y' &amp;{{ 7 * 7 }}\x1b"
CANARY = {"name": "huge-eps", "value": 0.5, "expected": "at most 0.05", "ok": False, "note": "masked?", "dataset": "d"}


class Page(HTMLParser):
    """Balanced elements, or an error; what is asserted of them is collected."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        found = dict(attrs)
        self.attributes.append((tag, found))
        self.links += [(n, str(v)) for n, v in attrs if n in ("src", "href", "srcset", "action", "data", "xlink:href")]
        self.ids += [str(found["id"])] if "id" in found else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def check(text: str) -> Page:
    """What holds for every report."""
    page = Page(text)
    assert not set(page.tags) & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert all(v.startswith(("#", "data:image/png;base64,")) for _, v in page.links)
    assert {v[1:] for n, v in page.links if n == "href"} <= set(page.ids)
    assert "default-src 'none'" in html.unescape(text)
    style = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert len(page.ids) == len(set(page.ids))
    assert page.tags["h1"] == 1
    assert page.tags["caption"] == page.tags["table"]
    assert all(found.get("alt") for tag, found in page.attributes if tag == "img")
    assert not any(name.startswith("on") for _, found in page.attributes for name in found)
    return page


def as_saved(
    *evaluations: Evaluation, canaries: Any = "switched off (--no-canaries)", **summary: Any
) -> dict[str, Any]:
    report = {
        "hrzs": "0.1",
        "model": {"source": "m", "arch": "a", "digest": "0123456789abcdef", "geometry": None, "run": {"method": "x"}},
        "config": {"norm": "linf", "steps": 3, "seed": 0, "precision": "fp32", "prompts_digest": "feedfeedfeedfeed",
                   "tasks": [e.task.describe() for e in evaluations], "versions": {"torch": "1"}},
        "results": [row for e in evaluations for row in rows_of(e)],
        "summary": {"levels": [s for e in evaluations for s in overall_of(e)], "not_applicable": {},
                    "canaries": canaries, **summary},
    }  # fmt: skip
    saved: dict[str, Any] = msgspec.to_builtins(report)
    return saved


def render(report: dict[str, Any], pictures: Mapping[str, Pictures] = MappingProxyType({})) -> str:
    return Report.from_json(json.dumps(report)).to_html(pictures)


def made(dataset: str = "shapes", canaries: Any = (), levels: int = 2) -> dict[str, Any]:
    """A report as the suite would leave it, without the suite."""
    fields = {"dataset": dataset, "split": "val", "n": 9, "classes": 6, "scoring": "prompt", "clean": 0.75, "clean_ci95": [0.5, 0.875],
              "precision": "fp32", "seconds": 1.0}  # fmt: skip
    attacked = {"eps": "1/255", "robust": 0.25, "robust_ci95": [0.125, 0.5], "attacked_through": "prompt"}
    clean = {"eps": None, "attack": "none", "attack_level": None, "robust": None, "robust_ci95": None, "transfer": None}
    rows = [{**fields, **clean, "level": level} for level in range(levels)]
    for attack, aim in [
        ("leaf-pgd", 0),
        *(("superclass-pgd", k) for k in range(1, levels)),
        ("hierarchical-pgd", "all"),
    ]:
        rows += [{**fields, **attacked, "attack": attack, "attack_level": aim, "level": level, "transfer": aim not in (level, "all")}
                 for level in range(levels)]  # fmt: skip
    severity = {"leaf-pgd at level 0, ε 1/255": {"lca_height_mistakes": None, "lca_height_all": 1.0}}
    summary = {"dataset": dataset, "eps": "1/255", "any_level_clean": 0.5, "any_level_robust": 0.125,
               "any_level_robust_ci95": [0.0625, 0.25], "severity": severity}  # fmt: skip
    return {
        "hrzs": "0.1", "model": {"source": "m", "arch": "a"}, "config": {}, "results": rows,
        "summary": {"levels": [summary], "not_applicable": {}, "canaries": list(canaries)},
    }  # fmt: skip


def finished(evaluation: Evaluation) -> Evaluation:
    evaluation.run()
    return evaluation


@pytest.fixture(scope="module")
def whole(make_evaluation: Callable[..., Evaluation]) -> Evaluation:
    """The whole suite at every level."""
    return finished(make_evaluation(level="all", eps=(Fraction(2, 255),)))


def test_every_row_and_figure_is_shown(evaluate: Callable[..., Evaluation], tree: Tree) -> None:
    evaluation = finished(evaluate(level="all", eps=(Fraction(1, 255), Fraction(4, 255)), steps=2))
    report = as_saved(evaluation, canaries=[CANARY])
    pictures = pictures_of(evaluation)
    gallery = pictures.gallery
    assert pictures.outcome is not None
    assert gallery is not None
    name = evaluation.task.data.name
    page = check(render(report, {name: pictures}))
    for title in ("Headline", "Accuracy as ε grows", "Every attack at every level", "Worst classes", "Adversarial images",
                  "The tree", "How bad the mistakes are", "Canaries", "Provenance", "All rows"):  # fmt: skip
        assert title in page.text
    assert f"{len(report['results'])} rows" in page.text
    low_high = [f"[{100 * a:.1f}, {100 * b:.1f}]" for a, b in (r["clean_ci95"] for r in report["results"])]
    for row, interval in zip(report["results"], low_high, strict=True):
        assert f"{row['attack']}{'–' if row['attack_level'] is None else row['attack_level']}" in page.text
        assert interval in page.text
    # One coloured cell for each row of a matrix; clean rows appear once for each ε.
    heat = sum(tag == "td" and "--v" in str(found.get("style")) for tag, found in page.attributes)
    clean = sum(row["eps"] is None for row in report["results"])
    assert heat == len(report["results"]) + clean
    for s in report["summary"]["levels"]:
        assert f"{100 * s['any_level_robust']:.1f}" in page.text
    s = report["summary"]["levels"][0]
    assert f"in the mean over levels: {100 * s['any_level_robust_balanced']:.1f} [" in page.text
    for detail in ("1 of 1 canaries unexpected", "masked?", "0123456789abcdef", "feedfeedfeedfeed", "run, method"):
        assert detail in page.text
    assert report["config"]["tasks"][0]["image_ids"] in page.text
    assert page.tags["img"] == 3 * len(gallery.examples) > 0
    assert page.tags["polyline"] == tree.height + 1
    lopsided = [row for row in report["results"] if row["constant"] > row["constant_balanced"]]
    assert lopsided
    for row in lopsided:
        figure = "clean_balanced" if row["robust"] is None else "robust_balanced"
        assert f"balanced {100 * row[figure]:.1f}" in page.text
        assert f"{100 * row['constant']:.1f}balanced {100 * row['constant_balanced']:.1f}" in page.text
    assert "".join(page.texts).count("boat") >= 1


@pytest.mark.parametrize(
    ("canaries", "said"),
    [
        ([], "no canaries"),
        ("switched off (--no-canaries)", "canaries switched off (--no-canaries)"),
        ([{**CANARY, "ok": None, "value": None}], "0 of 1 canaries as expected, the others not run"),
        ([{**CANARY, "ok": True}], "all 1 canaries as expected"),
    ],
)
def test_report_of_little(canaries: Any, said: str) -> None:
    """Clean only, no trees, no images: sections without anything to show are left out."""
    report = made()
    report["results"] = [row for row in report["results"] if row["eps"] is None]
    report["summary"].update(canaries=canaries, levels=[])
    page = check(render(report))
    assert said in page.text
    assert "Clean only" in page.text
    for absent in ("Worst classes", "Accuracy as ε grows", "Every attack", "The tree", "How bad"):
        assert absent not in page.text


def test_comparison_with_another_model() -> None:
    row = {"dataset": "shapes", "eps": "1/255", "attack": "leaf-pgd", "attack_level": 0, "level": 0, "scoring": "prompt",
           "n": 9, "this": 0.5, "other": 0.25, "difference": 0.25, "difference_ci95": [0.125, 0.375],
           "only_this": 7, "only_other": 2, "p": 0.001, "p_holm": 0.002}  # fmt: skip
    report = made()
    assert "Against another model" not in check(render(report)).text
    balanced = {"difference_balanced": -0.0625, "difference_balanced_ci95": [-0.125, 0.25]}
    rows = [row, row | balanced | {"attack": "any-level", "p_holm": 0.5}]
    against = {"model": HOSTILE, "rows": rows, "left_out": ["another suite"]}
    report["summary"] |= {"against": against, "stand_ins": {"shapes": ["margin for DLR"]}}
    page = check(render(report))
    for shown in (
        "Against another model",
        "+25.0 [12.5, 37.5]",
        "-6.2 [-12.5, 25.0]",
        "Not compared: another suite.",
        "7 / 2",
        "✓ significant",
        "not shown",
        "margin for DLR",
    ):
        assert shown in page.text


def test_nodes_that_share_a_prompt_are_named() -> None:
    report = made()
    nodes = [{"node": "n1", "name": "<i>food"}, {"node": "n2", "name": "food"}]
    report["config"]["tasks"] = [{"dataset": "shapes", "n": 9, "image_ids": "i", "classes": 6, "resize": "before", "tree_digest": "t",
                                  "levels": [6, 1], "same_prompts": [{"level": 3, "prompt": "food.", "nodes": nodes}]}]  # fmt: skip
    report["summary"]["depth"] = {}
    page = check(render(report))
    said = page.text.split("Further findings")[-1]
    assert "shapes: at level 3 the model cannot tell <i>food (n1), food (n2) apart. It reads “food.” for each" in said
    assert "depth" not in said.split("Provenance")[0]


@pytest.mark.parametrize(
    ("verdict", "pill", "advice"),
    [
        ("none found", "✓ no sign of gradient masking (shapes)", "This is no proof"),
        ("suspected", "✗ gradient masking suspected (shapes)", "Do not trust the robust accuracy"),
        ("inconclusive", "gradient masking: inconclusive (shapes)", "Do not rely on"),
    ],
)
def test_the_verdict_on_masking_leads(verdict: str, pill: str, advice: str) -> None:
    report = made(canaries=[{**CANARY, "ok": None, "value": None, "applicable": False}, {**CANARY, "ok": True}])
    report["summary"]["masking"] = [{"dataset": "shapes", "verdict": verdict, "reasons": [HOSTILE, "9 of 60 hold"]}]
    page = check(render(report))
    lead, rest = page.text.split("Headline", 1)
    assert pill in lead
    assert (advice in lead) is (verdict != "none found")
    assert "all 1 canaries as expected" in lead
    for said in (pill, advice, "9 of 60 hold", "not applicable"):
        assert said in rest
    assert "Further findings" not in page.text


def test_masking_that_was_not_looked_for() -> None:
    report = made(canaries="switched off (--no-canaries)")
    report["summary"].update(canaries="switched off (--no-canaries)", masking="switched off (--no-canaries)")
    page = check(render(report))
    assert "canaries switched off (--no-canaries)" in page.text
    assert "gradient masking" not in page.text


def test_nothing_beside_a_clean_evaluation(evaluate: Callable[..., Evaluation]) -> None:
    evaluation = finished(evaluate(attack=("none",)))
    assert outcome_of(evaluation) is None
    assert gallery_of(evaluation) is None


def test_report_without_the_whole_suite(evaluate: Callable[..., Evaluation], tree: Tree) -> None:
    evaluation = finished(evaluate(attack=("leaf-pgd",), steps=1))
    outcome = outcome_of(evaluation)
    assert outcome is not None
    assert list(outcome.robust) == [0]
    page = check(render(as_saved(evaluation), {evaluation.task.data.name: Pictures(tree, outcome)}))
    assert "the suite was not run in full" in page.text


def test_depth_of_levels_is_shown() -> None:
    levels = [{"level": k, "radius_text": 0.6 - 0.2 * k, "radius_image": 0.5 - 0.2 * k, "margin": 9.0 - k, "bound": 12.0}
              for k in range(3)]  # fmt: skip
    depth = {"head": "hyperbolic", "n": 9, "levels": levels, "edges_ordered": 0.96, "edges_ordered_image": None}
    report = made()
    report["summary"]["depth"] = {"shapes": depth}
    shown = check(render(report)).text
    for text in (
        "Where levels lie",
        "0.600",
        "0.100",
        "7.0",
        "12.0",
        "96.0% of edges between texts",
        "no edges between steady",
    ):
        assert text in shown
    assert "Where levels lie" not in render(made())


def test_several_datasets_and_a_flat_tree(tree: Tree, flat: Tree) -> None:
    report, other = made("flat one", levels=1), made("deep", levels=3)
    report["results"] += other["results"]
    report["summary"]["levels"] += other["summary"]["levels"]
    report["summary"]["not_applicable"] = {"flat one": ["superclass-pgd"]}
    hit = torch.tensor([True, False])
    outcome = Outcome("1/255", torch.tensor([0, 5]), hit[None], {0: hit}, None)
    page = check(render(report, {"flat one": Pictures(flat, outcome), "deep": Pictures(tree)}))
    assert "flat one: its tree has no superclass, so not applicable: superclass-pgd." in page.text
    # In the order of the report.
    assert page.text.index("flat one val, 9 images") < page.text.index("deep val, 9 images")
    assert "100.0 → 100.0 of 1dog" in page.text


def test_names_are_text() -> None:
    leaves = tuple(Node(f"{HOSTILE} {i}", f"c{i}", class_id=f"{HOSTILE}{i}") for i in range(3))
    tree = Tree(Node(HOSTILE, "root", (Node(HOSTILE, HOSTILE, leaves[:2], level=1), leaves[2]), level=2))
    report = made(HOSTILE, [{**CANARY, "note": HOSTILE}])
    report["model"].update(source=HOSTILE, run={HOSTILE: [HOSTILE]})
    report["config"][HOSTILE] = {HOSTILE: HOSTILE}
    report["summary"]["adversarial"] = {HOSTILE: {HOSTILE: HOSTILE}}
    outcome = Outcome(
        "1/255", torch.tensor([0, 1, 2]), torch.ones(2, 3).bool(), {0: torch.zeros(3).bool()}, torch.tensor([1, 0, 0])
    )
    image = torch.rand(3, 4, 4)
    example = Example(HOSTILE, 0, image, image, torch.tensor([0, 0]), torch.tensor([1, 1]))
    page = check(render(report, {HOSTILE: Pictures(tree, outcome, Gallery(HOSTILE, [example]))}))
    assert page.text.count(HOSTILE.replace("\x1b", r"\x1b")) > 10
    assert "\x1b" not in page.text


def test_a_thousand_classes() -> None:
    groups = tuple(
        Node(
            f"group {g}",
            f"g{g}",
            tuple(Node(f"class {g}-{i}", f"{g}-{i}", class_id=f"{g}-{i}") for i in range(25)),
            level=1,
        )
        for g in range(40)
    )
    tree = Tree(Node("all", "all", groups, level=2))
    labels = torch.arange(4000) % 1000
    clean = torch.rand(2, 4000, generator=torch.Generator().manual_seed(0)) < 0.7
    outcome = Outcome("1/255", labels, clean, {0: clean[0] & (labels % 2 == 0), 1: clean[1]}, (labels + 1) % 1000)
    report = made()
    began = time.perf_counter()
    text = render(report, {"shapes": Pictures(tree, outcome)})
    assert time.perf_counter() - began < 2
    assert len(text) < 1_000_000
    page = check(text)
    assert page.tags["details"] == 40 + 1 + 1  # superclasses, root, and the rows
    assert sum(tag == "details" and "open" in found for tag, found in page.attributes) == 1
    assert "20 of 1000 classes" in page.text


def test_figures_of_nodes(tree: Tree) -> None:
    # Classes in the tree's order: dog, wolf, cat, car, bus, boat.
    labels = torch.tensor([0, 0, 1, 3])
    clean = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]).bool()
    robust = {0: torch.tensor([1, 0, 0, 0]).bool(), 1: torch.tensor([1, 1, 0, 0]).bool()}
    report = {"hrzs": "0", "model": {"source": "m", "arch": "a"}, "config": {}, "results": [],
              "summary": {"levels": [], "canaries": []}}  # fmt: skip
    outcome = Outcome("1/255", labels, clean, robust, torch.tensor([0, 5, 5, 4]))
    page = check(render(report, {"d": Pictures(tree, outcome)}))
    shown = page.text.split("The tree", 2)[2]
    assert "50.0 → 50.0 of 2dog" in shown
    assert "100.0 → 66.7 of 3canine level 1" in shown
    assert "100.0 of 3animal level 2" in shown  # nothing attacked level 2
    assert "no imagescat" in shown
    worst = page.text.split("Worst classes", 2)[2]
    # Those that lost most first; the mistake is the one made under attack.
    assert worst.index("wolf1100.00.0boat (1)") < worst.index("dog250.050.0boat (1)")


# -- what comes beside the rows ---------------------------------------------------------------------------------------


def test_outcome_agrees_with_the_rows(whole: Evaluation) -> None:
    evaluation, outcome = whole, outcome_of(whole)
    assert outcome is not None
    assert outcome.eps == "2/255"
    for level in range(evaluation.task.tree.height):
        rows = [row for row in rows_of(evaluation) if row.attack_level == row.level == level]
        rows = [row for row in rows if row.scoring == row.attacked_through == "prompt"]
        assert {row.attack for row in rows} == {"superclass-pgd" if level else "leaf-pgd", "cw"}
        held = torch.stack([metrics.from_bits(row.correct, row.n) for row in rows]).all(0)
        assert outcome.robust[level][evaluation.by_id].equal(held)
        assert outcome.clean[level].double().mean().item() == pytest.approx(rows[0].clean)


def test_outcome_by_leaves_where_nothing_else_was_scored(evaluate: Callable[..., Evaluation]) -> None:
    evaluation = finished(evaluate(level="all", scoring="leaves"))
    outcome = outcome_of(evaluation)
    assert outcome is not None
    clean = metrics.correct(
        evaluation.task.tree, evaluation.labels, evaluation.predictions["none|None|prompt|None"].nodes
    )
    assert outcome.clean[1].equal(clean[SCORINGS.index("leaves"), 1])
    rows = [r for r in rows_of(evaluation) if r.attack_level == r.level == 1]
    held = torch.stack([metrics.from_bits(row.correct, row.n) for row in rows]).all(0)
    assert len(rows) == 2
    assert outcome.robust[1][evaluation.by_id].equal(held)


def test_gallery_shows_what_the_evaluation_saw(whole: Evaluation) -> None:
    evaluation, gallery = whole, gallery_of(whole, most=4)
    assert gallery is not None
    assert 0 < len(gallery.examples) <= 4
    unit = next(u for u in evaluation.units if u.title == gallery.title)
    seen, before = (evaluation.predictions[u.key].nodes[0] for u in (unit, evaluation.units[0]))
    ids = list(evaluation.task.data.ids)
    for example in gallery.examples:
        i = ids.index(example.id)
        assert example.after.equal(seen[:, i])
        assert example.before.equal(before[:, i])
        assert example.label == int(evaluation.labels[i])
        assert not example.after.equal(example.before)
        assert 0 < (example.adversarial - example.clean).abs().max().item() <= 2 / 255 + 1e-6


def test_most_instructive_takes_each_class_first() -> None:
    labels, was, lost = (torch.tensor(v) for v in ([0, 0, 1, 1, 2], [3, 3, 2, 3, 3], [3, 2, 2, 1, 0]))
    assert most_instructive(labels, was, lost, 3) == [0, 2, 1]
    assert most_instructive(labels, was, lost, 9) == [0, 2, 1, 3]


def test_the_short_form_for_notebooks(whole: Evaluation) -> None:
    evaluation, report = whole, Report.from_json(json.dumps(as_saved(whole)))
    text = report._repr_html_()
    page = Page(text)
    assert page.tags["tr"] == 1 + evaluation.task.tree.height
    for level in range(evaluation.task.tree.height):
        clean = next(row for row in report.results if row.attack == "none" and row.level == level)
        robust = min(row.robust for row in report.results if row.attack_level == row.level == level and row.scoring == "prompt"
                     and row.attacked_through == "prompt")  # fmt: skip
        for value in (clean.clean, robust, clean.clean_balanced, clean.constant):
            assert f"{100 * value:.1f}" in page.text
    hostile = made(HOSTILE)
    hostile["model"]["source"] = HOSTILE
    assert "<script>" not in Report.from_json(json.dumps(hostile))._repr_html_()


def test_certificates() -> None:
    """A curve for each level, the figures below it, and what was claimed."""
    report = made()
    assert "certified" not in check(render(report)).text.lower()
    votes, truth = [{0: 90, 1: 10}, {0: 55, 1: 45}, {1: 100}], torch.tensor([0, 0, 1])
    found = [
        certificate(
            smoothed(votes, votes, ancestor, 100, sigma=0.5, alpha=0.001), ancestor[truth], 100, sigma=0.5,
            level_alpha=0.001, dataset=HOSTILE, level=level, classes=classes, selection=100, alpha=0.001,
            confidence="per-level", seconds=1.0, chosen="0 0 1", votes="90 55 100",
        )
        for level, classes, ancestor in ((0, 2, torch.tensor([0, 1])), (1, 1, torch.tensor([0, 0])))
    ]  # fmt: skip
    page = check(render(report | {"certificates": msgspec.to_builtins(found)}))
    for text in (
        "σ 0.5",
        "100 samples (PREVIEW",
        "preview",
        "level 0",
        "level 1",
        "r 0.25",
        "balanced",
        "33.3",
        "66.7",
    ):
        assert text in page.text
    assert "and certified at σ 0.5" in page.text
    lines = [attributes for tag, attributes in page.attributes if tag in ("path", "polyline")]
    assert len(lines) >= 2
