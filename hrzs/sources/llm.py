"""Trees from a language model behind an OpenAI-compatible chat endpoint.

**How it asks.** First for a scheme: superclasses from general to specific for all the classes, of which at most
`SHOWN`, evenly spaced, are shown. Then, for `CHUNK` classes at a time, which superclass of the scheme each stands
directly beneath. So no answer is longer than a scheme or a chunk, whatever the number of classes. Superclasses
without a class are dropped.

**What it takes for an answer.** One JSON object, perhaps between fences or after the model's thoughts. A scheme names
each superclass once; a chunk places each of its classes once and no other, beneath superclasses of the scheme. The
model is told exactly what is wrong with an answer and asked again, `ANSWERS` times in all.

**What it keeps.** In ``options.cache`` one file for each question, named by a digest of model, messages and parameters,
which holds the exchanges up to the accepted answer: asked the same, it needs no server. Beside them a transcript for
each run, every request and answer in the order of asking, the same bytes with a server or from the cache. Neither
holds the endpoint or the key.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import chain, count
from pathlib import Path
from threading import Thread
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, TextIO, TypeVar

from hrzs.classes.specs import is_wnid
from hrzs.errors import HrzsError, UsageError
from hrzs.files import replacing
from hrzs.hierarchy.tree import Node
from hrzs.sources.base import ClassSpec, Grown, SourceOptions
from hrzs.wordnet import noun_synset, open_wordnet

logger = logging.getLogger(__name__)

CHUNK = 40
SHOWN = 2000
ANSWERS = 4
MAX_DEPTH = 6
MAX_NAME = 60
# Of the samples of a forest; the first is drawn at temperature 0.
TEMPERATURE = 0.8

RETRIES = 5  # of a request; a server that is loading its model fails for a while
# A server may drip headers or text for ever: one question takes so many seconds at most, its retries among them,
# and one answer so many bytes.
DEADLINE = 1800.0
MAX_BYTES = 8 * 2**20

SCHEME = """\
Here are the names of {count} classes of images. Devise a hierarchy of superclasses for them, from general to specific.
- Superclasses group classes that are of one kind and look alike; every class has to fit beneath one of them.
- A superclass has a short common name in the singular that fits into the sentence "a photo of a ...", \
in lower case unless it is a proper noun; no name is used twice.
- There are about {lowest} of the most specific superclasses, and at most {depth} levels.
- The classes themselves are no part of the hierarchy.
Answer with one JSON object and nothing else. Its keys are the most general superclasses; the value of each key is an \
object of the same form with the superclasses beneath it, {{}} where there are none. For example:
{{"animal": {{"bird": {{"songbird": {{}}, "bird of prey": {{}}}}, "fish": {{}}}}, "vehicle": {{}}}}

The classes, one to a line:
{classes}
"""
ASSIGN = """\
Here is a hierarchy of superclasses, from general to specific:
{scheme}

Place each of the following {count} classes of images beneath the most specific superclass that it belongs to.
Answer with one JSON object and nothing else. It has one key for each class, the name as it stands between the \
quotation marks; the value is the name of one superclass of the hierarchy. For example:
{{"golden retriever": "dog", "pickup": "truck"}}

The classes, one to a line:
{classes}
"""
REPAIR = """\
That answer cannot be used:
{faults}
Answer the whole question again with one corrected JSON object and nothing else.
"""

# What a server may not know, in the order in which it is left out.
_OPTIONAL = ("response_format", "seed", "temperature")
_KEYS = ("HRZS_API_KEY", "OPENAI_API_KEY")
# Of the headers, those that a request needs beside the key.
_HEADERS = {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent"}
_T = TypeVar("_T")


def grow(classes: Sequence[ClassSpec], options: SourceOptions) -> Grown:
    """Superclasses thought of by a language model at any OpenAI-compatible server (--endpoint URL --llm-model NAME).

    The key is read from HRZS_API_KEY or else OPENAI_API_KEY, the endpoint, where ``options`` has none, from
    OPENAI_BASE_URL. Each of ``options.trees`` trees is a sample of its own: the first at temperature 0, the others at
    `TEMPERATURE`, sample ``n`` with seed ``options.seed + n - 1``; a server that refuses these parameters goes without.
    A class whose synset is known is explained to the model by its hypernym.

    Raises:
        UsageError: no model is named; no endpoint, or no `openai` package, though a question is not in the cache; the
            server refuses the key or knows no such model; a synset that WordNet lacks.
        HrzsError: the server cannot be reached or keeps failing, or the model's answers stay wrong.
    """
    if not options.llm_model:
        missing = "--llm-model NAME" if _endpoint(options) else "--endpoint URL --llm-model NAME"
        raise UsageError(
            f"--source llm asks a language model: say which with {missing}, such as "
            "--endpoint http://127.0.0.1:8000/v1 --llm-model qwen3 for a server on this machine"
        )
    asked = _read_classes(classes, options)
    prompt = _digest([SCHEME, ASSIGN, REPAIR, CHUNK, SHOWN, MAX_DEPTH, [(c.label, c.hint) for c in asked]])
    run = _digest([options.llm_model, prompt, options.seed, options.trees])
    found: dict[Node, int] = {}
    with _Archive(options.cache, run[:16]) as archive:
        for sample in range(1, options.trees + 1):
            draw = {
                "temperature": 0.0 if sample == 1 else TEMPERATURE,
                "seed": options.seed + sample - 1,
                "response_format": {"type": "json_object"},
            }
            found.setdefault(_grow(asked, _Dialogue(options, archive, sample, draw)), sample)
    notes = []
    if len(found) < options.trees:
        notes.append(f"{options.trees} samples were drawn from {options.llm_model}, {len(found)} of them differ")
    if archive.transcript is not None:
        notes.append(f"what was asked and answered: {archive.transcript}")
    source: dict[str, object] = {"model": options.llm_model, "prompt": prompt[:16], "seed": options.seed}
    return Grown(tuple(found), source, tuple(notes), tuple({"sample": sample} for sample in found.values()))


# -- the classes -----------------------------------------------------------------------------------------------


class _Class(NamedTuple):
    leaf: Node
    label: str  # what the model calls it: no two are alike
    hint: str


def _read_classes(classes: Sequence[ClassSpec], options: SourceOptions) -> list[_Class]:
    named = {spec.class_id for spec in classes} | {spec.name for spec in classes}
    faults = [f"no class is called {name!r}" for name in options.senses if name not in named]
    leaves: list[tuple[Node, str]] = []
    for spec in classes:
        name = _plain(spec.name or spec.class_id) or spec.class_id
        sense = options.senses.get(spec.class_id, options.senses.get(spec.name or "", spec.synset))
        sense = sense or (spec.class_id if is_wnid(spec.class_id) else None)
        synset = noun_synset(open_wordnet(options.wordnet), sense) if sense else None
        if sense and synset is None:
            faults.append(f"WordNet has no noun synset {sense!r} (class {spec.class_id!r})")
        if synset is None:
            leaves.append((Node(name, spec.class_id, class_id=spec.class_id), ""))
            continue
        if spec.name is None and sense == spec.class_id:
            name = _plain(synset.lemma_names()[0])
        kinds = [_plain(above.lemma_names()[0]) for above in synset.hypernyms() + synset.instance_hypernyms()]
        hint = f" (a kind of {kinds[0]})" if kinds else ""
        leaves.append((Node(name, f"n{synset.offset():08d}", class_id=spec.class_id), hint))
    if faults:
        raise UsageError("--source llm: " + "; ".join(faults) + "; write --sense NAME=n02119789 or NAME=star.n.05")
    names = Counter(_key(leaf.name) for leaf, _ in leaves)
    labels: dict[str, _Class] = {}
    for leaf, hint in leaves:
        forms = chain((leaf.name, f"{leaf.name} [{leaf.class_id}]"), (f"{leaf.name} [{n}]" for n in count(2)))
        label = next(f for f in forms if _key(f) not in labels and (f != leaf.name or names[_key(f)] == 1))
        labels[_key(label)] = _Class(leaf, label, hint)
    return list(labels.values())


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _key(name: str) -> str:
    """What two spellings of one name have in common."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _lines(classes: Iterable[_Class]) -> str:
    # Quoted, so that no name breaks out of its line.
    return "\n".join(json.dumps(c.label, ensure_ascii=False) + c.hint for c in classes)


# -- from questions to a tree ----------------------------------------------------------------------------------


class _Superclass(NamedTuple):
    name: str
    above: str  # the key of its parent; empty at the top
    depth: int


class _Object(tuple[tuple[str, Any], ...]):
    """A JSON object as its pairs: a key that stands twice is seen."""

    __slots__ = ()


class _WrongAnswerError(Exception):
    """What the model has to be told about its answer."""

    def __init__(self, *faults: str) -> None:
        self.faults = faults[: 3 * CHUNK]
        super().__init__("; ".join(self.faults))


def _grow(classes: Sequence[_Class], dialogue: _Dialogue) -> Node:
    shown = [classes[i * len(classes) // SHOWN] for i in range(SHOWN)] if len(classes) > SHOWN else classes
    lowest = max(2, min(len(classes) // 5, 150))
    question = SCHEME.format(count=len(shown), lowest=lowest, depth=MAX_DEPTH - 1, classes=_lines(shown))
    scheme = dialogue.ask("scheme", question, partial(_read_scheme, most=max(20, len(classes))))
    outline = "\n".join("  " * (node.depth - 1) + f"- {node.name}" for node in scheme.values())
    places: list[str] = []
    for start in range(0, len(classes), CHUNK):
        chunk = classes[start : start + CHUNK]
        step = f"classes {start + 1}-{start + len(chunk)} of {len(classes)}"
        question = ASSIGN.format(scheme=outline, count=len(chunk), classes=_lines(chunk))
        places.extend(dialogue.ask(step, question, partial(_read_places, chunk=chunk, scheme=scheme)))
    return _join(classes, places, scheme)


def _read_scheme(answer: _Object, most: int) -> dict[str, _Superclass]:
    """The superclasses by key, parents first."""
    scheme: dict[str, _Superclass] = {}
    faults: dict[str, None] = {}
    stack: list[tuple[str, Any, str, int]] = [(name, below, "", 1) for name, below in reversed(answer)]
    while stack:
        given, below, above, depth = stack.pop()
        name, key = _clean(given), _key(_clean(given))
        if not name:
            faults[f"{_quoted(given)} is no name for a superclass: words of at most {MAX_NAME} characters"] = None
        elif key in scheme:
            faults[f"superclass {_quoted(name)} stands in the hierarchy twice; every name may be used once"] = None
        elif depth > MAX_DEPTH:
            faults[f"the hierarchy is deeper than {MAX_DEPTH} levels at {_quoted(name)}"] = None
            continue
        else:
            scheme[key] = _Superclass(name, above, depth)
        # Many a model ends a hierarchy with a list of names, or with null.
        if isinstance(below, list) and all(isinstance(item, str) for item in below):
            below = _Object((item, _Object()) for item in below)
        if isinstance(below, _Object):
            stack.extend((child, deeper, key, depth + 1) for child, deeper in reversed(below))
        elif below is not None:
            faults[f"the value of {_quoted(given)} is no JSON object"] = None
    if len(scheme) > most:
        faults[f"the hierarchy has {len(scheme)} superclasses; it may have {most}"] = None
    if not scheme and not faults:
        faults["the hierarchy is empty"] = None
    if faults:
        raise _WrongAnswerError(*faults)
    return scheme


def _read_places(answer: _Object, chunk: Sequence[_Class], scheme: Mapping[str, _Superclass]) -> list[str]:
    """For each class the key of the superclass that it stands beneath."""
    labels = {_key(c.label): c.label for c in chunk}
    given = Counter(_key(name) for name, _ in answer)
    faults = [f"class {_quoted(label)} is missing" for key, label in labels.items() if key not in given]
    faults += [
        f"class {_quoted(label)} stands there {given[key]} times" for key, label in labels.items() if given[key] > 1
    ]
    faults += [f"{_quoted(name)} is none of the classes" for name, _ in answer if _key(name) not in labels]
    places: dict[str, str] = {}
    for name, superclass in answer:
        place = _key(_clean(superclass)) if isinstance(superclass, str) else ""
        if place not in scheme and _key(name) in labels:
            faults.append(
                f"class {_quoted(name)} is placed beneath {_quoted(superclass)}, which is not in the hierarchy"
            )
        places[_key(name)] = place
    if faults:
        raise _WrongAnswerError(*faults)
    return [places[key] for key in labels]


def _clean(name: str) -> str:
    """The name without list marks, quotation marks and line breaks; empty if it is none."""
    visible = "".join(c if c.isprintable() else " " for c in unicodedata.normalize("NFC", name))
    words = _plain(re.sub(r"^\W*(\d+[.)]\s+)?", "", visible)).strip("\"'`*-:.,; ")
    usable = 0 < len(words) <= MAX_NAME and any(map(str.isalpha, words)) and not is_wnid(words)
    return words if usable else ""


def _quoted(value: object) -> str:
    if not isinstance(value, str):
        return "something that is no text"
    return repr(value) if len(value) <= 100 else f"{value[:100]!r}…"


def _join(classes: Sequence[_Class], places: Sequence[str], scheme: dict[str, _Superclass]) -> Node:
    below: defaultdict[str, list[tuple[int, Node]]] = defaultdict(list)  # with the first class beneath
    for position, (place, (leaf, _, _)) in enumerate(zip(places, classes, strict=True)):
        below[place].append((position, leaf))

    def children(key: str) -> tuple[Node, ...]:
        # In the order of the classes: samples that differ in the order of the scheme alone are the same tree.
        return tuple(node for _, node in sorted(below[key], key=lambda pair: pair[0]))

    taken = {"root"} | {c.leaf.id for c in classes} | {c.leaf.class_id for c in classes}
    ids: dict[str, str] = {}
    for key in scheme:
        stem = re.sub(r"\W+", "-", key).strip("-")
        ids[key] = next(i for i in chain((stem,), (f"{stem}-{n}" for n in count(2))) if i not in taken)
        taken.add(ids[key])
    for key, superclass in reversed(scheme.items()):  # children before parents
        if key in below:
            node = Node(superclass.name, ids[key], children(key))
            below[superclass.above].append((min(position for position, _ in below[key]), node))
    return Node("entity", "root", children(""))


# -- the dialogue ----------------------------------------------------------------------------------------------


class _Dialogue:
    """The questions of one sample: asked again until the answer is right, answered from the archive where it can."""

    def __init__(self, options: SourceOptions, archive: _Archive, sample: int, draw: Mapping[str, object]) -> None:
        self.options, self.archive, self.sample, self.draw = options, archive, sample, draw

    def ask(self, step: str, question: str, read: Callable[[_Object], _T]) -> _T:
        first = [{"role": "user", "content": question}]
        wanted = {"model": self.options.llm_model, **self.draw, "messages": first}
        where = f"sample {self.sample}, {step}"
        if past := self.archive.recall(wanted):
            try:
                value = read(_parse(past[-1]["answer"], False))
            except _WrongAnswerError as error:
                logger.warning("%s: what the cache holds is not valid (%s); asking anew", where, error)
            else:
                for exchange in past:
                    self.archive.record(exchange | {"sample": self.sample, "step": step})
                return value
        messages, faults = first, tuple[str, ...]()
        exchanges: list[dict[str, Any]] = []
        for attempt in range(1, ANSWERS + 1):
            logger.info("%s: asking %s", where, self.options.llm_model)
            request, answer, cut = self.archive.server(self.options).complete(wanted | {"messages": messages})
            exchange = {"sample": self.sample, "step": step, "attempt": attempt, "request": request, "answer": answer}
            exchanges.append(exchange)
            try:
                value = read(_parse(answer, cut))
            except _WrongAnswerError as error:
                faults = error.faults
                exchange["faults"] = faults
                self.archive.record(exchange)
                logger.warning("%s: the answer cannot be used (%s)", where, _shortened(faults))
                told = "\n".join(f"- {fault}" for fault in faults)
                again = {"role": "user", "content": REPAIR.format(faults=told)}
                messages = [*first, {"role": "assistant", "content": answer[:50_000]}, again]
            else:
                self.archive.record(exchange)
                self.archive.keep(wanted, exchanges)
                return value
        raise HrzsError(
            f"--llm-model {self.options.llm_model}: {where}: after {ANSWERS} answers still wrong: "
            f"{_shortened(faults)}. A stronger model may do better. {self.archive.hint()}"
        )


def _shortened(faults: Sequence[str]) -> str:
    return "; ".join(faults[:10]) + (f"; … and {len(faults) - 10} more" if len(faults) > 10 else "")


def _parse(answer: str, cut: bool) -> _Object:
    # A model that thinks aloud ends its thoughts with this tag.
    said = answer.rpartition("</think>")[2]
    text = said[said.find("{") : said.rfind("}") + 1]
    try:
        parsed = json.loads(text, object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        where = f": {error}" if isinstance(error, json.JSONDecodeError) and text else ""
        end = "; it was cut off at the longest answer the server gives, so be brief" if cut else ""
        raise _WrongAnswerError(f"it is not one valid JSON object{where}{end}") from None
    assert isinstance(parsed, _Object)
    return parsed


# -- what is kept ----------------------------------------------------------------------------------------------


class _Archive:
    """The cache, the transcript of this run, and the server that is asked for what they lack."""

    def __init__(self, folder: Path | None, run: str) -> None:
        self.folder = folder
        self.transcript = None if folder is None else folder / f"transcript-{run}.jsonl"
        self._stream: TextIO | None = None
        self._server: _Server | None = None

    def __enter__(self) -> _Archive:
        if self.folder is not None and self.transcript is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._stream = _aside(self.transcript).open("w", encoding="utf-8", errors="backslashreplace")
            except OSError as error:
                raise UsageError(f"the cache folder {self.folder} cannot be written: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.client.close()
        if self._stream is not None and self.transcript is not None:
            self._stream.close()
            _aside(self.transcript).replace(self.transcript)

    def server(self, options: SourceOptions) -> _Server:
        """Made at the first question that is not in the cache: a full cache needs neither server, key nor `openai`."""
        self._server = self._server or _Server(options)
        return self._server

    def record(self, exchange: Mapping[str, object]) -> None:
        if self._stream is not None:
            try:
                print(json.dumps(exchange, ensure_ascii=False), file=self._stream, flush=True)
            except OSError as error:
                raise HrzsError(f"{self.transcript} cannot be written: {error.strerror}") from error

    def recall(self, wanted: Mapping[str, object]) -> list[dict[str, Any]]:
        """The exchanges kept for this request, the accepted one last; empty if there are none."""
        if self.folder is None:
            return []
        file = self._file(wanted)
        try:
            kept = json.loads(file.read_bytes())
            if kept["request"] != wanted or not all(isinstance(past["answer"], str) for past in kept["exchanges"]):
                raise ValueError("it is the answer to something else")
            return list(kept["exchanges"])
        except FileNotFoundError:
            return []
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            logger.warning("%s cannot be used (%s); asking anew", file, error)
            return []

    def keep(self, wanted: Mapping[str, object], exchanges: Sequence[Mapping[str, object]]) -> None:
        if self.folder is None:
            return
        file = self._file(wanted)
        text = json.dumps({"request": wanted, "exchanges": exchanges}, ensure_ascii=False, indent=1)
        with replacing(file) as aside:
            aside.write_bytes((text + "\n").encode(errors="backslashreplace"))

    def hint(self) -> str:
        kept = f"in {self.transcript}" if self.transcript else "nowhere: no folder was given for it"
        return f"The transcript is kept {kept}."

    def _file(self, wanted: Mapping[str, object]) -> Path:
        assert self.folder is not None
        return self.folder / f"{_digest(wanted)}.json"


def _aside(file: Path) -> Path:
    return file.with_name(f".{file.name}.{os.getpid()}")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# -- the server ------------------------------------------------------------------------------------------------


def _endpoint(options: SourceOptions) -> str | None:
    return options.endpoint or os.environ.get("OPENAI_BASE_URL") or None


class _Server:
    """The endpoint, asked through the `openai` client, which tries again what may work later."""

    def __init__(self, options: SourceOptions) -> None:
        endpoint = _endpoint(options)
        if endpoint is None:
            raise UsageError(
                "--source llm asks a server: name it with --endpoint URL (or OPENAI_BASE_URL), such as "
                f"--endpoint http://127.0.0.1:8000/v1 --llm-model {options.llm_model}"
            )
        if "@" in endpoint:
            raise UsageError("--endpoint must not hold a user or password: the key is read from HRZS_API_KEY")
        if not re.fullmatch(r"https?://[^/?#\s][^?#\s]*", endpoint, re.IGNORECASE):
            raise UsageError(f"--endpoint {endpoint!r}: write the base URL, such as http://127.0.0.1:8000/v1")
        self.endpoint, self.model = endpoint.rstrip("/").removesuffix("/chat/completions"), options.llm_model
        self.key_name = next((name for name in _KEYS if os.environ.get(name, "").strip()), None)
        self.key = os.environ[self.key_name].strip() if self.key_name else None
        if self.key and not (self.key.isascii() and self.key.isprintable()):
            raise UsageError(f"{self.key_name} holds characters that no key has; copy it again")
        try:
            import openai
        except ImportError as error:
            raise UsageError(f"--source llm needs another package: pip install 'hrzs[llm]' ({error})") from error
        try:
            self.client = openai.OpenAI(
                api_key=self.key or "none",  # it insists on one, which `_strip` takes away again
                base_url=self.endpoint,
                max_retries=RETRIES,
                # The key is for the server that was named, and no other.
                http_client=openai.DefaultHttpxClient(
                    follow_redirects=False, event_hooks={"request": [self._strip], "response": [self._bound]}
                ),
            )
        except Exception as error:  # of many kinds: the address, a proxy of the environment, certificates
            raise UsageError(f"--endpoint {endpoint!r}: no connection can be made: {error}") from error
        self.refused: set[str] = set()

    def _strip(self, request: Any) -> None:
        """Take away every header but the needed ones.

        `openai` adds others: some tell of this machine, some come from variables of its own.
        """
        for name in set(request.headers) - _HEADERS:
            del request.headers[name]
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"

    def _bound(self, response: Any) -> None:
        """Read the answer here, so that it is never larger than `MAX_BYTES`."""
        parts, size = [], 0
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > MAX_BYTES:
                response.close()
                raise HrzsError(f"--endpoint {self.endpoint}: the answer is larger than {MAX_BYTES // 2**20} MB")
        response._content = b"".join(parts)  # as `read` leaves it

    def _post(self, sent: Mapping[str, object], until: float) -> str:
        """The server's answer, or its error.

        The client's own limits are on single steps: none is on the whole. A thread that nobody waits for any more does
        not keep the process from ending.
        """
        answer: Future[str] = Future()

        def ask() -> None:
            try:
                answer.set_result(self.client.post("/chat/completions", body=sent, cast_to=str))
            except BaseException as error:
                answer.set_exception(error)

        Thread(target=ask, daemon=True).start()
        try:
            return answer.result(max(0.0, until - monotonic()))
        except TimeoutError:
            raise HrzsError(
                f"--endpoint {self.endpoint}: no whole answer in {DEADLINE:.0f} s. Is it the right address, and is the "
                "model small enough for its machine?"
            ) from None

    def complete(self, request: Mapping[str, object]) -> tuple[dict[str, object], str, bool]:
        """What was sent, the text of the answer, and whether it was cut off."""
        import openai

        until = monotonic() + DEADLINE
        while True:
            sent = {name: value for name, value in request.items() if name not in self.refused}
            try:
                data = self._post(sent, until)
                break
            except openai.APIStatusError as error:
                left = [name for name in _OPTIONAL if name in sent]
                said = f"the server answers {error.status_code}: {self._shown(error.response.text)}"
                if error.status_code not in (400, 422) or not left:
                    place = self._shown(error.response.headers.get("Location", ""))
                    raise self._judge(error.status_code, said, place) from None
                dropped = [name for name in left if name in said] or left[:1]
                logger.info("%s: %s; going without %s", self.endpoint, said, ", ".join(dropped))
                self.refused.update(dropped)
            except (openai.APIConnectionError, UnicodeError) as error:  # UnicodeError: no host is called so
                reason = error.__cause__ or error
                said = self._shown(f"{type(reason).__name__}: {reason}")
                raise HrzsError(
                    f"--endpoint {self.endpoint}: {said}. Is the server running, and is the address right?"
                ) from error
        try:
            choice = json.loads(data)["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            said = self._shown(data)
            raise HrzsError(f"--endpoint {self.endpoint}: the answer is no chat completion: {said}") from None
        # A refusal has no text; half a surrogate pair is none.
        text = text.encode(errors="replace").decode() if isinstance(text, str) else ""
        return sent, self._without_key(text), reason == "length"

    def _judge(self, code: int, said: str, place: str) -> HrzsError:
        key = f"the key in {self.key_name}" if self.key_name else "no key was sent: put one into HRZS_API_KEY, which"
        remedies = dict.fromkeys((401, 403), f"{key} must be valid for this server and model")
        remedies[404] = f"the endpoint usually ends in /v1, and {self.endpoint}/models lists the names of its models"
        remedies |= dict.fromkeys(range(300, 400), f"it redirects to {place!r}: give the address itself")
        call = f"--endpoint {self.endpoint} --llm-model {self.model}: {said}"
        return UsageError(f"{call}; {remedies[code]}") if code in remedies else HrzsError(call)

    def _shown(self, said: str) -> str:
        text = " ".join(self._without_key(said).split())
        return "".join(c for c in text if c.isprintable())[:300]

    def _without_key(self, text: str) -> str:
        # What people write for a server that wants none, such as `none` or `x`, is no secret but part of many a word.
        return text.replace(self.key, "***") if self.key and len(self.key) >= 16 else text
