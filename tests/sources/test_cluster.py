from __future__ import annotations

import math
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrzs.data import loader, open_dataset, subset
from hrzs.errors import HrzsError, UsageError
from hrzs.geometry import poincare
from hrzs.hierarchy.levelling import level_tree
from hrzs.hierarchy.tree import Node, Tree
from hrzs.hierarchy.yaml_form import dump_trees, load_tree
from hrzs.models.clip import ClipModel
from hrzs.models.heads import HyperbolicHead
from hrzs.models.loading import load_model
from hrzs.models.saving import save_model
from hrzs.sources import ClassSpec, SourceOptions, cluster
from hrzs.sources.cluster import _Clusters, _Cosine, _Hyperbolic, grow
from hrzs.wordnet import open_wordnet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # geoopt compiles with a deprecated torch.jit.script
    import geoopt

SHAPES = load_tree(Path(__file__).parents[2] / "hierarchies" / "shapes.yaml")
RANDOM = SourceOptions(pretrained="none")
IMAGES = SourceOptions(data="shapes", limit=96)


def specs(*names: str) -> list[ClassSpec]:
    return [ClassSpec(name) for name in names]


def shapes() -> list[ClassSpec]:
    """As a class list says them: name and synset."""
    leaves = {leaf.class_id: leaf for leaf in SHAPES.root.leaves()}
    return [ClassSpec(c, leaves[c].name, leaves[c].id) for c in SHAPES.classes]


def inner(root: Node) -> list[Node]:
    return [node for node in root.walk() if not node.is_leaf]


@settings(max_examples=6)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["dog", "cat", "crane", "red fox", "Siamese cats", "n02119789", "truck", "entity", "no"]),
            st.text(min_size=1, max_size=5),
        ),
        min_size=2,
        max_size=9,
        unique=True,
    ),
    st.sampled_from(cluster.DISTANCES),
)
def test_every_class_once_ids_unique_names_distinct(names: list[str], distance: str) -> None:
    (root,) = grow(specs(*names), replace(RANDOM, distance=distance)).roots
    assert sorted(leaf.class_id or "" for leaf in root.leaves()) == sorted(names)
    superclasses = inner(root)
    assert len(superclasses) == len(names) - 1
    called = [node.name.casefold() for node in superclasses]
    assert all(called)
    assert len(set(called)) == len(called)
    assert not set(called) & {leaf.name.casefold() for leaf in root.leaves()}
    ids = [node.id for node in superclasses]
    assert len({*ids, *names}) == len(ids) + len(names)
    level_tree(root, 5, names)  # which checks what a tree has to be


@pytest.mark.parametrize("options", [SourceOptions(), replace(IMAGES, limit=24)], ids=["texts", "images"])
def test_same_call_same_bytes(options: SourceOptions) -> None:
    forest = replace(options, trees=3, distance="cosine")
    first, second = (grow(shapes(), forest) for _ in range(2))
    assert first == second
    trees = [
        level_tree(root, 5, SHAPES.classes, {**first.source, **each})
        for root, each in zip(first.roots, first.each, strict=True)
    ]
    text = dump_trees(trees)
    assert "weights: " in text  # the header is one that the file can hold


def agreement(tree: Tree, order: torch.Tensor) -> float:
    """Correlation over pairs of classes of the LCA's height in `tree`, classes in `order`, and in the published one."""
    a, b = torch.triu_indices(len(order), len(order), 1)
    return torch.corrcoef(torch.stack([SHAPES.lca_height(a, b), tree.lca_height(order[a], order[b])]).double())[
        0, 1
    ].item()


@pytest.mark.parametrize("options", [SourceOptions(), IMAGES], ids=["texts", "images"])
@pytest.mark.parametrize("distance", cluster.DISTANCES)
def test_finds_the_families_of_shapes(options: SourceOptions, distance: str) -> None:
    """Measured: texts 0.37 and 0.29, images 0.47 and 0.39 (hyperbolic, cosine); shuffled labels stay below 0.33."""
    (root,) = grow(shapes(), replace(options, distance=distance)).roots
    tree = level_tree(root, 5, SHAPES.classes)
    generator = torch.Generator().manual_seed(0)
    chance = [agreement(tree, torch.randperm(24, generator=generator)) for _ in range(100)]
    assert agreement(tree, torch.arange(24)) > max(chance) + 0.05


# -- distances and linkage -------------------------------------------------------------------------------------


def features(count: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cosine_distance_is_one_minus_the_cosine() -> None:
    u = features(6)
    found = _Cosine().distances(u, u)
    for i, j in combinations(range(6), 2):
        dot = math.fsum(x * y for x, y in zip(u[i].tolist(), u[j].tolist(), strict=True))
        assert found[i, j].item() == pytest.approx(1 - dot / math.hypot(*u[i].tolist()) / math.hypot(*u[j].tolist()))


@pytest.mark.parametrize("curvature", [0.3, 1.0, 2.5])
def test_hyperbolic_distance_is_geoopts(curvature: float) -> None:
    space = _Hyperbolic(scale_image=0.1, scale_text=0.3, curvature=curvature)
    ball = geoopt.PoincareBall(c=curvature)
    u, v = (ball.expmap0(scale * features(6)) for scale in (0.3, 0.1))
    torch.testing.assert_close(space.text(features(6)), u)
    torch.testing.assert_close(space.image(features(6)), v)
    torch.testing.assert_close(space.distances(u, v), ball.dist(u[:, None], v[None]))


@pytest.mark.parametrize("linkage", ["average", "complete", "single", "ward"])
def test_merges_are_those_of_brute_force(linkage: str) -> None:
    points = _Cosine().text(features(9, seed=3))
    between = {
        "average": lambda a, b: (1 - points[a] @ points[b].T).mean(),
        "complete": lambda a, b: (1 - points[a] @ points[b].T).max(),
        "single": lambda a, b: (1 - points[a] @ points[b].T).min(),
        # Ward's: by how much the sum of squares about the means grows.
        "ward": lambda a, b: (
            len(a) * len(b) / (len(a) + len(b)) * (points[a].mean(0) - points[b].mean(0)).square().sum()
        ),
    }[linkage]
    left = [[i] for i in range(9)]
    expected = set()
    while len(left) > 1:
        a, b = min(combinations(left, 2), key=lambda pair: between(*pair).item())
        left = [c for c in left if c not in (a, b)] + [sorted(a + b)]
        expected.add(tuple(left[-1]))
    found = _Clusters.of(cluster._merge(_Cosine().distances(points, points), linkage)).members
    assert {tuple(row.nonzero().flatten().tolist()) for row in found} == expected


def test_equal_classes_merge_first() -> None:
    points = features(5)[[0, 1, 2, 1, 3]]
    for space in (_Cosine(), _Hyperbolic(0.3, 0.3, 1.0)):
        points = space.text(points)
        merges = cluster._merge(space.distances(points, points), "average")
        assert merges[0] == (1, 3)


@pytest.mark.parametrize("distance", cluster.DISTANCES)
def test_prototypes_are_class_means(model: ClipModel, distance: str) -> None:
    options = replace(IMAGES, limit=48)
    images = cluster._image_features(model, list(SHAPES.classes), options)
    data = subset(open_dataset("shapes", "train"), limit=48, classes=SHAPES.classes)
    (batch,) = loader(data, 48)
    with torch.no_grad():
        raw = model.encode_image(batch.images).double()
    space = cluster._space(model, distance, features(24, 64), images.features)
    found = cluster._class_means(space, images)
    for c in range(24):
        own = raw[batch.labels == c]
        assert len(own) == 2
        if distance == "cosine":
            expected = (own / own.norm(dim=1, keepdim=True)).mean(0)
        else:
            scale = math.atanh(cluster.RADIUS) / raw.norm(dim=1).mean().item()
            lifted = geoopt.PoincareBall(c=1.0).expmap0(scale * own)
            gamma = poincare.lorentz_factor(lifted, 1.0)[:, None]
            klein = 2 * lifted / (1 + lifted.square().sum(1, keepdim=True))
            middle = (gamma * klein).sum(0) / gamma.sum()
            expected = middle / (1 + (1 - middle.square().sum()).sqrt())
        torch.testing.assert_close(found[c], expected, rtol=1e-5, atol=1e-7)


def test_a_hyperbolic_run_is_clustered_by_its_own_head(model: ClipModel, tmp_path: Path) -> None:
    head = HyperbolicHead(scale_image=0.1, scale_text=0.2, beta=3.0, curvature=0.5)
    save_model(ClipModel(model.clip, model.info, head), tmp_path)
    run = load_model(str(tmp_path))
    texts = cluster._TextEncoder(run)(["square", "ring"], "photo")
    space = cluster._space(run, "hyperbolic", texts, None)
    torch.testing.assert_close(space.text(texts), head.prepare(texts).detach())
    torch.testing.assert_close(space.image(texts), head.embed_image(texts).detach())
    grown = grow(shapes(), SourceOptions(model=str(tmp_path)))
    assert "radius" not in grown.source
    assert grown.source["weights"] == run.info.digest[:16]


# -- trees -----------------------------------------------------------------------------------------------------


def test_forest() -> None:
    grown = grow(shapes(), SourceOptions(trees=5, distance="cosine"))
    assert [each["linkage"] for each in grown.each][:3] == ["average", "complete", "ward"]
    assert len(grown.roots) == len(grown.each) == 5
    assert len({(each["linkage"], each["template"]) for each in grown.each}) == 5
    shape = [
        frozenset(frozenset(leaf.class_id for leaf in node.leaves()) for node in inner(root)) for root in grown.roots
    ]
    assert len(set(shape)) == 5
    assert grow(shapes(), SourceOptions(distance="cosine")).roots[0] == grown.roots[0]


def test_a_small_forest_says_that_it_is_small() -> None:
    grown = grow(specs("dog", "cat"), replace(RANDOM, trees=3))
    assert [node.name for node in inner(grown.roots[0])] == ["carnivore"]
    assert "give 1 different trees" in grown.notes[-1]


def unnamed(merges: list[tuple[int, int]]) -> Node:
    clusters = _Clusters.of(merges)
    words = [cluster._Word(ClassSpec(f"c{i}"), f"c{i}", None, ()) for i in range(len(merges) + 1)]
    return cluster._build(words, clusters, [(None, f"s{i}") for i in range(len(merges))])


@pytest.mark.parametrize(("count", "coarser"), [(24, 16), (100, 55), (1000, 350)])
def test_dendrograms_level_well(count: int, coarser: int) -> None:
    """The worst case, points without any structure: 24 13 7 4 2 1, 100 45 16 7 3 1, 1000 275 65 16 4 1."""
    points = _Cosine().text(features(count, 16))
    tree = level_tree(unnamed(cluster._merge(_Cosine().distances(points, points), "average")), 5)
    sizes = [len(level) for level in tree.levels]
    assert tree.height == 5
    assert sizes[1] <= coarser
    assert all(above <= 0.7 * below for below, above in pairwise(sizes))


def test_a_chain_of_a_thousand_does_not_recurse() -> None:
    root = unnamed([(0, 1), *((1000 + i, i + 2) for i in range(998))])
    assert sum(1 for _ in root.leaves()) == 1000
    assert level_tree(root, 5).height == 5


def test_source_and_notes_say_what_was_clustered() -> None:
    grown = grow(shapes(), replace(IMAGES, limit=24))
    assert grown.source == {
        "model": "tiny",
        "weights": load_model("tiny").info.digest[:16],
        "distance": "hyperbolic",
        "radius": "0.5",
        "data": "shapes",
        "split": "train",
        "images": grown.source["images"],
        "limit": 24,
    }
    assert grown.each == ({"linkage": "average", "template": "photo"},)
    assert "means of 24 images (shapes, train) of 24 classes" in grown.notes[0]
    assert grow(shapes(), RANDOM).source["pretrained"] == "none"


# -- names -----------------------------------------------------------------------------------------------------


def named(merges: list[tuple[int, int]], *names: str, **senses: str) -> dict[frozenset[str], tuple[str | None, str]]:
    """What clusters made by hand are called: classes -> (synset, name)."""
    model = load_model("tiny", "none")
    words = cluster._look_up(open_wordnet(), specs(*names), senses)
    encode = cluster._TextEncoder(model)
    points = _Cosine().text(encode(names, "photo"))
    clusters = _Clusters.of(merges)
    found = cluster._name(clusters, cluster._nouns(words), words, points, _Cosine(), encode, "photo")
    return {
        frozenset(names[c] for c in row.nonzero().flatten().tolist()): (synset and synset.name(), name)
        for row, (synset, name) in zip(clusters.members, found, strict=True)
    }


PAIRS = [(0, 1), (2, 6), (3, 4), (5, 8), (7, 9)]  # (0, 1, 2) and (3, 4, 5)


def test_a_word_is_read_as_its_cluster_reads_it() -> None:
    birds = named(PAIRS, "crane", "sparrow", "robin", "bulldozer", "truck", "bus")
    machines = named(PAIRS, "sparrow", "robin", "heron", "crane", "bulldozer", "truck")
    assert birds[frozenset({"crane", "sparrow", "robin"})][0] == "bird.n.01"
    assert machines[frozenset({"sparrow", "robin", "heron"})][0] == "bird.n.01"
    # None of these has a bird among its hypernyms, nor a person such as Stephen Crane.
    assert birds[frozenset({"bulldozer", "truck", "bus"})][0] in ("conveyance.n.03", "vehicle.n.01")
    assert machines[frozenset({"crane", "bulldozer", "truck"})][0] in ("artifact.n.01", "instrumentality.n.03")


def test_no_noun_is_above_that_of_a_cluster_around_it() -> None:
    words = ["tabby", "lion", "beagle", "wolf", "robin", "eagle", "trout", "shark"]
    found = named([(0, 1), (2, 3), (8, 9), (4, 5), (6, 7), (10, 11), (12, 13)], *words)
    reader = open_wordnet()
    for (small, (low, _)), (large, (high, _)) in combinations(found.items(), 2):
        if small < large and low and high:
            above = reader.synset(high).closure(lambda synset: synset.hypernyms())
            assert low not in [synset.name() for synset in above]
    assert found[frozenset({"tabby", "lion"})][1] == "feline"
    assert found[frozenset({"beagle", "wolf"})][1] == "canine"
    assert found[frozenset({"tabby", "lion", "beagle", "wolf"})][1] == "carnivore"


def test_without_a_noun_the_parts_name_the_cluster() -> None:
    found = named([(0, 1), (2, 3)], "qwertyx", "asdfx", "dog")
    assert found[frozenset({"qwertyx", "asdfx"})] == (None, "qwertyx or asdfx")
    assert found[frozenset({"qwertyx", "asdfx", "dog"})] == (None, "qwertyx or dog")


def test_a_class_keeps_its_name_to_itself() -> None:
    """Dog and corgi: `dog` would fit, but is a class."""
    found = named([(0, 1), (2, 3)], "dog", "corgi", "truck")
    assert found[frozenset({"dog", "corgi"})][1] == "domestic dog"


def test_equal_names_are_numbered() -> None:
    (root,) = grow([ClassSpec("a", "zq"), ClassSpec("b", "zq"), ClassSpec("c", "zq")], RANDOM).roots
    assert {node.name for node in inner(root)} == {"zq or zq", "zq or zq 2"}


def test_known_synsets_are_the_ids_of_leaves() -> None:
    classes = [ClassSpec("n02119789"), ClassSpec("x", "crane", "n02012849"), ClassSpec("truck"), ClassSpec("seal")]
    (root,) = grow(classes, replace(RANDOM, senses={"seal": "seal.n.09"})).roots
    leaves = {leaf.class_id: (leaf.name, leaf.id) for leaf in root.leaves()}
    assert leaves["n02119789"] == ("kit fox", "n02119789")
    assert leaves["x"] == ("crane", "n02012849")
    assert leaves["truck"] == ("truck", "truck")
    assert leaves["seal"][1].startswith("n")


# -- bad calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "changes", "message"),
    [
        (["dog"], {}, "takes 2 to 5000 classes, and --classes gave 1"),
        (["dog"] * 5001, {}, "takes 2 to 5000 .* --source wordnet takes more"),
        (["dog", "cat"], {"distance": "euclid"}, "--distance 'euclid': one of hyperbolic, cosine"),
        (["dog", "cat"], {"model": "tinny"}, "--model 'tinny'.*did you mean tiny"),
        (["dog", "cat"], {"data": "shape"}, "--data shape: .*Did you mean shapes"),
        (["ring", "dog", "cat"], {"data": "shapes"}, "--data shapes has no class 'dog', 'cat'; .*Leave --data out"),
        (["ring", "star", "heart"], {"data": "shapes", "limit": 2}, "no image within --limit 2 of 'star'"),
        (
            ["dog", "cat"],
            {"senses": {"cat": "cat.n.99", "cow": "cow.n.01"}},
            r"(?s)called 'cow'.*class cat: .*cat\.n\.99",
        ),
        (["dog", "n00000001"], {}, "class n00000001: WordNet has no noun synset"),
    ],
    ids=["one", "many", "distance", "model", "data", "class", "limit", "sense", "wnid"],
)
def test_bad_calls(classes: list[str], changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        grow(specs(*classes), replace(RANDOM, **changes))


def test_damaged_weights_are_told() -> None:
    with pytest.raises(HrzsError, match="not all finite"):
        cluster._merge(torch.full((3, 3), torch.nan), "average")


def test_other_sources_do_not_pay_for_torch() -> None:
    code = "import sys, hrzs.sources.cluster; print({'torch', 'open_clip'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
