"""The contract of every source: whatever is in SOURCES has to pass."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hrzs.errors import UsageError
from hrzs.hierarchy.yaml_form import dump_trees
from hrzs.sources import SOURCES, ClassSpec, SourceOptions
from hrzs.sources.build import build_trees

CLASSES = [ClassSpec(name) for name in ("truck", "cat", "airplane", "dog", "horse", "n02119789")]

TREE = """\
hrzs-tree: 1
tree:
- r root:
  - a animal:
    - c carnivore:
      - cat
      - dog
      - n02119789 kit fox
    - horse
  - v vehicle:
    - truck
    - airplane
    - ship
"""


class Model(BaseHTTPRequestHandler):
    """A chat server whose model knows two superclasses and puts every other class beneath each."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        listed = re.findall(r'^"([^"]+)"', request.partition("one to a line:\n")[2], re.M)
        scheme = {"moving thing": {}, "other thing": {}}
        answer = scheme if "Devise" in request else {c: list(scheme)[i % 2] for i, c in enumerate(listed)}
        choice = {"message": {"role": "assistant", "content": json.dumps(answer)}, "finish_reason": "stop"}
        body = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.fixture
def options(tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> SourceOptions:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "tree.yaml"
    file.write_text(TREE)
    return SourceOptions(files=(str(file),), endpoint=endpoint, llm_model="any")


@pytest.mark.parametrize("source", SOURCES)
def test_leaves_are_the_classes(source: str, options: SourceOptions) -> None:
    grown = SOURCES[source](CLASSES, options)
    for root in grown.roots:
        assert sorted(leaf.class_id or "" for leaf in root.leaves()) == sorted(spec.class_id for spec in CLASSES)
        assert not root.is_leaf


@pytest.mark.parametrize("source", SOURCES)
def test_same_call_same_bytes(source: str, options: SourceOptions) -> None:
    first, second = (build_trees(CLASSES, source=source, levels=3, options=options)[0][0] for _ in range(2))
    assert dump_trees([first]) == dump_trees([second])
    assert first.classes == tuple(spec.class_id for spec in CLASSES)
    assert first.header["name"] == source


# A language model and an encoder take any word for a class.
@pytest.mark.parametrize("source", sorted(SOURCES.keys() - {"llm", "cluster"}))
def test_unknown_classes_are_named(source: str, options: SourceOptions) -> None:
    with pytest.raises(UsageError, match=r"(?s)(?=.*qwertyx).*asdfx"):
        build_trees([*CLASSES, ClassSpec("qwertyx"), ClassSpec("asdfx")], source=source, options=options)


@pytest.mark.parametrize("source", SOURCES)
def test_has_a_line_about_itself(source: str) -> None:
    assert (SOURCES[source].__doc__ or "").splitlines()[0]


def test_bad_calls() -> None:
    with pytest.raises(UsageError, match=r"--source oracle: .*wordnet, llm, cluster, file"):
        build_trees(CLASSES, source="oracle")
    with pytest.raises(UsageError, match="'cat' more than once"):
        build_trees([*CLASSES, ClassSpec("cat")])
    with pytest.raises(UsageError, match="at least two classes"):
        build_trees(CLASSES[:1])
    with pytest.raises(UsageError, match="--tree FILE"):
        build_trees(CLASSES, source="file")


def test_file_source_levels_anew(options: SourceOptions) -> None:
    (tree,), _ = build_trees(CLASSES, source="file", levels=2, options=options)
    assert tree.height == 2
    assert "ship" not in tree.classes
