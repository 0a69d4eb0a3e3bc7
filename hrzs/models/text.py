"""Prompts: which texts stand for the nodes of a tree, encoded once.

A node with several prompts (an ensemble of templates, several names, or both) is one feature, the mean over them all.
For a cosine head it is the mean of unit vectors, which the head normalises again: CLIP's ensemble (Radford et al. 2021,
section 3.1.4). For a hyperbolic head it is the mean of the features as they are, taken in the tangent space at the
origin, before they are lifted: that keeps the norm, which there says how general a node is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hrzs.hierarchy.namesakes import Namesakes, alike
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.cache import digest_of, kept
from hrzs.models.clip import ClipModel
from hrzs.models.templates import TEMPLATES, resolve_template

__all__ = [
    "TEMPLATES", "NodeIndex", "NodeTexts", "Prompts", "TextBank", "frozen_texts", "resolve_template", "same_tokens",
]  # fmt: skip


@dataclass(frozen=True)
class NodeIndex:
    """The texts of a tree (the root left out), and the columns of logits that they stand in.

    ``nodes`` are the distinct nodes, leaves first: one text each, encoded once. A column is a node at a level, in
    the order of levels; a node that passes through several levels has a column in each. ``owner`` is each column's row
    of ``nodes``, ``level`` its level; ``columns[l]`` are the columns of level l.
    """

    nodes: tuple[Node, ...]
    owner: Int[Tensor, "columns"]
    level: Int[Tensor, "columns"]
    columns: tuple[Int[Tensor, "_"], ...]

    @staticmethod
    def of(tree: Tree) -> NodeIndex:
        position: dict[int, int] = {}
        nodes: list[Node] = []
        for level in tree.levels[: tree.height]:
            for node in level:
                if id(node) not in position:
                    position[id(node)] = len(nodes)
                    nodes.append(node)
        standing = [(position[id(n)], i) for i, level in enumerate(tree.levels[: tree.height]) for n in level]
        owner, levels = torch.tensor(standing).T
        columns = torch.split(torch.arange(len(standing)), [len(level) for level in tree.levels[: tree.height]])
        return NodeIndex(tuple(nodes), owner, levels, columns)

    def to(self, device: torch.device) -> NodeIndex:
        """The same on ``device``."""
        return NodeIndex(
            self.nodes, self.owner.to(device), self.level.to(device), tuple(c.to(device) for c in self.columns)
        )


@dataclass(frozen=True)
class Prompts:
    """The prompts of ``count`` nodes, one for each name and template; ``owner`` is the node of each prompt."""

    texts: tuple[str, ...]
    owner: Int[Tensor, "P"]
    count: int

    @staticmethod
    def of(nodes: Sequence[Node], templates: Sequence[str]) -> Prompts:
        texts, owner = [], []
        for i, node in enumerate(nodes):
            for name in node.prompt_names:
                for template in templates:
                    texts.append(template.replace("{}", name))
                    owner.append(i)
        return Prompts(tuple(texts), torch.tensor(owner), len(nodes))

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr((self.texts, self.owner.tolist())).encode()).hexdigest()

    def gather(self, features: Float[Tensor, "P D"], *, normalise: bool) -> Float[Tensor, "N D"]:
        """One feature per node: the mean over its prompts, L2-normalised first if ``normalise`` (cosine head)."""
        if len(self.texts) == self.count:
            return features
        owner = self.owner.to(features.device)
        features = F.normalize(features, dim=-1) if normalise else features
        total = features.new_zeros(self.count, features.shape[1]).index_add(0, owner, features)
        return total / torch.bincount(owner, minlength=self.count)[:, None]


def same_tokens(
    tree: Tree, templates: Sequence[str], tokenize: Callable[[Sequence[str]], Int[Tensor, "P T"]]
) -> list[Namesakes]:
    """Nodes of one level whose prompts are the same to the text encoder, even if they differ as texts.

    A tokenizer may ignore capitals, and it cuts a text to the encoder's context, so long names may become the same.
    Nodes count if they are alike under all ``templates``; only those alike under the first are tried under the others.
    """
    nodes = NodeIndex.of(tree).nodes
    keys = _token_sets(nodes, templates[0], tokenize)
    suspects = {id(node): node for _, group in alike(tree, lambda node: keys[id(node)]) for node in group}
    for template in templates[1:] if suspects else ():
        more = _token_sets(tuple(suspects.values()), template, tokenize)
        keys |= {i: keys[i] | more[i] for i in suspects}
    return [
        Namesakes(level, group, " / ".join(templates[0].replace("{}", name) for name in group[0].prompt_names))
        for level, group in alike(tree, lambda node: keys[id(node)])
    ]


def _token_sets(
    nodes: Sequence[Node], template: str, tokenize: Callable[[Sequence[str]], Int[Tensor, "P T"]]
) -> dict[int, frozenset[tuple[object, ...]]]:
    """The token sequences of each node, by the node's identity; each sequence comes with its template."""
    prompts = Prompts.of(nodes, (template,))
    found: list[set[tuple[object, ...]]] = [set() for _ in nodes]
    for owner, tokens in zip(prompts.owner.tolist(), tokenize(prompts.texts).tolist(), strict=True):
        found[owner].add((template, *tokens))
    return {id(node): frozenset(each) for node, each in zip(nodes, found, strict=True)}


class TextBank:
    """The texts of a tree's nodes for one model: the transformer runs once, and only the projection may change."""

    def __init__(self, model: ClipModel, tree: Tree, template: str = "photo") -> None:
        self.index = NodeIndex.of(tree).to(model.device)
        self.prompts = Prompts.of(self.index.nodes, resolve_template(template))
        self.trunk = model.encode_text_trunk(self.prompts.texts)

    def features(self, model: ClipModel, *, normalise: bool = False) -> Float[Tensor, "N D"]:
        """``g(t)`` of every node under the present projection."""
        return self.prompts.gather(model.project_text(self.trunk), normalise=normalise)


@dataclass(frozen=True)
class NodeTexts:
    """The texts of a tree's nodes under a model that stays as it is; ``features`` has a row for each node."""

    index: NodeIndex
    prompts: Prompts
    features: Float[Tensor, "N D"]


@torch.no_grad()
def frozen_texts(model: ClipModel, tree: Tree, template: str = "photo", *, normalise: bool = False) -> NodeTexts:
    """`TextBank.features` for evaluation and attack, without gradients, and kept on disk (`hrzs.models.cache`).

    The text transformer runs only if this model has not met these prompts before. A model is identified by
    its present weights, not by its file: a model trained further is another model.

    Raises:
        UsageError: an unknown template.
    """
    index = NodeIndex.of(tree)
    prompts = Prompts.of(index.nodes, resolve_template(template))

    def encode() -> Float[Tensor, "N D"]:
        return prompts.gather(model.project_text(model.encode_text_trunk(prompts.texts)), normalise=normalise)

    about: dict[str, Any] = {
        "arch": model.info.arch,
        "config": model.info.config,
        "weights": _text_digest(model),
        "prompts": prompts.digest,
        "normalise": normalise,
        # Text is encoded in float32 whatever the precision of the attack; another device or library rounds otherwise.
        "precision": "fp32",
        "device": model.device.type,
        "versions": [torch.__version__, open_clip.__version__],
    }
    if model.info.tokenizer is not None:  # a folder, which may hold another tokenizer tomorrow
        about["tokens"] = digest_of([("tokens", model.tokenize(prompts.texts))])
    return NodeTexts(index, prompts, kept("text", about, prompts.count, encode).to(model.device))


def _text_digest(model: ClipModel) -> str:
    """SHA-256 of every weight outside the image encoder."""
    weights = model.clip.state_dict().items()
    return digest_of((name, value) for name, value in weights if not name.startswith("visual."))
