"""Two models on the same images: is the difference more than chance? Paired, image by image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import torch
from jaxtyping import Bool, Float, Int
from msgspec.structs import replace
from torch import Tensor

from hrzs.errors import UsageError
from hrzs.results.certificates import certified_images
from hrzs.results.export import certified_row
from hrzs.results.metrics import balanced, from_bits, node_weights, to_bits, weights_over_levels, wilson
from hrzs.results.protocol import first_difference, of_images, other_effort, suite_of
from hrzs.results.report import Certificate, Compared, Comparison, Report, Row

#: What makes two rows the same measurement of two models.
SAME = ("dataset", "split", "eps", "attack", "attack_level", "level", "scoring", "attacked_through")


def compare(report: Report, other: Report) -> Comparison:
    """Every row of ``report`` beside the same measurement in ``other``; any-level and certified accuracy likewise.

    Rows behind defences stand beside those of the same adversary; if ``other`` has no defences, beside its own.

    For each: both accuracies, their difference with a 95% interval (`paired_interval`), how many images only the one
    and only the other model gets right, McNemar's exact p (`mcnemar`), and p after Holm's correction for the number of
    comparisons with images in them (Holm, Scand. J. Statist. 1979). There is also the difference balanced over the
    level's nodes, with its interval (`balanced_difference`); None where neither report has the nodes of the images. p
    is always of the difference per image.

    Attacks of other norms or steps, any-level figures of different suites and certificates of another σ, N or α are not
    compared: ``left_out`` says so.

    Raises:
        UsageError: other images, no measurement in common, or a report without the result of each image.
    """
    check_same_images(report, other)
    nodes = nodes_of(other) | nodes_of(report)
    rows, unlike = _row_pairs(report.results, other.results, nodes)
    any_level, other_suite = _any_level_pairs(report, other, nodes)
    certified, other_kind = _certified_pairs(report, other, nodes)
    pairs, left_out = [*rows, *any_level, *certified], (*unlike, *other_suite, *other_kind)
    if not pairs:
        raise UsageError(
            "--against: the two reports share no measurement; evaluate both with the same data, attacks, levels and ε"
        )
    return Comparison(model=other.model.source, digest=other.model.digest, rows=_compared(pairs), left_out=left_out)


def gaps(report: Report) -> tuple[Compared, ...]:
    """The adaptive less the static figures of a model behind defences, for each attack at the level it aims at."""
    nodes = nodes_of(report)
    static = {_measured(row): row for row in report.results if row.adversary == "static"}
    adaptive = [row for row in report.results if row.adversary == "adaptive" and row.transfer is False]
    return _compared([_pair(row, static[_measured(row)], nodes) for row in adaptive if _measured(row) in static])


def _compared(pairs: Sequence[_Pair]) -> tuple[Compared, ...]:
    chances = [mcnemar(*pair.discordant) for pair in pairs]
    return tuple(pair.compared(p, p_holm) for pair, p, p_holm in zip(pairs, chances, holm(chances), strict=True))


# The node of each image at every level, (levels, n), in the order of ids, by dataset.
Nodes = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Pair:
    """What is compared (`SAME`), which images each model has right, and the weights that balance them."""

    name: tuple[object, ...]
    this: Bool[Tensor, "n"]
    other: Bool[Tensor, "n"]
    weights: Float[Tensor, "n"] | None
    adversary: str | None = None

    @property
    def discordant(self) -> tuple[int, int]:
        """How many images only this model and only the other has right."""
        return int((self.this & ~self.other).sum()), int((self.other & ~self.this).sum())

    def compared(self, p: float, p_holm: float) -> Compared:
        """All figures of the comparison."""
        n, only_this, only_other = len(self.this), *self.discordant
        this, other = int(self.this.sum()), int(self.other.sum())
        found: dict[str, object] = {}
        if self.weights is not None:
            difference, interval = balanced_difference(self.this, self.other, self.weights)
            found = {"this_balanced": balanced(self.this, self.weights),
                     "other_balanced": balanced(self.other, self.weights),
                     "difference_balanced": difference, "difference_balanced_ci95": interval}  # fmt: skip
        found |= {"n": n, "this": this / n, "other": other / n, "difference": (only_this - only_other) / n,
                  "difference_ci95": paired_interval(this, other, only_this, only_other, n),
                  "only_this": only_this, "only_other": only_other, "p": p, "p_holm": p_holm}  # fmt: skip
        found["adversary"] = self.adversary
        return msgspec.convert(found | dict(zip(SAME, self.name, strict=True)), Compared)


def nodes_of(report: Report) -> dict[str, Int[Tensor, "levels n"]]:
    """The nodes of a report's images (`Evaluation.truth`), by dataset; empty if an older hrzs wrote it."""
    found = {}
    for dataset, truth in report.summary.truth.items():
        labels = torch.tensor([int(word) for word in truth.labels.split()], dtype=torch.long)
        ancestors = torch.tensor([[int(word) for word in level.split()] for level in truth.ancestors])
        found[dataset] = ancestors[:, labels]
    return found


def _measured(row: Row) -> tuple[object, ...]:
    return tuple(getattr(row, name) for name in SAME)


def _matched(rows: Sequence[Row], others: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows that measure the same (`SAME`), however many steps their attacks took."""
    theirs = {(row.adversary, *_measured(row)): row for row in others}
    found = [(row, theirs.get((row.adversary, *_measured(row)), theirs.get((None, *_measured(row))))) for row in rows]
    return [(row, like) for row, like in found if like is not None]


def _row_pairs(rows: Sequence[Row], others: Sequence[Row], nodes: Nodes) -> tuple[list[_Pair], list[str]]:
    pairs, left_out = list[_Pair](), dict[str, None]()
    for row, like in _matched(rows, others):
        if (effort := other_effort(row, like)) is None:
            pairs.append(_pair(row, like, nodes))
        else:
            left_out[f"{row.attack} @ {row.attack_level} on {row.dataset}: there with {effort} as here"] = None
    return pairs, [*left_out]


def _pair(row: Row, like: Row, nodes: Nodes) -> _Pair:
    return _Pair(
        _measured(row), _bits(row.correct, row.n, row.dataset), _bits(like.correct, row.n, row.dataset),
        node_weights(nodes[row.dataset][row.level]) if row.dataset in nodes else None, row.adversary,
    )  # fmt: skip


def _certified_pairs(report: Report, other: Report, nodes: Nodes) -> tuple[list[_Pair], list[str]]:
    """At every level and whole σ, of the datasets on which both certificates are of one kind."""
    mine, theirs = ({one.dataset: one for one in either.certificates} for either in (report, other))
    alike, left_out = set[str](), list[str]()
    for dataset in sorted((mine.keys() | theirs.keys()) & nodes.keys()):
        here, there = mine.get(dataset), theirs.get(dataset)
        if here is None or there is None:
            left_out.append(f"certificates on {dataset}: only one of the two reports has them")
        elif _kind(here) != _kind(there):
            left_out.append(
                f"certificates on {dataset}: {_kind(here)}; there {_kind(there)}; certify one of the two models again"
            )
        else:
            alike.add(dataset)

    def rows(either: Report) -> list[Row]:
        return [
            replace(certified_row(one, point), correct=to_bits(certified_images(one, truth, point.radius)))
            for one in either.certificates
            if one.dataset in alike
            for truth in [nodes[one.dataset][one.level]]
            for point in one.every_sigma
        ]

    return _row_pairs(rows(report), rows(other), nodes)[0], left_out


def _kind(one: Certificate) -> str:
    """What must be alike, or one of two certificates claims more than the other, or needs more samples to claim it."""
    return f"σ {one.sigma:g}, {one.samples:,} samples and {one.selection:,} to select, α {one.alpha:g} {one.confidence}"


def _any_level_pairs(report: Report, other: Report, nodes: Nodes) -> tuple[list[_Pair], list[str]]:
    theirs = {(s.dataset, s.eps, s.adversary): s for s in other.summary.levels}
    n = {row.dataset: row.n for row in report.results}
    found = []
    left_out = []
    for mine in report.summary.levels:
        dataset = mine.dataset
        like = theirs.get((dataset, mine.eps, mine.adversary), theirs.get((dataset, mine.eps, None)))
        if like is None or mine.any_level_robust is None or like.any_level_robust is None:
            continue
        suites = [suite_of(one) for one in (mine, like)]
        if set(suites[0]) != set(suites[1]):
            left_out.append(
                f"any-level robust accuracy on {dataset} at ε {mine.eps}: of different suites "
                f"({', '.join(suites[0])}; there {', '.join(suites[1])}); evaluate that model again"
            )
            continue
        here, there = ([row for row in one.results if (row.dataset, row.eps) == (dataset, mine.eps)
                        and row.attack in suites[0]] for one in (report, other))  # fmt: skip
        if effort := next(filter(None, (other_effort(*pair) for pair in _matched(here, there))), None):
            left_out.append(f"any-level robust accuracy on {dataset} at ε {mine.eps}: there with {effort} as here")
            continue
        said = {"dataset": dataset, "eps": mine.eps, "attack": "any-level"}
        weights = weights_over_levels(nodes[dataset]) if dataset in nodes else None
        correct = [_bits(one.any_level_correct, n[dataset], dataset) for one in (mine, like)]
        name = tuple(said.get(name) for name in SAME)
        found.append(_Pair(name, correct[0], correct[1], weights, mine.adversary))
    return found, left_out


def _bits(correct: str | None, n: int, dataset: str) -> Bool[Tensor, "n"]:
    try:
        return from_bits(correct or "", n)
    except ValueError as error:
        raise UsageError(
            f"--against: a report does not say what became of each of {n} images of {dataset} "
            "(another number of images, or written by an older hrzs); evaluate that model again"
        ) from error


def check_same_images(report: Report, other: Report) -> None:
    """Are both about the same images under the same tree, and does ``other`` say what became of each of them?

    This can be checked before an evaluation.

    Raises:
        UsageError: no.
    """
    for row in other.results:
        _bits(row.correct, row.n, row.dataset)
    mine, theirs = ({task.dataset: task for task in one.tasks} for one in (report, other))
    if not mine.keys() & theirs.keys():
        raise UsageError(f"--against: that report is about {', '.join(theirs)}, this one about {', '.join(mine)}")
    for name in sorted(mine.keys() & theirs.keys()):
        if (differs := first_difference(of_images(mine[name]), of_images(theirs[name]))) is not None:
            raise UsageError(
                f"--against: that report is not about the same {name}: {differs} as here; "
                "a paired test needs the same: repeat it with the same --data, --split, --limit, --skip, --classes,"
                " --tree and --resize"
            )


def paired_difference(
    a: Bool[Tensor, "n"], b: Bool[Tensor, "n"], weights: Float[Tensor, "n"] | None = None
) -> tuple[float, tuple[float, float]]:
    """The difference of two paired accuracies with its 95% interval: per image, or by weight where there are any."""
    if weights is not None:
        return balanced_difference(a, b, weights)
    only_a, only_b, n = int((a & ~b).sum()), int((b & ~a).sum()), len(a)
    return (only_a - only_b) / n, paired_interval(int(a.sum()), int(b.sum()), only_a, only_b, n)


def balanced_difference(
    a: Bool[Tensor, "n"], b: Bool[Tensor, "n"], weights: Float[Tensor, "n"], z: float = 1.959964
) -> tuple[float, tuple[float, float]]:
    """The difference of two paired accuracies by weight (`node_weights`), with its 95% interval.

    With ``d_i`` = 1, 0 or -1 the difference of the two models on image i, it is the weighted mean ``d = Σ w_i d_i``;
    its variance is ``Σ w_i² (d_i - d)²`` and the interval normal, ``d ± 1.96`` standard errors, cut to [-1, 1]. So each
    image of a small node counts much, in the mean and in the interval. It has no width where all ``d_i`` are alike, as
    for two models that are right about the same images.
    """
    d = a.double() - b.double()
    mean = float((weights * d).sum())
    reach = z * math.sqrt(float((weights * (d - mean)).square().sum()))
    return mean, (max(-1.0, mean - reach), min(1.0, mean + reach))


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test: were both models alike, either would win a discordant image by a fair coin.

    McNemar, Psychometrika 1947; the exact form is a binomial test of the discordant pairs.
    """
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def paired_interval(right_a: int, right_b: int, only_a: int, only_b: int, n: int) -> tuple[float, float]:
    """95% interval of the difference of two paired proportions from Wilson's (Newcombe, Stat. Med. 1998, method 10)."""
    a, b = right_a / n, right_b / n
    (low_a, high_a), (low_b, high_b) = wilson(right_a, n), wilson(right_b, n)
    both = right_a - only_a
    neither = n - both - only_a - only_b
    spread = right_a * (n - right_a) * right_b * (n - right_b)
    excess = both * neither - only_a * only_b
    # Correlation of the two, with a correction for continuity where it is positive.
    phi = 0.0 if not spread else (max(excess - n / 2, 0) if excess > 0 else excess) / math.sqrt(spread)

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    return a - b - reach(a - low_a, high_b - b), a - b + reach(high_a - a, b - low_b)


def holm(p: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction, in the order given."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, least = [0.0] * len(p), 0.0
    for place, i in enumerate(order):
        least = max(least, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = least
    return adjusted
