from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from PIL import Image

from hrzs.attacks import attack_spec, sample_seeds
from hrzs.data import Batch, ImageError, loader
from hrzs.evaluation import shards
from hrzs.evaluation.images import Search
from hrzs.evaluation.plan import Unit, budget_of
from hrzs.evaluation.rows import overall_of, rows_of, truth_of
from hrzs.evaluation.runner import TOGETHER, Evaluation
from hrzs.models.classifier import SCORINGS
from hrzs.results.metrics import correct, from_bits
from hrzs.results.report import Row

Evaluate = Callable[..., Evaluation]
EPS = Fraction(2, 255)  # what shapes sets
KEYS = {
    "dataset": str, "split": str, "n": int, "eps": str, "attack": str, "attack_level": (int, str), "level": int,
    "classes": int, "scoring": str, "clean": float, "robust": float, "clean_ci95": tuple, "robust_ci95": tuple,
    "clean_balanced": float, "robust_balanced": float, "clean_balanced_ci95": tuple, "robust_balanced_ci95": tuple,
    "nodes": int, "constant": float, "constant_balanced": float, "precision": str, "seconds": float,
}  # fmt: skip


def run(evaluation: Evaluation) -> list[Row]:
    evaluation.run()
    return rows_of(evaluation)


def timeless(rows: list[Row]) -> list[Row]:
    return [msgspec.structs.replace(row, seconds=None) for row in rows]


def diagonal(rows: list[Row]) -> dict[tuple[Any, ...], float]:
    chosen = [row for row in rows if row.level == row.attack_level and row.transfer is False]
    return {(row.attack, row.level, row.scoring): row.robust for row in chosen}


# -- the rows ----------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(evaluate: Evaluate) -> list[Row]:
    return run(evaluate(level="all"))


def test_rows_have_all_keys_with_their_types(rows: list[Row]) -> None:
    for row in rows:
        attacked = row.attack != "none"
        for key, kind in KEYS.items():
            if not attacked and (key in ("eps", "attack_level") or key.startswith("robust")):
                assert getattr(row, key) is None
            else:
                assert isinstance(getattr(row, key), kind), key
        assert row.scoring in ("prompt", "leaves")
        assert row.precision == "fp32"
    identity = ("dataset", "eps", "attack", "attack_level", "level", "scoring")
    assert len({tuple(getattr(row, key) for key in identity) for row in rows}) == len(rows)
    json.dumps(msgspec.to_builtins(rows), allow_nan=False)


def test_rows_make_sense(rows: list[Row]) -> None:
    clean = {(row.level, row.scoring): row.clean for row in rows}
    assert clean[0, "prompt"] == 1.0
    attacked = [row for row in rows if row.attack != "none"]
    for row in attacked:
        assert row.robust <= row.clean == clean[row.level, row.scoring]
        assert row.robust_balanced <= row.clean_balanced + 1e-12
        for figure in ("clean", "robust", "clean_balanced", "robust_balanced"):
            low, high = getattr(row, f"{figure}_ci95")
            assert low <= getattr(row, figure) <= high
    white_box = {(r.attack, r.level, r.scoring) for r in attacked if r.transfer is False}
    assert ("superclass-pgd", 1, "leaves") in white_box
    assert ("leaf-pgd", 1, "prompt") not in white_box
    assert any(0 < row.robust < row.clean for row in attacked)


def test_a_diagonal_row_counts_a_win_at_any_step(evaluate: Evaluate) -> None:
    evaluation = evaluate(level="all")
    evaluation.run()
    clean = correct(evaluation.task.tree, evaluation.labels, evaluation.predictions[evaluation.units[0].key].nodes)
    robust = diagonal(rows_of(evaluation))
    for unit in evaluation.units[1:]:
        if unit.level == "all":
            continue
        level = int(str(unit.level))
        held = clean[SCORINGS.index(unit.scoring), level] & ~evaluation.predictions[unit.key].success
        assert robust[unit.attack, level, unit.scoring] == held.double().mean().item()


def test_result_does_not_depend_on_the_batch_size(evaluate: Evaluate) -> None:
    few, many = (timeless(run(evaluate(level="all", batch_size=size))) for size in (5, 24))
    for a, b in zip(few, many, strict=True):
        # A matrix product may round otherwise at another size, and tip one image.
        assert a.clean == b.clean
        assert a.robust == b.robust or abs(a.robust - b.robust) <= 1 / a.n + 1e-9


def test_diagonal_is_the_same_without_the_matrix(evaluate: Evaluate) -> None:
    options: dict[str, Any] = {"level": "all", "attack": ("leaf-pgd", "superclass-pgd")}
    whole, short = run(evaluate(**options)), run(evaluate(**options, matrix=False))
    ours = diagonal(short)
    assert len(ours) == 5
    assert ours == pytest.approx(diagonal(whole), abs=1 / 24 + 1e-9)
    assert {row.level for row in short if row.attack == "leaf-pgd"} == {0}
    assert {row.level for row in whole if row.attack == "leaf-pgd"} == {0, 1, 2}


def test_any_level_is_for_the_whole_suite_only(evaluate: Evaluate) -> None:
    evaluation = evaluate(level="all", eps=(Fraction(1, 255), EPS))
    rows = run(evaluation)
    for summary in overall_of(evaluation):
        here = [row.robust for row in rows if row.eps == summary.eps and row.scoring == "prompt"]
        assert 0 <= summary.any_level_robust <= min(here)
        assert summary.any_level_robust <= summary.any_level_clean
        assert len(summary.severity) == len(summary.consistency) == 8
        assert summary.any_level_suite == ("leaf-pgd", "superclass-pgd", "hierarchical-pgd", "cw")
    for part in ({"attack": ("leaf-pgd", "superclass-pgd", "hierarchical-pgd"), "level": "all"}, {"level": None}):
        partial = evaluate(**{"level": "all", "steps": 1, **part})
        partial.run()
        (summary,) = overall_of(partial)
        for name in ("robust", "robust_ci95", "robust_balanced", "robust_balanced_ci95", "suite", "correct"):
            assert getattr(summary, f"any_level_{name}") is None


def test_any_level_needs_no_matrix(evaluate: Evaluate) -> None:
    """An image that left the batch early was fooled at the attack's own aim; the others had every step."""
    whole, short = evaluate(level="all"), evaluate(level="all", matrix=False)
    whole.run()
    short.run()
    expected, found = overall_of(whole)[0], overall_of(short)[0]
    assert 0 < expected.any_level_robust < expected.any_level_clean
    assert found.any_level_robust == pytest.approx(expected.any_level_robust, abs=1 / 24 + 1e-9)


def test_the_margin_counts_at_any_level(evaluate: Evaluate) -> None:
    """An image that falls to the margin loss alone, at a superclass, is right nowhere."""
    evaluation = evaluate(level="all")
    evaluation.run()
    before = from_bits(overall_of(evaluation)[0].any_level_correct, 24)
    assert before.any()
    found = evaluation.predictions[Unit("cw", 2, "prompt", EPS).key]
    held = evaluation.by_id[before][0]
    assert not found.success[held]
    found.success[held] = True
    after = from_bits(overall_of(evaluation)[0].any_level_correct, 24)
    assert int(before.sum()) - int(after.sum()) == 1


def test_balanced_figures_are_means_over_nodes(evaluate: Evaluate) -> None:
    """From the truth that the report holds and the bits of single images, by hand."""
    evaluation = evaluate(level="all")
    rows, truth = run(evaluation), truth_of(evaluation)
    labels = [int(word) for word in truth.labels.split()]
    nodes = [[int(level.split()[label]) for label in labels] for level in truth.ancestors]

    def mean_over_nodes(hits: list[bool], level: int) -> float:
        by_node: dict[int, list[bool]] = {}
        for node, hit in zip(nodes[level], hits, strict=True):
            by_node.setdefault(node, []).append(hit)
        return sum(sum(hits) / len(hits) for hits in by_node.values()) / len(by_node)

    for row in rows:
        hits = from_bits(row.correct, row.n).tolist()
        figure = "clean" if row.robust is None else "robust"
        assert getattr(row, f"{figure}_balanced") == pytest.approx(mean_over_nodes(hits, row.level))
        counts = Counter(nodes[row.level])
        assert (row.nodes, row.constant_balanced) == (len(counts), 1 / len(counts))
        assert row.constant == max(counts.values()) / row.n
    # Some level is lopsided, or nothing was tested here.
    assert any(row.constant > row.constant_balanced for row in rows)
    (summary,) = overall_of(evaluation)
    hits = from_bits(summary.any_level_correct, 24).tolist()
    by_level = [mean_over_nodes(hits, level) for level in range(3)]
    assert summary.any_level_robust_balanced == pytest.approx(sum(by_level) / 3)
    low, high = summary.any_level_robust_balanced_ci95
    assert low <= summary.any_level_robust_balanced <= high
    assert summary.any_level_clean_balanced >= summary.any_level_robust_balanced
    constants = []
    for leaf in set(labels):  # one leaf, named with all its ancestors
        hits = [label == leaf for label in labels]
        constants.append((sum(hits) / 24, sum(mean_over_nodes(hits, level) for level in range(3)) / 3))
    best, best_balanced = (max(figures) for figures in zip(*constants, strict=True))
    assert summary.any_level_constant == pytest.approx(best)
    assert summary.any_level_constant_balanced == pytest.approx(best_balanced)


# -- full batches ------------------------------------------------------------------------------------------------


def watched_batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(part, images) of each batch under attack."""
    batches: list[tuple[int, int]] = []
    attack = Search.__call__

    def watched(part: Search, batch: Batch) -> Any:
        batches.append((part.place, len(batch.ids)))
        return attack(part, batch)

    monkeypatch.setattr(Search, "__call__", watched)
    return batches


def test_batches_are_refilled(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of an attack gets what the parts before have left of a block, in full batches."""
    monkeypatch.setattr(shards, "MOST", 1)
    evaluation = evaluate(attack=("aa-2",), level=0, steps=2, batch_size=2, matrix=False)
    batches = watched_batches(monkeypatch)
    evaluation.run()
    assert evaluation.model.at_once is None
    unit = evaluation.units[1]
    assert int((~evaluation.predictions[unit.key].success).sum()) > 0
    sizes = {part: [size for p, size in batches if p == part] for part, _ in batches}
    assert list(sizes) == list(range(6))  # six leaves: apgd-ce, then towards five others
    totals = [sum(of_part) for of_part in sizes.values()]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] > totals[-1]
    for of_part in sizes.values():
        assert set(of_part[:-1]) <= {2 * TOGETHER}


def test_no_batch_holds_images_of_two_blocks(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is left of one block changes nothing for another, wherever that is run."""
    monkeypatch.setattr(shards, "MOST", 5)  # 24 images in four blocks of two batches of 3
    evaluation = evaluate(attack=("aa-2",), level=0, steps=2, batch_size=3, matrix=False)
    batches: list[set[str]] = []
    attack = Search.__call__
    monkeypatch.setattr(Search, "__call__", lambda part, batch: (batches.append({*batch.ids}), attack(part, batch))[1])
    evaluation.run()
    assert [len(block) for block in evaluation.blocks()] == [6] * 4
    blocks = [{evaluation.task.data.ids[i] for i in block.tolist()} for block in evaluation.blocks()]
    assert all(sum(bool(batch & block) for block in blocks) == 1 for batch in batches)
    assert any(len(batch) == 6 for batch in batches)  # together, as fooled images leave
    assert len(batches) > 4


def test_parts_give_what_the_attack_gives(evaluate: Evaluate) -> None:
    evaluation = evaluate(attack=("aa-2",), level=0, steps=2, matrix=False)
    evaluation.run()
    batch = next(loader(evaluation.task.data, 24))
    spec = attack_spec("aa-2")
    attack = spec.optimiser(budget_of(evaluation.options, EPS, spec))
    result = attack(evaluation.model, spec.objective(evaluation.classifier, 0), batch.images, evaluation.labels,
                    sample_seeds(batch.ids, 0))  # fmt: skip
    clean = evaluation.clean.nodes[0, 0] == evaluation.labels
    assert torch.equal((clean & ~evaluation.predictions[evaluation.units[1].key].success), clean & ~result.success)


def test_progress_counts_passes(evaluate: Evaluate) -> None:
    """The total is what it would take if nothing more were fooled: it never grows, and is reached."""
    evaluation = evaluate(attack=("leaf-pgd", "aa-2"), level=0, steps=2, batch_size=3, matrix=False)
    seen: list[tuple[int, int]] = []
    evaluation.run(lambda done, total, _: seen.append((done, total)))
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    # Each figure is rounded for itself.
    assert all(later <= sooner + 1 for sooner, later in itertools.pairwise(totals))
    assert done[-1] == totals[-1] < totals[0]


@pytest.mark.parametrize("after", [2, 4, 6])
def test_resume_between_and_within_parts(evaluate: Evaluate, tmp_path: Path, after: int) -> None:
    options: dict[str, Any] = {"attack": ("aa-2",), "level": 0, "steps": 2, "batch_size": 2, "matrix": False}
    whole = timeless(run(evaluate(**options)))
    store = tmp_path / "kept"
    interrupt(evaluate(store, **options), after)
    # The rest in other batches: an interrupted job may go on with more memory.
    assert timeless(run(evaluate(store, **{**options, "batch_size": 5}))) == whole


# -- the store ---------------------------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


def interrupt(evaluation: Evaluation, after: int) -> None:
    calls = 0

    def progress(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise StoppedError

    with pytest.raises(StoppedError):
        evaluation.run(progress)


def counted(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that are encoded from here on."""
    sizes: list[int] = []
    attack = evaluation._attack
    monkeypatch.setattr(
        evaluation, "_attack", lambda unit, part, batch: (sizes.append(len(batch.ids)), attack(unit, part, batch))[1]
    )
    return sizes


@pytest.mark.parametrize("after", [1, 2, 5])
def test_resume_does_the_rest_only(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    options: dict[str, Any] = {"attack": ("leaf-pgd",), "steps": 2}
    whole = run(evaluate(**options))
    store = tmp_path / "kept"
    interrupt(evaluate(store, **options), after)
    resumed = evaluate(store, **options)
    sizes = counted(resumed, monkeypatch)
    assert timeless(run(resumed)) == timeless(whole)
    assert len(sizes) == 6 - after  # three batches clean, three attacked
    again = evaluate(store, **options)
    sizes = counted(again, monkeypatch)
    assert timeless(run(again)) == timeless(whole)
    assert sizes == []


def test_an_unreadable_image_costs_no_finished_batch(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, store = timeless(run(evaluate())), tmp_path / "kept"
    evaluation = evaluate(store)
    picture = evaluation.task.data.picture

    def damaged(index: int) -> Image.Image:
        if index == 20:  # of the third batch
            raise ImageError("Image x.png cannot be decoded")
        return picture(index)

    with monkeypatch.context() as patched:
        patched.setattr(evaluation.task.data, "picture", damaged)
        with pytest.raises(ImageError, match=r"x\.png"):
            evaluation.run()
    mended = evaluate(store)
    sizes = counted(mended, monkeypatch)
    assert timeless(run(mended)) == whole
    assert sizes[0] == 6  # what is left of 24 images after two batches of 9


@pytest.mark.parametrize("change", [{"steps": 3}, {"seed": 1}, {"template": "name"}, {"norm": "l2"}, {"eps": (EPS,)}])
def test_what_other_options_left_is_not_used(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"attack": ("leaf-pgd",), "steps": 2}
    store = tmp_path / "kept"
    evaluate(store, **options).run()
    other = evaluate(store, **(options | change))
    sizes = counted(other, monkeypatch)
    other.run()
    assert len(sizes) == 6


def test_a_torn_line_is_survived(evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"attack": ("leaf-pgd",), "steps": 2}
    store = tmp_path / "kept"
    whole = run(evaluate(store, **options))
    text = store.read_text()
    store.write_text(text[:-40])
    torn = evaluate(store, **options)
    sizes = counted(torn, monkeypatch)
    assert timeless(run(torn)) == timeless(whole)
    assert len(sizes) == 1
    assert [json.loads(line).get("unit") for line in store.read_text().splitlines()] == [
        json.loads(line).get("unit") for line in text.splitlines()
    ]


def test_identity_tells_random_models_of_different_shape_apart(evaluate: Evaluate) -> None:
    evaluation = evaluate()
    before = evaluation.identity()
    evaluation.model.info = replace(evaluation.model.info, config={**evaluation.model.info.config, "embed_dim": 8})
    assert evaluation.identity() != before
