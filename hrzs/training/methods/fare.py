"""`fare`: attacked images keep the features that the original gave clean ones (Schlarmann et al., ICML 2024)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.models.heads import HyperbolicHead
from hrzs.training.methods.base import Loss, Method
from hrzs.training.options import TrainOptions
from hrzs.training.original import Original, squared_distance
from hrzs.training.perturbation import perturb_images


class Fare(Method):
    """``(1 - w) ‖f(x̂) - f_orig(x)‖² + w ‖f(x) - f_orig(x)‖²`` with ``w = fare_clean``, 0 in the paper; no labels.

    The adversary maximises the first distance. Features are those before L2 normalisation. No text is read, so only
    the image encoder can be tuned; a head learnt before is kept as it is, for the features stay where it expects them.

    Raises:
        UsageError: ``--tune`` asks for parts of the text encoder.
    """

    name = "fare"
    reads = frozenset({"fare_clean"})
    description = "features of PGD examples held to the original's on clean images (Schlarmann et al., ICML 2024)"

    def __init__(self, model: ClipModel, tree: Tree, options: TrainOptions, more_trees: Sequence[Tree] = ()) -> None:
        if options.tune not in (None, "image"):
            raise UsageError(f"--tune {options.tune}: --method {self.name} reads no text; it can only --tune image")
        super().__init__(model, tree, options, more_trees)
        self.original = Original(model)

    @classmethod
    def encodings(cls, options: TrainOptions, levels: int) -> float:
        return super().encodings(options, levels) + 1 / 3 + (options.fare_clean > 0)

    def adopt(self, head: HyperbolicHead) -> None:
        super().adopt(head.requires_grad_(False))

    def loss(self, images: Float[Tensor, "b 3 H W"], labels: Int[Tensor, "B"], seeds: Sequence[int]) -> Loss:  # noqa: ARG002
        o, target = self.options, self.over_batch(self.original.encode_image, images)

        def distance(x: Float[Tensor, "b 3 H W"]) -> Float[Tensor, ""]:
            return squared_distance(self.encode_image(x), target)

        perturbed = perturb_images(self.model, distance, images, seeds, eps=o.eps, step_size=o.step_size, steps=o.steps)
        total = adversarial = distance(perturbed)
        log = {"adversarial": adversarial.detach()}
        if o.fare_clean > 0:
            clean = distance(images)
            total = (1 - o.fare_clean) * adversarial + o.fare_clean * clean
            log["clean"] = clean.detach()
        return Loss(total, log)
