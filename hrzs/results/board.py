"""Reports of several models side by side: a board for each way of measuring, with a row for each model.

Figures stand on one board only if their protocols are equal (`hrzs.results.protocol`): of the same images and attacks.
So they can be compared image by image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.results.metrics import from_bits, node_weights
from hrzs.results.protocol import Protocol, aims_here, protocol
from hrzs.results.report import Data, Interval, Report, Row
from hrzs.results.significance import nodes_of, paired_difference
from hrzs.results.table import fitted, grid, percent

#: Which of several attacks at a level stands for them: the strongest first, and a margin before cross-entropy.
STRONGEST = ("autoattack", "aa-2", "apgd-t", "cw", "apgd-ce")

#: A difference and its interval, in tenths of a percentage point.
Difference: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Cell:
    """A figure of a model with its interval, what a constant answer scores, and which images are right.

    What an older hrzs did not write down is None.
    """

    value: float | None
    ci95: Interval | None
    constant: float | None
    correct: str | None


@dataclass(frozen=True)
class Column:
    """One measurement: ``attack`` is ``none`` (clean), ``any-level``, or an attack that aims at ``level``.

    A superclass level has the accuracy balanced over its nodes; the leaves and any-level the one per image.
    """

    attack: str
    level: int | None = None
    scoring: str | None = None

    @property
    def title(self) -> str:
        """What was done to the images."""
        return {"none": "clean", "any-level": "any level"}.get(self.attack, self.attack)

    @property
    def scored(self) -> str:
        """What of them is right, and how images are weighed."""
        by = ", sum of leaves" if self.level and self.scoring == "leaves" else ""
        return {None: "per image", 0: "leaves"}.get(self.level, f"level {self.level}, balanced{by}")


@dataclass(frozen=True)
class Entry:
    """One dataset of a report at one ε (None: clean only); ``file`` is what the report was read from."""

    report: Report
    file: Path
    task: Data
    eps: str | None

    @cached_property
    def protocol(self) -> Protocol:
        """How it was measured."""
        return protocol(self.report, self.task, self.eps)

    @cached_property
    def rows(self) -> Sequence[Row]:
        """Those of the dataset: clean, and at this ε under the adversary that knows the most."""
        mine = [row for row in self.report.results if row.dataset == self.task.dataset]
        attacked = [row for row in mine if row.eps is not None and row.eps == self.eps]
        adversary = min((row.adversary for row in attacked), key=_ADVERSARIES.index, default=None)
        return [row for row in mine if row.eps is None] + [row for row in attacked if row.adversary == adversary]

    @property
    def adversary(self) -> str | None:
        """What the attacks know of the defences; None without."""
        return self.rows[-1].adversary

    @property
    def name(self) -> str:
        """Of the model."""
        return self.report.model.name

    @property
    def method(self) -> str:
        """How it was trained, and the defences before it with what the adversary knows; empty if neither is known."""
        found = [str((self.report.model.run or {}).get("method") or "")]
        if (defence := self.rows[-1].defence) is not None:
            found.append(f"behind {defence}" + (f" ({self.adversary})" if self.adversary else ""))
        return ", ".join(filter(None, found))

    @property
    def masking(self) -> str:
        """The verdict on its gradients, or that there is none."""
        found, mine = self.report.summary.masking, (self.task.dataset, self.adversary)
        verdicts = [one.verdict for one in found if not isinstance(one, str) and (one.dataset, one.adversary) == mine]
        return verdicts[0] if verdicts else "not checked"

    @property
    def versions(self) -> str:
        """What may differ between the models of a board."""
        prompts = self.report.config.get("template", "photo")
        return f"prompts {prompts}, {self.rows[0].precision or 'fp32'}, hrzs {self.report.hrzs}"

    def cell(self, column: Column) -> Cell | None:
        """The figure in a column."""
        if column.attack == "any-level":
            mine = (self.task.dataset, self.eps, self.adversary)
            one = next((s for s in self.report.summary.levels if (s.dataset, s.eps, s.adversary) == mine), None)
            if one is None or one.any_level_robust is None:
                return None
            return Cell(one.any_level_robust, one.any_level_robust_ci95, one.any_level_constant, one.any_level_correct)
        for row in self.rows:
            if (row.attack, row.level, row.scoring) == (column.attack, column.level, column.scoring) and (
                row.attack == "none" or aims_here(row)
            ):
                figure = row.figure
                if column.level:
                    return Cell(figure.balanced, figure.balanced_ci95, row.constant_balanced, row.correct)
                return Cell(figure.value, figure.ci95, row.constant, row.correct)
        return None


#: The one that knows the most first; None where there is no defence to know.
_ADVERSARIES = ("adaptive", None, "static")


@dataclass(frozen=True)
class Board:
    """Models that were measured alike, the best in ``ranked_by`` first; ``robust`` has the columns of headlines."""

    entries: Sequence[Entry]
    columns: Sequence[Column]
    robust: Sequence[Column]

    @property
    def ranked_by(self) -> Column:
        """The column that orders the entries."""
        return self.robust[0] if self.robust else self.columns[0]

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Board:
        """Of entries with equal protocols."""
        robust, others = _columns(entries[0].rows)
        clean, *others = [one for one in others if any(entry.cell(one) is not None for entry in entries)]
        board = cls(entries, [clean, *robust, *others], robust)

        def merit(entry: Entry) -> float:
            cell = entry.cell(board.ranked_by)
            return -1.0 if cell is None or cell.value is None else cell.value

        return replace(board, entries=sorted(entries, key=merit, reverse=True))

    @property
    def task(self) -> Data:
        """The dataset."""
        return self.entries[0].task

    @property
    def title(self) -> str:
        """The dataset, its split and ε."""
        eps = "clean" if self.entries[0].eps is None else f"ε {self.entries[0].eps}"
        return f"{self.task.dataset} ({self.task.split}), {self.task.n:,} images of {self.task.classes} classes, {eps}"

    @property
    def protocol(self) -> Protocol:
        """How all of it was measured."""
        return self.entries[0].protocol

    def short(self, column: Column) -> str:
        """The head of a column in few characters."""
        title = "robust" if column in self.robust else column.title
        return title if column.level is None else f"{title}@{column.level}"

    @cached_property
    def cells(self) -> Sequence[Sequence[Cell | None]]:
        """Of each entry, by column."""
        return [[entry.cell(column) for column in self.columns] for entry in self.entries]

    @property
    def constant(self) -> Sequence[float | None]:
        """What a constant answer scores in each column."""
        by_column = zip(*self.cells, strict=True)
        return [
            next((c.constant for c in cells if c is not None and c.constant is not None), None) for cells in by_column
        ]

    @cached_property
    def differences(self) -> Mapping[tuple[int, int], Sequence[Difference | None]]:
        """For two entries, the earlier one first: by column its figure less the other's, paired image by image.

        None where a report does not say what became of each image.
        """
        weights = [self._weights(column) for column in self.columns]
        bits = [[self._correct(cell) for cell in cells] for cells in self.cells]
        found: dict[tuple[int, int], Sequence[Difference | None]] = {}
        for i, j in combinations(range(len(self.entries)), 2):
            pairs = zip(self.columns, bits[i], bits[j], weights, strict=True)
            found[i, j] = [_difference(column, mine, theirs, weigh) for column, mine, theirs, weigh in pairs]
        return found

    def difference(self, i: int, reference: int) -> Sequence[Difference | None]:
        """Of entry ``i`` to a reference, by column."""
        if i < reference:
            return self.differences[i, reference]
        return [None if d is None else (-d[0], -d[2], -d[1]) for d in self.differences[reference, i]]

    def _correct(self, cell: Cell | None) -> Bool[Tensor, "n"] | None:
        try:
            return None if cell is None or cell.correct is None else from_bits(cell.correct, self.task.n)
        except ValueError:
            return None

    def _weights(self, column: Column) -> Float[Tensor, "n"] | None:
        """Those that balance a column; None where images count alike, or no report knows their nodes."""
        nodes = self._nodes
        return node_weights(nodes[column.level]) if column.level and nodes is not None else None

    @cached_property
    def _nodes(self) -> Int[Tensor, "levels n"] | None:
        found = (nodes_of(entry.report).get(self.task.dataset) for entry in self.entries)
        return next((nodes for nodes in found if nodes is not None), None)


def _difference(
    column: Column,
    mine: Bool[Tensor, "n"] | None,
    theirs: Bool[Tensor, "n"] | None,
    weights: Float[Tensor, "n"] | None,
) -> Difference | None:
    if mine is None or theirs is None or (column.level and weights is None):
        return None
    value, (low, high) = paired_difference(mine, theirs, weights)
    return round(1000 * value), round(1000 * low), round(1000 * high)


def _columns(rows: Sequence[Row]) -> tuple[list[Column], list[Column]]:
    """The strongest attack at each level; then clean at each level, any level, and the other attacks at the leaves."""
    levels = sorted({row.level for row in rows})
    scoring = {level: _scoring([row for row in rows if row.level == level]) for level in levels}
    aimed = {
        level: _attacks([row for row in rows if (row.level, row.scoring) == (level, scoring[level])])
        for level in levels
    }
    clean, *superclasses = [Column("none", level, scoring[level]) for level in levels]
    robust = [Column(aimed[level][0], level, scoring[level]) for level in levels if aimed[level]]
    others = [Column(attack, 0, scoring[0]) for attack in aimed.get(0, [])[1:]]
    return robust, [clean, Column("any-level"), *superclasses, *others]


def _scoring(rows: Sequence[Row]) -> str:
    return "prompt" if any(row.scoring == "prompt" for row in rows) else rows[0].scoring


def _attacks(rows: Sequence[Row]) -> list[str]:
    """Those that aim at the level of these rows, the strongest first; at all levels only if there is no other."""
    aimed = [row for row in rows if row.eps is not None and aims_here(row)]
    aimed = [row for row in aimed if row.attack_level != "all"] or aimed
    rank = {name: i for i, name in enumerate(STRONGEST)}
    return sorted(dict.fromkeys(row.attack for row in aimed), key=lambda name: rank.get(name, len(rank)))


def entries_of(report: Report, file: Path) -> list[Entry]:
    """An entry for each dataset of a report and each ε; none of a dataset about whose images it does not say enough."""
    found = []
    for task in report.tasks:
        rows = [row for row in report.results if row.dataset == task.dataset]
        radii: list[str | None] = [*dict.fromkeys(row.eps for row in rows if row.eps is not None)]
        found += [Entry(report, file, task, eps) for eps in (radii or [None]) if rows]
    return found


def boards(entries: Sequence[Entry]) -> list[Board]:
    """A board for each protocol, that with the most models first."""
    groups: dict[tuple[tuple[str, str], ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry.protocol.items()), []).append(entry)
    return [Board.of(group) for group in sorted(groups.values(), key=len, reverse=True)]


def render(found: Sequence[Board], width: int) -> str:
    """Boards for a terminal: accuracies in %, without intervals and differences."""
    return "\n\n".join(_render(board, width) for board in found) + "\n"


def _render(board: Board, width: int) -> str:
    header = ["model", "method", *(board.short(column) for column in board.columns)]
    body = [["a constant answer", "", *map(percent, board.constant)]]
    body += [
        [entry.name, entry.method, *(percent(None if cell is None else cell.value) for cell in cells)]
        for entry, cells in zip(board.entries, board.cells, strict=True)
    ]
    said = "accuracy in %, by level; superclasses (from level 1) balanced over their nodes, the rest per image"
    robust = f"; robust: {', '.join(dict.fromkeys(c.attack for c in board.robust))}" if board.robust else ""
    verdicts = {entry.masking: [e.name for e in board.entries if e.masking == entry.masking] for entry in board.entries}
    masking = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in verdicts.items())
    return "\n".join(
        [
            fitted(f"{board.title}; {said}{robust}", width),
            *grid(header, body, words=2, width=width),
            fitted(f"gradient masking {masking}", width),
        ]
    )
