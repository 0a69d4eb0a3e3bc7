"""The typed report of an evaluation, which ``hrzs eval --json`` writes. Everything that shows figures reads it.

Its JSON schema is docs/report.schema.json. A figure that a report does not hold, since an older hrzs wrote it, is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from hrzs.attacks import Level
from hrzs.errors import NoReportError, UsageError
from hrzs.results.masking import Canary, Masking

if TYPE_CHECKING:
    import pandas

    from hrzs.results.outcome import Pictures

#: The form that this hrzs writes, and the newest that it reads. Version 1 had ``tasks``, ``prompts_digest`` and
#: ``versions`` inside ``config``, and called ``correct`` ``right``.
SCHEMA = 2

#: What a certified accuracy has in place of an attack, where it stands beside robust ones; its radius is the ε there.
CERTIFIED = "certified"

#: The number of samples of Cohen et al. (2019); certificates from fewer are marked as a preview.
PUBLISHED_SAMPLES = 100_000

#: A 95% interval of a fraction: its lower and its upper end.
Interval: TypeAlias = tuple[float, float]
#: The level that an attack aims at; None where nothing was attacked.
AttackLevel: TypeAlias = Level | None


# Options that change no figure, for all that a batch of another size may round the last bit otherwise. (The tasks say
# which images were skipped.)
_OF_SPEED = ("batch-size", "workers", "threads", "device", "bad-images", "check-images")


class Figure(NamedTuple):
    """An accuracy, per image and balanced over the nodes of its level, each with its interval."""

    value: float | None
    ci95: Interval | None
    balanced: float | None
    balanced_ci95: Interval | None


class Row(Struct, frozen=True, kw_only=True):
    """One accuracy: of one attack (or none) at one ε, scored at one level in one way.

    ``defence`` names the defences at test time that the model stood behind. There ``adversary`` is ``static`` for
    images made against the model without them, and ``adaptive`` for an attack that knows them; at its own aim, an
    adaptive row counts an image only if it holds under both.
    """

    dataset: str
    split: str = ""
    n: int = 0
    eps: str | None
    attack: str
    attack_level: AttackLevel
    level: int
    classes: int = 0
    scoring: str
    clean: float
    robust: float | None
    clean_ci95: Interval | None = None
    robust_ci95: Interval | None = None
    nodes: int | None = None
    clean_balanced: float | None = None
    robust_balanced: float | None = None
    clean_balanced_ci95: Interval | None = None
    robust_balanced_ci95: Interval | None = None
    constant: float | None = None
    constant_balanced: float | None = None
    precision: str = ""
    seconds: float | None = None
    transfer: bool | None = None
    attacked_through: str | None = None
    norm: str | None = None
    steps: int | None = None
    step_size: str | None = None
    source_model: str | None = None
    source_model_digest: str | None = None
    defence: str | None = None
    adversary: str | None = None
    correct: str | None = None

    @property
    def clean_figure(self) -> Figure:
        """Clean accuracy."""
        return Figure(self.clean, self.clean_ci95, self.clean_balanced, self.clean_balanced_ci95)

    @property
    def figure(self) -> Figure:
        """Robust accuracy where something was attacked, else clean accuracy."""
        if self.robust is None:
            return self.clean_figure
        return Figure(self.robust, self.robust_ci95, self.robust_balanced, self.robust_balanced_ci95)


class Overall(Struct, frozen=True, kw_only=True):
    """Figures over all levels, for one dataset at one ε; ``severity`` and ``consistency`` are by attack.

    Behind defences there is one for each ``adversary``; the any-level figure of ``adaptive`` counts both.
    """

    dataset: str
    eps: str
    adversary: str | None = None
    any_level_clean: float | None = None
    any_level_robust: float | None = None
    any_level_robust_ci95: Interval | None = None
    any_level_clean_balanced: float | None = None
    any_level_robust_balanced: float | None = None
    any_level_robust_balanced_ci95: Interval | None = None
    any_level_constant: float | None = None
    any_level_constant_balanced: float | None = None
    any_level_suite: tuple[str, ...] | None = None
    any_level_correct: str | None = None
    severity: dict[str, dict[str, float | None]] = {}
    consistency: dict[str, tuple[float | None, ...]] = {}


class Truth(Struct, frozen=True):
    """The node of each image, in the order of their ids: ``labels`` are leaves, ``ancestors[k]`` those of every leaf.

    Each is a text of numbers with spaces between, which is short.
    """

    labels: str
    ancestors: tuple[str, ...]


class LevelDepth(Struct, frozen=True, kw_only=True):
    """Where the texts and the class means of the images of one level lie, and what margin they have, in logits."""

    level: int
    radius_text: float
    radius_image: float
    margin: float
    bound: float


class Depth(Struct, frozen=True, kw_only=True):
    """Where a model puts the levels of a tree; ``edges_ordered``: share of edges whose parent is nearer the centre."""

    head: str
    n: int
    levels: tuple[LevelDepth, ...]
    edges_ordered: float | None
    edges_ordered_image: float | None


class MeanRow(Struct, frozen=True, kw_only=True):
    """The means over datasets of one attack's figures at the leaves; None where a dataset lacks the figure."""

    attack: str
    attack_level: AttackLevel
    eps: str | None
    adversary: str | None = None
    clean: float | None
    robust: float | None
    clean_balanced: float | None = None
    robust_balanced: float | None = None
    constant: float | None = None
    constant_balanced: float | None = None

    @property
    def title(self) -> str:
        """What was measured, in words."""
        if self.attack == CERTIFIED:
            return f"certified, leaves, ℓ2 radius {self.eps}"
        aim = "" if self.attack_level is None else f" @ {self.attack_level}, leaves"
        adversary = "" if self.adversary is None else f", {self.adversary}"
        return "clean, leaves" if self.robust is None else f"{self.attack}{aim}, ε {self.eps}{adversary}"


class Mean(Struct, frozen=True):
    """Means over the datasets in ``over``; ``missing`` could not be evaluated."""

    over: tuple[str, ...]
    missing: tuple[str, ...]
    rows: tuple[MeanRow, ...]


class Compared(Struct, frozen=True, kw_only=True):
    """One measurement of two models on the same images; ``attack`` "any-level" has no level."""

    dataset: str
    split: str | None = None
    eps: str | None
    attack: str
    attack_level: AttackLevel
    level: int | None
    scoring: str | None
    attacked_through: str | None = None
    adversary: str | None = None
    n: int = 0
    this: float
    other: float
    difference: float
    difference_ci95: Interval
    only_this: int = 0
    only_other: int = 0
    p: float
    this_balanced: float | None = None
    other_balanced: float | None = None
    difference_balanced: float | None = None
    difference_balanced_ci95: Interval | None = None
    p_holm: float

    @property
    def is_headline(self) -> bool:
        """Is it shown whatever came out?"""
        return self.attack in ("any-level", CERTIFIED)

    @property
    def title(self) -> str:
        """What was measured, in words."""
        adversary = "" if self.adversary is None else f", {self.adversary}"
        if self.attack == "any-level":
            return f"any-level robust accuracy at ε {self.eps}{adversary}"
        if self.attack == CERTIFIED:
            return f"certified at level {self.level}, ℓ2 radius {self.eps}"
        attack = "clean" if self.attack == "none" else f"{self.attack} @ {self.attack_level}, ε {self.eps}{adversary}"
        return f"{attack}, scored at level {self.level} by {self.scoring}"


class Comparison(Struct, frozen=True, kw_only=True):
    """A report against another one; ``left_out`` says in sentences what could not be compared."""

    model: str
    digest: str = ""
    rows: tuple[Compared, ...]
    left_out: tuple[str, ...] = ()


class DefenceNote(Struct, frozen=True, kw_only=True):
    """One defence of a stack: its settings, what an adaptive attack differentiates, and what it costs.

    ``passes`` are forward passes of the model to judge an image, beyond the one that classifies it.
    """

    defence: str
    adversary: str
    passes: float


class Defending(Struct, frozen=True, kw_only=True):
    """The defences that the model stood behind, and what it takes to know them.

    ``gaps`` are the adaptive less the static figures of each attack at its own aim, paired over the images: how much a
    defence owes to the adversary's ignorance. ``attack_passes`` are forward and backward passes of the model for one
    gradient of an adaptive attack, which averages over ``eot`` draws, or knows the ``draw`` that judges.
    """

    stack: tuple[DefenceNote, ...]
    draw: str = "unknown"
    eot: int
    attack_passes: float
    gaps: tuple[Compared, ...] = ()


class Summary(Struct, frozen=True, kw_only=True):
    """The results beyond the rows; the keys of mappings are datasets.

    ``canaries`` and ``masking`` are a sentence where there are none. ``adversarial`` describes the saved images.
    """

    levels: tuple[Overall, ...] = ()
    truth: dict[str, Truth] = {}
    not_applicable: dict[str, tuple[str, ...]] = {}
    missing: dict[str, str] = {}
    stand_ins: dict[str, tuple[str, ...]] = {}
    canaries: tuple[Canary, ...] | str = ()
    masking: tuple[Masking, ...] | str = ()
    adversarial: dict[str, dict[str, Any]] | None = None
    depth: dict[str, Depth] = {}
    mean: Mean | None = None
    against: Comparison | None = None
    defending: Defending | None = None


class Certified(Struct, frozen=True):
    """The share of images that are certified to be right within a radius: per image and balanced, with intervals."""

    radius: float
    value: float
    ci95: Interval
    balanced: float
    balanced_ci95: Interval


class Certificate(Struct, frozen=True, kw_only=True):
    """The smoothed classifier of one dataset at one level (`hrzs.results.certificates`).

    Radii are ℓ2, of pixels in [0, 1]. ``clean`` is the accuracy of the answer with the most votes, about which nothing
    is certified. An abstention counts as wrong in ``certified``, whose last radius is the largest that so many samples
    can certify, and as 0 in the average radius. The certificate of an image is wrong with probability ``level_alpha``
    at most. ``chosen`` and ``votes`` have a number for each image, in the order of their ids: the node, and how many of
    the ``samples`` voted for it.
    """

    dataset: str
    split: str = ""
    n: int
    level: int
    classes: int
    nodes: int
    sigma: float
    samples: int
    selection: int
    alpha: float
    confidence: str
    level_alpha: float
    preview: bool
    abstained: float
    abstained_balanced: float
    clean: float
    clean_ci95: Interval
    clean_balanced: float
    clean_balanced_ci95: Interval
    average_radius: float
    average_radius_balanced: float
    constant: float
    constant_balanced: float
    certified: tuple[Certified, ...]
    seconds: float
    chosen: str
    votes: str

    @property
    def largest_radius(self) -> float:
        """The largest radius that so many samples can certify."""
        return self.certified[-1].radius

    @property
    def every_sigma(self) -> tuple[Certified, ...]:
        """The certified accuracies at the radii 0, σ, 2σ, …."""
        return self.certified[:-1:4] or self.certified


def nodes_with_images(one: Row | Certificate) -> str:
    """How many nodes of its level have images, and of how many: "1 of 8", or "8" where all have."""
    return str(one.classes) if one.nodes is None or one.nodes >= one.classes else f"{one.nodes} of {one.classes}"


class Model(Struct, frozen=True, kw_only=True):
    """The model: where it came from, the digest of its weights, and what its images and texts go through."""

    source: str
    arch: str = ""
    digest: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = ""
    resize_mode: str = "shortest"
    licence: str = ""
    training_data: str = ""
    run: dict[str, Any] | None = None
    visual: str | None = None
    image_size: int | None = None
    embed_dim: int | None = None
    geometry: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """What it was loaded as, without folders."""
        return model_name(self.source)


class Data(Struct, frozen=True, kw_only=True):
    """The images, known by the digest of their ids, and the tree over their classes; ``levels`` counts its nodes.

    ``left_out`` counts, by reason, what of the data's source is not among them, or is met twice there. ``unreadable``
    are the ids of the images that were skipped since they cannot be decoded.
    """

    dataset: str
    split: str = ""
    n: int
    image_ids: str
    classes: int
    native_size: int | None = None
    resize: str
    tree: str | None = None
    tree_digest: str
    levels: tuple[int, ...]
    same_prompts: tuple[dict[str, Any], ...] = ()
    left_out: dict[str, int] = {}
    resized_by: tuple[str, str] = ("bicubic", "shortest")
    unreadable: tuple[str, ...] = ()


class Report(Struct, frozen=True, kw_only=True):
    """One model on one or several datasets. ``print`` shows the table of ``hrzs eval``, a notebook a short one."""

    schema: int = SCHEMA
    hrzs: str
    model: Model
    config: dict[str, Any]
    tasks: tuple[Data, ...] = ()
    prompts_digest: str = ""
    versions: dict[str, str] = {}
    results: tuple[Row, ...] = ()
    summary: Summary = Summary()
    certificates: tuple[Certificate, ...] = ()

    @classmethod
    def from_json(cls, source: str | bytes | Path) -> Report:
        """A report as `to_json` or ``hrzs eval --json`` wrote it, by this or an older hrzs.

        Args:
            source: the text, or the path of a file with it.

        Raises:
            UsageError: it cannot be read, is no report (`NoReportError`), or a newer hrzs wrote it.
        """
        name = str(source) if isinstance(source, Path) else "this text"
        try:
            text = source.read_bytes() if isinstance(source, Path) else source
            found = msgspec.json.decode(text)
        except (OSError, msgspec.DecodeError, UnicodeError) as error:
            raise UsageError(
                f"{name}: not a readable report ({error}); give the FILE of `hrzs eval --json FILE`"
            ) from error
        if not isinstance(found, dict) or not {"model", "results", "summary", "config"} <= found.keys():
            raise NoReportError(f"{name}: no report of `hrzs eval --json`")
        schema = found.get("schema", 1)
        if not isinstance(schema, int) or schema > SCHEMA:
            raise UsageError(f"{name}: schema {schema} of a newer hrzs, this one reads up to {SCHEMA}; update hrzs")
        try:
            return msgspec.convert(_upgraded(found), cls)
        except msgspec.ValidationError as error:
            raise UsageError(f"{name}: no report of `hrzs eval --json`: {error}") from error

    @property
    def seconds(self) -> float:
        """What the attacks and the certificates took, as far as the rows say."""
        units = {
            (row.dataset, row.eps, row.attack, row.attack_level, row.attacked_through, row.adversary): row.seconds
            for row in self.results
        }
        certificates = {one.dataset: one.seconds for one in self.certificates}
        return sum((one for one in (*units.values(), *certificates.values()) if one is not None), 0.0)

    @property
    def call(self) -> dict[str, Any]:
        """What the figures depend on, as JSON has it: model, data and options, but for those of speed alone."""
        tasks = [msgspec.structs.replace(task, left_out={}) for task in self.tasks]
        about = {"model": self.model.digest, "tasks": tasks, "prompts-digest": self.prompts_digest}
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(about | self.config))
        return {name: value for name, value in found.items() if name not in _OF_SPEED}

    def to_json(self) -> str:
        """As ``hrzs eval --json`` writes it; `from_json` reads it back the same."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1).decode() + "\n"

    def to_csv(self) -> str:
        """A line for each row and certified accuracy, an interval in two columns (`hrzs.results.export.to_csv`)."""
        from hrzs.results.export import to_csv

        return to_csv(self)

    def to_latex(self) -> str:
        """A booktabs table of the headline figures (`hrzs.results.export.to_latex`)."""
        from hrzs.results.export import to_latex

        return to_latex(self)

    def to_html(self, pictures: Mapping[str, Pictures] | None = None) -> str:
        """The page of ``hrzs eval --report``; ``pictures`` hold, by dataset, what the JSON lacks: tree, images."""
        from hrzs.results.pages.evaluation import render

        return render(self, pictures or {})

    def to_pandas(self) -> pandas.DataFrame:
        """The lines of `to_csv`. Needs pandas.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise UsageError("to_pandas: needs pandas; install it, or take to_csv") from error
        from hrzs.results.export import lines

        return DataFrame(lines(self))

    def against(self, other: Report) -> Comparison:
        """Every figure beside the same one in ``other``, paired image by image (`hrzs.results.significance.compare`).

        Raises:
            UsageError: other images, another tree, or no measurement in common.
        """
        from hrzs.results.significance import compare

        return compare(self, other)

    def __str__(self) -> str:
        from hrzs.results.table import render

        return render(self)

    def _repr_html_(self) -> str:
        from hrzs.results.pages.evaluation import short

        return short(self)


# Files that are called the same in every model's folder.
_OF_ANY_MODEL = ("model", "best", "open_clip_model", "open_clip_pytorch_model", "open_clip_config", "pytorch_model")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".json")


def model_name(source: str) -> str:
    """The name of a model in what it was loaded as (`Model.source`), without folders and endings of files.

    >>> model_name("models/small.json:runs/mine/model.safetensors")
    'mine'
    """
    return " + ".join(map(_named, source.split(" + ")))


def _named(source: str) -> str:
    if source.startswith("hf-hub:"):
        return source.removeprefix("hf-hub:")
    model, _, weights = source.partition(":")
    if not weights or (model.endswith(".json") and weights != "none"):
        return _without_folders(weights or model)
    return f"{_without_folders(model)} ({_without_folders(weights)})"


def _without_folders(path: str) -> str:
    *folders, last = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")] or [path]
    stem = next((last.removesuffix(end) for end in _SUFFIXES if last.endswith(end)), last)
    if stem in _OF_ANY_MODEL and folders:
        return f"{folders[-1]}/{stem}" if stem == "best" else folders[-1]
    return stem


def _upgraded(found: dict[str, Any]) -> dict[str, Any]:
    """A report of version 1 in today's form."""
    config = found["config"]
    if "schema" in found or not isinstance(config, dict):
        return found
    moved = ("tasks", "prompts_digest", "versions")
    options = {name: value for name, value in config.items() if name not in moved}
    summary = found["summary"] | {"levels": [_renamed(one) for one in found["summary"].get("levels", ())]}
    today = {"config": options, "results": [_renamed(row) for row in found["results"]], "summary": summary}
    return found | {name: config[name] for name in moved if name in config} | today


_FORMER = {"right": "correct", "any_level_right": "any_level_correct"}


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    return {_FORMER.get(name, name): value for name, value in row.items()}
