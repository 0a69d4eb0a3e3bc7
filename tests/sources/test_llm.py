"""The llm source over real HTTP, against a server on loopback that plays a model and misbehaves on request."""

from __future__ import annotations

import gzip
import json
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrzs.errors import HrzsError, UsageError
from hrzs.hierarchy.levelling import level_tree
from hrzs.hierarchy.tree import Node
from hrzs.hierarchy.yaml_form import dump_trees
from hrzs.sources import ClassSpec, SourceOptions, llm

KEY = "sk-secret-0123456789abcdef"
CLASSES = [ClassSpec(name) for name in ("truck", "cat", "sparrow", "dog", "horse", "eagle", "boat")]
SCHEME = {"animal": {"mammal": {}, "bird": {}}, "vehicle": {}, "plant": {}}
PLACES = {
    "truck": "vehicle", "boat": "vehicle", "cat": "mammal", "dog": "mammal", "horse": "mammal", "sparrow": "bird",
    "eagle": "bird",
}  # fmt: skip
OUTLINE = ("entity", (("vehicle", ("truck", "boat")), ("animal", (("mammal", ("cat", "dog", "horse")), ("bird", ("sparrow", "eagle"))))))  # fmt: skip

Handler = BaseHTTPRequestHandler
Play = Callable[[Handler, dict[str, Any]], None]


def asked_classes(request: dict[str, Any]) -> list[str]:
    listed = request["messages"][0]["content"].partition("one to a line:\n")[2]
    return [json.loads(re.match(r'"(?:[^"\\]|\\.)*"', line)[0]) for line in listed.splitlines()]


def asks_for_scheme(request: dict[str, Any]) -> bool:
    return "Devise" in request["messages"][0]["content"]


def right(request: dict[str, Any]) -> str:
    """What a good model answers."""
    if asks_for_scheme(request):
        return json.dumps(SCHEME)
    return json.dumps({name: PLACES[name] for name in asked_classes(request)})


def send(handler: Handler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def say(handler: Handler, text: str | None, finish: str = "stop") -> None:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    send(handler, 200, json.dumps({"choices": [choice]}).encode())


def fail(status: int, text: str = "no", **headers: str) -> Play:
    return lambda handler, _: send(handler, status, json.dumps({"error": {"message": text}}).encode(), **headers)


def answer(text: str | None, finish: str = "stop") -> Play:
    return lambda handler, _: say(handler, text, finish)


def raw(body: bytes, **headers: str) -> Play:
    return lambda handler, _: send(handler, 200, body, **headers)


@dataclass
class Served:
    """A server that plays ``script`` first, one entry to a request, and answers like `model` from then on."""

    url: str = ""
    script: list[Play | None] = field(default_factory=list)  # None: a right answer
    model: Callable[[dict[str, Any]], str] = right
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def respond(self, handler: Handler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        assert handler.path == "/v1/chat/completions"
        self.requests.append(request)
        self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        play = self.script.pop(0) if self.script else None
        if play is None:
            say(handler, self.model(request))
        else:
            play(handler, request)

    @property
    def keys(self) -> list[str | None]:
        return [headers.get("authorization") for headers in self.headers]

    def hang(self, handler: Handler, _: object) -> None:
        self.released.wait(10)
        handler.close_connection = True


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    for name in (
        "HRZS_API_KEY",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    state = Served()
    monkeypatch.setattr(time, "sleep", state.waits.append)

    class Responder(Handler):
        def do_POST(self) -> None:  # noqa: N802
            state.respond(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Responder)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    state.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def options(served: Served) -> SourceOptions:
    return SourceOptions(endpoint=served.url, llm_model="parrot")


def outline(node: Node) -> Any:
    return node.class_id or (node.name, tuple(map(outline, node.children)))


def transcript(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.glob("transcript-*.jsonl")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


# -- a model that behaves --------------------------------------------------------------------------------------


def test_tree(served: Served, options: SourceOptions) -> None:
    grown = llm.grow(CLASSES, options)
    (root,) = grown.roots
    assert outline(root) == OUTLINE
    assert [node.id for node in root.walk() if not node.is_leaf] == ["root", "vehicle", "animal", "mammal", "bird"]
    assert grown.source["model"] == "parrot"
    assert re.fullmatch("[0-9a-f]{16}", str(grown.source["prompt"]))
    assert "127.0.0.1" not in repr(grown)
    assert grown.each == ({"sample": 1},)
    assert served.keys == [None, None]
    assert served.requests[0]["temperature"] == 0
    assert served.requests[0]["response_format"] == {"type": "json_object"}


def test_endpoint_and_key_of_the_environment(
    served: Served, options: SourceOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", served.url + "/")
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    llm.grow(CLASSES, replace(options, endpoint=None))
    monkeypatch.setenv("HRZS_API_KEY", f" {KEY}\n")
    llm.grow(CLASSES, replace(options, endpoint=served.url + "/chat/completions"))
    assert served.keys == ["Bearer other"] * 2 + [f"Bearer {KEY}"] * 2


@pytest.mark.parametrize("key", [None, KEY])
def test_nothing_else_of_the_environment_is_sent(
    key: str | None, served: Served, options: SourceOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY", "OPENAI_WEBHOOK_SECRET"):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Mine: mine\nAuthorization: Bearer mine")
    if key:
        monkeypatch.setenv("HRZS_API_KEY", key)
    llm.grow(CLASSES, options)
    assert served.keys == [f"Bearer {key}" if key else None] * 2
    assert all(set(headers) <= llm._HEADERS | {"authorization"} for headers in served.headers)
    assert "mine" not in repr(served.headers)


def test_300_classes_in_chunks(served: Served, options: SourceOptions) -> None:
    scheme = {f"order {i}": {f"family {i}{j}": None for j in range(4)} for i in range(5)}

    def model(request: dict[str, Any]) -> str:
        if asks_for_scheme(request):
            return json.dumps(scheme)
        return json.dumps({c: f"family {int(c[6:]) % 5}{int(c[6:]) % 4}" for c in asked_classes(request)})

    served.model = model
    specs = [ClassSpec(f"{n:03d}", f"class_{n}") for n in range(300)]
    (root,) = llm.grow(specs, options).roots
    assert len(served.requests) == 1 + 8
    assert max(len(asked_classes(request)) for request in served.requests[1:]) == llm.CHUNK
    tree = level_tree(root, 5, [spec.class_id for spec in specs])
    assert [len(nodes) for nodes in tree.levels] == [300, 20, 5, 1]


def test_scheme_of_many_classes_sees_some_of_them(
    served: Served, options: SourceOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "SHOWN", 3)
    monkeypatch.setattr(llm, "CHUNK", 5)
    llm.grow(CLASSES, options)
    assert [asked_classes(request) for request in served.requests] == [
        ["truck", "sparrow", "horse"],
        ["truck", "cat", "sparrow", "dog", "horse"],
        ["eagle", "boat"],
    ]


def test_names_are_told_apart_and_explained(served: Served, options: SourceOptions) -> None:
    specs = [
        ClassSpec("crane_1", "crane", "n02012849"),
        ClassSpec("crane_2", "Crane", "n03126707"),
        ClassSpec("n02119789"),
        ClassSpec('a"b\n{c}'),
        ClassSpec("star"),
    ]
    served.model = lambda request: json.dumps(
        SCHEME if asks_for_scheme(request) else dict.fromkeys(asked_classes(request), "animal")
    )
    (root,) = llm.grow(specs, replace(options, senses={"star": "star.n.05"})).roots
    assert asked_classes(served.requests[1]) == ["crane [crane_1]", "Crane [crane_2]", "kit fox", 'a"b {c}', "star"]
    question = served.requests[1]["messages"][0]["content"]
    assert '"crane [crane_1]" (a kind of wading bird)\n"Crane [crane_2]" (a kind of lifting device)\n' in question
    assert [(leaf.name, leaf.id) for leaf in root.leaves()] == [
        ("crane", "n02012849"), ("Crane", "n03126707"), ("kit fox", "n02119789"), ('a"b {c}', 'a"b\n{c}'),
        ("star", "n13881644"),
    ]  # fmt: skip


def test_unknown_synsets_are_named_at_once(options: SourceOptions) -> None:
    specs = [ClassSpec("n99999999"), ClassSpec("a", None, "n00000001"), ClassSpec("b")]
    with pytest.raises(UsageError, match=r"(?s)'typo'.*n99999999.*n00000001.*--sense"):
        llm.grow(specs, replace(options, senses={"typo": "star.n.05"}))


# -- forests, the cache, the transcript ------------------------------------------------------------------------


def test_forest(served: Served, options: SourceOptions) -> None:
    def model(request: dict[str, Any]) -> str:
        if request["seed"] == 8 and not asks_for_scheme(request):
            return json.dumps(PLACES | {"boat": "plant"})
        if request["seed"] == 9 and asks_for_scheme(request):  # another order is no other tree
            return json.dumps(dict(reversed(SCHEME.items())))
        return right(request)

    served.model = model
    grown = llm.grow(CLASSES, replace(options, trees=3, seed=7))
    assert [outline(root) == OUTLINE for root in grown.roots] == [True, False]
    assert grown.each == ({"sample": 1}, {"sample": 2})
    assert any("3 samples" in note and "2 of them differ" in note for note in grown.notes)
    assert [(r["seed"], r["temperature"]) for r in served.requests[::2]] == [(7, 0.0), (8, 0.8), (9, 0.8)]


def test_second_run_needs_no_server(
    served: Served, options: SourceOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HRZS_API_KEY", KEY)
    first = replace(options, cache=tmp_path / "new" / "cache", trees=2)
    assert first.cache is not None
    served.script = [fail(503), answer("Sorry: no JSON today."), None, answer('{"cat": "vehicle"}')]
    served.model = lambda r: (
        right(r) if r["seed"] == 0 or asks_for_scheme(r) else json.dumps(PLACES | {"boat": "plant"})
    )
    grown = llm.grow(CLASSES, first)
    asked = len(served.requests)
    kept = {file.name: file.read_bytes() for file in first.cache.iterdir()}
    assert len(kept) == 5  # a scheme and a chunk for each sample, and the transcript
    assert not any(name.startswith(".") for name in kept)
    assert [(e["sample"], e["attempt"], "faults" in e) for e in transcript(first.cache)] == [
        (1, 1, True), (1, 2, False), (1, 1, True), (1, 2, False), (2, 1, False), (2, 1, False),
    ]  # fmt: skip
    assert [exchange["request"] for exchange in transcript(first.cache)] == served.requests[1:]  # [0] was refused
    monkeypatch.delenv("HRZS_API_KEY")
    monkeypatch.setitem(sys.modules, "openai", None)  # as if it were not installed
    again = llm.grow(CLASSES, replace(first, endpoint=None))
    assert again == grown
    assert len(grown.roots) == 2
    assert len(served.requests) == asked
    assert {file.name: file.read_bytes() for file in first.cache.iterdir()} == kept
    written = b"".join(kept.values()).decode()
    assert KEY not in written
    assert served.url not in written
    trees = [
        [level_tree(root, 5, [spec.class_id for spec in CLASSES], dict(g.source)) for root in g.roots]
        for g in (grown, again)
    ]
    assert dump_trees(trees[0]) == dump_trees(trees[1])


@pytest.mark.parametrize("damage", [b"{", b"[]", b"null", b"\xff", b'{"request": 1, "exchanges": []}', b"[" * 99999])
def test_damaged_cache_is_asked_anew(damage: bytes, served: Served, options: SourceOptions, tmp_path: Path) -> None:
    options = replace(options, cache=tmp_path)
    first = llm.grow(CLASSES, options)
    for file in tmp_path.glob("*.json"):
        file.write_bytes(damage)
    assert llm.grow(CLASSES, options) == first
    assert len(served.requests) == 4


def test_cached_answer_is_checked(served: Served, options: SourceOptions, tmp_path: Path) -> None:
    options = replace(options, cache=tmp_path)
    first = llm.grow(CLASSES, options)
    for file in tmp_path.glob("*.json"):
        file.write_text(file.read_text().replace(r"\"truck\": \"vehicle\"", r"\"truck\": \"hammer\""))
    assert llm.grow(CLASSES, options) == first
    assert len(served.requests) == 3


def test_cache_that_is_no_folder(options: SourceOptions, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cache folder .*file"):
        llm.grow(CLASSES, replace(options, cache=tmp_path / "file"))


def test_echoed_key_is_not_kept(
    served: Served,
    options: SourceOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HRZS_API_KEY", KEY)
    said = f"your key is {KEY}"
    served.script = [fail(400, said), answer(said), None, fail(418, said)]
    with pytest.raises(HrzsError, match=r"418: .*your key is \*\*\*") as caught:
        llm.grow(CLASSES, replace(options, cache=tmp_path))
    assert KEY not in str(caught.value)
    assert "your key is ***" in caplog.text
    assert KEY not in caplog.text
    assert not any(KEY in file.read_text() for file in tmp_path.iterdir())
    assert "your key is ***" in transcript(tmp_path)[0]["answer"]


# -- answers that have to be repaired --------------------------------------------------------------------------

PLACED = json.dumps(PLACES)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no idea", ["not one valid JSON object"]),
        (None, ["not one valid JSON object"]),
        (PLACED[:-20], ["not one valid JSON object"]),
        (PLACED + PLACED, ["not one valid JSON object", "Extra data"]),
        ("{" * 100_000 + "}", ["not one valid JSON object"]),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, ["not one valid JSON object"]),
        (json.dumps({"cat": "mammal"}), ["class 'truck' is missing", "class 'boat' is missing"]),
        (json.dumps(PLACES | {"unicorn": "mammal"}), ["'unicorn' is none of the classes"]),
        (PLACED[:-1] + ', "cat": "bird"}', ["class 'cat' stands there 2 times"]),
        (PLACED[:-1] + ', "CAT": "mammal"}', ["class 'cat' stands there 2 times"]),
        (json.dumps(PLACES | {"dog": "canine"}), ["class 'dog' is placed beneath 'canine', which is not"]),
        (json.dumps(PLACES | {"dog": ["mammal"]}), ["class 'dog' is placed beneath something that is no text"]),
    ],
)  # fmt: skip
def test_wrong_places_are_repaired(text: str | None, told: list[str], served: Served, options: SourceOptions) -> None:
    served.script = [None, answer(text)]
    (root,) = llm.grow(CLASSES, options).roots
    assert outline(root) == OUTLINE
    question, said, correction = served.requests[-1]["messages"]
    assert question == served.requests[1]["messages"][0]
    assert said == {"role": "assistant", "content": (text or "")[:50_000]}
    assert all(part in correction["content"] for part in told)


@pytest.mark.parametrize(
    ("scheme", "told"),
    [
        ("{}", "the hierarchy is empty"),
        ('{"a": {"b": {}}, "c": {"B": {}}}', "superclass 'B' stands in the hierarchy twice"),
        ('{"a": {}, "a": {}}', "superclass 'a' stands in the hierarchy twice"),
        ('{"": {}}', "'' is no name"),
        ('{"n02119789": {}}', "'n02119789' is no name"),
        (json.dumps({"x" * 61: {}}), "'xxx"),
        ('{"a": "b"}', "the value of 'a' is no JSON object"),
        ('{"a":{"b":{"c":{"d":{"e":{"f":{"g":{"h":{}}}}}}}}}', "deeper than 6 levels at 'g'"),
        (json.dumps({f"s{i}": {} for i in range(21)}), "21 superclasses; it may have 20"),
    ],
)  # fmt: skip
def test_wrong_schemes_are_repaired(scheme: str, told: str, served: Served, options: SourceOptions) -> None:
    served.script = [answer(scheme)]
    (root,) = llm.grow(CLASSES, options).roots
    assert outline(root) == OUTLINE
    assert told in served.requests[1]["messages"][2]["content"]


@pytest.mark.parametrize(
    "text",
    [
        f"Here you are:\n```json\n{PLACED}\n```\nAnything else?",
        "<think>is {cat} a {bird}?</think>" + PLACED,
        json.dumps({name.upper() + " ": f" {place.title()}" for name, place in PLACES.items()}),
    ],
)
def test_answers_in_other_clothes_are_taken(text: str, served: Served, options: SourceOptions) -> None:
    served.script = [answer(json.dumps({"1. **animal**": ["mammal", "- bird"], '"vehicle"': None})), answer(text)]
    (root,) = llm.grow(CLASSES, options).roots
    assert outline(root) == OUTLINE
    assert len(served.requests) == 2


def test_answer_that_was_cut_off(served: Served, options: SourceOptions) -> None:
    served.script = [None, answer(PLACED[:30], finish="length")]
    llm.grow(CLASSES, options)
    assert "cut off" in served.requests[-1]["messages"][2]["content"]


def test_gives_up_on_a_model_that_stays_wrong(served: Served, options: SourceOptions, tmp_path: Path) -> None:
    served.model = lambda r: right(r) if asks_for_scheme(r) else json.dumps({"unicorn": "mammal"})
    with pytest.raises(
        HrzsError, match=r"parrot: sample 1, classes 1-7 of 7.*'truck' is missing.*transcript"
    ) as caught:
        llm.grow(CLASSES, replace(options, cache=tmp_path))
    assert not isinstance(caught.value, UsageError)
    assert len(served.requests) == 1 + llm.ANSWERS
    assert str(next(tmp_path.glob("transcript-*"))) in str(caught.value)
    assert len(transcript(tmp_path)) == 1 + llm.ANSWERS
    served.model = right  # wrong answers are not kept: the next run asks again, but not for the scheme
    llm.grow(CLASSES, replace(options, cache=tmp_path))
    assert len(served.requests) == 2 + llm.ANSWERS


def test_superclass_ids_are_unique(served: Served, options: SourceOptions) -> None:
    served.model = lambda r: (
        '{"Cat": {}, "big-cat": {}, "big cat": {}, "Katze ä": {}, "root": {}}'
        if asks_for_scheme(r)
        else json.dumps(dict(zip(asked_classes(r), ["cat", "big-cat", "big cat", "katze ä", "root"], strict=True)))
    )
    (root,) = llm.grow([ClassSpec(c) for c in ("cat", "a", "b", "c", "d")], options).roots
    assert [node.id for node in root.walk() if not node.is_leaf] == [
        "root", "cat-2", "big-cat", "big-cat-2", "katze-ä", "root-2",
    ]  # fmt: skip


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.sampled_from(["cat", "animal"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=10,
)
anything = st.one_of(st.text(max_size=40), json_values.map(json.dumps), st.just('{"\\ud800": {}, "a\\u0000b": {}}'))


@given(anything)
def test_any_scheme_is_valid_or_named_wrong(text: str) -> None:
    scheme, faults = {}, ()
    try:
        scheme = llm._read_scheme(llm._parse(text, False), 20)
    except llm._WrongAnswerError as error:
        faults = error.faults
    assert bool(scheme) != bool(faults)
    assert all(fault.isprintable() for fault in faults)
    assert len(scheme) <= 20
    assert all(0 < len(node.name) <= llm.MAX_NAME and node.name.isprintable() for node in scheme.values())
    seen = {""}
    for key, node in scheme.items():
        assert node.above in seen
        assert node.depth <= llm.MAX_DEPTH
        seen.add(key)


# -- a server that misbehaves ----------------------------------------------------------------------------------

TRANSIENT = {
    "500": fail(500),
    "503": fail(503),
    "429": fail(429),
    "cut": raw(b"{}", Content_Length="500"),
    "no HTTP": lambda handler, _: handler.wfile.write(b"hello\r\n\r\n"),
    "hung up": lambda handler, _: handler.connection.shutdown(socket.SHUT_RDWR),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_tries_again(name: str, served: Served, options: SourceOptions) -> None:
    served.script = [TRANSIENT[name], TRANSIENT[name]]
    assert outline(llm.grow(CLASSES, options).roots[0]) == OUTLINE
    assert len(served.requests) == 4
    assert len(served.waits) == 2


def test_time_out_is_tried_again(served: Served, options: SourceOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "DefaultHttpxClient", partial(openai.DefaultHttpxClient, timeout=0.2))
    served.script = [served.hang]
    llm.grow(CLASSES, options)
    assert len(served.waits) == 1
    assert len(served.requests) == 3


def drip(start: bytes, part: bytes) -> Play:
    """A server that never ends its headers, its preliminary answers or its text."""

    def play(handler: Handler, _: object) -> None:
        handler.close_connection = True
        with suppress(OSError):
            handler.wfile.write(start)
            while not RELEASED.wait(0.01):
                handler.wfile.write(part)

    return play


RELEASED = threading.Event()


@pytest.mark.parametrize(
    "play",
    [
        drip(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"),
        drip(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"),
        drip(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        drip(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{", b" "),
    ],
    ids=["headers", "header", "preliminary", "text"],
)
def test_an_answer_without_end(
    play: Play, served: Served, options: SourceOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    RELEASED.clear()
    monkeypatch.setattr(llm, "DEADLINE", 1.0)
    served.script = [play] * (1 + llm.RETRIES)
    start = time.monotonic()
    with pytest.raises(HrzsError, match=r"--endpoint http.*: no whole answer in 1 s"):
        llm.grow(CLASSES, options)
    RELEASED.set()
    assert time.monotonic() - start < 5


def test_an_answer_without_measure(served: Served, options: SourceOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "MAX_BYTES", 2**20)
    served.script = [raw(gzip.compress(b" " * 2**24), Content_Encoding="gzip")] * (1 + llm.RETRIES)
    with pytest.raises(HrzsError, match=r"--endpoint http.*: the answer is larger than 1 MB"):
        llm.grow(CLASSES, options)


def test_waits_as_long_as_the_server_asks(served: Served, options: SourceOptions) -> None:
    served.script = [fail(429, "slow down", Retry_After="7")]
    llm.grow(CLASSES, options)
    assert served.waits == [7]


def test_gives_up_in_the_end(served: Served, options: SourceOptions) -> None:
    served.script = [fail(503, "the model is loading")] * (1 + llm.RETRIES)
    with pytest.raises(HrzsError, match=r"--endpoint http.*parrot.*503: .*the model is loading") as caught:
        llm.grow(CLASSES, options)
    assert not isinstance(caught.value, UsageError)
    assert len(served.requests) == 1 + llm.RETRIES
    assert not served.script


def test_connection_refused(served: Served, options: SourceOptions) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(HrzsError, match=rf"127\.0\.0\.1:{port}.*ConnectError: .*refused.*running"):
        llm.grow(CLASSES, replace(options, endpoint=f"http://127.0.0.1:{port}/v1"))
    assert len(served.waits) == llm.RETRIES


@pytest.mark.parametrize(
    "data",
    [b"<html>busy</html>", b'{"error": "overloaded"}', b"[]", b"", b"\xff", b"[" * 100_000, b'{"choices": [1]}'],
    ids=lambda data: data[:20],
)
@pytest.mark.parametrize("kind", ["application/json", "text/html; charset=none"])
def test_answer_that_is_no_completion(data: bytes, kind: str, served: Served, options: SourceOptions) -> None:
    served.script = [raw(data, Content_Type=kind)]
    shown = re.escape(data.decode(errors="replace")[:300])
    with pytest.raises(HrzsError, match=f"--endpoint {served.url}: the answer is no chat completion: {shown}$"):
        llm.grow(CLASSES, options)
    assert len(served.requests) == 1


@pytest.mark.parametrize(
    ("play", "match"),
    [
        (fail(401), "401.*no key was sent.*HRZS_API_KEY"),
        (fail(403), "403.*no key was sent.*HRZS_API_KEY"),
        (fail(404, "no model `parrot`"), "--llm-model parrot.*404.*no model `parrot`.*/v1/models"),
        (fail(302, Location="/v1/elsewhere"), "302.*/v1/elsewhere"),
        (fail(308, Location="/v1/chat/completions"), "308.*/v1/chat/completions"),
    ],
)
def test_wrong_calls_are_not_tried_again(play: Play, match: str, served: Served, options: SourceOptions) -> None:
    served.script = [play]
    with pytest.raises(UsageError, match=match):
        llm.grow(CLASSES, options)
    assert len(served.requests) == 1


def test_refused_key_names_its_variable(
    served: Served, options: SourceOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    served.script = [fail(401, f"invalid: {KEY}")]
    with pytest.raises(UsageError, match="the key in OPENAI_API_KEY") as caught:
        llm.grow(CLASSES, options)
    assert KEY not in str(caught.value)


def test_goes_without_parameters_that_are_refused(served: Served, options: SourceOptions, tmp_path: Path) -> None:
    served.script = [fail(400, "bad request"), fail(422, "`temperature` must be 1 here")]
    options = replace(options, cache=tmp_path)
    first = llm.grow(CLASSES, options)
    parameters = [sorted(request.keys() - {"model", "messages"}) for request in served.requests]
    assert parameters == [["response_format", "seed", "temperature"], ["seed", "temperature"], ["seed"], ["seed"]]
    assert not served.waits
    assert llm.grow(CLASSES, options) == first  # the cache goes by what was wanted
    assert len(served.requests) == 4


def test_refused_altogether(served: Served, options: SourceOptions) -> None:
    served.script = [fail(400, "the context is too long")] * 4
    with pytest.raises(HrzsError, match=r"400.*the context is too long"):
        llm.grow(CLASSES, options)
    assert len(served.requests) == 4


# -- calls that cannot work ------------------------------------------------------------------------------------


def test_missing_endpoint_and_model(served: Served) -> None:
    with pytest.raises(UsageError, match="--endpoint URL --llm-model NAME"):
        llm.grow(CLASSES, SourceOptions())
    with pytest.raises(UsageError, match="with --llm-model NAME"):
        llm.grow(CLASSES, SourceOptions(endpoint="http://localhost/v1"))
    with pytest.raises(UsageError, match=r"--endpoint URL .*--llm-model parrot"):
        llm.grow(CLASSES, SourceOptions(llm_model="parrot"))


@pytest.mark.parametrize(
    "endpoint",
    ["localhost:8000", "file:///etc/passwd", "ftp://a/b", "http://", "http:///v1", "http://a b/", "http://a/?q=1",
     "http://a/#b", "http://a/\n"],
)  # fmt: skip
def test_bad_endpoints(endpoint: str, served: Served) -> None:
    with pytest.raises(UsageError, match="such as http://127"):
        llm.grow(CLASSES, SourceOptions(endpoint=endpoint, llm_model="parrot"))


@pytest.mark.parametrize("endpoint", ["http://a:x/v1", "http://[v1.x]/v1", "http://a\x1b/v1"])
def test_addresses_that_cannot_be(endpoint: str, served: Served) -> None:
    with pytest.raises(UsageError, match=r"--endpoint 'http.*: no connection can be made: Invalid") as caught:
        llm.grow(CLASSES, SourceOptions(endpoint=endpoint, llm_model="parrot"))
    assert str(caught.value).isprintable()


def test_host_that_cannot_be(served: Served) -> None:
    with pytest.raises(HrzsError, match=r"--endpoint http://a\.\.b/v1: .*is the address right"):
        llm.grow(CLASSES, SourceOptions(endpoint="http://a..b/v1", llm_model="parrot"))


def test_proxy_that_cannot_be(served: Served, options: SourceOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "foo://x")
    with pytest.raises(UsageError, match=r"no connection can be made: .*proxy"):
        llm.grow(CLASSES, options)


def test_missing_package(served: Served, options: SourceOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UsageError, match=r"pip install 'hrzs\[llm\]'"):
        llm.grow(CLASSES, options)


def test_passwords_are_not_repeated(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="HRZS_API_KEY") as caught:
        llm.grow(CLASSES, SourceOptions(endpoint="http://me:hunter2@localhost:x/v1", llm_model="parrot"))
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("HRZS_API_KEY", "hunter2\nX-Evil: 1")
    with pytest.raises(UsageError, match="HRZS_API_KEY holds") as caught:
        llm.grow(CLASSES, SourceOptions(endpoint=served.url, llm_model="parrot"))
    assert "hunter2" not in str(caught.value)
