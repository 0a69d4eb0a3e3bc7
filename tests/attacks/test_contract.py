"""The contract of every attack: each entry of `ATTACKS` under each norm, level and scoring passes all of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from hrzs.attacks import ATTACKS, AttackResult, AttackSpec, Budget, Level, attack_spec, sample_seeds
from hrzs.attacks.ball import Ball
from hrzs.attacks.base import Attack, Search, features_of, judge
from hrzs.attacks.objectives import Objective
from hrzs.errors import HrzsError, UsageError
from hrzs.evaluation.options import SUITE
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel

# Which levels under which scoring: those of one attack are enough for what every optimiser has in common.
AIMS: dict[str, tuple[tuple[int | str, str], ...]] = {
    "leaf": ((0, "prompt"),),
    "superclass": tuple((level, scoring) for level in (1, 2) for scoring in ("prompt", "leaves")),
    "level": ((0, "prompt"), (1, "leaves")),
    "all": (("all", "prompt"), ("all", "leaves")),
}
# Square counts queries; those of many runs get fewer steps.
STEPS = {"square": 60, "apgd-t": 3, "fab-t": 4, "aa-2": 3, "autoattack": 2}
# Nothing in these is random; steps of 2ε take these to a corner of the L∞ ball, the same one from many starts; these
# start from the clean image; these take more than one run.
FIXED = {"fgsm", "fab-t"}
TO_CORNERS = {"apgd-ce", "apgd-t", "aa-2", "autoattack"}
FROM_CLEAN = {"fab-t", "square", "autoattack"}
RUNS = {"apgd-t", "aa-2", "fab-t", "autoattack"}
# ε at which the untrained model of these tests loses some images and keeps others.
BUDGETS = {
    "linf": Budget(Fraction(3, 255), Fraction(1, 255), 5),
    "l2": Budget(Fraction(1, 4), Fraction(1, 12), 5, "l2"),
}


@dataclass(frozen=True)
class Case:
    attack: str
    norm: str
    level: int | str
    scoring: str

    def __str__(self) -> str:
        return f"{self.attack}-{self.norm}-level {self.level}-{self.scoring}"

    @property
    def spec(self) -> AttackSpec:
        return ATTACKS[self.attack]

    @property
    def budget(self) -> Budget:
        return replace(BUDGETS[self.norm], steps=STEPS.get(self.attack, 5))

    def optimiser(self, *, early_stop: bool = True, **change: object) -> Attack:
        return self.spec.optimiser(replace(self.budget, **change), early_stop=early_stop)


# What an attack aims at says nothing about the ball, so one aim is enough for the second norm.
CASES = [
    Case(name, norm, level, scoring)
    for name, spec in ATTACKS.items()
    for norm, aims in (("linf", AIMS[spec.aim]), ("l2", AIMS[spec.aim][-1:]))
    for level, scoring in aims
]
every_attack = pytest.mark.parametrize("case", CASES, ids=str)


@dataclass
class Bench:
    """A model, its classifier and images whose labels are the leaves it predicts when they are clean."""

    model: ClipModel
    classifier: ZeroShotClassifier
    pixels: Tensor

    def __post_init__(self) -> None:
        with torch.no_grad():
            self.labels = self.classifier.predict(self.model.encode_image(self.pixels))[0, 0]
        self.seeds = sample_seeds([str(i) for i in range(len(self.pixels))], seed=0)

    def objective(self, case: Case) -> Objective:
        return case.spec.objective(self.classifier, case.level, case.scoring)

    def attack(self, case: Case, rows: Sequence[int] | None = None, *, early_stop: bool = True,
               seeds: Sequence[int] | None = None, **change: object) -> AttackResult:  # fmt: skip
        seeds = self.seeds if seeds is None else seeds
        rows = list(range(len(self.pixels)) if rows is None else rows)
        attack = case.optimiser(early_stop=early_stop, **change)
        return attack(
            self.model, self.objective(case), self.pixels[rows], self.labels[rows], [seeds[row] for row in rows]
        )

    def wanted(self, case: Case) -> Tensor:
        """Which predictions a targeted attack wants, worked out label by label."""
        tree = self.classifier.tree
        if case.attack == "targeted-pgd":
            with torch.no_grad():
                logits = self.classifier.logits(self.model.encode_image(self.pixels), int(case.level), case.scoring)
            truth = self.classifier.labels(self.labels, int(case.level)).tolist()
            rows = [
                [z if j != y else -1e9 for j, z in enumerate(row)]
                for y, row in zip(truth, logits.tolist(), strict=True)
            ]
            return torch.tensor([[z == max(row) for z in row] for row in rows])
        pick = min if case.attack.startswith("smallest") else max
        leaves = torch.arange(len(tree.classes))
        heights = [tree.lca_height(torch.full_like(leaves, y), leaves).tolist() for y in self.labels.tolist()]
        return torch.tensor([[h > 0 and h == pick(h for h in row if h) for h in row] for row in heights])

    def correct(self, case: Case, images: Tensor) -> Tensor:
        """Which images do not win: an independent reading of the contract, from predictions alone."""
        with torch.no_grad():
            features = self.model.encode_image(images, "fp32")
        if case.spec.target_set is not None:
            predicted = self.classifier.logits(features, int(case.level), case.scoring).argmax(1)
            return ~self.wanted(case)[torch.arange(len(predicted)), predicted]
        levels = range(self.classifier.tree.height) if case.level == "all" else [int(case.level)]
        right = [
            self.classifier.logits(features, level, case.scoring).argmax(1)
            == self.classifier.labels(self.labels, level)
            for level in levels
        ]
        return torch.stack(right).any(0)


@pytest.fixture(scope="module")
def bench(small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor) -> Bench:
    return Bench(small_model, classifier, pixels)


@pytest.fixture(scope="module")
def solved(bench: Bench) -> dict[Case, AttackResult]:
    """Every attack once, with the defaults; several tests look at the same result."""
    return {case: bench.attack(case) for case in CASES}


@pytest.fixture(scope="module")
def patient(bench: Bench) -> Callable[[Case], AttackResult]:
    """The result of an attack that goes on where it has won."""
    return cache(partial(bench.attack, early_stop=False))


Solved = dict[Case, AttackResult]
Patient = Callable[[Case], AttackResult]


def assert_alike(a: Tensor, b: Tensor) -> None:
    """Equal but for a pixel in a hundred, whose gradient is so near 0 that rounding decides its sign."""
    assert ((a - b).abs() > 1e-5).sum() <= 0.01 * a.numel()


def test_bench_can_tell(solved: Solved, bench: Bench) -> None:
    """Were every image fooled, or none, the comparisons below would not mean much."""
    shares = torch.tensor([result.success.float().mean() for result in solved.values()])
    assert ((shares > 0) & (shares < 1)).any()
    assert len(bench.labels.unique()) > 1


# -- what comes out -----------------------------------------------------------------------------------------------


@every_attack
def test_inside_ball_and_range(case: Case, bench: Bench, solved: Solved) -> None:
    images = solved[case].images
    assert images.isfinite().all()
    assert images.min() >= 0
    assert images.max() <= 1
    delta = images.double() - bench.pixels.double()
    farthest = delta.abs().max() if case.norm == "linf" else delta.flatten(1).norm(dim=1).max()
    assert Fraction(farthest.item()) <= case.budget.eps  # exact: every float is a fraction
    moved = (delta != 0).flatten(1).any(1)
    # Those that start from the clean image have nothing to do where it wins as it is.
    assert (moved | ~bench.correct(case, bench.pixels) if case.attack in FROM_CLEAN else moved).all()


@every_attack
def test_won_is_what_a_plain_forward_says(case: Case, bench: Bench, solved: Solved) -> None:
    assert torch.equal(solved[case].success, ~bench.correct(case, solved[case].images))


@every_attack
def test_never_weaker_than_noise(case: Case, bench: Bench, solved: Solved) -> None:
    ball = Ball.of(bench.pixels, case.budget)
    objective = bench.objective(case).bound(lambda: features_of(bench.model, bench.pixels), bench.labels)
    noise = [
        judge(bench.model, objective, ball.random([seed + i for seed in bench.seeds]), bench.labels)
        for i in range(1, 6)
    ]
    assert solved[case].success.float().mean() >= torch.stack(noise).float().mean()


@every_attack
def test_stronger_with_eps(case: Case, bench: Bench, solved: Solved) -> None:
    far = bench.attack(case, eps=case.budget.eps * 16, step_size=case.budget.eps * 4, steps=2 * case.budget.steps)
    assert far.success.sum() >= solved[case].success.sum()
    assert far.success.float().mean() > 0.5


@every_attack
def test_counts_gradients(case: Case, bench: Bench, solved: Solved, patient: Patient) -> None:
    everything = patient(case)
    if case.attack == "square":
        assert everything.gradients == 0
        return
    one_run = len(bench.pixels) * (1 if case.attack == "fgsm" else case.budget.steps)
    assert case.attack in RUNS or everything.gradients == one_run
    assert 0 < solved[case].gradients <= everything.gradients
    assert everything.zero_gradients == everything.bad_gradients == 0


@pytest.mark.parametrize("case", [case for case in CASES if case.spec.target_set is None], ids=str)
def test_wrong_label_has_won(case: Case, bench: Bench) -> None:
    """Robust accuracy is at most clean accuracy: what is wrong to begin with, and stays so, counts as won."""
    sides = bench.classifier.tree.ancestors[2]
    wrong = copy.copy(bench)
    wrong.labels = torch.tensor([int((sides != sides[label]).nonzero()[0]) for label in bench.labels])
    started_wrong = ~wrong.correct(case, bench.pixels)
    assert started_wrong.any()
    tiny = wrong.attack(case, eps=Fraction(1, 10**5), step_size=Fraction(1, 10**6))
    assert tiny.success[started_wrong].all()


# -- what it may depend on ----------------------------------------------------------------------------------------


@every_attack
def test_same_seed_same_result(case: Case, bench: Bench, solved: Solved) -> None:
    """Where the caller has switched gradients off, too. What is given and what comes out share no memory."""
    pixels, labels = bench.pixels.clone(), bench.labels.clone()
    with torch.no_grad():
        again = bench.attack(case)
    assert torch.equal(again.images, solved[case].images)
    assert torch.equal(again.success, solved[case].success)
    assert again.gradients == solved[case].gradients
    again.images.zero_()
    assert torch.equal(bench.pixels, pixels)
    assert torch.equal(bench.labels, labels)


@every_attack
def test_other_seed_other_result(case: Case, bench: Bench, solved: Solved) -> None:
    other = bench.attack(case, seeds=sample_seeds([str(i) for i in range(len(bench.pixels))], seed=1))
    if case.attack in FIXED:
        assert torch.equal(other.images, solved[case].images)
        return
    differs = (other.images != solved[case].images).flatten(1).any(1)
    if case.attack in FROM_CLEAN:
        differs |= ~bench.correct(case, bench.pixels)
    assert differs.any() if case.attack in TO_CORNERS else differs.all()


@every_attack
def test_independent_of_batch(case: Case, bench: Bench, solved: Solved) -> None:
    """PMG-AFT #1: robust accuracy rose with the batch size, since the loss was averaged."""
    for rows in [0], [7, 2, 5, 6]:
        result = bench.attack(case, rows)
        assert torch.equal(result.success, solved[case].success[rows])
        assert_alike(result.images, solved[case].images[rows])


@every_attack
def test_at_once(case: Case, bench: Bench, solved: Solved, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack on more images than go through the model together: never more than those, the same result."""
    most = 0
    encode_image = ClipModel.encode_image

    def watched(self: ClipModel, pixels: Tensor, precision: str | None = None) -> Tensor:
        nonlocal most
        most = max(most, len(pixels))
        return encode_image(self, pixels, precision)

    monkeypatch.setattr(ClipModel, "encode_image", watched)
    monkeypatch.setattr(bench.model, "at_once", 3)
    result = bench.attack(case, range(4))
    assert most == 3
    assert torch.equal(result.success, solved[case].success[:4])
    assert_alike(result.images, solved[case].images[:4])


@every_attack
def test_early_stop_keeps_verdict(case: Case, solved: Solved, patient: Patient) -> None:
    assert torch.equal(patient(case).success, solved[case].success)
    lost = ~patient(case).success
    assert_alike(patient(case).images[lost], solved[case].images[lost])


@every_attack
def test_no_image(case: Case, bench: Bench) -> None:
    result = bench.attack(case, [])
    assert result.images.shape == (0, 3, 12, 12)
    assert result.success.shape == (0,)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ATTACKS)
def test_few_classes(name: str, classes: int, small_model: ClipModel, pixels: Tensor) -> None:
    """auto-attack #70, #76, #79, #110: losses that break below four classes."""
    leaves = [Node(name, name, class_id=name) for name in ("cat", "dog", "car")]
    if classes == 2:
        tree = Tree(Node("thing", "thing", tuple(leaves[:2]), level=1))
    else:
        pet = Node("pet", "pet", tuple(leaves[:2]), level=1)
        tree = Tree(Node("thing", "thing", (pet, leaves[2]), level=2))
    bench = Bench(small_model, ZeroShotClassifier(small_model, tree), pixels)
    levels = ATTACKS[name].levels(tree, "all")
    assert bool(levels) == (ATTACKS[name].aim != "superclass" or classes == 3)
    for level in levels:
        for scoring in ("prompt", "leaves"):
            case = Case(name, "linf", level, scoring)
            result = bench.attack(case)
            assert torch.equal(result.success, ~bench.correct(case, result.images))


# -- what it leaves alone -----------------------------------------------------------------------------------------


@every_attack
def test_model_comes_out_as_it_went_in(case: Case, bench: Bench) -> None:
    parameters = list(bench.model.parameters())
    versions = [p._version for p in parameters]
    try:
        for i, p in enumerate(parameters):
            p.requires_grad_(i % 2 == 0)
            p.grad = torch.full_like(p, 2.0) if i % 4 == 0 and p.numel() < 1000 else None
        grads = [p.grad for p in parameters]
        bench.attack(case, [0, 1])
        assert [p.requires_grad for p in parameters] == [i % 2 == 0 for i in range(len(parameters))]
        assert all(p.grad is grad for p, grad in zip(parameters, grads, strict=True))
        assert all((grad == 2).all() for grad in grads if grad is not None)
        assert [p._version for p in parameters] == versions  # nobody wrote to them
        assert not bench.model.training
    finally:
        for p in parameters:
            p.requires_grad_(True)
            p.grad = None


@every_attack
def test_neither_text_nor_parameter_gradients(case: Case, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is prepared once per classifier; no time or memory goes into gradients of weights."""
    objective, encode_image, calls = bench.objective(case), ClipModel.encode_image, []

    def watched(self: ClipModel, pixels: Tensor, precision: str | None = None) -> Tensor:
        assert not any(p.requires_grad for p in self.parameters())
        calls.append(len(pixels))
        return encode_image(self, pixels, precision)

    def refuse(*_: object) -> None:
        raise AssertionError("an attack encodes no text")

    for name in ("encode_text", "encode_text_trunk", "project_text", "tokenize"):
        monkeypatch.setattr(ClipModel, name, refuse)
    monkeypatch.setattr(ClipModel, "encode_image", watched)
    case.optimiser()(bench.model, objective, bench.pixels[:2], bench.labels[:2], bench.seeds[:2])
    assert calls
    assert all(p.grad is None for p in bench.model.parameters())


# -- what the base refuses ----------------------------------------------------------------------------------------


@every_attack
@pytest.mark.parametrize("bad", [-0.01, 1.01, 255.0, float("nan"), float("inf")])
def test_pixels_out_of_range(case: Case, bench: Bench, bad: float) -> None:
    """torchattacks #1, #11, #63, #78, #136: images normalised before the attack, or of 0 … 255."""
    pixels = bench.pixels.clone()
    pixels[1, 0, 0, 0] = bad
    with pytest.raises(UsageError, match=r"\[0, 1\].*normalisation"):
        case.optimiser()(bench.model, bench.objective(case), pixels, bench.labels, bench.seeds)


def test_rounding_of_inputs_is_forgiven(bench: Bench) -> None:
    """A tolerance is for inputs only."""
    case = CASES[0]
    pixels = bench.pixels.clone()
    pixels[0, 0, 0, 0], pixels[0, 0, 0, 1] = -1e-7, 1 + 1e-7
    images = case.optimiser()(bench.model, bench.objective(case), pixels, bench.labels, bench.seeds).images
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize("norm", BUDGETS)
@pytest.mark.parametrize(
    "move",
    [
        lambda ball: torch.nextafter(ball.project(ball.centre + 1), torch.tensor(2.0)),
        lambda ball: ball.centre * float("nan"),
        lambda ball: torch.full_like(ball.centre, -1e-7),
    ],
    ids=["one ulp", "nan", "range"],
)
def test_leaving_the_ball_is_an_error(norm: str, move: object, bench: Bench) -> None:
    class Leaver(Attack):
        def run(self, search: Search, seeds: Sequence[int]) -> AttackResult:  # noqa: ARG002 -- nothing is random
            result = AttackResult.of(search.clean)
            result.images[:1] = move(search.ball)[:1]
            return result

    objective = bench.objective(CASES[0])
    pixels = bench.pixels * 0.5 if norm == "linf" else torch.zeros_like(bench.pixels)
    with pytest.raises(HrzsError, match="Leaver: 1 of 8 images left") as failure:
        Leaver(BUDGETS[norm])(bench.model, objective, pixels, bench.labels, bench.seeds)
    assert not isinstance(failure.value, UsageError)


# -- the registry -------------------------------------------------------------------------------------------------


def test_names(tree: Tree) -> None:
    assert all(spec.name == name and spec.description for name, spec in ATTACKS.items())
    assert set(SUITE) <= set(ATTACKS)
    assert len({ATTACKS[name].optimiser for name in SUITE}) == 1
    aims: dict[str, list[str]] = {}
    for name in SUITE:
        aims.setdefault(ATTACKS[name].loss, []).extend(map(str, ATTACKS[name].levels(tree, "all")))
    # Every level on both losses, and all at once.
    assert {loss: sorted(levels) for loss, levels in aims.items()} == {
        "ce": ["0", "1", "2", "all"], "margin": ["0", "1", "2"],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["pgd", "leaf-pgd:dog", ""])
def test_unknown_attack_lists_the_known(name: str) -> None:
    with pytest.raises(UsageError, match=rf"'{name}'.*leaf-pgd.*--attack list"):
        attack_spec(name)


def test_named_goal(bench: Bench) -> None:
    """By name, by class id, or by node id above the leaves."""
    for goal, level, index in (("boat", 0, 5), ("id-boat", 0, 5), ("canine", 1, 0), ("n-vehicle", 2, 1)):
        spec = attack_spec(f"targeted-pgd:{goal}")
        assert spec.name == f"targeted-pgd:{goal}"
        objective = spec.objective(bench.classifier, level)
        with torch.no_grad():
            features = bench.model.encode_image(bench.pixels)
        predicted = bench.classifier.logits(features, level).argmax(1)
        elsewhere = bench.classifier.labels(bench.labels, level) != index
        assert elsewhere.any()
        assert torch.equal(objective(features, bench.labels).success[elsewhere], (predicted == index)[elsewhere])


@pytest.mark.parametrize(("goal", "level"), [("horse", 0), ("boat", 2), ("", 0)])
def test_no_such_goal(goal: str, level: int, bench: Bench) -> None:
    spec = attack_spec(f"targeted-pgd:{goal}")
    with pytest.raises(UsageError, match=f"{goal}: no node has this name or id at level {level} .*--level"):
        spec.objective(bench.classifier, level)


def test_too_few_classes_are_said(tree: Tree) -> None:
    """auto-attack #70, #76, #79, #110."""
    for name in ("apgd-t", "aa-2", "autoattack"):
        assert ATTACKS[name].stands_in(tree, 1) is None
        assert ATTACKS[name].stands_in(tree, 2) == "margin for targeted DLR: 2 classes, it needs 4"
    assert all(ATTACKS[name].stands_in(tree, 2) is None for name in ("apgd-ce", "cw", "square", "fab-t"))
    assert ATTACKS["hierarchical-pgd"].stands_in(tree, "all") is None


@pytest.mark.parametrize(
    ("name", "level", "expected"),
    [
        ("leaf-pgd", None, (0,)),
        ("leaf-pgd", 0, (0,)),
        ("leaf-pgd", 1, ()),
        ("leaf-pgd", "all", (0,)),
        ("superclass-pgd", None, (1,)),
        ("superclass-pgd", 2, (2,)),
        ("superclass-pgd", 0, ()),
        ("superclass-pgd", "all", (1, 2)),
        ("hierarchical-pgd", None, ("all",)),
        ("hierarchical-pgd", 1, ("all",)),
        ("apgd-ce", None, (0,)),
        ("apgd-ce", 2, (2,)),
        ("apgd-ce", "all", (0, 1, 2)),
        ("smallest-mistake-pgd", "all", (0,)),
    ],
)
def test_levels(name: str, level: Level | None, expected: tuple[Level, ...], tree: Tree) -> None:
    assert ATTACKS[name].levels(tree, level) == expected


@pytest.mark.parametrize("level", [3, -1])
@pytest.mark.parametrize("name", ATTACKS)
def test_no_such_level(name: str, level: int, tree: Tree) -> None:
    with pytest.raises(UsageError, match="levels 0 … 2"):
        ATTACKS[name].levels(tree, level)


def test_seeds_come_from_ids() -> None:
    assert sample_seeds(["a", "b"], 0) == sample_seeds(["b", "a"], 0)[::-1]
    every = [s for seed in (0, 1) for salt in ("", "x") for s in sample_seeds(["a", "b"], seed, salt)]
    assert len(set(every)) == 8
    assert all(0 <= s < 2**63 for s in every)
