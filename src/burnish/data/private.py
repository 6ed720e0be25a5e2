"""Secrets and personal data in texts: found by their shape, named by their kind, never shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Each kind with a sign of it, cheap to look for, and its shape, which is looked for only where the sign stands.
_SHAPES: tuple[tuple[str, str, str], ...] = (
    (
        "secret: private key",
        r"-----BEGIN",
        r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)",
    ),
    ("secret: AWS key", r"A[KS]IA", r"(?<![A-Za-z0-9])A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])"),
    (
        "secret: GitHub token",
        r"gh[pousr]_|github_",
        r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})",
    ),
    ("secret: Hugging Face token", r"hf_", r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}"),
    ("secret: API key", r"[prs]k[-_]", r"(?<![A-Za-z0-9])[prs]k[-_](?=[\w-]{0,200}[A-Za-z0-9]{16})[A-Za-z0-9_-]{20,}"),
    ("secret: Slack token", r"xox", r"(?<![A-Za-z0-9])xox[abprs]-[A-Za-z0-9-]{10,}"),
    ("secret: Google key", r"AIza", r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}"),
    ("secret: web token", r"eyJ", r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    (
        "secret: password",  # with a digit in it, since "password: unknown" is none
        r"(?i:passw|passphrase|pwd|api.?key)",
        r"(?i:\b(?:passwo?r?d|passphrase|pwd|api[ _-]?key)\b[\"']?\s{0,4}(?:\bis\s|[:=])\s{0,4})[\"'`]?(?=\S{0,200}\d)[^\s\"'`,;]{6,}",
    ),
    (
        "personal data: e-mail",
        r"@",
        r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b",
    ),
    (
        "personal data: IBAN",
        r"[A-Z]{2}\d\d",
        r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b",
    ),
    (
        "personal data: card number",  # in groups of four, or 4, 6 and 5 digits (ISO/IEC 7812-1)
        r"\d{4}",
        r"(?<![\d-])(?<!\d[.,])(?:[2-6]\d{3}([ -]?)\d{4}\1\d{4}\1\d{2,7}|3\d{3}([ -]?)\d{6}\2\d{4,5})(?!\d|[.,-]\d)",
    ),
    (
        "personal data: social security number",
        r"\d-\d",
        r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])",
    ),
    (
        "personal data: phone number",
        r"\+\d|\d{3}\)? ?[-.]?\d{3}",
        r"(?<![\w.,/=+-])(?:\+(?=(?:[ .()-]{0,2}\d){8})\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}"
        r"|\(\d{3}\) ?\d{3}-\d{4}|\d{3}[-.]\d{3}[-.]\d{4})(?![\w-])",
    ),
)
_COMPILED = tuple((kind, re.compile(sign), re.compile(shape)) for kind, sign, shape in _SHAPES)
_ANY = re.compile("|".join(sign for _, sign, _ in _SHAPES))


@dataclass(frozen=True, slots=True)
class Private:
    """One finding. kind: "secret: ..." or "personal data: ...". start, end: where it stands in the text, in characters."""

    kind: str
    start: int
    end: int


def find_private(text: str) -> list[Private]:
    """What should not be learnt, in reading order; those that overlap are one, of the kind that begins first."""
    if not _ANY.search(text):
        return []
    apart: list[Private] = []
    for one in sorted(_matches(text), key=lambda one: (one.start, -one.end)):
        if not apart or one.start >= apart[-1].end:
            apart.append(one)
        elif one.end > apart[-1].end:
            apart[-1] = Private(apart[-1].kind, apart[-1].start, one.end)
    return apart


def _matches(text: str) -> Iterator[Private]:
    for kind, sign, shape in _COMPILED:
        if sign.search(text):
            for match in shape.finditer(text):
                if _is_real(kind, match.group()):
                    yield Private(kind, *match.span())


def _is_real(kind: str, found: str) -> bool:
    """Whether the check digits of a number are right; other kinds have none."""
    if kind == "personal data: card number":
        return _luhn([int(sign) for sign in found if sign.isdigit()])
    if kind == "personal data: IBAN":
        compact = found.replace(" ", "")
        rotated = compact[4:] + compact[:4]
        return 15 <= len(compact) <= 34 and int("".join(str(int(sign, 36)) for sign in rotated)) % 97 == 1
    return True


def _luhn(digits: list[int]) -> bool:
    """The checksum of payment cards (ISO/IEC 7812-1, annex B)."""
    if len(set(digits)) == 1:
        return False
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def masked(text: str) -> str:
    """The text with every finding replaced by its kind in brackets, such as `[e-mail]`; in what comes of it nothing is found."""
    while found := find_private(text):
        pieces, end = [], 0
        for one in found:
            pieces += [text[end : one.start], f"[{one.kind.partition(': ')[2]}]"]
            end = one.end
        text = "".join([*pieces, text[end:]])
    return text
