"""Pack the nouns of a WordNet database folder for the package: `python -m hrzs.wordnet.pack SOURCE_DIR`.

Glosses, most of the bytes, are blanked and not cut, so that each synset keeps its byte offset, which is its WordNet
id. Only the counts of nouns are kept. The same folder gives the same bytes.
"""

import lzma
import re
import sys
from pathlib import Path

FILES = ("data.noun", "index.noun", "noun.exc", "cntlist.rev", "lexnames")


def reduce(name: str, data: bytes) -> bytes:
    """The bytes that the package keeps of one file of the database."""
    if name == "data.noun":
        return re.sub(rb"(?m)^(\d{8} [^|]*\|)(.*)$", lambda m: m[1] + b" " * len(m[2]), data)
    if name == "cntlist.rev":
        return b"".join(line for line in data.splitlines(keepends=True) if b"%1:" in line)
    return data


def pack(source: Path, target: Path) -> None:
    """Write ``FILE.xz`` for each file; what ``source`` lacks stays as it is in ``target`` (Debian has no lexnames)."""
    for name in FILES:
        packed = target / f"{name}.xz"
        if (source / name).exists() or not packed.exists():
            content = reduce(name, (source / name).read_bytes())
            packed.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
            sys.stderr.write(f"{packed}: {packed.stat().st_size} bytes\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m hrzs.wordnet.pack SOURCE_DIR")
    pack(Path(sys.argv[1]), Path(__file__).parent)
