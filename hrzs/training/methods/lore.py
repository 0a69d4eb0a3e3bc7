"""`lore`: FARE, with clean features bound to the original's by a learnt multiplier (Khodabandeh et al., 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.training.methods.base import Loss
from hrzs.training.methods.fare import Fare
from hrzs.training.options import TrainOptions
from hrzs.training.perturbation import perturb_images


class Lore(Fare):
    """``min E ‖f(x̂) - f_orig(x)‖²`` subject to ``‖f(x) - f_orig(x)‖² ≤ ρ m(x)``, ``m(x) = ‖f_orig(x)‖²``; no labels.

    ``ρ = lore_rho``. The adversary maximises the first distance. The bound holds for each image, and so each has a
    multiplier ``λ(x) ≥ 0``, which a dual network gives. The loss is the Lagrangian

        E ‖f(x̂) - f_orig(x)‖² + λ(x) (‖f(x) - f_orig(x)‖² - ρ m(x))

    without ``λ ρ m``, which has no gradient in the weights. After every ``lore_primal_steps`` steps the network takes
    one step of gradient ascent: ``λ`` rises where the bound is broken, and falls towards 0 where it is kept. The paper
    is arXiv 2505.18884; docs/method.md says what of this is ours.

    Raises:
        UsageError: ``--tune`` asks for parts of the text encoder.
    """

    name = "lore"
    reads = frozenset({"lore_rho", "lore_primal_steps", "lore_dual_lr"})
    description = "FARE + clean features bound to the original's by learnt multipliers (Khodabandeh et al., 2025)"

    def __init__(self, model: ClipModel, tree: Tree, options: TrainOptions, more_trees: Sequence[Tree] = ()) -> None:
        super().__init__(model, tree, options, more_trees)
        #: Weights and, last, bias of the dual network; zeros as soon as it is known how long features are.
        self.dual: Float[Tensor, "D_and_1"] | None = None
        #: Steps of the weights so far.
        self.taken = 0
        self._ascent: Float[Tensor, "D_and_1"] | None = None

    @classmethod
    def encodings(cls, options: TrainOptions, levels: int) -> float:  # noqa: ARG003
        return 2.0 + options.steps + 1 / 3

    def loss(self, images: Float[Tensor, "b 3 H W"], labels: Int[Tensor, "B"], seeds: Sequence[int]) -> Loss:  # noqa: ARG002
        o, target = self.options, self.over_batch(self.original.encode_image, images)

        def distances(x: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "B"]:
            return (self.encode_image(x) - target).square().sum(dim=1)

        perturbed = perturb_images(
            self.model, lambda x: distances(x).mean(), images, seeds, eps=o.eps, step_size=o.step_size, steps=o.steps
        )
        adversarial, clean = distances(perturbed).mean(), distances(images)
        inputs = torch.cat([F.normalize(target, dim=1), torch.ones_like(target[:, :1])], dim=1)
        if self.dual is None:
            self.dual = torch.zeros_like(inputs[0])
        raw = inputs @ self.dual
        multiplier, share = F.softplus(raw), clean.detach() / target.square().sum(dim=1)
        # The gradient of E λ(x) (share - ρ) in the dual network; every process finds the same.
        self._ascent = (torch.sigmoid(raw) * (share - o.lore_rho)) @ inputs / len(inputs)
        log = {
            "adversarial": adversarial.detach(), "clean_share": share.mean(), "multiplier": multiplier.mean(),
            "broken": (share > o.lore_rho).to(share.dtype).mean(),
        }  # fmt: skip
        return Loss(adversarial + (multiplier * clean).mean(), log)

    def after_step(self) -> dict[str, float]:
        self.taken += 1
        if self.taken % self.options.lore_primal_steps == 0:
            assert self.dual is not None
            assert self._ascent is not None
            self.dual = self.dual + self.options.lore_dual_lr * self._ascent
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"dual": self.dual, "steps": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        dual, self.taken = state["dual"], state["steps"]
        self.dual = None if dual is None else dual.to(self.model.device)
