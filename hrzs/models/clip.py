"""`ClipModel`: an open_clip model whose input is pixels in [0, 1] and whose text projection stands apart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, cast

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from hrzs.errors import HrzsError, UsageError
from hrzs.models.encoder import ImageEncoder
from hrzs.models.exact import at_least_fp32, exact_fp32
from hrzs.models.faster import make_faster
from hrzs.models.folding import folded, make_foldable
from hrzs.models.heads import CosineHead, Head, HyperbolicHead
from hrzs.models.padding import encode_tokens, needed


@dataclass(frozen=True)
class ModelInfo:
    """What a checkpoint says of itself (kept in the header of ``model.safetensors``)."""

    arch: str
    config: dict[str, Any]
    source: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    licence: str = "unknown"
    training_data: str = "unknown"
    digest: str = ""
    # How hrzs fine-tuned the model: method, digest of the tree, base model. Empty if it did not.
    run: dict[str, Any] = field(default_factory=dict)
    # The ``--model`` and ``--pretrained`` that load the model again, where known.
    origin: tuple[str, str | None] = ("", None)
    # The file that the image encoder was taken from, where it is not the one of ``source``.
    visual: str | None = None
    # How images become square before they are attacked: their shorter side and a cut, or both sides alike.
    resize_mode: str = "shortest"
    # The folder or repository of the tokenizer, where it is not the one that ``config`` names.
    tokenizer: str | None = None


class ClipModel(ImageEncoder):
    """An open_clip model with resizing and normalisation inside, so that ε is in pixels of the native image.

    Args:
        clip: the open_clip model; it stays in evaluation mode (frozen batch-norm statistics, no dropout).
        info: where it came from.
        geometry: the learnt hyperbolic head of a hierarchical run; None for a model that scores by cosine.

    Raises:
        HrzsError: the architecture's tokenizer cannot be loaded.
        UsageError: ``info`` names a tokenizer for an architecture that has CLIP's own.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: nn.Module, info: ModelInfo, geometry: HyperbolicHead | None = None) -> None:
        super().__init__()
        make_faster(clip)
        make_foldable(clip)
        self.clip = clip
        self.info = info
        self.geometry = geometry
        self.precision = "fp32"
        self._bf16_weights: dict[str, Tensor] | None = None
        size = cast(Any, clip).visual.image_size
        self.image_size: int = int(size if isinstance(size, int) else size[0])
        self.register_buffer("mean", torch.tensor(info.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(info.std).view(3, 1, 1), persistent=False)
        self.tokenizer = _tokenizer(info.arch, info.tokenizer)
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def train(self, mode: bool = True) -> ClipModel:  # noqa: ARG002 -- batch-norm statistics are frozen, always
        return super().train(False)

    def head(self, name: str | None = None) -> Head:
        """The head called ``cosine``, ``hyperbolic`` or ``euclidean``; by default the one the model was trained with.

        Raises:
            UsageError: a head is asked for that the model was not trained with.
        """
        if name is None:
            name = "cosine" if self.geometry is None else self.geometry.name
        if name == "cosine":
            clip = cast(Any, self.clip)
            return CosineHead(clip.logit_scale, getattr(clip, "logit_bias", None))
        if self.geometry is not None and name == self.geometry.name:
            return self.geometry
        raise UsageError(f"--head {name}: {self.info.source} has no such head; `cosine` fits every model")

    @property
    def ball(self) -> HyperbolicHead | None:
        """The head that places this model's features in a Poincaré ball; None without one, or if it is flat."""
        return None if self.geometry is None or self.geometry.is_flat else self.geometry

    @contextmanager
    def autocast(self, precision: str | None = None) -> Iterator[None]:
        """bf16 autocast for the encoder when ``precision`` (by default the model's own) says so."""
        bf16 = (precision or self.precision) == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            yield

    def preprocess(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 S S"]:
        """The input of the image encoder: pixels in [0, 1] of any size, resized to the model's size and normalised."""
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            pixels = F.interpolate(
                pixels,
                size=(self.image_size, self.image_size),
                mode="bilinear" if self.info.interpolation == "bilinear" else "bicubic",
                align_corners=False,
                antialias=True,
            )
        return (pixels - self.mean) / self.std

    @exact_fp32()
    def encode_image(self, pixels: Float[Tensor, "B 3 H W"], precision: str | None = None) -> Float[Tensor, "B D"]:
        """``f(x)``: features before L2 normalisation, float32, of pixels in [0, 1] at any size."""
        pixels = self.preprocess(pixels)
        with self.autocast(precision):
            if self._bf16_weights is None or (precision or self.precision) != "bf16":
                features = cast(Any, self.clip).encode_image(pixels)
            else:
                features = functional_call(cast(Any, self.clip).visual, self._bf16_weights, pixels)
                features = features[0] if isinstance(features, tuple) else features  # CoCa's, with its tokens
        return at_least_fp32(cast(Tensor, features))

    # -- text ---------------------------------------------------------------------------------------------------

    def _projection_slot(self) -> tuple[nn.Module, str]:
        clip = cast(Any, self.clip)
        text = getattr(clip, "text", clip)
        for slot in ("text_projection", "proj"):
            if hasattr(text, slot):
                return cast(nn.Module, text), slot
        raise UsageError(f"the text encoder of {self.info.arch} has no projection that could be set apart")

    @property
    def text_projection(self) -> nn.Parameter | nn.Module | None:
        owner, slot = self._projection_slot()
        return cast("nn.Parameter | nn.Module | None", getattr(owner, slot))

    def text_projection_parameters(self) -> list[nn.Parameter]:
        projection = self.text_projection
        if projection is None:
            return []
        return [projection] if isinstance(projection, nn.Parameter) else list(projection.parameters())

    def passes_of_a_prompt(self, tokens: Int[Tensor, "P T"]) -> float:
        """What the longest of these costs, in forward passes of one image: a ratio of FLOPs, alike on all machines."""
        from torch.utils.flop_counter import FlopCounterMode  # a quarter of a second, for one defence

        longest = max(tokens, key=lambda own: needed(self.clip, own[None]))
        image = torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)
        found: list[int] = []
        with torch.no_grad():
            for encode in (partial(self.encode_tokens, longest[None]), partial(self.encode_image, image)):
                counter: Any = cast(Any, FlopCounterMode)(display=False)
                with counter:
                    encode()
                found.append(counter.get_total_flops())
        return found[0] / found[1]

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        return cast(Tensor, self.tokenizer(list(prompts))).to(self.device)

    @exact_fp32()
    def encode_text(self, prompts: Sequence[str]) -> Float[Tensor, "N D"]:
        """``g(t)``: projected text features before L2 normalisation, with gradients to the whole text encoder."""
        return self.encode_tokens(self.tokenize(prompts))

    def encode_tokens(self, tokens: Int[Tensor, "P T"]) -> Float[Tensor, "P D"]:
        """The same of tokens."""
        return at_least_fp32(encode_tokens(self.clip, tokens))

    @exact_fp32()
    @torch.no_grad()
    def encode_text_trunk(self, prompts: Sequence[str], batch_size: int = 256) -> Float[Tensor, "N W"]:
        """The text transformer's output before the projection: constant while only the projection is trained."""
        owner, slot = self._projection_slot()
        projection = getattr(owner, slot)
        setattr(owner, slot, nn.Identity() if slot == "proj" else None)
        try:
            tokens = self.tokenize(prompts)
            parts = [self.encode_tokens(part) for part in torch.split(tokens, batch_size)]
        finally:
            setattr(owner, slot, projection)
        return torch.cat(parts)

    @exact_fp32()
    def project_text(self, trunk: Float[Tensor, "N W"]) -> Float[Tensor, "N D"]:
        """The text projection alone: ``encode_text = project_text ∘ encode_text_trunk``."""
        projection = self.text_projection
        if projection is None:
            return trunk
        return trunk @ projection if isinstance(projection, nn.Parameter) else cast(Tensor, projection(trunk))


def _tokenizer(arch: str, named: str | None) -> Any:
    """The tokenizer of ``arch``. Most have CLIP's, which open_clip carries; SigLIP's and others are on a model hub.

    Args:
        named: what takes the place of the one in the config of ``arch``.
    """
    text = (open_clip.get_model_config(arch) or {}).get("text_cfg", {})
    name = text.get("hf_tokenizer_name")
    if named is not None and not name:
        raise UsageError(f"--tokenizer {named}: {arch} has CLIP's own tokenizer; leave it out")
    try:
        if not name:
            return _own_tokenizer(arch, json.dumps(text))
        mode = {"tokenizer_mode": text["tokenizer_mode"]} if text.get("tokenizer_mode") else {}
        # Code beside a tokenizer never runs, whoever named it and whatever its config asks for.
        options = {**(text.get("tokenizer_kwargs") or {}), **mode, "trust_remote_code": False}
        length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
        return open_clip.tokenizer.HFTokenizer(named or name, context_length=length, **options)
    except ImportError as error:
        raise HrzsError(f"the tokenizer of {arch} needs another package: pip install 'hrzs[hub]' ({error})") from error
    except Exception as error:  # transformers raises whatever a file in the folder or the network makes it raise
        raise HrzsError(
            f"the tokenizer of {arch}, {named or name}, could not be loaded ({error}); "
            "--tokenizer FOLDER names a local folder with it"
        ) from error


@cache  # its vocabulary takes a tenth of a second to build, most of the time that a small model takes to load
def _own_tokenizer(arch: str, config: str) -> Any:  # noqa: ARG001
    """CLIP's tokenizer, which never changes while the ``config`` of the text encoder of ``arch`` is the same."""
    return open_clip.get_tokenizer(arch)


@contextmanager
def frozen(model: ImageEncoder) -> Iterator[None]:
    """A context in which no parameter of ``model`` requires a gradient, which saves an attack time and memory.

    In bf16 the encoder's matrices are cast once here (autocast would cast frozen ones anew in every forward), and the
    batch norms of a ResNet are folded into its convolutions. fp32 stays as it is, since there the attack's
    own forward pass is the verdict.
    """
    wanted = [p for p in model.parameters() if p.requires_grad]
    for p in wanted:
        p.requires_grad_(False)
    clip = model.base
    uncast = clip if isinstance(clip, ClipModel) and clip._bf16_weights is None else None
    if uncast is not None and uncast.precision == "bf16":
        uncast._bf16_weights = _bf16_matrices(cast(Any, uncast.clip).visual)
    try:
        yield
    finally:
        if uncast is not None:
            uncast._bf16_weights = None
        for p in wanted:
            p.requires_grad_(True)


def _bf16_matrices(visual: nn.Module) -> dict[str, Tensor]:
    """The bf16 weights by name: matrices of linear, attention and convolution layers, batch norms folded in."""
    matrices = {
        f"{name}.{key}".lstrip("."): p.detach()
        for name, part in visual.named_modules()
        if isinstance(part, nn.Linear | nn.MultiheadAttention | nn.modules.conv._ConvNd)
        for key, p in part.named_parameters(recurse=False)
        if p.ndim >= 2
    }
    return {name: p.bfloat16() for name, p in (matrices | folded(visual)).items()}
