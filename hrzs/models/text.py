"""Prompts: which texts stand for the nodes of a tree, encoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.clip import ClipModel

# Names for single templates of the field's papers; a text with {} in it is a template of its own.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of a {}.",),
    "tecoa": ("This is a photo of a {}",),
    "name": ("{}",),
}


def resolve_template(spec: str) -> tuple[str, ...]:
    """The templates that ``--template NAME|TEXT`` names.

    Raises:
        UsageError: neither a known name nor a text with ``{}`` in it.
    """
    if spec in TEMPLATES:
        return TEMPLATES[spec]
    if "{}" in spec:
        return (spec,)
    raise UsageError(f"--template {spec!r}: neither one of {', '.join(TEMPLATES)} nor a text with {{}} for the name")


@dataclass(frozen=True)
class NodeIndex:
    """The distinct nodes of a tree (the root left out), leaves first, and where each level finds its own.

    A node that passes through several levels is one text, encoded once.
    """

    nodes: tuple[Node, ...]
    columns: tuple[Int[Tensor, "_"], ...]

    @staticmethod
    def of(tree: Tree) -> NodeIndex:
        position: dict[int, int] = {}
        nodes: list[Node] = []
        for level in tree.levels[: tree.top]:
            for node in level:
                if id(node) not in position:
                    position[id(node)] = len(nodes)
                    nodes.append(node)
        columns = tuple(torch.tensor([position[id(n)] for n in level]) for level in tree.levels[: tree.top])
        return NodeIndex(tuple(nodes), columns)


@dataclass(frozen=True)
class Prompts:
    """Every prompt of every node, and whose it is: node = mean over its names and the templates."""

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
        """One feature per node: the mean over its prompts, each first L2-normalised for a cosine head."""
        if len(self.texts) == self.count:
            return features
        owner = self.owner.to(features.device)
        features = F.normalize(features, dim=-1) if normalise else features
        total = features.new_zeros(self.count, features.shape[1]).index_add(0, owner, features)
        return total / torch.bincount(owner, minlength=self.count)[:, None]


class TextBank:
    """The texts of a tree's nodes for one model: the transformer ran once, only the projection may still change."""

    def __init__(self, model: ClipModel, tree: Tree, template: str = "photo") -> None:
        self.index = NodeIndex.of(tree)
        self.prompts = Prompts.of(self.index.nodes, resolve_template(template))
        self.trunk = model.encode_text_trunk(self.prompts.texts)

    def features(self, model: ClipModel, *, normalise: bool = False) -> Float[Tensor, "N D"]:
        """``g(t)`` of every node under the present projection."""
        return self.prompts.gather(model.project_text(self.trunk), normalise=normalise)
