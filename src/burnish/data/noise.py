"""Rule-based noise on a text: typing errors, casing and left-out words, as people make them.

Left-out words are the random deletion of Wei and Zou 2019, "EDA" (arXiv 1901.11196), whose share of a text's words is `rate` here too;
slips of the fingers are a neighbouring key, two letters swapped, a letter left out. What carries the meaning of a text is never touched:
placeholders, links, addresses, numbers, code, and words that turn a sentence around.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Sequence

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # of a keyboard, each half a key further to the right
SHORTEST = 4  # letters of a word in which a slip leaves something to read

# What must stay as it is: whatever stands in one of these, and a word that holds one of the signs.
MARKED = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|\{\{[^{}]*\}\}|\$?\{[^{}\n]*\}|<[^<>\n]+>|\[[^\[\]\n]+\]|%\(\w+\)\w", re.DOTALL
)
SIGNS = re.compile(r"[\d_/\\|=<>~^#$&*+@]|%\w|\w\(|\w[.:]\w|[^\W\d_A-Z][A-Z]")  # of numbers, links, addresses and code
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# Without one of these a sentence says the opposite.
NEGATION = re.compile(
    r"no|not|never|none|nor|without|neither|cannot|\w+n['’]t|keine?|keinen|nicht|nie|ohne|ne|pas|jamais|sans|nunca|sin|non|mai|senza",
    re.IGNORECASE,
)


def _neighbours() -> dict[str, str]:
    """Letter -> the letters beside it."""
    places = {letter: (column + row / 2, row) for row, keys in enumerate(ROWS) for column, letter in enumerate(keys)}
    return {
        one: "".join(other for other, (a, b) in places.items() if other != one and abs(a - x) <= 1 and abs(b - y) <= 1)
        for one, (x, y) in places.items()
    }


NEIGHBOURS = _neighbours()


def _typo(word: str, draw: random.Random) -> str:
    """One letter becomes one that lies beside it on the keyboard."""
    places = [place for place, letter in enumerate(word) if letter.lower() in NEIGHBOURS]
    if not places:
        return word
    place = draw.choice(places)
    letter = draw.choice(NEIGHBOURS[word[place].lower()])
    return word[:place] + (letter.upper() if word[place].isupper() else letter) + word[place + 1 :]


def _swap(word: str, draw: random.Random) -> str:
    """Two letters that stand beside each other, the first one left alone, change places."""
    places = [place for place in range(1, len(word) - 1) if word[place] != word[place + 1]]
    if not places:
        return word
    place = draw.choice(places)
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _letter(word: str, draw: random.Random) -> str:
    """A letter other than the first is left out."""
    place = draw.randrange(1, len(word))
    return word[:place] + word[place + 1 :]


def _case(word: str, draw: random.Random) -> str:
    """Capitals go; a word without any is shouted."""
    return word.lower() if word != word.lower() else word.upper()


def _word(word: str, draw: random.Random) -> str:
    """The word is left out."""
    return ""


KINDS: dict[str, Callable[[str, random.Random], str]] = {
    "typo": _typo,
    "swap": _swap,
    "letter": _letter,
    "case": _case,
    "word": _word,
}
LONG_ONLY = {"typo", "swap", "letter"}


def noisy(
    text: str, draw: random.Random, *, rate: float, kinds: Sequence[str], keep: Collection[str] = ()
) -> tuple[str, list[str]]:
    """The text with a share `rate` of its words changed, one at the least, and the kinds of noise that were used.

    kinds: of KINDS. keep: words, in lower case, that are left alone as protected ones are. A text in which nothing may be changed
    comes back as it is, with no kind. At least one word stays.
    """
    spans = _protected(text)
    words = [
        found.span()
        for found in WORD.finditer(text)
        if not any(start < found.end() and found.start() < end for start, end in spans)
        and not NEGATION.fullmatch(found[0])
        and found[0].lower() not in keep
    ]
    chosen = sorted(draw.sample(words, min(len(words), max(1, round(rate * len(words))))), reverse=True)
    used: set[str] = set()
    for start, end in chosen:  # from the end on, so that the places before stay what they are
        fitting = [kind for kind in kinds if end - start >= SHORTEST or kind not in LONG_ONLY]
        if not fitting:
            continue
        kind = draw.choice(fitting)
        after = KINDS[kind](text[start:end], draw)
        if not after and len(text.split()) < 2:
            continue
        if not after:  # with the space that parted it
            end += len(text[end:]) - len(text[end:].lstrip(" "))
        if after != text[start:end]:
            used.add(kind)
        text = text[:start] + after + text[end:]
    return text.strip() if used else text, sorted(used)


def _protected(text: str) -> list[tuple[int, int]]:
    """Where what must stay begins and ends."""
    marked = [found.span() for found in MARKED.finditer(text)]
    return marked + [found.span() for found in re.finditer(r"\S+", text) if SIGNS.search(found[0])]


def protected_parts(text: str) -> list[str]:
    """What a rewritten text must still hold: the placeholders, links, numbers and code of this one, without marks at their ends."""
    return sorted({part for start, end in _protected(text) if (part := text[start:end].strip(".,;:!?()\"'"))})
