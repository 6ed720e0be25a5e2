"""A teacher behind an OpenAI-compatible endpoint: what it answers, with the probabilities of its tokens where they are asked for."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from burnish.completions import LONGEST_WAIT, send
from burnish.errors import EndpointError, ModelError


@dataclass(frozen=True)
class Reply:
    """What a teacher said. tokens: where asked for, the text and log-probability of each, and the likeliest [text, logp] at its place."""

    text: str
    ended: bool
    tokens: list[list[Any]] = field(default_factory=list)


class Answers:
    """Replies kept in a JSON Lines file as they come, by what was asked: what a kill leaves half written is asked again."""

    def __init__(self, path: Path | None) -> None:
        self.path, self._lock = path, threading.Lock()
        self.kept: dict[str, Reply] = {}
        for line in path.read_bytes().splitlines() if path is not None and path.exists() else ():
            try:
                record = json.loads(line)
                self.kept[record["key"]] = Reply(**record["reply"])
            except (ValueError, KeyError, TypeError):
                continue

    def add(self, key: str, reply: Reply) -> None:
        with self._lock:
            self.kept[key] = reply
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    # The line end comes first, so that a line which a kill cut short spoils no other.
                    file.write("\n" + json.dumps({"key": key, "reply": asdict(reply)}))


def key_of_question(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Endpoint:
    """url: up to and with `/v1`. model: what the endpoint calls it. key_variable: the environment variable that holds the key.

    timeout: seconds for one answer. retries: further tries, after backoff seconds that double each time or what the endpoint asks for.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    retries: int = 5
    parallel: int = 4
    backoff: float = 1.0
    _stopped: threading.Event = field(default_factory=threading.Event, repr=False)  # nobody waits for further tries

    def ask(
        self,
        conversations: Sequence[list[dict[str, Any]]],
        answers: Answers,
        *,
        max_tokens: int,
        top_logprobs: int | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Reply]:
        """The reply to each conversation, greedily decoded. top_logprobs: how many alternatives to each token; None for no figures.

        Raises ModelError where it does not answer after all tries, refuses, or answers what is no reply; what came until then is kept.
        """
        bodies = [self.body(messages, max_tokens, top_logprobs) for messages in conversations]
        keys = [key_of_question(self.url, body) for body in bodies]
        waiting = {key: body for key, body in zip(keys, bodies, strict=True) if key not in answers.kept}
        with ThreadPoolExecutor(self.parallel) as pool:
            asked = {pool.submit(self.one, body): key for key, body in waiting.items()}
            try:
                for done, future in enumerate(as_completed(asked), 1):
                    answers.add(asked[future], future.result())
                    progress(len(keys) - len(waiting) + done)
            except BaseException:
                self._stopped.set()
                for future in asked:
                    future.cancel()
                for future, key in asked.items():  # those that are under way are paid for: they are kept
                    if not future.cancelled() and future.exception() is None:
                        answers.add(key, future.result())
                raise
        return [answers.kept[key] for key in keys]

    def body(self, messages: list[dict[str, Any]], max_tokens: int, top_logprobs: int | None) -> dict[str, Any]:
        figures = {} if top_logprobs is None else {"logprobs": True, "top_logprobs": top_logprobs}
        return {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": max_tokens, **figures}

    def one(self, body: dict[str, Any]) -> Reply:
        """One reply, however many tries it takes. Raises ModelError."""
        key = os.environ.get(self.key_variable, "")
        for attempt in range(self.retries + 1):
            pause = 0.0
            try:
                return self._reply(send(self.url, body, key=key, timeout=self.timeout, hints=self._hints(key)), body)
            except EndpointError as error:
                if error.status and not error.again:
                    raise self._error(f"it refuses with {error.found}", hint=error.hint) from error
                failure, pause = error.found, error.pause
            except _NoReply as error:
                failure = f"what it answers is no reply: {error}"
            wait = min(max(self.backoff * 2**attempt, pause), LONGEST_WAIT)
            if attempt < self.retries and self._stopped.wait(wait):
                break
        tries = f" ({self.retries + 1} tries)" if self.retries else ""
        raise self._error(failure + tries, hint="typed again, the run goes on: the answers that came are kept")

    def _reply(self, raw: bytes, body: dict[str, Any]) -> Reply:
        try:
            choice = json.loads(raw)["choices"][0]
            text = choice["message"]["content"] or ""
            if not isinstance(text, str):
                raise TypeError("the content is no text")
            listed = (choice.get("logprobs") or {}).get("content") or []
            tokens = [
                [
                    one["token"],
                    float(one["logprob"]),
                    [[o["token"], float(o["logprob"])] for o in one.get("top_logprobs") or ()],
                ]
                for one in listed
            ]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _NoReply(f"{type(error).__name__}: {error}; {raw[:120]!r}") from error
        if body.get("logprobs") and text and not tokens:
            raise self._error("it gives no log-probabilities", hint="distill: {on: answers}   needs nothing but text")
        return Reply(text, choice.get("finish_reason") != "length", tokens)

    def _hints(self, key: str) -> dict[int, str]:
        set_or_not = "is set" if key else "is not set"
        refused = f"export {self.key_variable}=...   ({set_or_not}); distill.key_variable names another"
        return {401: refused, 403: refused, 404: "--set distill.endpoint_model=NAME"}

    def _error(self, found: str, *, hint: str) -> ModelError:
        return ModelError(
            f"the teacher fails: {found}", where=self.url, expected="an OpenAI-compatible endpoint", hint=hint
        )


class _NoReply(Exception):
    pass
