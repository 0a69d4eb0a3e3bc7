"""`ttc`, `r-tpt` and `et3` beside the public code of their papers: largest differences, on the same model and randomness.

git clone https://github.com/Sxing2/CLIP-Test-time-Counterattacks TTC
git clone https://github.com/TomSheng21/R-TPT
git clone https://github.com/OmnAI-Lab/Energy-Guided-Test-Time-Defense ET3
python tests/benchmarks/parity_defences.py --ttc TTC --r-tpt R-TPT --et3 ET3

Of the public code exactly these functions, classes and statements run, in float64 on a CPU; the rest needs CUDA, data
sets and other attacks. Their encoders are those of our model, which resizes and normalises.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F
from parity_methods import execute, parsed
from torch import Tensor, nn

from hrzs.attacks import sample_seeds
from hrzs.data import loader, open_dataset, subset
from hrzs.defences import ET3, RTPT, TTC, Undefended, r_tpt
from hrzs.defences.ttc import counter_attack
from hrzs.hierarchy.published import find_tree
from hrzs.hierarchy.yaml_form import load_tree
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import frozen
from hrzs.models.loading import load_model

#: The largest difference that rounding explains: of pixels in 255ths, of all else by its largest value.
TOLERANCE = 1e-9
#: The scale of CLIP's logits; ET3's code has it as a constant.
SCALE = 100.0


def definitions(file: Path, names: dict[str, Any], *wanted: str) -> None:
    """Run the functions, classes and constants of a file that are ``wanted``, without the rest, and add to ``names``."""

    def defined(node: ast.stmt) -> set[str]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            return {node.name}
        if isinstance(node, ast.Assign):
            return {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        return set()

    execute([node for node in parsed(file).body if defined(node) & set(wanted)], names)
    if missing := set(wanted) - set(names):
        raise SystemExit(f"{file}: has no {', '.join(sorted(missing))}; another version?")


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def in_255ths(ours: Tensor, theirs: Tensor) -> float:
    return 255 * (ours - theirs).abs().max().item()


# -- TTC --------------------------------------------------------------------------------------------------------------


def ttc(checkout: Path, undefended: Undefended, images: Tensor) -> dict[str, float]:
    """Purified images, under a ``tau`` that all images are below, half of them, and none."""
    model: Any = undefended.model
    code = checkout / "code"
    names: dict[str, Any] = {"torch": torch, "device": "cpu", "clip_img_preprocessing": model.preprocess}
    definitions(code / "attacks.py", names, "lower_limit", "upper_limit", "clamp")
    definitions(code / "test_time_counterattack.py", names, "tau_thres_weighted_counterattacks")
    module = SimpleNamespace(
        encode_image=lambda x, _: model.clip.encode_image(x), named_parameters=model.clip.named_parameters
    )
    eps, largest = TTC().eps / 255, {"image": 0.0}
    torch.manual_seed(0)
    noise = torch.zeros_like(images).uniform_(-eps, eps)
    with torch.no_grad():
        before = undefended.features(images)
        noisy = undefended.features((images + noise).clamp(0, 1))
        middle = ((noisy - before).norm(dim=1) / before.norm(dim=1)).median().item()
    for tau in (1e9, middle, 0.0):
        settings = TTC(tau=tau, steps=3)
        torch.manual_seed(0)  # the first numbers that their code draws are the noise
        theirs = names["tau_thres_weighted_counterattacks"](
            SimpleNamespace(module=module), images, lambda x: x, lambda: None, settings.size / 255, settings.steps,
            epsilon=eps, tau_thres=tau, beta=settings.beta,
        )  # fmt: skip
        ours = counter_attack(settings, images, undefended, noise)
        largest["image"] = max(largest["image"], in_255ths(images + ours, images + theirs))
    return largest


# -- ET3 --------------------------------------------------------------------------------------------------------------


def et3(checkout: Path, undefended: Undefended, images: Tensor) -> dict[str, float]:
    """Purified images, after few and many steps, shorter and longer than eps allows."""
    model: Any = undefended.model
    names: dict[str, Any] = {"torch": torch, "F": F}
    file = checkout / "CLIP" / "clip_benchmark" / "metrics" / "zeroshot_classification.py"
    definitions(file, names, "ImageEncoderWrapper", "energy_x", "transform_images")
    classifier = cast(ZeroShotClassifier, undefended.classifier)
    leaves = classifier.prepared[classifier.columns[0]].T
    logits = names["ImageEncoderWrapper"](model.clip, model.preprocess, None, leaves)
    largest = {"image": 0.0}
    for steps, size, eps in ((5, 2.5, 10.0), (1, 0.5, 10.0), (12, 8.0, 4.0)):
        settings = ET3(size=size, eps=eps, steps=steps)
        length = size * math.sqrt(images.shape[-2] * images.shape[-1]) / 224
        theirs = names["transform_images"](images, logits, alpha=length, eps=eps, max_iters=steps)
        ours = settings.purify(images, undefended, [0] * len(images))
        largest["image"] = max(largest["image"], in_255ths(ours, theirs))
    return largest


# -- R-TPT ------------------------------------------------------------------------------------------------------------


def tuned_model(checkout: Path, undefended: Undefended) -> Any:
    """Their model with learnt words, around our encoders; its words are ours."""
    model: Any = undefended.model
    clip, classifier = model.clip, cast(ZeroShotClassifier, undefended.classifier)

    def transformer(x: Tensor) -> Tensor:  # theirs has the words first, and a mask of its own
        found: Tensor = clip.transformer(x.permute(1, 0, 2), attn_mask=clip.attn_mask)
        return found.permute(1, 0, 2)

    stand_in = SimpleNamespace(
        visual=clip.visual, transformer=transformer, positional_embedding=clip.positional_embedding,
        ln_final=clip.ln_final, text_projection=clip.text_projection, token_embedding=clip.token_embedding,
        logit_scale=clip.logit_scale, dtype=clip.logit_scale.dtype,
    )  # fmt: skip
    names: dict[str, Any] = {
        "torch": torch, "nn": nn, "Tuple": tuple, "print": lambda *_: None, "DOWNLOAD_ROOT": None, "mu": None,
        "std": None, "load": lambda *_, **__: (stand_in, None, None), "tokenize": lambda text: model.tokenize([text]),
        "_tokenizer": SimpleNamespace(encode=str.split),
        "ImageNormalizer": lambda *_: SimpleNamespace(cuda=lambda _: model.preprocess),
    }  # fmt: skip
    definitions(checkout / "clip" / "custom_clip.py", names, "TextEncoder", "PromptLearner", "ClipTestTimeTuning")
    leaves = classifier.prompts.texts[: len(classifier.tree.classes)]
    classes = [text.removeprefix("a photo of a ").removesuffix(".") for text in leaves]
    return names["ClipTestTimeTuning"]("cpu", classes, None, ctx_init="a_photo_of_a")


def tuning_statements(file: Path) -> list[ast.stmt]:
    """What their evaluation does with the views of an image, up to the logits."""
    (evaluate,) = (n for n in parsed(file).body if isinstance(n, ast.FunctionDef) and n.name == "test_time_adapt_eval")
    (loop,) = (node for node in evaluate.body if isinstance(node, ast.For))
    text = [ast.unparse(node) for node in loop.body]
    start = next(i for i, line in enumerate(text) if "model.reset()" in line)
    end = next(i for i, line in enumerate(text) if line.startswith("tta_output = "))
    return loop.body[start : end + 1]


def rtpt(checkout: Path, undefended: Undefended, images: Tensor) -> dict[str, float]:
    """Chosen views, words and texts after a step, weights of the views, logits of the leaves; image by image."""
    classifier, settings = cast(ZeroShotClassifier, undefended.classifier), RTPT()
    theirs = tuned_model(checkout, undefended)
    learner = theirs.prompt_learner
    optimizer = torch.optim.AdamW(learner.parameters(), settings.rate)
    names: dict[str, Any] = {
        "torch": torch, "model": theirs, "optimizer": optimizer, "optim_state": deepcopy(optimizer.state_dict()),
        "scaler": None, "args": SimpleNamespace(tta_steps=settings.steps, selection_p=settings.surest),
    }  # fmt: skip
    wanted = ("get_top_sim", "select_confident_samples", "entropy_avg", "test_time_tuning")
    definitions(checkout / "rtpt.py", names, *wanted)
    body = tuning_statements(checkout / "rtpt.py")
    select, top = names["select_confident_samples"], names["get_top_sim"]
    chosen: list[Tensor] = []

    def selected(logits: Tensor, share: float) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = select(logits, share)
        chosen.append(found[1])
        return found

    def agreeing(cosines: Tensor) -> Any:  # it leaves out cosines of 1, which a view has with itself but for rounding
        cosines.diagonal(dim1=-2, dim2=-1).fill_(1)
        return top(cosines)

    names |= {"select_confident_samples": selected, "get_top_sim": agreeing}
    words: list[Tensor] = []
    encode = r_tpt.encode

    def watched(model: Any, tokens: Tensor, context: Tensor) -> Tensor:
        words.append(context.detach().clone())
        return encode(model, tokens, context)

    r_tpt.encode = watched
    largest = {"other views": 0.0, "words": 0.0, "texts": 0.0, "weights": 0.0, "logits": 0.0}
    for i, seed in enumerate(sample_seeds([str(i) for i in range(len(images))], 0)):
        image = images[i : i + 1]
        views = r_tpt.draw_views(image, settings.views, [seed])
        names |= {"image": image, "images": views[0]}
        execute(body, names)
        with torch.no_grad():
            features = undefended.features(views[0])
            logits = settings.scores(image, undefended, [seed])[:, classifier.columns[0]]
        texts = r_tpt.tune(settings, features[None], undefended)[0, classifier.columns[0]]
        own = r_tpt.entropy(classifier.logits(features)).argsort()[: len(chosen[-1])]
        found = {
            "other views": float(len(set(own.tolist()) ^ set(chosen[-1].tolist()))),
            "words": relative(words[-1][0], learner.ctx.detach()),
            "texts": relative(texts, theirs.get_text_features().detach()),
            "weights": relative(r_tpt.agreement(features, settings.neighbours), names["weight"][0]),
            "logits": relative(logits, names["tta_output"]),
        }
        if torch.equal(words[-1][0], words[0][0]):
            raise SystemExit("the words were not tuned")
        largest = {name: max(value, found[name]) for name, value in largest.items()}
    r_tpt.encode = encode
    return largest


PARITY: dict[str, Callable[[Path, Undefended, Tensor], dict[str, float]]] = {"ttc": ttc, "r-tpt": rtpt, "et3": et3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ttc", type=Path, help="a checkout of Sxing2/CLIP-Test-time-Counterattacks")
    parser.add_argument("--r-tpt", type=Path, help="a checkout of TomSheng21/R-TPT")
    parser.add_argument("--et3", type=Path, help="a checkout of OmnAI-Lab/Energy-Guided-Test-Time-Defense")
    parser.add_argument("--n", type=int, default=8, help="images")
    options = vars(parser.parse_args())
    checkouts = {name: options[name.replace("-", "_")] for name in PARITY if options[name.replace("-", "_")]}
    if not checkouts:
        parser.error("give --ttc, --r-tpt or --et3")
    model = load_model("tiny").double()
    with torch.no_grad():
        model.clip.logit_scale.fill_(math.log(SCALE))
    path = find_tree("shapes")
    assert path is not None
    data = subset(open_dataset("shapes", "test"), limit=options["n"])
    images = next(iter(loader(data, len(data)))).images.double()
    torch.set_default_dtype(torch.float64)  # of the constants that the public code makes
    fault = False
    with frozen(model):
        undefended = Undefended(model, ZeroShotClassifier(model, load_tree(path)))
        for name, checkout in checkouts.items():
            row = PARITY[name](checkout, undefended, images)
            fault |= any(value > TOLERANCE for value in row.values())
            row = {key: float(f"{value:.2g}") for key, value in row.items()}
            print(json.dumps({"defence": name, "images": len(images)} | row), flush=True)
    if fault:
        raise SystemExit(f"a difference is more than {TOLERANCE:g}")


if __name__ == "__main__":
    main()
