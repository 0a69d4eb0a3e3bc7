"""Prompt templates by name: the single ones of the field's papers and OpenAI's ensembles for each dataset."""

from __future__ import annotations

import re
from pathlib import Path

from hrzs.classes.forms import quoted, structure
from hrzs.errors import UsageError
from hrzs.safe_yaml import BadYamlError, List, Scalar

_OPENAI = "openai"
# A list of Python or JSON, its marks at both ends, and a line of OpenAI's: `lambda c: f'a bad photo of a {c}.',`.
_LIST = re.compile(r"\s*(?:\w+\s*=\s*)?\[")
_LIST_MARKS = re.compile(r"\A\s*(?:\w+\s*=\s*)?[\[(]\s*$|^\s*[\])]\s*\Z", re.MULTILINE)
_LAMBDA = re.compile(r"""(lambda (\w+)\s*:\s*f)(["'])(.*)\3,?""")
# What is no sentence: a quotation, a piece of a program, another hole than the name's.
_PIECE = re.compile(r"""\w?(["']).*\1,?|.*["'],|lambda .*|[\[{(].*[\])},]|.*\{[^{}]+\}.*|.*\\.*""", re.DOTALL)
#: The help of ``--template``.
HELP = "Prompt template: photo, tecoa, name, openai (the dataset's ensemble), a text with {}, FILE.txt, or list."


def _ensembles(file: Path) -> dict[str, tuple[str, ...]]:
    """The templates of each dataset, from a file of ``[DATASET …]`` headings with one template to a line below."""
    found: dict[str, list[str]] = {}
    datasets: list[str] = []
    for line in file.read_text("utf-8").splitlines():
        if line.startswith("["):
            datasets = line.strip("[]").split()
            found.update({dataset: [] for dataset in datasets})
        elif line and not line.startswith("#"):
            for dataset in datasets:
                found[dataset].append(line)
    return {dataset: tuple(templates) for dataset, templates in found.items()}


OPENAI: dict[str, tuple[str, ...]] = _ensembles(Path(__file__).with_name("openai_templates.txt"))

TEMPLATES: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of a {}.",),
    "tecoa": ("This is a photo of a {}",),
    "name": ("{}",),
    **{f"{_OPENAI}-{dataset}": templates for dataset, templates in OPENAI.items()},
}

_ABOUT = {
    "photo": "CLIP's single template (Radford et al. 2021): ",
    "tecoa": "that of TeCoA (Mao et al. 2023) and of PMG-AFT: ",
    "name": "the bare name: ",
}


def describe_templates() -> list[tuple[str, str]]:
    """(name, one line about it) of every form that ``--template`` takes."""
    singles = [(name, f"{about}{TEMPLATES[name][0]}") for name, about in _ABOUT.items()]
    ensembles = [
        (f"{_OPENAI}-{dataset}", f"{len(texts)} template{'s' * (len(texts) > 1)}, such as: {texts[0]}")
        for dataset, texts in OPENAI.items()
    ]
    return [
        *singles,
        (_OPENAI, "OpenAI's ensemble of the dataset at hand; where it has none, the 80 of ImageNet"),
        *ensembles,
        ("TEXT", "a text with {} where the name goes"),
        (
            "FILE.txt",
            "an ensemble: one such text to a line, bare or quoted, or a list of Python or JSON; {c} is read as {}",
        ),
    ]


def template_for(spec: str, dataset: str) -> str:
    """``spec``, with ``openai`` replaced by the name of the ensemble that OpenAI used on ``dataset``.

    A dataset without an ensemble takes ImageNet's, as in CLIP_benchmark.
    """
    if spec != _OPENAI:
        return spec
    return f"{_OPENAI}-{dataset if dataset in OPENAI else 'imagenet'}"


def resolve_template(spec: str) -> tuple[str, ...]:
    """The templates that ``--template`` names; ``openai`` first goes through `template_for`, which knows the dataset.

    Raises:
        UsageError: no known name and no text with ``{}``, or a file that is unreadable or has a line without ``{}``.
    """
    if spec in TEMPLATES:
        return TEMPLATES[spec]
    if "{}" in spec:
        return (spec,)
    if spec.endswith((".txt", ".json", ".py")):
        return _from_file(Path(spec))
    if spec == _OPENAI:
        raise UsageError(f"--template {spec}: each dataset has its own; name it, such as {_OPENAI}-imagenet")
    raise UsageError(
        f"--template {spec!r}: neither one of photo, tecoa, name, {_OPENAI}, {_OPENAI}-DATASET "
        "(`--template list` prints them) nor a text with {} for the name"
    )


def _from_file(file: Path) -> tuple[str, ...]:
    """A template to a line, bare or quoted as in Python (perhaps as a lambda), or a list of Python or JSON."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--template {file}: cannot read it ({error}); it should have one template to a line"
        ) from error
    found = _listed(text) if _LIST.match(text) else None
    if found is None:
        lines = list(enumerate(_LIST_MARKS.sub("", text).splitlines(), 1))
        found = [(n, line.strip()) for n, line in lines if line.strip()]
        quotations = [_LAMBDA.sub(r"\3\4\3", line) for _, line in found]
        texts = [quoted(line) for line in quotations]
        if found and all(texts):
            variables = [match[2] if (match := _LAMBDA.fullmatch(line)) else "c" for _, line in found]
            found = [
                (n, (text or "").replace(f"{{{variable}}}", "{}"))
                for (n, _), text, variable in zip(found, texts, variables, strict=True)
            ]
    if not found:
        raise UsageError(f"--template {file}: the file is empty; it should have one template to a line")
    templates = tuple(template.replace("{c}", "{}") for _, template in found)
    for (line, _), template in zip(found, templates, strict=True):
        if "{}" not in template:
            raise UsageError(f"--template {file}:{line}: the line {template!r} has no {{}} for the name")
        if _PIECE.fullmatch(template):
            raise UsageError(
                f"--template {file}:{line}: {template!r} is a piece of a program; write the bare text, "
                "with {} for the name, or quote every line"
            )
    return templates


def _listed(text: str) -> list[tuple[int, str]] | None:
    """The texts of a list, each with its line; None where it is no list of texts alone."""
    try:
        value = structure(text)
    except BadYamlError:
        return None
    if isinstance(value, List) and all(isinstance(item, Scalar) and not item.plain for item in value.items):
        return [(item.line, item.value) for item in value.items if isinstance(item, Scalar)]
    return None
