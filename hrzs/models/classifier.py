"""The zero-shot classifier over all levels of a tree."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.models.heads import Head
from hrzs.models.text import frozen_texts

#: Two ways to score a superclass: by its own prompt, or by the summed probabilities of its leaves.
SCORINGS = ("prompt", "leaves")
#: The index of predictions by prompt, where those of both scorings are stacked.
PROMPT = SCORINGS.index("prompt")


class Classifier(ABC):
    """Logits of every level of ``tree``, from image features; ``ancestors`` are the tree's, on the model's device."""

    tree: Tree
    ancestors: Int[Tensor, "levels C"]

    @abstractmethod
    def logits(
        self, features: Float[Tensor, "B D"], level: int = 0, scoring: str = "prompt"
    ) -> Float[Tensor, "B nodes"]:
        """Logits over the nodes of ``level``; their softmax is the probability under ``scoring``."""

    def predict(self, features: Float[Tensor, "B D"]) -> Int[Tensor, "scorings levels B"]:
        """Argmax at every level 0 … L-1 under both scorings, in the order of `SCORINGS`."""
        leaf, levels = self.logits(features), range(1, self.tree.height)
        by_prompt = [leaf.argmax(1), *(self.logits(features, level).argmax(1) for level in levels)]
        by_leaves = [
            sum_leaves(leaf, self.ancestors[level], len(self.tree.levels[level])).argmax(1)
            for level in range(self.tree.height)
        ]
        return torch.stack([torch.stack(by_prompt), torch.stack(by_leaves)])

    def labels(self, leaf_labels: Int[Tensor, "B"], level: int) -> Int[Tensor, "B"]:
        """The ancestor of each leaf label at ``level``."""
        return self.ancestors[level][leaf_labels]

    def likeliest(self, features: Float[Tensor, "B D"], most: int) -> Int[Tensor, "B k"]:
        """The ``most`` likeliest leaves, or all where there are fewer, the likeliest first."""
        logits = self.logits(features)
        return logits.topk(min(most, logits.shape[1])).indices


class ZeroShotClassifier(Classifier):
    """A classifier by the texts of nodes, which are encoded and prepared once, on construction.

    Args:
        model: gives the text encoder and, unless ``head`` is given, the head that the model was trained with.
        tree: the classes and their superclasses.
        template: a name or a text for ``--template``.
        head: ``cosine``, ``hyperbolic`` or ``euclidean``.
    """

    def __init__(self, model: ClipModel, tree: Tree, template: str = "photo", head: str | None = None) -> None:
        self.tree = tree
        self.head: Head = model.head(head)
        self._tokenize = model.tokenize
        with torch.no_grad():
            texts = frozen_texts(model, tree, template, normalise=self.head.name == "cosine")
            self.prompts = texts.prompts
            self.index = texts.index.to(model.device)
            self.prepared = self.head.prepare(texts.features[self.index.owner], self.index.level)
        self.columns = self.index.columns
        self.ancestors = tree.ancestors.to(self.prepared.device)

    @cached_property
    def tokens(self) -> Int[Tensor, "P T"]:
        """The tokens of all prompts, for who encodes them anew."""
        return self._tokenize(self.prompts.texts)

    def logits(
        self, features: Float[Tensor, "B D"], level: int = 0, scoring: str = "prompt"
    ) -> Float[Tensor, "B nodes"]:
        """See `Classifier.logits`."""
        if scoring == "leaves" and level > 0:
            leaf = self.head.logits(features, self.prepared[self.columns[0]])
            return sum_leaves(leaf, self.ancestors[level], len(self.columns[level]))
        return self.head.logits(features, self.prepared[self.columns[level]], level)


def sum_leaves(leaf_logits: Float[Tensor, "B C"], ancestor: Int[Tensor, "C"], nodes: int) -> Float[Tensor, "B nodes"]:
    """Log of the summed (unnormalised) leaf probabilities of each node: a log-sum-exp over its leaves.

    Summing probabilities first would underflow at CLIP's temperature of 100 and give a zero gradient.
    """
    index = ancestor.expand(len(leaf_logits), -1)
    top = leaf_logits.new_full((len(leaf_logits), nodes), -torch.inf)
    top = top.scatter_reduce(1, index, leaf_logits.detach(), "amax")
    total = leaf_logits.new_zeros(top.shape).scatter_add(1, index, (leaf_logits - top.gather(1, index)).exp())
    return top + total.log()
