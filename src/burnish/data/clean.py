"""Texts made whole: mojibake, control and bidi characters, markup, white space; what cannot be mended is dropped or noted.

Every change is an entry of the ledger with the text before and after. What might be meant (special tokens spelled out, a
placeholder for an answer, another language, personal data) is noted and left as it is.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from os.path import commonprefix
from typing import Any

from burnish.data.ledger import EXCERPT, Action, Entry, Ledger
from burnish.data.private import find_private, masked
from burnish.data.rows import Conversation, Judged, Labelled, Pair, Prompt, Ranking, Row, Turns

_CONTROL = re.compile(
    "(\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,6}\U000e007f)"  # the flag of a region, which stays
    "|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"  # C0 and C1, but for what breaks a line
    "\xad\u200b\u2060-\u2064\ufeff"  # without width
    "\u202a-\u202e\u2066-\u2069"  # bidi embeddings, overrides and isolates (Trojan Source, CVE-2021-42574)
    "\ufff9-\ufffb\U000e0000-\U000e007f"  # annotations, and tags that hide text
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"  # halves of characters and what is no character
    "|(?<![^\x00-\x7f])[\u200c\u200d]+(?![^\x00-\x7f])"  # joiners, where no script and no emoji needs them
)
_BREAKS = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_SPACES = re.compile(r"[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_LINE_ENDS = re.compile(r"(?<![ \t])[ \t]++$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{4,}")
_UNTIDY = re.compile(r"\A\s|\s\Z|[ \t]\n|[\r\x0b\x0c]|\n{4}")
_ASCII_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")

# Markup is taken for residue of a web page only where nothing says that the row is about markup or code. Names that people
# use to mark the parts of a prompt (article, input, label) are none of it, nor is what carries meaning (sup, table).
_BLOCKS = r"p|div|ul|ol|li|dl|dt|dd|h[1-6]|center|blockquote"
_NAMES = rf"(?:{_BLOCKS}|span|a|b|i|u|em|strong|small|font|img)"
_REST = r"(?:\s+[a-z:-]+=[^<>]*)?\s*/?>"
_RESIDUE = re.compile(rf"</{_NAMES}\s*>|<(?:[bh]r|p){_REST}|<img\s[^<>]*>|<!--|<(?:script|style)\b", re.IGNORECASE)
_TAG = re.compile(rf"</?{_NAMES}{_REST}", re.IGNORECASE)
_BREAK_TAG = re.compile(rf"<(?:/?(?:{_BLOCKS})|[bh]r){_REST}\s*", re.IGNORECASE)
_HIDDEN = re.compile(
    r"<!--(?:(?!<!--).)*?-->|<(script|style)\b[^<>]*>(?:(?!<\1\b).)*?</\1\s*>", re.IGNORECASE | re.DOTALL
)
_ENTITY = re.compile(r"&(?:[a-zA-Z]{2,8}|#\d{2,6}|#x[0-9a-fA-F]{2,5});")
_ABOUT_MARKUP = re.compile(
    r"```|<!doctype|<(?:html|head|body|svg|table|t[dhr])\b|(?-i:</?[A-Z][a-z]\w+)|className="
    r"|\b(?:x?html5?|xml|css|jsx?|tsx|php|sql|react|vue|angular|(?:java|type)script|markup|markdown|tags?|templates?|regex)\b"
    r"|[{}][ \t]*$|=>|==|&&|\);|\bdef \w+\(",
    re.IGNORECASE | re.MULTILINE,
)

_PLACEHOLDER = re.compile(
    r"\W*(?:n/?a|to ?do|tbd|null|none|nan|undefined|lorem ipsum.*|placeholder|fixme|x{3,}|\?+|\.{3,}|-+|your (?:text|answer) here)\W*",
    re.IGNORECASE | re.DOTALL,
)
PLACEHOLDER_LENGTH = 60  # characters above which an answer is none

LETTERS = 60  # of a text whose language is told: shorter ones mislead
LOOKED_AT = 200  # characters of it
SURE = 0.99  # probability of a language from which it counts
SEEN = 20  # texts before the usual language of the file is known
USUAL = 0.8  # share of the texts that makes a language the usual one
_SIGNS = re.compile(r"[!-@\[-`{-~]")  # of code, JSON and tables there are more than of prose

Change = tuple[int, str, str, str]  # the number of a text, the reason, before, after


def clean_rows(
    rows: Iterable[Row], ledger: Ledger, *, special_tokens: Collection[str] = (), redact: bool = False
) -> Iterator[Row]:
    """The rows with their texts mended; rows of which nothing is left are dropped. What is clean already stays as it is.

    special_tokens: the model's control tokens. A text that spells one is noted; tokenizing it never makes it a control token.
    redact: replace secrets and personal data by their kind, where they are else only noted.
    """
    specials = [token for token in special_tokens if len(token) > 2]
    prompts, answers = _Languages("rows", ledger), _Languages("answers", ledger)
    for row in rows:
        row, texts = _mended(row, ledger, redact)
        if reason := _missing(row):
            ledger.add(_entry(row, "dropped", reason, fix="give it some text, or leave the row out"))
            continue
        for text in texts:
            _note(row, text, specials, ledger)
        answer = row.answer_text()
        if len(answer) < PLACEHOLDER_LENGTH and not isinstance(row, Labelled) and _PLACEHOLDER.fullmatch(answer):
            fix = "write the answer, or leave the row out"
            ledger.add(_entry(row, "noted", "a placeholder for an answer", answer, fix=fix))
        prompts.look(row, row.prompt_text())
        answers.look(row, answer)
        yield row
    prompts.end()
    answers.end()


def _mended(row: Row, ledger: Ledger, redact: bool) -> tuple[Row, list[str]]:
    """The row and its texts, of which nothing is left to mend."""
    given = _texts(row)
    texts = given
    while True:
        texts, changes = _mend(texts)
        for number, reason, before, after in changes:
            shown = _excerpts(before, after, texts[number])
            ledger.add(_entry(row, "changed", reason, *shown, fix="nothing: it is mended"))
        hidden = [masked(text) for text in texts] if redact else texts
        if hidden == texts:
            break
        for text, after in zip(texts, hidden, strict=True):
            for kind in sorted({one.kind for one in find_private(text)}):
                fix = "nothing: it is replaced by its kind"
                ledger.add(_entry(row, "changed", f"redacted {kind}", text, after, fix=fix))
        texts = hidden
    if texts is given:
        return row, texts
    left = iter(texts)
    return row.map_texts(lambda role, text: next(left)), texts


def _mend(texts: list[str]) -> tuple[list[str], list[Change]]:
    """The texts of one row made whole, and what was done. Goes on until nothing is left: one step may show work for another."""
    changes: list[Change] = []
    while True:
        about_markup = any("<" in text or "&" in text for text in texts) and any(map(_ABOUT_MARKUP.search, texts))
        fresh = [
            (number, *change) for number, text in enumerate(texts) for change in _steps(text, about_markup=about_markup)
        ]
        if not fresh:
            return texts, changes
        changes += fresh
        texts = list(texts)
        for number, _, _, after in fresh:
            texts[number] = after


def _steps(text: str, *, about_markup: bool) -> Iterator[tuple[str, str, str]]:
    """What one pass does to a text, as (reason, before, after)."""
    steps = []
    if not text.isascii():
        steps += [("mojibake", _fix_encoding), ("control or bidi characters", _drop_control)]
    elif _ASCII_CONTROL.search(text):
        steps.append(("control or bidi characters", _drop_control))
    if not about_markup and ("<" in text or "&" in text):
        steps.append(("markup", _strip_markup))
    if steps or _UNTIDY.search(text):
        steps.append(("white space", _tidy))
    for reason, step in steps:
        after = step(text)
        if after != text:
            yield reason, text, after
            text = after


def _fix_encoding(text: str) -> str:
    import ftfy

    return ftfy.fix_encoding(text)


def _drop_control(text: str) -> str:
    return _CONTROL.sub(r"\1", text)


def _strip_markup(text: str) -> str:
    """The text without tags and with its entities as characters; one that is nothing but tags keeps them."""
    if _RESIDUE.search(text):
        words = _TAG.sub("", _BREAK_TAG.sub("\n", _HIDDEN.sub(" ", text)))
        text = words if words.strip() else text
    return _ENTITY.sub(lambda entity: html.unescape(entity.group()), text)


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


def _excerpts(before: str, after: str, final: str) -> tuple[str, str]:
    """Both texts from where they part. A secret that only mending brings to light stays hidden in them, too."""
    shown = [
        masked(text) if len(find_private(text)) >= len(find_private(final)) else "(hidden: it holds something private)"
        for text in (before, after)
    ]
    parted = len(commonprefix(shown))  # noqa: RUF071 - of texts, character by character
    start = max(0, parted - EXCERPT // 10) if parted > EXCERPT // 2 else 0
    return shown[0][start:], shown[1][start:]


def _missing(row: Row) -> str:
    """Why nothing can be learnt from the row, or an empty text."""
    match row:
        case Conversation():
            empty = any(not turn.content.strip() and not turn.calls for turn in row.turns if turn.role == "assistant")
            return "the answer is empty" if empty else _without_prompt(row.turns)
        case Pair():
            if any(not _said(turns) for turns in (row.chosen, row.rejected)):
                return "the answer is empty"
            same = row.chosen == row.rejected
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


def _note(row: Row, text: str, specials: Collection[str], ledger: Ledger) -> None:
    """Enter what should be looked at although it stays as it is."""
    if ("<" in text or "[" in text or "|" in text) and (found := [token for token in specials if token in text]):
        fix = f"take {found[0]} out, unless it is meant: it is learnt as plain characters"
        ledger.add(_entry(row, "noted", "special tokens in the text", text, fix=fix))
    for kind in sorted({one.kind for one in find_private(text)}):
        ledger.add(_entry(row, "noted", kind, text, fix="data: {redact: true}   in the recipe, or take it out"))


def _entry(row: Row, action: Action, reason: str, before: str = "", after: str = "", *, fix: str) -> Entry:
    return Entry(row.file, row.line, action, reason, before, after, fix)


class _Languages:
    """Notes the texts in another language than most of the file. It can tell only once it has seen some."""

    def __init__(self, of: str, ledger: Ledger) -> None:
        self.of, self.ledger = of, ledger
        self.counts: Counter[str] = Counter()
        self.waiting: list[tuple[Row, str, str]] = []

    def look(self, row: Row, text: str) -> None:
        text = text[:LOOKED_AT]
        if len(text) < LETTERS or len(_SIGNS.findall(text)) > 0.15 * len(text):
            return
        if sum(map(str.isalpha, text)) < LETTERS:
            return
        language, probability = _identifier().classify(text)
        if probability < SURE:
            return
        self.counts[language] += 1
        self.waiting.append((row, text, language))
        if self.counts.total() >= SEEN:
            self.end()

    def end(self) -> None:
        """Judge those that wait: the first ones did until there were enough."""
        for row, text, language in self.waiting:
            usual, count = self.counts.most_common(1)[0]
            if language != usual and count > USUAL * self.counts.total() and self.counts.total() > 2:
                reason = f"another language ({language}) than most {self.of} ({usual})"
                self.ledger.add(_entry(row, "noted", reason, text, fix="leave the row out, unless it is meant"))
        self.waiting.clear()


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
