"""What a run on GPUs should cost, by counting: the tables of docs/scaling.md.

    python docs/cost_model.py --tflops 300 --decode-ms 7 --link 50

A prediction, not a measurement. Three things take time: the arithmetic of the image encoder, the loss (which every
process computes for the whole batch), and what travels between the machines. Host work is stated beside them.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from torch.utils.flop_counter import FlopCounterMode

from hrzs.hierarchy.published import find_tree
from hrzs.hierarchy.yaml_form import load_trees
from hrzs.models.text import NodeIndex

IMAGENET = 1_281_167
#: Images of a step on each GPU.
SHARE = {"ViT-B-32": 512, "ViT-L-14": 64}


@dataclass(frozen=True)
class Encoder:
    """An image encoder: floating-point operations of a forward pass of one image, parameters, width of its features."""

    flops: float
    parameters: int
    width: int

    @staticmethod
    def of(name: str) -> Encoder:
        """By its name in open_clip; no weights are made."""
        logging.disable()  # open_clip warns that they are random
        try:
            clip = open_clip.create_model(name, pretrained=None, load_weights=False, device="meta")
        finally:
            logging.disable(logging.NOTSET)
        return Encoder.count(clip.visual)

    @staticmethod
    def count(visual: Any) -> Encoder:
        """Of an image encoder, wherever its weights are."""
        size = visual.image_size
        side = size if isinstance(size, int) else size[0]
        image = torch.empty(1, 3, side, side, device=next(visual.parameters()).device)
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            width = visual.eval()(image).shape[1]
        return Encoder(float(counted.get_total_flops()), sum(p.numel() for p in visual.parameters()), int(width))


@dataclass(frozen=True)
class Step:
    """One training step of ``batch`` images on ``gpus`` GPUs, with PGD of ``steps`` steps, over ``columns`` logits.

    A pass of the attack is a forward pass and the backward pass to the pixels, which costs as much. The training pass
    has the backward pass to the weights too.
    """

    encoder: Encoder
    batch: int
    gpus: int
    steps: int
    columns: int

    @property
    def encoder_flops(self) -> float:
        """Of one GPU."""
        return (2 * self.steps + 3) * self.encoder.flops * self.batch / self.gpus

    @property
    def loss_flops(self) -> float:
        """Of one GPU: the matrix of distances between all images and all columns, forward, and backward to both."""
        return (self.steps + 1) * 6 * self.batch * self.columns * self.encoder.width

    @property
    def bytes_sent(self) -> float:
        """By one GPU: features gathered and their gradients summed in every pass, and the gradients of the weights."""
        if self.gpus == 1:
            return 0.0
        features = (self.steps + 1) * 3 * self.batch * self.encoder.width * 4
        return (features + 2 * self.encoder.parameters * 4) * (self.gpus - 1) / self.gpus

    def seconds(self, tflops: float, link: float) -> float:
        """At ``tflops`` 10¹² operations a second and ``link`` 10⁹ bytes a second, one after the other."""
        return (self.encoder_flops + self.loss_flops) / (tflops * 1e12) + self.bytes_sent / (link * 1e9)


def columns(trees: int) -> int:
    """Nodes at their levels in ImageNet's published tree, so many times."""
    path = find_tree("imagenet")
    assert path is not None
    return trees * len(NodeIndex.of(load_trees(path)[0]).owner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, default=300, help="10¹² operations a second that a GPU reaches")
    parser.add_argument("--link", type=float, default=50, help="10⁹ bytes a second between GPUs")
    parser.add_argument("--decode-ms", type=float, default=7, help="milliseconds of a core for an image")
    parser.add_argument("--steps", type=int, default=3, help="PGD steps")
    options = parser.parse_args()
    methods = {"tecoa": 1000, "hierarchical": columns(1), "5 trees": columns(5)}
    for name, share in SHARE.items():
        encoder = Encoder.of(name)
        counts = f"{encoder.flops / 1e9:.1f} GFLOP a forward pass, {encoder.parameters / 1e6:.0f} M parameters"
        print(f"\n{name}: {counts}\n")
        print("| method | GPUs | batch | epoch of ImageNet, minutes | images/s | loss | travel | cores to decode |")
        print("|---|---|---|---|---|---|---|---|")
        for method, width in methods.items():
            for gpus in (1, 8, 64):
                step = Step(encoder, share * gpus, gpus, options.steps, width)
                took = step.seconds(options.tflops, options.link)
                rate = step.batch / took
                loss = step.loss_flops / (options.tflops * 1e12) / took
                travel = step.bytes_sent / (options.link * 1e9) / took
                print(f"| {method} | {gpus} | {step.batch} | {IMAGENET / rate / 60:.1f} | {rate:,.0f} | "
                      f"{loss:.1%} | {travel:.1%} | {rate * options.decode_ms / 1000:,.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
