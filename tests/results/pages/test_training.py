from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from hrzs.data import Dataset, subset
from hrzs.errors import HrzsError, UsageError
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.clip import ClipModel
from hrzs.models.depth import node_points
from hrzs.models.heads import HyperbolicHead
from hrzs.models.loading import load_model
from hrzs.results.pages.training import write_report
from hrzs.training.methods import METHODS
from hrzs.training.options import DEFAULTS, TrainOptions
from hrzs.training.trainer import Trainer, options_as_config

# An element, the end of an attribute and another one, an entity, a template's expression, a command to a terminal.
HOSTILE = "<script>alert('x')</script>\" onload='y' &amp;{{ 7 * 7 }}\x1b"
BALL = HyperbolicHead(0.02, 0.03, 14.0, 1.0)
FLAT = HyperbolicHead(0.02, 0.03, 14.0, 0.0)
OPTIONS = TrainOptions(steps=1, val_steps=1, batch_size=8, max_steps=2, lr=1e-3)


class Page(HTMLParser):
    """Balanced elements, or an error."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def charts(self) -> list[str]:
        """What each picture shows."""
        return [str(found["aria-label"]) for tag, found in self.tags if tag == "svg" and "aria-label" in found]

    def rows(self, caption: str) -> list[list[str]]:
        """The cells of the table called so."""
        (body,) = re.findall(f"<caption>{caption}[^<]*</caption>.*?<tbody>(.*?)</tbody>", self.source, re.DOTALL)
        found = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in body.split("</tr>") if row.strip()]
        return [[html.unescape(re.sub("<[^>]*>", "", cell)) for cell in row] for row in found]

    def curves(self, about: str) -> list[list[tuple[float, float]]]:
        """The corners of the lines of the chart called so."""
        (svg,) = re.findall(f'<svg [^>]*aria-label="{html.escape(about)}[^"]*"[^>]*>.*?</svg>', self.source, re.DOTALL)
        lines = re.findall(r'<polyline points="([^"]*)"', svg)
        return [[(float(x), float(y)) for x, y in (p.split(",") for p in line.split())] for line in lines]


def check(file: Path) -> Page:
    """What holds for the report of every run."""
    page = Page(file)
    names = [tag for tag, _ in page.tags]
    assert not set(names) & {"script", "link", "iframe", "object", "embed", "base", "form", "img", "image", "use"}
    attributes = [(tag, name, str(value)) for tag, found in page.tags for name, value in found.items()]
    assert not [a for a in attributes if a[1].startswith("on") or a[1] in ("src", "xlink:href", "srcset", "action")]
    links = [value for _, name, value in attributes if name == "href"]
    assert links
    assert {link.removeprefix("#") for link in links} <= {value for _, name, value in attributes if name == "id"}
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert "url(" not in page.source
    assert "default-src 'none'" in html.unescape(page.source)
    # Every picture speaks, or is hidden from those who cannot see it; none holds what is no number.
    assert all("aria-label" in found or "aria-hidden" in found for tag, found in page.tags if tag == "svg")
    drawn = [value for tag, name, value in attributes if tag in ("polyline", "path", "circle", "line", "text")]
    assert not [value for value in drawn if re.search(r"\b(nan|inf)", value)]
    assert names.count("h1") == 1
    assert len(page.source) < 2e6
    assert not [p for p in file.parent.iterdir() if p.name.startswith(".")]
    return page


def rows(n: int, **overrides: Any) -> list[dict[str, Any]]:
    """A log as a hierarchical run leaves it."""
    return [
        {"step": i, "loss": 3.0 + math.sin(i), "lr": 1e-4, "grad_norm": 5.0, "alignment": 2.5, "vic": 0.25,
         "gap_label": 0.02, "gap_intra": 0.01, "radius_text": 0.4, "radius_image": 0.5, "cap_share": 0.0,
         **{f"radius_text_{k}": 0.4 - 0.1 * k for k in range(3)}, **{f"radius_image_{k}": 0.5 - 0.1 * k for k in range(3)},
         **{f"margin_{k}": 30.0 - 4.0 * k for k in range(3)}, **{f"bound_{k}": 40.0 - 4.0 * k for k in range(3)},
         "edges_ordered": 0.875, "edges_ordered_image": 0.75, "scale_image": 0.03, "scale_text": 0.06,
         "curvature": 1.0, **{f"beta_{k}": 14.0 + 3.0 * k for k in range(3)},
         **{f"depth_{k}": 1.0 - 0.3 * k for k in range(3)}, "seconds": 0.5 * i, **overrides}
        for i in range(1, n + 1)
    ]  # fmt: skip


def looked(clean: float, robust: float, best: bool = True) -> dict[str, Any]:
    """A validation over three levels."""
    return {"clean": [clean] * 3, "robust": [robust, robust + 0.1, robust + 0.2], "any_level": robust - 0.1, "n": 100,
            "criterion": clean, "best": best, "clean_balanced": [clean / 2] * 3, "robust_balanced": [robust / 2] * 3,
            "constant": [0.25, 0.5, 0.75], "any_level_balanced": robust / 4}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path, model: ClipModel, tree: Tree) -> Callable[..., Page]:
    """The page of a run with this log, checked. The model has a hyperbolic head unless ``head`` says otherwise."""

    def write(
        log: list[dict[str, Any]] | str | None,
        config: dict[str, Any] | None = None,
        head: HyperbolicHead | None = BALL,
        tree: Tree = tree,
    ) -> Page:
        if log is not None:
            text = log if isinstance(log, str) else "".join(json.dumps(row) + "\n" for row in log)
            (tmp_path / "metrics.jsonl").write_text(text)
        if config is not None:
            (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        kept, model.geometry = model.geometry, head
        try:
            file = write_report(tmp_path, model, tree, template="photo", defaults=DEFAULTS)
        finally:
            model.geometry = kept
        assert file == tmp_path / "report.html"
        return check(file)

    return write


# -- of runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "euclidean"])
def test_of_a_real_run(
    method: str, make_model: Callable[[], ClipModel], shapes: Dataset, shapes_tree: Tree, tmp_path: Path
) -> None:
    overrides = {"method": "hierarchical", "geometry": "euclidean"} if method == "euclidean" else {"method": method}
    options = replace(OPTIONS, validate_every=1, **overrides)
    trainer = Trainer(
        make_model(),
        shapes,
        shapes_tree,
        options,
        tmp_path,
        origin=("small", "none"),
        validation=subset(shapes, limit=8),
    )
    trainer.run()
    page = check(tmp_path / "report.html")
    assert f"{options.method}: small (none) on" in page.text
    assert "2 steps" in page.text
    assert "any level" in page.text
    assert "in best/" in page.text
    assert shapes_tree.digest in page.text
    assert load_model(str(tmp_path)).info.digest in page.text
    has_disk = any("Poincaré disk" in about for about in page.charts())
    assert has_disk == (trainer.model.ball is not None)
    assert ("scores by cosine" in page.text) == (trainer.model.geometry is None)
    assert ("lives in flat space" in page.text) == (method == "euclidean")
    assert any(about.startswith("Radius") for about in page.charts()) == (trainer.model.geometry is not None)


def test_equal_folders_have_equal_pages(write: Callable[..., Page]) -> None:
    log = rows(5, validation=looked(0.8, 0.4))
    first = write(log, {"method": "hierarchical", "lr": 0.5})
    assert write(log, {"method": "hierarchical", "lr": 0.5}).source == first.source


@pytest.mark.parametrize("head", [BALL, FLAT, None])
def test_of_an_empty_folder(write: Callable[..., Page], head: HyperbolicHead | None) -> None:
    page = write(None, head=head)
    assert "no step was logged" in page.text
    assert "No held-out images were looked at" in page.text


@pytest.mark.parametrize("head", [BALL, None])
def test_of_one_step(write: Callable[..., Page], head: HyperbolicHead | None) -> None:
    page = write(rows(1, validation=looked(0.8, 0.4)), head=head)
    assert "1 step in 0.5 s;" in page.text
    assert "total 3.841" in page.text


def test_of_a_long_run(write: Callable[..., Page]) -> None:
    page = write(rows(1200))
    raw, smoothed, part = page.curves("The loss and its main parts")
    assert all(200 < len(line) <= 500 for line in (raw, smoothed))
    assert len(part) <= 500
    assert "the mean over 41 steps" in page.text
    assert "10 min" in page.text
    assert len(page.source) < 500_000


# -- what is drawn ----------------------------------------------------------------------------------------------------


def test_curves_hold_the_log(write: Callable[..., Page]) -> None:
    log = rows(20)
    page = write(log)
    total, part = page.curves("The loss and its main parts")
    assert len(total) == len(part) == 20
    # Heights go as the values do.
    values = [row["loss"] for row in log]
    scale = (total[1][1] - total[0][1]) / (values[1] - values[0])
    assert scale < 0
    for (_, y), value in zip(total, values, strict=True):
        assert y - total[0][1] == pytest.approx(scale * (value - values[0]), abs=1.5)
    assert len({y for _, y in part}) == 1
    texts = page.curves("Mean radius of the text embeddings")
    assert [line[0][1] for line in texts] == sorted(line[0][1] for line in texts)  # leaves highest
    assert f"total {values[-1]:.4g}" in page.text
    assert "The curvature stayed at r = 1." in page.text


def test_margins_and_edges_are_charted_and_are_no_parts_of_the_loss(write: Callable[..., Page]) -> None:
    page = write(rows(6))
    assert [about for about in page.charts() if "loss" in about] == [
        about for about in page.charts() if about.startswith("The loss and its main parts")
    ]
    assert len(page.curves("The loss and its main parts")) == 2  # the total and the alignment
    assert len(page.curves("Norm gaps short of the margin")) == 2
    lines = page.curves("Largest margin that the texts of each level leave room for")
    assert [len(line) for line in lines] == [6] * 6
    heights = [line[0][1] for line in lines]  # from the top of the picture
    margins, bounds = heights[:3], heights[3:]
    assert margins == sorted(margins)
    assert bounds == sorted(bounds)
    per_logit = (margins[1] - margins[0]) / 4
    assert per_logit > 0
    assert [m - b for m, b in zip(margins, bounds, strict=True)] == pytest.approx([10 * per_logit] * 3, abs=0.5)
    texts, images = page.curves("Share of the tree’s edges whose parent lies nearer the centre")
    assert len(texts) == len(images) == 6
    assert texts[0][1] < images[0][1]
    temperatures = [line[0][1] for line in page.curves("Inverse temperature")]
    assert len(temperatures) == 3
    assert temperatures == sorted(temperatures, reverse=True)
    for word in ("margin_", "bound_", "edges_ordered", "depth_", "beta_"):
        assert word not in page.text
    for word in ("margin 0", "bound 0", "edges ordered", "depth 0", "beta 0"):
        assert word not in page.text


def test_the_log_of_an_earlier_run(write: Callable[..., Page]) -> None:
    """It had one β for all levels, and neither margins nor edges."""
    newer = ("margin_", "bound_", "edges_ordered", "beta_", "depth_")
    log = [{k: v for k, v in row.items() if not k.startswith(newer)} | {"beta": 14.0} for row in rows(4)]
    page = write(log)
    assert len(page.curves("Inverse temperature")) == 1
    assert not [about for about in page.charts() if "margin that" in about or "edges" in about]
    assert len(page.curves("The loss and its main parts")) == 2


def test_parts_of_a_method_that_is_not_known_here(write: Callable[..., Page]) -> None:
    page = write([{"step": i, "loss": 2.0, "pull_back": 0.5 * i} for i in range(1, 4)], head=None)
    assert "pull back 1.5" in page.text


def test_validation(write: Callable[..., Page], tmp_path: Path) -> None:
    log = rows(6)
    for step, found in ((2, looked(0.5, 0.2)), (4, looked(0.8, 0.4)), (6, looked(0.7, 0.3, best=False))):
        log[step - 1]["validation"] = found
    page = write(log, {"best-by": "levels"})
    assert page.rows("Accuracy on 100 held-out images") == [
        ["leaf, clean", "70.0", "80.0"], ["leaf, robust", "30.0", "40.0"],
        ["mean over levels, clean", "70.0", "80.0"], ["mean over levels, robust", "40.0", "50.0"],
        ["mean over levels, a constant answer", "50.0", "50.0"], ["any level", "20.0", "30.0"],
        ["balanced over nodes, clean", "35.0", "40.0"], ["balanced over nodes, robust", "15.0", "20.0"],
        ["balanced over nodes, any level", "7.5", "10.0"], ["criterion: levels", "70.0", "80.0"],
    ]  # fmt: skip
    assert "last, step 6best, step 4" in page.text
    assert "none was kept as the best" in page.text
    clean, robust = page.curves("Clean accuracy"), page.curves("Accuracy of each level under attack")
    assert [len(line) for line in (*clean, *robust)] == [3] * 7
    assert len(page.curves("Balanced clean accuracy")) == 3
    assert len(page.curves("Balanced accuracy under attack")) == 4
    assert page.text.count("best") >= 3
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "model.safetensors").touch()
    page = write(log, {"best-by": "levels"})
    assert "The best model by the criterion “levels”, that of step 4, is in best/" in page.text
    # 30 of 100 images, with Wilson's interval.
    assert "30.0 % [21.9, 39.6]" in page.text


def test_validation_of_an_older_log(write: Callable[..., Page]) -> None:
    """It knew nothing of nodes: no empty rows or charts."""
    former = {name: value for name, value in looked(0.5, 0.2).items() if "balanced" not in name and name != "constant"}
    log = rows(4)
    log[1]["validation"] = log[3]["validation"] = former
    page = write(log)
    assert "balanced" not in page.text
    assert "mean over levels, robust" in page.text


def test_the_anchor_has_its_own_chart(write: Callable[..., Page]) -> None:
    """It is a share of one beside a loss of ten, where its curve would lie on the axis."""
    about = "Distance from the original's features"
    assert [c for c in write(rows(5, anchor=0.125)).charts() if c.startswith(about)]
    assert not [c for c in write(rows(5)).charts() if c.startswith(about)]


def test_the_boundary_is_warned_of(write: Callable[..., Page]) -> None:
    assert "masked" not in write(rows(4, cap_share=0.01)).text
    log = rows(4)
    log[1]["cap_share"], log[2]["cap_share"] = 0.02, 0.0375
    page = write(log)
    assert "✗ gradients may be masked" in page.text
    assert "At 2 of 4 steps more than 1% of the image embeddings" in page.text
    assert "most at step 3: 3.8%" in page.text


def test_what_is_not_finite_is_left_out(write: Callable[..., Page]) -> None:
    log = rows(7, validation=looked(0.8, 0.4))
    log[2] |= {"loss": math.nan, "grad_norm": math.inf, "radius_text_1": -math.inf, "cap_share": math.nan}
    log[4] |= {"loss": None, "lr": "fast", "validation": {}}
    page = write(log)
    assert [len(line) for line in page.curves("The loss and its main parts")[:2]] == [2, 2]  # 1-2, (4), 6-7


def test_the_time_of_a_resumed_run(write: Callable[..., Page]) -> None:
    log = rows(4)
    for row, seconds in zip(log, (60.0, 120.0, 30.0, 90.0), strict=True):
        row["seconds"] = seconds
    assert "4 steps in 3 min 30 s" in write(log).text


def test_the_disk_holds_every_node(write: Callable[..., Page], tree: Tree) -> None:
    page = write(rows(2))
    nodes = list(tree.root.walk())
    titles = re.findall(r"<title>(.*?): level \d, radius 0\.\d{3}</title>", page.source)
    assert sorted(titles) == sorted(node.name for node in nodes)
    assert f"Of the {len(nodes) - 1} edges" in page.text
    (d,) = re.findall(r'class="edge" d="([^"]*)"', page.source)
    assert d.count("M") == len(nodes) - 1


def test_radii_of_the_disk(write: Callable[..., Page], model: ClipModel) -> None:
    # Three edges: half of them cannot hold, so the count is never that of the opposite.
    leaves = tuple(Node(name, name, class_id=name) for name in ("dog", "wolf", "car"))
    tree = Tree(Node("thing", "thing", leaves, level=1))
    page = write(rows(2), tree=tree)
    model.geometry = BALL
    placed = node_points(model, tree)
    model.geometry = None
    *radii, root = placed.points.double().norm(dim=1).tolist()
    nearer = sum(root < radius for radius in radii)
    assert f"Of the 3 edges between texts, those of the root among them, that holds for {nearer} (" in page.text
    assert page.rows("Radius of the texts") == [
        ["root", "1", *[f"{root:.3f}"] * 3], ["leaves", "3", *(f"{r:.3f}" for r in sorted(radii))]
    ]  # fmt: skip


def test_a_large_tree_stays_small(write: Callable[..., Page], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hrzs.results.pages.training._MOST_NODES", 10)
    groups = tuple(
        Node(f"g{g}", f"g{g}", tuple(Node(f"l{g}-{i}", f"l{g}-{i}", class_id=f"l{g}-{i}") for i in range(9)), level=1)
        for g in range(8)
    )
    page = write(rows(2), tree=Tree(Node("all", "all", groups, level=2)))
    assert "71 lower nodes are left out" in page.text
    assert len(re.findall("<title>", page.source)) == 10 + 1


# -- words ------------------------------------------------------------------------------------------------------------


def test_names_are_escaped(write: Callable[..., Page]) -> None:
    leaves = tuple(Node(HOSTILE + str(i), f"id{i}", class_id=f"c{i}", prompts=("thing",)) for i in range(3))
    log = rows(3, **{HOSTILE: 1.0})
    config = {"method": HOSTILE, "model": HOSTILE, "data": HOSTILE, HOSTILE: HOSTILE, "best-by": HOSTILE}
    page = write(log, config, tree=Tree(Node(HOSTILE, "root", leaves, level=1)))
    assert page.text.count(HOSTILE.replace("\x1b", r"\x1b")) > 6
    assert "\x1b" not in page.source


def test_options(write: Callable[..., Page]) -> None:
    saved = options_as_config(replace(OPTIONS, level_weights="1,0.5,0.25", batch_size=8))
    page = write(rows(1), {"model": "tiny", **{k.replace("_", "-"): v for k, v in saved.items()}})
    assert page.rows("Options of the run but") == [
        ["--model", "tiny", ""], ["--steps", "1", "3"], ["--max-steps", "2", "–"], ["--batch-size", "8", "128"],
        ["--lr", "0.001", "0.0003"], ["--level-weights", "1,0.5,0.25", "paper"], ["--val-steps", "1", "5"],
    ]  # fmt: skip
    whole = page.rows("Every option")
    assert len(whole) == len(saved) + 1
    assert ["--eps", "1/255", "1/255"] in whole
    assert ["--freeze", '""', '""'] in whole
    assert f"all {len(whole)} options" in page.text


def test_provenance(write: Callable[..., Page], tree: Tree) -> None:
    import open_clip
    import torch

    import hrzs

    page = write(rows(1))
    for word in (hrzs.__version__, torch.__version__, open_clip.__version__, tree.digest):
        assert word in page.text


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_line_that_was_cut_off_is_passed_over(write: Callable[..., Page]) -> None:
    whole = "".join(json.dumps(row) + "\n" for row in rows(3))
    assert "3 steps" in write(whole + '{"step": 4, "lo').text


@pytest.mark.parametrize("line", ["{", "[1]", "3", '{"loss": 1.0}', '{"step": null}'])
def test_a_line_that_is_none_of_ours(write: Callable[..., Page], line: str) -> None:
    with pytest.raises(HrzsError, match=r"metrics\.jsonl, line 2"):
        write('{"step": 1}\n' + line + "\n")


@pytest.mark.parametrize("text", ["a: [", "- a", "\x00", "\udcff"])
def test_a_config_that_is_none(write: Callable[..., Page], tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(HrzsError, match=r"config\.yaml"):
        write(rows(1))


def test_what_was_there_is_untouched(write: Callable[..., Page], tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(HrzsError, match="cannot be written"):
        write(rows(1))
    assert {p.name for p in tmp_path.iterdir()} == {"report.html", "metrics.jsonl"}


def test_a_template_that_is_none(tmp_path: Path, model: ClipModel, tree: Tree) -> None:
    model.geometry = BALL
    try:
        with pytest.raises(UsageError):
            write_report(tmp_path, model, tree, template="no such", defaults=DEFAULTS)
    finally:
        model.geometry = None
    assert list(tmp_path.iterdir()) == []
