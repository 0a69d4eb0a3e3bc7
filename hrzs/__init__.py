"""hrzs: hierarchically robust zero-shot vision-language models.

From Python: `hrzs.load`, `hrzs.build_tree`, `hrzs.attack`, `hrzs.evaluate`, `hrzs.finetune`, `hrzs.export` (see
`hrzs.api`). Nothing heavy is imported before one is used.
"""

from typing import TYPE_CHECKING, Any

from hrzs._version import __version__

__all__ = ["Report", "__version__", "attack", "build_tree", "evaluate", "export", "finetune", "load"]

if TYPE_CHECKING:
    from hrzs.api import attack, build_tree, evaluate, export, finetune, load
    from hrzs.results.report import Report


def __getattr__(name: str) -> Any:
    if name in __all__:
        from hrzs import api

        return getattr(api, name)
    raise AttributeError(f"module 'hrzs' has no attribute {name!r}")
