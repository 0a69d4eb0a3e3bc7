"""NLTK's WordNet reader over nouns held in memory."""

from __future__ import annotations

import io
import lzma
import warnings
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.data import PathPointer

from hrzs.classes.specs import is_wnid
from hrzs.errors import UsageError


class _Memory(PathPointer):  # type: ignore[misc]  # NLTK is untyped
    """The root that NLTK asks for: nothing is ever opened beneath it, so no data folder need exist or be trusted."""

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, encoding: str | None = None) -> Any:  # noqa: ARG002
        raise FileNotFoundError(self.name)

    def file_size(self) -> int:
        raise FileNotFoundError(self.name)

    def join(self, fileid: str) -> _Memory:
        return _Memory(f"{self.name}/{fileid}")

    def __repr__(self) -> str:
        return self.name


class _Text(io.StringIO):
    """A file as NLTK reads it. NLTK finds counts by bisection, and drops the incomplete line that it lands in."""

    discard_line = io.StringIO.readline


class NounReader(WordNetCorpusReader):  # type: ignore[misc]  # NLTK is untyped
    """WordNet without verbs, adjectives and adverbs.

    Args:
        files: the texts of data.noun, index.noun, noun.exc, cntlist.rev and lexnames. WordNet is ASCII, so the
            position of a character is the byte offset that identifies a synset.
        name: where the files came from, for messages.
    """

    def __init__(self, files: dict[str, str], name: str) -> None:
        # Every data file begins with the version, but NLTK reads it from the file of the adjectives.
        head = files["data.noun"][:4000].splitlines(keepends=True)
        self._files = files | {"data.adj": "".join(line for line in head if line.startswith("  "))}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NLTK warns that there is no multilingual data
            super().__init__(_Memory(name), None)

    def open(self, file: str) -> _Text:
        return _Text(self._files.get(file, ""))

    def _load_lemma_pos_offset_map(self) -> None:
        """The same result as NLTK's method, which takes a second, token by token for four parts of speech."""
        for line in self.open("index.noun"):
            if not line.startswith(" "):
                fields = line.split()
                self._lemma_pos_offset_map[fields[0]]["n"] = [int(offset) for offset in fields[-int(fields[2]) :]]

    def map_wn(self, version: str = "wordnet") -> None:
        """Do nothing: the mapping is for data of other languages, which are not here, and needs a download."""


def open_wordnet(where: str | None = None) -> Any:
    """A reader of WordNet's nouns.

    Args:
        where: None for the WordNet 3.0 in the package; ``nltk`` for the corpus in the user's NLTK data; else a folder
            with the files of a WordNet database (data.noun, index.noun, …).

    Raises:
        UsageError: there is no WordNet at ``where``.
    """
    if where is None:
        return _embedded()
    if where == "nltk":
        from nltk.corpus import wordnet

        try:
            wordnet.ensure_loaded()
        except (LookupError, OSError) as error:
            # NLTK frames its messages with lines of stars.
            reason = " ".join(str(error).replace("*", " ").split())[:200]
            raise UsageError(
                "--wordnet nltk: NLTK finds no WordNet corpus, or not the whole of it "
                f"(`python -m nltk.downloader wordnet` fetches it): {reason}. "
                "Leave --wordnet out to use the one in hrzs"
            ) from error
        return wordnet
    folder = Path(where)
    try:
        files = {name: (folder / name).read_text("latin-1") for name in ("data.noun", "index.noun", "noun.exc")}
    except OSError as error:
        raise UsageError(
            f"--wordnet {where}: cannot read {error.filename}: {error.strerror}; give a folder with data.noun, "
            "index.noun and noun.exc, or `nltk`, or leave it out to use the WordNet in hrzs"
        ) from error
    for name in ("cntlist.rev", "lexnames"):  # some distributions leave these out
        file = folder / name
        files[name] = file.read_text("latin-1") if file.is_file() else _packed(name)
    return NounReader(files, where)


def noun_synset(reader: Any, name: str) -> Any:
    """The noun synset called ``n02119789`` or ``star.n.05`` in a ``reader`` of `open_wordnet`; else None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLTK warns of an offset where no synset begins
        try:
            if is_wnid(name):
                return reader.synset_from_pos_and_offset("n", int(name[1:]))
            synset = reader.synset(name.replace(" ", "_"))
        except Exception:  # NLTK raises anything from WordNetError to ValueError for a malformed name
            return None
    return synset if synset.pos() == "n" else None


@cache
def _embedded() -> NounReader:
    return NounReader({name: _packed(name) for name in _PACKED}, "WordNet 3.0 in hrzs")


_PACKED = ("data.noun", "index.noun", "noun.exc", "cntlist.rev", "lexnames")


def _packed(name: str) -> str:
    data = resources.files("hrzs.wordnet").joinpath(f"{name}.xz").read_bytes()
    return lzma.decompress(data).decode("latin-1")
