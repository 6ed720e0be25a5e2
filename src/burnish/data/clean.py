"""Texts made whole: mojibake, control and bidi characters, markup, white space; what cannot be mended is dropped or noted.

Every change is an entry of the ledger with the text before and after. What might be meant (special tokens spelled out, a
placeholder for an answer, another language, personal data) is noted and left as it is.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from typing import Any

from burnish.data.ledger import Entry, Ledger
from burnish.data.private import find_private, masked
from burnish.data.rows import Conversation, Judged, Labelled, Pair, Prompt, Ranking, Row, Turns

_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f"  # C0 and C1, without tab, line feed, carriage return and next line
    "\u200b\u2060\ufeff"  # zero width, but for the joiners that many scripts and emoji need
    "\u202a-\u202e\u2066-\u2069"  # bidi embeddings, overrides and isolates (Trojan Source, CVE-2021-42574)
    "\ufff9-\ufffb\U000e0000-\U000e007f"  # annotations, and tags that hide text
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"  # halves of characters and what is no character
)
_BREAKS = re.compile(r"\r\n?|[\x85\u2028\u2029]")
_SPACES = re.compile(r"[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_LINE_ENDS = re.compile(r"[ \t]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{4,}")
_UNTIDY = re.compile(r"\A\s|\s\Z|[ \t]\n|\r|\n{4}")
_ASCII_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

# Markup is taken for residue of a web page only where nothing says that the row is about markup.
_TAG = re.compile(
    r"</?(?:p|br|hr|div|span|a|b|i|u|em|strong|small|font|ul|ol|li|dl|dt|dd|h[1-6]|table|tbody|thead|tr|td|th|img|center|blockquote|section"
    r"|article|header|footer|nav|main|sup|sub|label|button|input|form)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_HIDDEN = re.compile(r"<!--.*?-->|<(script|style)\b[^>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_BLOCK = re.compile(r"<(?:br|hr|/p|/div|/li|/tr|/h[1-6]|/blockquote)\b[^<>]*>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:[a-zA-Z]{2,8}|#\d{2,6}|#x[0-9a-fA-F]{2,5});")
_ABOUT_MARKUP = re.compile(
    r"```|<!doctype|<html|<svg|\b(?:x?html5?|xml|css|jsx|markup|tags?|javascript|template)\b", re.IGNORECASE
)

_PLACEHOLDER = re.compile(
    r"\W*(?:n/?a|to ?do|tbd|null|none|nan|undefined|lorem ipsum.*|placeholder|fixme|x{3,}|\?+|\.{3,}|-+|your (?:text|answer) here)\W*",
    re.IGNORECASE | re.DOTALL,
)

LETTERS = 60  # of a text whose language is told: shorter ones mislead
SURE = 0.99  # probability of a language from which it counts
SEEN = 20  # texts before the usual language of the file is known
USUAL = 0.8  # share of the texts that makes a language the usual one


def clean_rows(
    rows: Iterable[Row], ledger: Ledger, *, special_tokens: Collection[str] = (), redact: bool = False
) -> Iterator[Row]:
    """The rows with their texts mended; rows of which nothing is left are dropped.

    special_tokens: the model's control tokens. A text that spells one is noted; tokenizing it never makes it a control token.
    redact: replace secrets and personal data by their kind, where they are else only noted.
    """
    specials = [token for token in special_tokens if len(token) > 2]
    languages = _Languages(ledger)
    for row in rows:
        row = _mended(row, ledger, redact)
        if reason := _missing(row):
            ledger.add(_entry(row, "dropped", reason, "", "", "give it some text, or leave the row out"))
            continue
        _note(row, specials, ledger, redact)
        languages.look(row)
        yield row
    languages.end()


def mend(text: str, *, about_markup: bool = False) -> tuple[str, list[tuple[str, str, str]]]:
    """The text made whole, and what was done to it as (reason, before, after)."""
    done: list[tuple[str, str, str]] = []
    steps: list[tuple[str, Callable[[str], str]]] = []
    if not text.isascii():
        steps += [("mojibake", _fix_encoding), ("control or bidi characters", _drop_control)]
    elif _ASCII_CONTROL.search(text):
        steps.append(("control or bidi characters", _drop_control))
    if not about_markup and ("<" in text or "&" in text):
        steps.append(("markup", _strip_markup))
    if not text.isascii() or _UNTIDY.search(text) or steps:
        steps.append(("white space", _tidy))
    for reason, step in steps:
        after = step(text)
        if after != text:
            done.append((reason, text, after))
            text = after
    return text, done


def _fix_encoding(text: str) -> str:
    import ftfy

    return ftfy.fix_encoding(text)


def _drop_control(text: str) -> str:
    return _CONTROL.sub("", text)


def _strip_markup(text: str) -> str:
    """The text without tags and with its entities as characters; a text that is mostly tags is left alone."""
    words = _HIDDEN.sub(" ", text)
    if len(_TAG.findall(words)) * 2 > len(words.split()):
        return text
    words = _TAG.sub("", _BLOCK.sub("\n", words))
    return _ENTITY.sub(lambda entity: html.unescape(entity.group()), words)


def _tidy(text: str) -> str:
    """One kind of line end and of space, nothing at the ends of lines and of the text; indents stay."""
    text = _SPACES.sub(" ", _BREAKS.sub("\n", text))
    return _BLANK_LINES.sub("\n\n\n", _LINE_ENDS.sub("", text)).strip()


def _texts(row: Row) -> list[str]:
    """The texts of a row, in the order in which `map_texts` changes them."""
    found: list[str] = []

    def keep(role: str, text: str) -> str:
        found.append(text)
        return text

    row.map_texts(keep)
    return found


def _mended(row: Row, ledger: Ledger, redact: bool) -> Row:
    texts = _texts(row)
    about_markup = any("<" in text or "&" in text for text in texts) and any(map(_ABOUT_MARKUP.search, texts))
    results = [mend(text, about_markup=about_markup) for text in texts]
    changed = any(done for _, done in results)
    for _, done in results:
        for reason, before, after in done:
            ledger.add(_entry(row, "changed", reason, before, after, "nothing: it is mended"))
    finals = [text for text, _ in results]
    if redact:
        for number, text in enumerate(finals):
            if (found := find_private(text)) and (hidden := masked(text)) != text:
                changed, finals[number] = True, hidden
                for kind in sorted({one.kind for one in found}):
                    ledger.add(
                        _entry(
                            row, "changed", f"redacted {kind}", hidden, hidden, "nothing: it is replaced by its kind"
                        )
                    )
    if not changed:
        return row
    left = iter(finals)
    return row.map_texts(lambda role, text: next(left))


def _missing(row: Row) -> str:
    """Why nothing can be learnt from the row, or an empty text."""
    match row:
        case Conversation():
            empty = any(not turn.content.strip() and not turn.calls for turn in row.turns if turn.role == "assistant")
            return "the answer is empty" if empty else _without_prompt(row.turns)
        case Pair():
            if any(not _said(turns) for turns in (row.chosen, row.rejected)):
                return "the answer is empty"
            same = _said(row.chosen) == _said(row.rejected) and row.chosen == row.rejected
            return "chosen and rejected are the same" if same else _without_prompt(row.prompt)
        case Judged():
            return "the answer is empty" if not _said(row.completion) else _without_prompt(row.prompt)
        case Ranking():
            return "the answer is empty" if not all(map(_said, row.answers)) else _without_prompt(row.prompt)
        case Prompt() | Labelled():
            return _without_prompt(row.turns)
    return "" if row.prompt_text().strip() else "the text is empty"


def _said(turns: Turns) -> str:
    return "".join(turn.content.strip() or ("call" if turn.calls else "") for turn in turns)


def _without_prompt(turns: Turns) -> str:
    return "" if any(turn.content.strip() for turn in turns if turn.role == "user") else "the prompt is empty"


def _note(row: Row, specials: Collection[str], ledger: Ledger, redact: bool) -> None:
    """Enter what should be looked at although the row stays as it is."""
    for text in _texts(row):
        if "<" in text or "[" in text or "|" in text:
            found = [token for token in specials if token in text]
            if found:
                fix = f"take {found[0]} out, unless it is meant: it is learnt as plain characters"
                ledger.add(_entry(row, "noted", "special tokens in the text", text, "", fix))
        if not redact:
            for kind in sorted({one.kind for one in find_private(text)}):
                ledger.add(
                    _entry(row, "noted", kind, masked(text), "", "data: {redact: true}   in the recipe, or take it out")
                )
    answer = "" if isinstance(row, Labelled) else row.answer_text()
    if answer and len(answer) < 60 and _PLACEHOLDER.fullmatch(answer):
        ledger.add(
            _entry(row, "noted", "a placeholder for an answer", answer, "", "write the answer, or leave the row out")
        )


def _entry(row: Row, action: Any, reason: str, before: str, after: str, fix: str) -> Entry:
    return Entry(row.file, row.line, action, reason, masked(before), masked(after), fix)


class _Languages:
    """Notes the texts in another language than most of the file. It can tell only once it has seen some."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.counts: Counter[str] = Counter()
        self.waiting: list[tuple[Row, str]] = []

    def look(self, row: Row) -> None:
        text = row.prompt_text()
        if len(text) < LETTERS or sum(map(str.isalpha, text[:400])) < LETTERS:
            return
        language, probability = _identifier().classify(text[:400])
        if probability < SURE:
            return
        self.counts[language] += 1
        if self.counts.total() < SEEN:
            self.waiting.append((row, language))
            return
        self.end()
        self._judge(row, language)

    def end(self) -> None:
        """Judge the first texts, which had to wait."""
        for row, language in self.waiting:
            self._judge(row, language)
        self.waiting.clear()

    def _judge(self, row: Row, language: str) -> None:
        usual, count = self.counts.most_common(1)[0]
        if language != usual and count > USUAL * self.counts.total() and self.counts.total() > 2:
            fix = "leave the row out, unless it is meant"
            reason = f"another language ({language}) than most rows ({usual})"
            self.ledger.add(_entry(row, "noted", reason, row.prompt_text()[:200], "", fix))


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
