"""Trees from a model's own embeddings: classes that lie close together share a superclass.

**What is clustered.** The text of each class (``a photo of a NAME.``) or, with ``--data``, the mean of its images (of
the training split, so that no image that is evaluated on shapes the tree).

**In which distance.** *hyperbolic*: the Poincaré distance of the points that the model's own hyperbolic head makes. A
model that scores by cosine has no such head: its features before normalisation are lifted by ``exp0`` into the ball of
curvature 1, scaled so that their mean norm lands at `RADIUS`; longer features lie deeper. Image means are Einstein
midpoints. *cosine*: one minus the cosine; image means are means of normalised features.

**How.** Agglomerative clustering merges the two nearest clusters until one is left; the linkage says how far two
clusters are from each other. A forest varies linkage and template in the order of `_variants`: average linkage first,
single linkage, which tends to chains, last. Ward's is left to cosine: it needs the Euclidean distances that normalised
vectors have.

**What a cluster is called.** Every WordNet noun at or above a class is a candidate, weighed by how well its classes
match those of the cluster: F_β, in which recall counts `BETA` times as much as precision. A word may be meant in any of
its senses, the k-th of which counts 1/k: that ``crane`` is a bird shows from the cluster it is in. Of nouns that match
about equally well, one that is above another and matches no better is left out, and of the rest that one gives the
name whose text is nearest to the mean of the cluster. Clusters that are left at the usual number of levels choose
before those that vanish, and of either the best matches first. No noun serves twice, none is above the noun of a
larger cluster around it, and no class's own name is taken. Where no noun matches, the parts give the name: ``X or Y``.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import atanh
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Bool, Float

from hrzs.classes.specs import is_wnid
from hrzs.errors import HrzsError, UsageError
from hrzs.hierarchy.levelling import level_tree
from hrzs.hierarchy.tree import Node
from hrzs.sources.base import ClassSpec, Grown, SourceOptions
from hrzs.wordnet import noun_synset, open_wordnet
from hrzs.wordnet.names import plain

if TYPE_CHECKING:
    from torch import Tensor

    from hrzs.models.clip import ClipModel
else:
    # A tree from another source must not pay for torch; shapes are checked all the same.
    Tensor = ClipModel = Any

logger = logging.getLogger(__name__)

DISTANCES = ("hyperbolic", "cosine")
#: Share of the ball's radius at which the mean feature of a cosine model lands: as `hrzs finetune` starts.
RADIUS = 0.5
#: Beyond it, the matrix of distances and what is made of it no longer fit a small machine.
MAX_CLASSES = 5000
#: How many times as much recall counts as precision: a name should describe all classes of a cluster before it leaves
#: out others.
BETA = 3
#: A noun matches a cluster from this F_β on; one that covers half of a cluster and nothing else has 0.53.
MIN_FIT = 0.55
#: Nouns that match at least this share of the best match as well are for the embedding to choose from.
NEAR_BEST = 0.9
#: What `--levels` is unless told otherwise.
USUAL_LEVELS = 5


def grow(classes: Sequence[ClassSpec], options: SourceOptions) -> Grown:
    """Clusters of the model's own text embeddings, or of class means of images (--data), named by WordNet.

    Raises:
        UsageError: fewer than two classes or more than `MAX_CLASSES`, an unknown distance, model, data set or sense,
            classes that the data lacks or has no image of (all are named).
        HrzsError: the model's weights could not be fetched or are damaged, or an image could not be read.
    """
    if options.distance not in DISTANCES:
        raise UsageError(f"--distance {options.distance!r}: one of {', '.join(DISTANCES)}")
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise UsageError(
            f"--source cluster takes 2 to {MAX_CLASSES} classes, and --classes gave {len(classes)}"
            + ("; --source wordnet takes more" if len(classes) > MAX_CLASSES else "")
        )
    words = _look_up(open_wordnet(options.wordnet), classes, options.senses)

    from hrzs.models.loading import load_model

    model = load_model(options.model, options.pretrained, seed=options.seed)
    images = _image_features(model, [spec.class_id for spec in classes], options) if options.data else None
    nouns = _nouns(words)
    encode = _TextEncoder(model)

    roots: list[Node] = []
    each: list[dict[str, object]] = []
    seen: set[frozenset[bytes]] = set()
    unnamed = superclasses = 0
    for linkage, template in _variants(options.distance, images=images is not None):
        if len(roots) == options.trees:
            break
        texts = encode([word.name for word in words], template)
        space = _space(model, options.distance, texts, images.features if images else None)
        points = space.text(texts) if images is None else _class_means(space, images)
        merges = _merge(space.distances(points, points), linkage)
        clusters = _Clusters.of(merges)
        if clusters.shape in seen:
            continue
        seen.add(clusters.shape)
        names = _name(clusters, nouns, words, points, space, encode, template)
        if not roots:
            left = clusters.left()
            unnamed, superclasses = sum(names[i][0] is None for i in left), len(left)
        roots.append(_build(words, clusters, names))
        each.append({"linkage": linkage, "template": template})

    source: dict[str, object] = {"model": options.model}
    # A weights tag that was not asked for but chosen belongs to the answer too.
    resolved = model.info.source.removeprefix(f"{options.model}:")
    pretrained = resolved if resolved != model.info.source else options.pretrained
    source |= {"pretrained": pretrained} if pretrained else {}
    source |= {"weights": model.info.digest[:16], "distance": options.distance}
    if options.distance == "hyperbolic" and model.ball is None:
        source["radius"] = str(RADIUS)
    if images is not None:
        source |= {"data": images.name, "split": images.split, "images": images.digest}
        source |= {"limit": options.limit} if options.limit else {}
    notes = [*_notes(words, options, model, images)]
    if unnamed:
        notes.append(
            f"{unnamed} of the {superclasses} superclasses that {USUAL_LEVELS} levels leave match no free WordNet noun "
            "and are named by their parts (X or Y)"
        )
    if len(roots) < options.trees:
        notes.append(f"--trees {options.trees}: linkages and templates give {len(roots)} different trees here")
    return Grown(tuple(roots), source, tuple(notes), tuple(each))


def _variants(distance: str, *, images: bool) -> Iterator[tuple[str, str]]:
    """(linkage, template) of each tree of a forest; without texts to cluster, the template serves the nouns only."""
    linkages = ("average", "complete", "ward" if distance == "cosine" else "weighted")
    templates = ("photo",) if images else ("photo", "tecoa", "name")
    yield from ((linkage, template) for template in templates for linkage in linkages)
    yield from (("single", template) for template in templates)


def _notes(words: Sequence[_Word], options: SourceOptions, model: ClipModel, images: _Images | None) -> Iterator[str]:
    if images is None:
        what = f"the texts of {len(words)} classes"
    else:
        what = f"the means of {len(images.owner)} images ({images.name}, {images.split}) of {len(words)} classes"
    lifted = f", lifted to the radius {RADIUS}" if options.distance == "hyperbolic" and model.ball is None else ""
    yield f"clustered are {what} as {model.info.source} embeds them, in {options.distance} distance{lifted}"
    unknown = [word.name for word in words if not word.senses]
    if unknown:
        shown = ", ".join(unknown[:10]) + (", …" if len(unknown) > 10 else "")
        yield (
            f"WordNet has no noun for {len(unknown)} of the classes ({shown}): they say nothing about the names "
            "of superclasses; --sense NAME=SYNSET tells what one means"
        )


# -- classes as words of WordNet -------------------------------------------------------------------------------


class _Word(NamedTuple):
    """A class, its name for a prompt, its synset where that is known, and the senses that its name may have."""

    spec: ClassSpec
    name: str
    synset: Any
    senses: tuple[Any, ...]


def _look_up(reader: Any, classes: Sequence[ClassSpec], senses: Mapping[str, str]) -> list[_Word]:
    names = {spec.class_id for spec in classes} | {spec.name for spec in classes}
    faults = [f"--sense: no class is called {name!r}" for name in senses if name not in names]
    words = []
    for spec in classes:
        given = senses.get(spec.class_id) or senses.get(spec.name or "") or spec.synset
        if given is None and is_wnid(spec.class_id):
            given = spec.class_id
        synset = noun_synset(reader, given) if given is not None else None
        if given is not None and synset is None:
            faults.append(f"class {spec.class_id}: WordNet has no noun synset {given!r}; write star.n.05 or n13881644")
        if spec.name is None and synset is not None and is_wnid(spec.class_id):
            name = synset.lemma_names()[0].replace("_", " ")
        else:
            name = spec.name or plain(spec.class_id) or spec.class_id
        words.append(_Word(spec, name, synset, (synset,) if synset is not None else _senses(reader, name)))
    if faults:
        raise UsageError("\n".join(faults))
    return words


def _senses(reader: Any, name: str) -> tuple[Any, ...]:
    """The senses of the name in WordNet's order, most usual first; of its last word where WordNet lacks the whole."""
    words = plain(name).lower()
    for form in dict.fromkeys((words.replace(" ", "_"), words.replace(" ", "-"), words.replace(" ", ""))):
        if found := _kinds(reader, form):
            return found
    return _kinds(reader, words.rpartition(" ")[2])


def _kinds(reader: Any, form: str) -> tuple[Any, ...]:
    """The senses that are kinds of things; of a word that only names individuals (Crane, the writer), these."""
    found = reader.synsets(form, "n") if form else []
    return tuple([synset for synset in found if not synset.instance_hypernyms()] or found)


# -- what the model sees ---------------------------------------------------------------------------------------


class _Space(ABC):
    """Features before normalisation become points; points have means and distances. All of it in float64."""

    @abstractmethod
    def text(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]: ...

    @abstractmethod
    def image(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]: ...

    @abstractmethod
    def means(self, points: Float[Tensor, "N D"], members: Bool[Tensor, "M N"]) -> Float[Tensor, "M D"]: ...

    @abstractmethod
    def distances(self, u: Float[Tensor, "N D"], v: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]: ...


class _Cosine(_Space):
    def text(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        from torch.nn.functional import normalize

        return normalize(features, dim=-1)

    image = text

    def means(self, points: Float[Tensor, "N D"], members: Bool[Tensor, "M N"]) -> Float[Tensor, "M D"]:
        weights = members.to(points.dtype)
        return weights @ points / weights.sum(1, keepdim=True)

    def distances(self, u: Float[Tensor, "N D"], v: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
        return (1 - self.text(u) @ self.text(v).T).clamp_min(0)


class _Hyperbolic(_Space):
    def __init__(self, scale_image: float, scale_text: float, curvature: float) -> None:
        self.scale_image, self.scale_text, self.curvature = scale_image, scale_text, curvature

    def text(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        from hrzs.geometry import poincare

        return poincare.expmap0(self.scale_text * features, self.curvature)

    def image(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        from hrzs.geometry import poincare

        return poincare.expmap0(self.scale_image * features, self.curvature)

    def means(self, points: Float[Tensor, "N D"], members: Bool[Tensor, "M N"]) -> Float[Tensor, "M D"]:
        from hrzs.geometry import poincare

        return poincare.einstein_midpoint(points, members.to(points.dtype), self.curvature)

    def distances(self, u: Float[Tensor, "N D"], v: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
        from hrzs.geometry import poincare

        return poincare.pairwise_distance(u, v, self.curvature)


def _space(model: ClipModel, distance: str, texts: Float[Tensor, "N D"], images: Float[Tensor, "M D"] | None) -> _Space:
    if distance == "cosine":
        return _Cosine()
    if model.ball is not None:
        values = model.ball.values()
        return _Hyperbolic(values["scale_image"], values["scale_text"], values["curvature"])
    # Without images there is none to lift.
    return _Hyperbolic(_scale(texts if images is None else images), _scale(texts), curvature=1.0)


def _scale(features: Float[Tensor, "N D"]) -> float:
    """What takes features of mean norm to `RADIUS`."""
    return atanh(RADIUS) / max(float(features.norm(dim=1).mean()), 1e-12)


class _TextEncoder:
    """Projected features of names in a template's prompt, before normalisation; each prompt is encoded once."""

    def __init__(self, model: ClipModel) -> None:
        self.model = model
        self.known: dict[str, Tensor] = {}

    def __call__(self, names: Sequence[str], template: str) -> Float[Tensor, "N D"]:
        import torch

        from hrzs.models.text import resolve_template

        (text,) = resolve_template(template)
        prompts = [text.replace("{}", name) for name in names]
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if new:
            with torch.no_grad():
                features = self.model.project_text(self.model.encode_text_trunk(new)).double()
            self.known.update(zip(new, features, strict=True))
        return torch.stack([self.known[prompt] for prompt in prompts])


@dataclass(frozen=True)
class _Images:
    """Features of images and the class (its place in the order of ``--classes``) of each."""

    features: Float[Tensor, "N D"]
    owner: list[int]
    name: str
    split: str
    digest: str


def _image_features(model: ClipModel, classes: list[str], options: SourceOptions) -> _Images:
    import torch

    from hrzs.data import digest, loader, open_dataset, resize_to, subset

    data = open_dataset(options.data or "", root=options.data_root, purpose="train")
    if missing := [c for c in classes if c not in set(data.classes)]:
        raise UsageError(
            f"--data {options.data} has no class {_shown(missing)}; its classes begin {_shown(data.classes[:3])}. "
            "Leave --data out to cluster the texts"
        )
    data = subset(data, limit=options.limit, classes=classes)
    if empty := sorted(set(range(len(classes))) - set(data.labels)):
        limit = f" within --limit {options.limit}" if options.limit else ""
        raise UsageError(f"--data {options.data} has no image{limit} of {_shown([classes[i] for i in empty])}")
    if data.native_size is None:
        data = resize_to(data, model.image_size, model.info.interpolation, model.info.resize_mode)
    logger.info("embedding %d images of %s (%s)", len(data), data.name, data.split)
    with torch.no_grad():
        parts = [model.encode_image(batch.images).double() for batch in loader(data, 64)]
    return _Images(torch.cat(parts), list(data.labels), data.name, data.split, digest(data))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (", …" if len(names) > 10 else "")


def _class_means(space: _Space, images: _Images) -> Float[Tensor, "C D"]:
    import torch

    points, owner = space.image(images.features), torch.tensor(images.owner)
    # Class by class: one table of who belongs to whom would outgrow the features.
    groups = [points[owner == c] for c in range(max(images.owner) + 1)]
    return torch.cat([space.means(group, torch.ones(1, len(group), dtype=torch.bool)) for group in groups])


# -- clusters --------------------------------------------------------------------------------------------------


def _merge(distances: Float[Tensor, "C C"], linkage: str) -> list[tuple[int, int]]:
    """Which two clusters became one, C - 1 times: numbers below C are classes, C + i is what merge i made."""
    import torch
    from scipy.cluster import hierarchy

    above = torch.triu_indices(len(distances), len(distances), 1)
    condensed = distances[above[0], above[1]]
    if not condensed.isfinite().all():
        raise HrzsError("the model's features are not all finite numbers: its weights are damaged")
    if linkage == "ward":
        condensed = (2 * condensed).sqrt()  # the Euclidean distance of vectors of norm one
    # SciPy takes the first of equals and sorts merges stably: ties go by the order of classes.
    return [(int(a), int(b)) for a, b, *_ in hierarchy.linkage(condensed.numpy(), linkage)]


@dataclass(frozen=True)
class _Clusters:
    """The C - 1 clusters in the order they were made, the last one the root.

    ``parts[i]`` are the two that cluster i was made of, that of the earlier class first, numbered as in `_merge`;
    ``members[i, c]``: class c is in it; ``below[i, j]``: cluster j is part of cluster i.
    """

    parts: list[tuple[int, int]]
    members: Bool[Tensor, "clusters C"]
    below: Bool[Tensor, "clusters clusters"]

    @staticmethod
    def of(merges: list[tuple[int, int]]) -> _Clusters:
        import torch

        count = len(merges) + 1
        members = torch.zeros(len(merges), count, dtype=torch.bool)
        below = torch.zeros(len(merges), len(merges), dtype=torch.bool)
        first = list(range(count))
        parts = []
        for i, pair in enumerate(merges):
            parts.append((min(pair, key=first.__getitem__), max(pair, key=first.__getitem__)))
            first.append(min(first[part] for part in pair))
            for part in pair:
                if part < count:
                    members[i, part] = True
                else:
                    members[i] |= members[part - count]
                    below[i] |= below[part - count]
                    below[i, part - count] = True
        return _Clusters(parts, members, below)

    @property
    def shape(self) -> frozenset[bytes]:
        """Equal for the same clusters, whatever the order they were made in."""
        return frozenset(row.numpy().tobytes() for row in self.members)

    def left(self) -> set[int]:
        """The clusters that are left in a tree of `USUAL_LEVELS` levels."""
        count = self.members.shape[1]
        nodes = [Node("-", str(c), class_id=str(c)) for c in range(count)]
        for i, (a, b) in enumerate(self.parts):
            nodes.append(Node("-", str(count + i), (nodes[a], nodes[b])))
        levelled = level_tree(nodes[-1], USUAL_LEVELS)
        return {int(node.id) - count for node in levelled.root.walk() if not node.is_leaf}


def _build(words: Sequence[_Word], clusters: _Clusters, names: Sequence[tuple[Any, str]]) -> Node:
    nodes = [
        Node(word.name, word.spec.class_id if word.synset is None else _wnid(word.synset), class_id=word.spec.class_id)
        for word in words
    ]
    taken = {node.id for node in nodes} | {word.spec.class_id for word in words}
    for i, ((a, b), (synset, name)) in enumerate(zip(clusters.parts, names, strict=True)):
        # Counted from the root, so that the numbers of what people look at are small.
        identity = f"cluster-{len(names) - i}"
        if synset is not None and _wnid(synset) not in taken:
            identity = _wnid(synset)
        while identity in taken:
            identity += "-"
        taken.add(identity)
        nodes.append(Node(name, identity, (nodes[a], nodes[b])))
    return nodes[-1]


def _wnid(synset: Any) -> str:
    return f"n{synset.offset():08d}"


# -- names -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Nouns:
    """Nouns that may name a cluster, each of another name.

    ``weight[h, c]``: how far noun h describes class c, from 0 to 1; ``above[g, h]``: noun h is at or above noun g.
    """

    synsets: list[Any]
    names: list[str]
    weight: Float[Tensor, "nouns C"]
    above: Bool[Tensor, "nouns nouns"]


def _nouns(words: Sequence[_Word]) -> _Nouns:
    import torch

    closures: dict[int, dict[int, Any]] = {}
    weights: dict[int, dict[int, float]] = {}
    synsets: dict[int, Any] = {}
    for c, word in enumerate(words):
        for rank, sense in enumerate(word.senses, 1):
            for offset, synset in _closure(sense, closures).items():
                synsets[offset] = synset
                row = weights.setdefault(offset, {})
                row[c] = max(row.get(c, 0.0), 1 / rank)
    # A noun of one class cannot match a cluster. Of nouns of the same first lemma, that of more classes has it.
    order = sorted((h for h, row in weights.items() if len(row) > 1), key=lambda h: (-sum(weights[h].values()), h))
    taken = {word.name.casefold() for word in words} | {word.spec.class_id.casefold() for word in words}
    names: dict[int, str] = {}
    for offset in order:
        lemmas = [lemma.replace("_", " ") for lemma in synsets[offset].lemma_names()]
        free = next((lemma for lemma in lemmas if lemma.casefold() not in taken), None)
        if free is not None:
            names[offset] = free
            taken.add(free.casefold())
    position = {offset: i for i, offset in enumerate(names)}
    weight = torch.zeros(len(names), len(words), dtype=torch.float64)
    above = torch.zeros(len(names), len(names), dtype=torch.bool)
    for offset, i in position.items():
        weight[i, list(weights[offset])] = torch.tensor(list(weights[offset].values()), dtype=torch.float64)
        above[i, [position[h] for h in closures[offset] if h in position]] = True
    return _Nouns([synsets[offset] for offset in names], list(names.values()), weight, above)


def _closure(synset: Any, known: dict[int, dict[int, Any]]) -> dict[int, Any]:
    """The synset and everything above it by any path, by offset. WordNet is 20 deep, so recursion is safe."""
    offset = synset.offset()
    if offset not in known:
        known[offset] = {offset: synset}
        for hypernym in synset.hypernyms() + synset.instance_hypernyms():
            known[offset] |= _closure(hypernym, known)
    return known[offset]


def _name(
    clusters: _Clusters,
    nouns: _Nouns,
    words: Sequence[_Word],
    points: Float[Tensor, "C D"],
    space: _Space,
    encode: _TextEncoder,
    template: str,
) -> list[tuple[Any, str]]:
    """For each cluster its synset, None for one named by its parts, and its name."""
    chosen: dict[int, int] = {}
    if nouns.names:
        sizes = clusters.members.sum(1, keepdim=True).double()
        shared = clusters.members.double() @ nouns.weight.T
        # Rounded, so that nouns of the same classes are equal however the sum was taken.
        fit = ((1 + BETA**2) * shared / (BETA**2 * sizes + nouns.weight.sum(1))).round(decimals=9)
        use = (fit >= MIN_FIT).any(0).nonzero().flatten().tolist()
        if use:
            texts = space.text(encode([nouns.names[h] for h in use], template))
            far = space.distances(space.means(points, clusters.members), texts)
            found = _assign(fit[:, use], far, clusters.below, nouns.above[use][:, use], clusters.left())
            chosen = {i: use[h] for i, h in found.items()}
    names: list[tuple[Any, str]] = []
    short = [word.name for word in words]  # how a part is called where a cluster is named by its parts
    taken = {word.name.casefold() for word in words} | {nouns.names[h].casefold() for h in chosen.values()}
    size = [1] * len(words)
    for i, parts in enumerate(clusters.parts):
        size.append(sum(size[part] for part in parts))
        if i in chosen:
            name = nouns.names[chosen[i]]
            short.append(name)
            names.append((nouns.synsets[chosen[i]], name))
            continue
        name = plain = " or ".join(short[part] for part in parts)
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{plain} {number}"
        taken.add(name.casefold())
        short.append(short[max(parts, key=size.__getitem__)])
        names.append((None, name))
    return names


def _assign(
    fit: Float[Tensor, "clusters nouns"],
    far: Float[Tensor, "clusters nouns"],
    below: Bool[Tensor, "clusters clusters"],
    above: Bool[Tensor, "nouns nouns"],
    first: set[int],
) -> dict[int, int]:
    """A noun for each cluster that one is free for. Those in ``first`` choose first, then better matches, then larger.

    Args:
        fit: how well each noun matches each cluster.
        far: the distance of its text from the mean of the cluster: decides between nouns that match about equally.
        below, above: as in `_Clusters` and `_Nouns`: no cluster is called by a noun above that of one around it.
    """
    free = fit >= MIN_FIT
    inside = below.sum(1).tolist()
    best = fit.amax(1).tolist()
    chosen: dict[int, int] = {}
    for i in sorted(range(len(fit)), key=lambda i: (i not in first, -best[i], -inside[i], i)):
        row = fit[i].where(free[i], 0.0)
        if row.max() < MIN_FIT:
            continue
        near = (row >= NEAR_BEST * row.max()).nonzero().flatten()
        # `entity` matches wherever `shape` does, and says less.
        less = above[near][:, near] & (row[near, None] >= row[near])
        near = near[~less.fill_diagonal_(False).any(0)]
        noun = min(near.tolist(), key=lambda h: (far[i, h].item(), h))
        chosen[i] = noun
        free[:, noun] = False
        free[below[i]] &= ~above[noun]
        free[below[:, i]] &= ~above[:, noun]
    return chosen
