"""What several benchmarks share: how a ratio is taken, and a training step that can be repeated."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.training.methods import method_class
from hrzs.training.options import TrainOptions
from hrzs.wordnet import open_wordnet

#: Images, labels, seeds.
Batch = tuple[torch.Tensor, torch.Tensor, list[int]]


def wordnet_ids(count: int) -> list[str]:
    """Noun synsets without hyponyms, spread over WordNet."""
    leaves = sorted(f"n{s.offset():08d}" for s in open_wordnet(None).all_synsets("n") if not s.hyponyms())
    return leaves[:: len(leaves) // count][:count]


def ratio(a: Callable[[], object], b: Callable[[], object], rounds: int = 3) -> float:
    """CPU time of the fastest a over that of the fastest b, run in turns so that both see the same machine."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for function, kept in zip((a, b), times, strict=True):
            kept.append(seconds(function))
    return min(times[0][1:]) / min(times[1][1:])


def seconds(function: Callable[[], object]) -> float:
    """CPU time of one call."""
    began = time.process_time()
    function()
    return time.process_time() - began


def training_step(
    model: ClipModel, trees: Tree | Sequence[Tree], batch: Batch, name: str, precision: str = "fp32",
    *, compiled: bool = False, **options: Any,
) -> Callable[[], None]:  # fmt: skip
    """Loss and gradients of one step, without the optimiser's; on a copy of ``model``."""
    images, labels, seeds = batch
    model = copy.deepcopy(model)  # each method keeps its own head and its own choice of what is trained
    first, *more = [trees] if isinstance(trees, Tree) else trees
    method = method_class(name)(model, first, TrainOptions(method=name, **options), more)
    model.precision = precision
    method.begin(images)
    if compiled:
        model.clip.visual.compile()

    def step() -> None:
        method.loss(images, labels, seeds).total.backward()
        model.zero_grad(set_to_none=True)

    return step


def operations(step: Callable[[], object]) -> int:
    """What a step gives its device to do, views left out, which launch nothing."""

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += not function.is_view
            return function(*args, **(kwargs or {}))

    with Counter() as counted:
        step()
    return counted.count
