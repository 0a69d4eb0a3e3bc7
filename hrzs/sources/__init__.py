"""Where trees come from. A new source is one file with a function as `Source` describes, and one line here."""

from hrzs.sources import cluster, file, llm, wordnet
from hrzs.sources.base import ClassSpec, Grown, Source, SourceOptions

SOURCES: dict[str, Source] = {
    "wordnet": wordnet.grow,
    "llm": llm.grow,
    "cluster": cluster.grow,
    "file": file.grow,
}

__all__ = ["SOURCES", "ClassSpec", "Grown", "Source", "SourceOptions"]
