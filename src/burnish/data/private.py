"""Secrets and personal data in texts: found by their shape, named by their kind, never shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Each shape with a cheap sign of it: only a text that holds the sign is searched for the shape.
_SHAPES: tuple[tuple[str, str, str], ...] = (
    (
        "secret: private key",
        "PRIVATE KEY",
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    ),
    ("secret: AWS key", "A", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    ("secret: GitHub token", "_", r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})\b"),
    ("secret: Hugging Face token", "hf_", r"\bhf_[A-Za-z]{30,}\b"),
    ("secret: API key", "-", r"\b(?:sk|pk|rk)[-_](?:live[-_]|test[-_]|proj-|ant-)?[A-Za-z0-9_-]{20,}"),
    ("secret: Slack token", "xox", r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    ("secret: Google key", "AIza", r"\bAIza[A-Za-z0-9_-]{35}"),
    ("secret: web token", "eyJ", r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    ("secret: password", "assw", r"(?i:\bpasswo?r?d\s*(?:is\s+|[:=]\s*))(?=\S*\d)[^\s\"',;]{6,}"),
    ("personal data: e-mail", "@", r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b"),
    ("personal data: IBAN", "", r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"),
    ("personal data: card number", "", r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d.,-])"),
    ("personal data: social security number", "-", r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])"),
    (
        "personal data: phone number",
        "",
        r"(?<![\w.,/=-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}|\(\d{3}\) ?\d{3}-\d{4}|\d{3}[-.]\d{3}[-.]\d{4})(?![\w-])",
    ),
)
_COMPILED = tuple((kind, sign, re.compile(pattern)) for kind, sign, pattern in _SHAPES)
_ANY = re.compile(r"[@_]|\d{2}|-----BEGIN|[Pp]ass?w|xox|eyJ|AIza|sk-")  # without one of these there is nothing to find

RESERVED = ("example.com", "example.org", "example.net", ".example", ".test", ".invalid")  # RFC 2606: nobody's


@dataclass(frozen=True, slots=True)
class Private:
    """One finding. kind: "secret: ..." or "personal data: ...". start, end: where it stands in the text, in characters."""

    kind: str
    start: int
    end: int


def find_private(text: str) -> list[Private]:
    """What should not be learnt, in reading order; of two that overlap, the one that begins first."""
    if not _ANY.search(text):
        return []
    found = sorted(_matches(text), key=lambda one: (one.start, -one.end))
    apart: list[Private] = []
    for one in found:
        if not apart or one.start >= apart[-1].end:
            apart.append(one)
    return apart


def _matches(text: str) -> Iterator[Private]:
    for kind, sign, pattern in _COMPILED:
        if sign in text:
            for match in pattern.finditer(text):
                if _is_real(kind, match.group()):
                    yield Private(kind, *match.span())


def _is_real(kind: str, found: str) -> bool:
    """Whether a number's check digits are right and an address is not of a domain that is reserved for examples."""
    if kind == "personal data: e-mail":
        return not found.lower().endswith(RESERVED)
    if kind == "personal data: card number":
        return _luhn([int(sign) for sign in found if sign.isdigit()])
    if kind == "personal data: IBAN":
        compact = found.replace(" ", "")
        return (
            15 <= len(compact) <= 34
            and int("".join(str(int(sign, 36)) for sign in compact[4:] + compact[:4])) % 97 == 1
        )
    return True


def _luhn(digits: list[int]) -> bool:
    """The checksum of payment cards (ISO/IEC 7812-1, annex B)."""
    if len(set(digits)) == 1:
        return False
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def masked(text: str) -> str:
    """The text with every finding replaced by its kind in brackets, such as `[e-mail]`."""
    pieces, end = [], 0
    for one in find_private(text):
        pieces += [text[end : one.start], f"[{one.kind.partition(': ')[2]}]"]
        end = one.end
    return "".join([*pieces, text[end:]])
