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
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.errors import EndpointError
from burnish.folder import write_text

Messages = Sequence[Mapping[str, str]]
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # what may be better a moment later
FOR_ALL = (401, 403, 404, 405)  # what every other question would be told too
LONGEST_WAIT = 60.0  # seconds between two attempts


class Answers:
    """Answers that were given, one file each, so that nothing is asked twice. Several threads and processes may use one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, question: Any) -> str | None:
        """The answer to a question of plain values; None where there is none, or its file is damaged."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            kept = json.loads(self._path(question).read_text(encoding="utf-8"))["answer"]
            return kept if isinstance(kept, str) else None
        return None

    def put(self, question: Any, answer: str) -> None:
        write_text(self._path(question), json.dumps({"question": question, "answer": answer}))

    def _path(self, question: Any) -> Path:
        digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:32]}.json"


@dataclass(frozen=True)
class Endpoint:
    """A chat model behind `url` (such as http://localhost:8000/v1).

    key_env: the environment variable that holds the API key; empty where none is needed. timeout: seconds for one attempt. retries:
    further attempts where the endpoint is busy or does not answer. at_once: questions under way at a time. answers: where answers are kept.
    Raises EndpointError where the address is none, and where the variable is not set.
    """

    url: str
    model: str
    key_env: str = ""
    timeout: float = 60.0
    retries: int = 4
    at_once: int = 4
    answers: Answers | None = None
    wait: Callable[[float], None] = time.sleep

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

    def complete(self, messages: Messages, **options: Any) -> str:
        """The answer to a conversation. options: temperature, max_tokens and whatever else the endpoint knows.

        Raises EndpointError for a time-out, a refusal, and an answer that is none.
        """
        question = {"url": self.url, "model": self.model, "messages": [dict(one) for one in messages], **options}
        if self.answers and (known := self.answers.get(question)) is not None:
            return known
        answer = self._asked({key: value for key, value in question.items() if key != "url"})
        if self.answers:
            self.answers.put(question, answer)
        return answer

    def complete_all(self, conversations: Sequence[Messages], **options: Any) -> list[str | EndpointError]:
        """The answers in their order, an error in the place of one that could not be had; `at_once` of them under way at a time.

        Raises EndpointError where the endpoint is not there or lets nobody in: then no question would be answered.
        """
        ended = threading.Event()

        def ask(messages: Messages) -> str | EndpointError:
            if ended.is_set():
                return EndpointError("not asked", where=self.url)
            try:
                return self.complete(messages, **options)
            except EndpointError as error:
                if error.for_all:
                    ended.set()
                return error

        with ThreadPoolExecutor(self.at_once) as pool:
            found = list(pool.map(ask, conversations))
        for one in found:
            if isinstance(one, EndpointError) and one.for_all:
                raise one
        return found

    def _asked(self, body: Mapping[str, Any]) -> str:
        for attempt in range(self.retries + 1):
            try:
                return self._once(body)
            except EndpointError as error:
                if not error.again or attempt == self.retries:
                    raise
                pause = max(error.pause, 2**attempt * random.uniform(0.5, 1))  # spread out, or all come back together
                self.wait(min(pause, LONGEST_WAIT))
        raise AssertionError("the last attempt returns or raises")

    def _once(self, body: Mapping[str, Any]) -> str:
        key = os.environ[self.key_env] if self.key_env else ""
        refused = f"export {self.key_env}=...   the key was refused" if self.key_env else "name the variable of a key"
        absent = f"is the model {self.model!r} served there, and does the address end in /v1?"
        hints = {401: refused, 403: refused, 404: absent, 405: absent}
        return _answer_of(send(self.url, body, key=key, timeout=self.timeout, hints=hints), self.url)


def send(url: str, body: Mapping[str, Any], *, key: str, timeout: float, hints: Mapping[int, str]) -> bytes:
    """What the endpoint sends back, asked once. hints: what to do about an HTTP status that it refuses with.

    Raises EndpointError for everything else, without the key in it.
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
        nobody = isinstance(error.reason, ConnectionRefusedError | socket.gaierror)
        raise EndpointError(
            f"it cannot be reached: {error.reason}",
            where=url,
            expected="an endpoint that answers there",
            hint=f"curl {url.rstrip('/')}/models   shows whether one does",
            again=not nobody,
            for_all=nobody,
        ) from error
    except (ValueError, http.client.InvalidURL) as error:
        raise EndpointError(f"this is no address: {error}", where=url, for_all=True) from error
    except (OSError, http.client.HTTPException) as error:
        raise EndpointError(f"the connection broke off: {error}", where=url, again=True) from error


def _late(url: str, timeout: float) -> EndpointError:
    return EndpointError(f"no answer within {timeout:g} s", where=url, expected="one", again=True)


def _answer_of(reply: bytes, url: str) -> str:
    try:
        answer = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        answer = None
    if not isinstance(answer, str):
        raise EndpointError(
            f"this is no answer: {reply[:80].decode(errors='replace')!r}",
            where=url,
            expected="choices[0].message.content, as OpenAI's chat completions have it",
        )
    return answer.strip()


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
