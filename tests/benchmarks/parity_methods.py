"""`agft` and `ucat` beside the public code of their papers: largest differences of loss and gradient, on the same features.

git clone https://github.com/YuboCui/AGFT
git clone https://github.com/VivienLu/UCAT
python tests/benchmarks/parity_methods.py --agft AGFT --ucat UCAT

Of the public code exactly the statements of the loss run, taken out of its training loop: the rest needs CUDA, data sets
and, of UCAT, modules that are not published. The encoders give out the features of random images and texts, at cosines
like CLIP's.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from hrzs.hierarchy.published import find_tree
from hrzs.hierarchy.yaml_form import load_tree
from hrzs.models.loading import load_model
from hrzs.training.methods import agft, cross_entropy, method_class
from hrzs.training.options import RECIPES, TrainOptions

#: ImageNet's 1000 classes would make UCAT's code read text features from files.
CLASSES, WIDTH, SCALE = 200, 512, 100.0


class Features:
    """Features of clean and attacked images and of texts, all before normalisation, and labels.

    Images have cosines of 0.25 ± 0.04 to texts, as CLIP's do; an attack moves features by ``moved`` of their length.
    """

    def __init__(self, seed: int, batch: int, moved: float, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(rows: int, common: float) -> Tensor:
            rest = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
            return rest + common * math.sqrt(WIDTH) * torch.nn.functional.one_hot(torch.tensor(0), WIDTH)

        self.clean, self.texts = random(batch, 0.58).to(dtype), random(CLASSES, 0.58).to(dtype)
        noise = moved * torch.randn(batch, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
        self.attacked = (self.clean + noise).requires_grad_()
        self.labels = torch.randint(CLASSES, (batch,), generator=generator)


# -- the public code --------------------------------------------------------------------------------------------------


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def functions(file: Path, *names: str, within: str | None = None) -> dict[str, Callable[..., Any]]:
    """Functions of a file, or of one of its classes, without the rest of it."""
    tree: Any = parsed(file)
    if within is not None:
        tree = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == within)
    found: dict[str, Any] = {"torch": torch}
    execute([node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names], found)
    return {name: found[name] for name in names}


def execute(body: list[ast.stmt], names: dict[str, Any]) -> None:
    exec(compile(ast.Module(body=body, type_ignores=[]), "<public code>", "exec"), names)


def public_agft(checkout: Path, f: Features) -> Tensor:
    """The branch of their training loop whose method is AGFT, with their `forward` and `cos_sim`."""
    methods = functions(checkout / "clip_model.py", "cos_sim", "forward", within="MyCLIP")

    class Model:
        method, mode, logit_scale_train, text_features = "AGFT", "train", 1.8 * SCALE, f.texts
        cos_sim, __call__ = methods["cos_sim"], methods["forward"]

        def __init__(self) -> None:
            self.module = self
            self.preprocess = self.encode_image = self.encode_image_orig = lambda x: x
            self.train = self.eval = lambda: None

    branch = next(
        node.body
        for node in ast.walk(parsed(checkout / "train.py"))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "args.method in ['AGFT']"
    )
    names: dict[str, Any] = {
        "torch": torch, "model": Model(), "x": f.clean, "y": f.labels, "attack": lambda *_: f.attacked,
        "loss_fn": nn.CrossEntropyLoss(),
        "args": SimpleNamespace(method="AGFT", method_args={"AGFT": {"logit_scale": 1.8 * SCALE, "scale_ratio": 0.4}}),
    }  # fmt: skip
    execute(branch, names)
    loss: Tensor = names["loss"]
    return loss


def public_ucat(checkout: Path, f: Features) -> Tensor:
    """The assignments of their training function that lead to the loss, with their logits."""
    forward = functions(checkout / "replace" / "model.py", "forward", within="CLIP")["forward"]

    class Model:
        logit_scale = torch.tensor(SCALE, dtype=f.clean.dtype).log()
        __call__ = forward

        def encode_image(self, image: Tensor, _: object) -> Tensor:
            return image[:, None]

        def encode_text(self, text: Tensor) -> Tensor:
            return text

    wanted = {
        "logit_scale", "target_concentration", "lambda_rob", "CrossEntropyLoss", "output", "alpha_adv", "output_ori",
        "alpha_ori", "kl_adv2ori", "loss_TeCoA", "loss",
    }  # fmt: skip
    (train,) = (n for n in parsed(checkout / "main.py").body if isinstance(n, ast.FunctionDef) and n.name == "train")

    def assigned(node: ast.Assign) -> set[str]:
        return {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}

    body = [node for node in ast.walk(train) if isinstance(node, ast.Assign) and assigned(node) & wanted]
    found = set().union(*map(assigned, body))
    if missing := wanted - found:
        raise SystemExit(
            f"{checkout / 'main.py'}: its `train` assigns no {', '.join(sorted(missing))}; another version?"
        )
    names: dict[str, Any] = {
        "torch": torch, "nn": nn, "Dirichlet": torch.distributions.Dirichlet,
        "kl_div": torch.distributions.kl_divergence, "device": torch.device("cpu"), "prompt_token": None,
        **functions(checkout / "models" / "model.py", "multiGPU_CLIP"),
        "model": Model(), "frozen_model": Model(), "prompted_images": f.attacked, "clean_images": f.clean,
        "text_tokens": f.texts, "target": f.labels, "args": SimpleNamespace(target_concentration=0.07, tau=1e5),
    }  # fmt: skip
    execute(sorted(body, key=lambda node: node.lineno), names)
    loss: Tensor = names["loss"].squeeze()
    return loss


# -- ours -------------------------------------------------------------------------------------------------------------


def ours(name: str, f: Features) -> Tensor:
    """`Method.loss`, its encoders and its adversary replaced by the features."""
    path = find_tree("shapes")
    assert path is not None
    model = load_model("tiny", "none", seed=0).to(f.clean.dtype)
    with torch.no_grad():
        model.clip.logit_scale.fill_(math.log(SCALE))
    method: Any = method_class(name)(model, load_tree(path), TrainOptions(**RECIPES[name]))
    method.leaves = torch.arange(CLASSES)
    method.prepared = method.original_texts = method.head.prepare(f.texts)
    method.encode_image = method.original.encode_image = lambda x: x
    agft.perturb_images = cross_entropy.perturb_images = lambda *_, **__: f.attacked  # type: ignore[assignment] -- a stand-in
    loss: Tensor = method.loss(f.clean, f.labels, range(len(f.labels))).total
    return loss


PUBLIC = {"agft": public_agft, "ucat": public_ucat}


def compared(name: str, checkout: Path, batch: int, seeds: range, dtype: torch.dtype) -> dict[str, Any]:
    """Largest differences over batches of other seeds and attacks; of gradients in units of the largest entry."""
    torch.set_default_dtype(dtype)  # of the constants that the public code makes
    differences = {"loss": 0.0, "loss_relative": 0.0, "gradient": 0.0}
    largest = 0.0
    for seed in seeds:
        f = Features(seed, batch, (0.05, 0.2, 0.5)[seed % 3], dtype)
        found = []
        for loss in (ours(name, f), PUBLIC[name](checkout, f)):
            (gradient,) = torch.autograd.grad(loss, f.attacked)
            found.append((loss.double().item(), gradient.double()))
        (here, own), (there, their) = found
        largest = max(largest, there)
        differences["loss"] = max(differences["loss"], abs(here - there))
        differences["loss_relative"] = max(differences["loss_relative"], abs(here - there) / abs(there))
        share = ((own - their).abs().max() / their.abs().max()).item()
        differences["gradient"] = max(differences["gradient"], share)
    return {"largest_loss": round(largest, 4)} | {k: float(f"{value:.2g}") for k, value in differences.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--agft", type=Path, help="a checkout of YuboCui/AGFT")
    parser.add_argument("--ucat", type=Path, help="a checkout of VivienLu/UCAT")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=6)
    options = parser.parse_args()
    checkouts = {name: getattr(options, name) for name in PUBLIC if getattr(options, name) is not None}
    if not checkouts:
        parser.error("give --agft or --ucat")
    for name, checkout in checkouts.items():
        for dtype in (torch.float64, torch.float32):
            row = compared(name, checkout, options.batch_size, range(options.batches), dtype)
            row = {"method": name, "dtype": str(dtype).removeprefix("torch."), "batches": options.batches} | row
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
