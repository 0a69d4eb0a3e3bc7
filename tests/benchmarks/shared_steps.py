"""Rate and memory of training steps that several processes share, ViT-B-32: see test_processes.py.

    torchrun --nproc-per-node W shared_steps.py CONFIG IMAGES STEPS

IMAGES are those of a step, over all processes. The first process prints a line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import torch

from hrzs.attacks import sample_seeds
from hrzs.distributed import joined
from hrzs.hierarchy.published import find_tree
from hrzs.hierarchy.yaml_form import load_tree
from hrzs.models.loading import load_model
from hrzs.training.methods import method_class
from hrzs.training.options import TrainOptions


def main(config: str, images: int, steps: int) -> None:
    torch.set_num_threads(1)
    path = find_tree("imagenet")
    assert path is not None
    tree = load_tree(path)
    model = load_model(config, "none", seed=0)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(images, 3, 224, 224, generator=generator)
    labels = torch.randint(len(tree.classes), (images,), generator=generator)
    with joined(torch.device("cpu")) as group:
        method = method_class("hierarchical")(model, tree, TrainOptions())
        method.group = group
        own = pixels[group.part(images)]
        seeds = sample_seeds([str(i) for i in range(images)], 0)[group.part(images)]
        method.begin(own)
        fastest = float("inf")
        for _ in range(steps + 1):  # the first warms up
            began = time.monotonic()
            method.loss(own, labels, seeds).total.backward()
            group.average([p.grad for p in model.parameters() if p.grad is not None])
            model.zero_grad(set_to_none=True)
            group.agree()
            fastest = min(fastest, time.monotonic() - began)
        memory = group.collect(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
        if group.is_first:
            print(json.dumps({"images_per_second": images / fastest, "memory_mb": max(memory)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
