"""Fine-tuning methods by name."""

from collections.abc import Set as AbstractSet

from hrzs.errors import UsageError
from hrzs.training.methods.agft import AGFT
from hrzs.training.methods.base import Loss, Method
from hrzs.training.methods.cross_entropy import Clean, TeCoA
from hrzs.training.methods.fare import Fare
from hrzs.training.methods.hierarchical import Hierarchical
from hrzs.training.methods.lore import Lore
from hrzs.training.methods.pmg_aft import PMGAFT
from hrzs.training.methods.tga_zsr import TGAZSR
from hrzs.training.methods.trades import Trades
from hrzs.training.methods.ucat import UCAT

__all__ = ["METHODS", "Loss", "Method", "check_options", "method_class"]

METHODS: dict[str, type[Method]] = {
    m.name: m for m in (Hierarchical, TeCoA, PMGAFT, Fare, Clean, TGAZSR, Trades, AGFT, UCAT, Lore)
}


def method_class(name: str) -> type[Method]:
    """The method called ``name``.

    Raises:
        UsageError: no method has this name.
    """
    if name not in METHODS:
        raise UsageError(f"--method {name!r}: one of {', '.join(METHODS)}; `--method list` explains them")
    return METHODS[name]


def check_options(name: str, given: AbstractSet[str]) -> None:
    """Does the method ``name`` read every option of ``given`` that only some methods read?

    Raises:
        UsageError: there is no such method, or an option would have no effect on it.
    """
    reads = method_class(name).reads
    for option in sorted(given - reads):
        readers = [other for other, method in METHODS.items() if option in method.reads]
        if readers:
            raise UsageError(
                f"--{option.replace('_', '-')}: --method {name} does not read it; it belongs to {', '.join(readers)}"
            )
