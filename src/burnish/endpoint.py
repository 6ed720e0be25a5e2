"""Questions to a model behind an OpenAI-compatible endpoint: several at once, asked again where that may help, and none of them twice."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import random
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from burnish.errors import EndpointError

Messages = Sequence[Mapping[str, Any]]
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # what may be better a moment later
FOR_ALL = (401, 403, 404, 405)  # what every other question would be told too
LONGEST_WAIT = 60.0  # seconds between two attempts


@dataclass(frozen=True)
class Reply:
    """What a model said. ended: whether it came to its end. tokens: where asked for, the text and log-probability of each, and the
    likeliest [text, logp] at its place.
    """

    text: str
    ended: bool = True
    tokens: list[list[Any]] = field(default_factory=list)


class Answers:
    """Replies kept in a JSON Lines file as they come, by what was asked: what a kill leaves half written is asked again.

    Threads may share one. Processes may share a file: each sees what the others wrote before it began. path: None where nothing is to be
    kept beyond this process.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self._lock = path, threading.Lock()
        self.kept: dict[str, Reply] = {}
        for line in path.read_bytes().splitlines() if path is not None and path.exists() else ():
            try:
                record = json.loads(line)
                reply = Reply(**record["reply"])
                if isinstance(reply.text, str):
                    self.kept[record["key"]] = reply
            except (ValueError, KeyError, TypeError):
                continue

    def get(self, question: Any) -> Reply | None:
        """The reply to a question of plain values."""
        return self.kept.get(_key_of(question))

    def put(self, question: Any, reply: Reply) -> None:
        with self._lock:
            self.kept[_key_of(question)] = reply
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    # The line end comes first, so that a line which a kill cut short spoils no other.
                    file.write("\n" + json.dumps({"key": _key_of(question), "reply": asdict(reply)}))


def _key_of(question: Any) -> str:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Endpoint:
    """A chat model behind `url` (such as http://localhost:8000/v1).

    key_env: the environment variable that holds the API key; empty where none is needed. timeout: seconds for one attempt. retries:
    further attempts where the endpoint is busy, does not answer, or answers nonsense. at_once: questions under way at a time. answers:
    where answers are kept. wait: how to let seconds pass. Raises EndpointError where the address is none, or the variable is not set.
    """

    url: str
    model: str
    key_env: str = ""
    timeout: float = 60.0
    retries: int = 4
    at_once: int = 4
    answers: Answers | None = None
    wait: Callable[[float], object] | None = None
    _there: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)  # it has answered once

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise EndpointError(
                f"found {self.url!r}", where="endpoint", expected="an address such as http://localhost:8000/v1"
            )
        if self.key_env and not os.environ.get(self.key_env):
            raise EndpointError(
                f"the environment variable {self.key_env} is not set",
                where=self.url,
                expected="the API key in it",
                hint=f"export {self.key_env}=...",
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise EndpointError(
                f"what is in the environment variable {self.key_env} cannot be sent",
                where=self.url,
                expected="an API key of plain letters, digits and signs",
                hint=f"export {self.key_env}=...",
            )

    @property
    def _key(self) -> str:
        return os.environ[self.key_env].strip() if self.key_env else ""

    def complete(self, messages: Messages, *, ended: threading.Event | None = None, **options: Any) -> Reply:
        """The answer to a conversation. options: temperature, max_tokens and whatever else the endpoint knows.

        ended: once it is set, no further attempt is made. Raises EndpointError for a time-out, a refusal, and an answer that is none.
        """
        body = {"model": self.model, "messages": [dict(one) for one in messages], **options}
        question = {"url": self.url, **body}
        known = self.answers.get(question) if self.answers else None
        if known and known.text:  # who said nothing may have more to say another time
            return known
        reply = self._asked(body, ended or threading.Event())
        if self.answers:
            self.answers.put(question, reply)
        return reply

    def complete_all(
        self,
        conversations: Sequence[Messages],
        *,
        every: bool = False,
        progress: Callable[[int], None] = lambda done: None,
        **options: Any,
    ) -> list[Reply | EndpointError]:
        """The answers in their order, an error in the place of one that could not be had; `at_once` of them under way at a time.

        every: all of them are needed, so the first error ends it. Raises EndpointError for that, and where the endpoint is not there or
        lets nobody in: then no question would be answered. What came until then is kept.
        """
        ended, done = threading.Event(), 0
        lock, first = threading.Lock(), list[EndpointError]()

        def ask(messages: Messages) -> Reply | EndpointError:
            nonlocal done
            if ended.is_set():
                return EndpointError("not asked", where=self.url)
            try:
                reply = self.complete(messages, ended=ended, **options)
            except EndpointError as error:
                if every or error.for_all:
                    first.append(error)
                    ended.set()
                return error
            with lock:
                done += 1
                progress(done)
            return reply

        keys = [_key_of(list(messages)) for messages in conversations]
        different = dict(zip(keys, conversations, strict=True))
        with ThreadPoolExecutor(self.at_once) as pool:
            try:
                found = dict(zip(different, pool.map(ask, different.values()), strict=True))
            except BaseException:
                ended.set()
                raise
        if first:
            raise first[0]
        return [found[key] for key in keys]

    def _asked(self, body: Mapping[str, Any], ended: threading.Event) -> Reply:
        for attempt in range(self.retries + 1):
            try:
                return self._once(body)
            except EndpointError as error:
                if not error.again:
                    raise
                last, pause = error, max(error.pause, 2**attempt * random.uniform(0.5, 1))  # or all come back together
            if attempt < self.retries:
                (self.wait or ended.wait)(min(pause, LONGEST_WAIT))
                if ended.is_set():
                    break
        if self.retries:
            last.found += f" ({attempt + 1} tries)"
        raise last

    def _once(self, body: Mapping[str, Any]) -> Reply:
        refused = f"export {self.key_env}=...   the key was refused" if self.key_env else "name the variable of a key"
        absent = f"is the model {self.model!r} served there, and does the address end in /v1?"
        hints = {401: refused, 403: refused, 404: absent, 405: absent}
        known = self._there.is_set()
        raw = _send(self.url, body, key=self._key, timeout=self.timeout, hints=hints, known=known)
        self._there.set()
        reply = _reply_of(raw, self.url)
        if body.get("logprobs") and reply.text and not reply.tokens:
            raise EndpointError(
                "it gives no log-probabilities",
                where=self.url,
                expected="choices[0].logprobs.content",
                for_all=True,
                lacks="logprobs",
            )
        return reply


def _send(
    url: str, body: Mapping[str, Any], *, key: str, timeout: float, hints: Mapping[int, str], known: bool
) -> bytes:
    """What the endpoint sends back, asked once. hints: what to do about an HTTP status that it refuses with.

    known: it has answered before, so where nobody is there it may be starting anew. Raises EndpointError for everything else, without the
    key in it.
    """
    address = url.rstrip("/")
    address = address if address.endswith("/chat/completions") else f"{address}/chat/completions"
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            return reply.read()  # type: ignore[no-any-return]
    except urllib.error.HTTPError as error:
        raise _refused(error, url, key, hints) from error
    except TimeoutError as error:
        raise _late(url, timeout) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _late(url, timeout) from error
        late = isinstance(error.reason, socket.gaierror) and error.reason.errno == socket.EAI_AGAIN
        nobody = isinstance(error.reason, ConnectionRefusedError | socket.gaierror) and not late
        raise EndpointError(
            f"it cannot be reached: {error.reason}",
            where=url,
            expected="an endpoint that answers there",
            hint=f"curl {url.rstrip('/')}/models   shows whether one does",
            again=known or not nobody,
            for_all=nobody,
        ) from error
    except (ValueError, http.client.InvalidURL) as error:
        raise EndpointError(f"this is no address: {error}", where=url, for_all=True) from error
    except (OSError, http.client.HTTPException) as error:
        raise EndpointError(f"the connection broke off: {error}", where=url, again=True) from error


def _late(url: str, timeout: float) -> EndpointError:
    return EndpointError(f"no answer within {timeout:g} s", where=url, expected="one", again=True)


def _reply_of(raw: bytes, url: str) -> Reply:
    """Raises EndpointError for what is no reply: a proxy's page, or half of one."""
    try:
        choice = json.loads(raw)["choices"][0]
        text = choice["message"]["content"]
        text = "" if text is None else text  # which is how some say nothing
        if not isinstance(text, str):
            raise TypeError("the content is no text")
        listed = (choice.get("logprobs") or {}).get("content") or []
        tokens = [[*_pair(one), [_pair(other) for other in one.get("top_logprobs") or ()]] for one in listed]
        return Reply(text, choice.get("finish_reason") != "length", tokens)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EndpointError(
            f"this is no answer: {raw[:80].decode(errors='replace')!r}",
            where=url,
            expected="choices[0].message.content, as OpenAI's chat completions have it",
            again=True,
        ) from error


def _pair(token: Mapping[str, Any]) -> list[Any]:
    return [token["token"], float(token["logprob"])]


def _refused(error: urllib.error.HTTPError, url: str, key: str, hints: Mapping[int, str]) -> EndpointError:
    said = ""
    with contextlib.suppress(OSError):
        said = error.read(2000).decode(errors="replace")
    said = " ".join((said.replace(key, "***") if key else said).split())[:200]
    return EndpointError(
        f"HTTP {error.code} {error.reason}{f': {said}' if said else ''}",
        where=url,
        hint=hints.get(error.code, ""),
        status=error.code,
        again=error.code in AGAIN,
        for_all=error.code in FOR_ALL,
        pause=_seconds(error.headers.get("Retry-After") if error.headers else None),
    )


def _seconds(header: str | None) -> float:
    try:
        return float(header or 0)
    except ValueError:  # a date: the usual pause will do
        return 0.0
