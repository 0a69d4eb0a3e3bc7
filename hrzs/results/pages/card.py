"""The model card of an exported model: Markdown, under the metadata that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hrzs._version import __version__
from hrzs.files import dump_yaml
from hrzs.hierarchy.describe import visible
from hrzs.models.clip import ClipModel
from hrzs.results.export import Headline, headlines
from hrzs.results.pages.templates import interval, percent
from hrzs.results.report import Data, Figure, Report, nodes_with_images

#: The licences that the hub knows by name, of those that models of this kind have.
_LICENCES = ("mit", "apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "openrail")
#: The options of an evaluation that are its protocol, where they are set.
_PROTOCOL = ("attack", "level", "eps", "norm", "steps", "step-size", "restarts", "random-start", "scoring", "template",
             "precision", "seed", "skip", "limit", "resize", "defence", "eot", "draw")  # fmt: skip


class _Block(str):
    """Text that is inserted as it is."""


@dataclass(frozen=True)
class Card:
    """What a card says.

    Args:
        name: of the model, as people will find it.
        formats: the layouts that the folder has, of ``open_clip`` and ``transformers``.
        settings: of the run that made the model, where they are known.
        reports: of evaluations of this model.
    """

    name: str
    model: ClipModel
    formats: Sequence[str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    reports: Sequence[Report] = ()

    @property
    def licence(self) -> str:
        """The hub's identifier of the licence."""
        known = self.model.info.licence.lower().replace(" ", "-")
        return known if known in _LICENCES else "other"

    @property
    def base(self) -> str | None:
        """The repository on the hub that the run started from, if it was one."""
        model = str((self.model.info.run.get("base") or {}).get("model", ""))
        return model.removeprefix("hf-hub:") if model.startswith("hf-hub:") else None

    @property
    def configuration(self) -> _Block:
        """The settings as ``--config`` reads them."""
        return _Block(dump_yaml(dict(self.settings)).replace("```", "'''"))

    @property
    def head(self) -> str | None:
        """The head that open_clip leaves behind."""
        return None if self.model.geometry is None else self.model.geometry.name


def render(card: Card) -> str:
    """``README.md``."""
    return _environment().get_template("card.md.j2").render(
        card=card, info=card.model.info, run=card.model.info.run, version=__version__, protocol=protocol, tables=tables,
    )  # fmt: skip


def protocol(report: Report, head: str) -> Iterator[tuple[str, str]]:
    """What the figures of a report were measured by, in words; ``head`` is the model's own."""
    for data in report.tasks:
        yield "images", _images(data)
    yield "head", str(report.config.get("head") or head)
    for name in _PROTOCOL:
        value = report.config.get(name)
        if value not in (None, False, 0, "", "auto"):
            yield name.replace("-", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    masking = report.summary.masking
    if isinstance(masking, str):
        yield "gradient masking", masking or "not looked for"
    for found in () if isinstance(masking, str) else masking:
        yield f"gradient masking on {found.title}", found.verdict
    yield "versions", ", ".join(f"{name} {value}" for name, value in {"hrzs": report.hrzs, **report.versions}.items())


def _images(data: Data) -> str:
    levels = ", ".join(map(str, data.levels))
    return (
        f"{data.n} of {data.dataset}/{data.split} (digest of their names {data.image_ids[:12]}); {data.classes} "
        f"classes; a tree with {levels} nodes at levels 0 to {len(data.levels) - 1} (digest {data.tree_digest[:12]})"
    )


@dataclass(frozen=True)
class _Line:
    """One level; ``attack`` is the strongest that aimed at it."""

    level: str
    nodes: str
    cells: tuple[str, ...]
    attack: str = ""


def tables(report: Report) -> Iterator[tuple[Headline, list[_Line]]]:
    """The headline figures of each dataset and ε: a line for each level, and one for any level."""
    for head in headlines(report):
        lines = []
        for level, clean in head.clean.items():
            robust = head.robust.get(level)
            cells = (percent(clean.constant), *_pair(clean.clean_figure, robust.figure if robust else None),
                     percent(clean.constant_balanced))  # fmt: skip
            lines.append(_Line(str(level), nodes_with_images(clean), cells, robust.attack if robust else ""))
        if (whole := head.summary) is not None:
            clean_any = Figure(whole.any_level_clean, None, whole.any_level_clean_balanced, None)
            robust_any = Figure(whole.any_level_robust, whole.any_level_robust_ci95, whole.any_level_robust_balanced,
                                whole.any_level_robust_balanced_ci95)  # fmt: skip
            constants = percent(whole.any_level_constant), percent(whole.any_level_constant_balanced)
            cells = (constants[0], *_pair(clean_any, robust_any), constants[1])
            lines.append(_Line("any", "", cells, ", ".join(whole.any_level_suite or ())))
        yield head, lines


def _pair(clean: Figure, robust: Figure | None) -> tuple[str, str, str, str]:
    """Clean and robust per image, then both balanced."""
    nothing = Figure(None, None, None, None)
    found = [clean, robust or nothing]
    per_image = [f"{percent(one.value)} {interval(one.ci95)}".strip() for one in found]
    balanced = [f"{percent(one.balanced)} {interval(one.balanced_ci95)}".strip() for one in found]
    return per_image[0], per_image[1], balanced[0], balanced[1]


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("hrzs.results.pages"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_inline,
    )


def _inline(value: object) -> str:
    """One line that ends no cell of a table, and opens no markup."""
    if isinstance(value, _Block):
        return value
    text = visible(" ".join(str(value).split()))
    return text.replace("|", "\\|").replace("<", "&lt;")
