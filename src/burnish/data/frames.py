"""What many prompts of a set begin or end with: an instruction, a form to fill. It makes no two of them alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from os.path import commonprefix

MANY = 10  # prompts that must share more than a few words: fewer are rather near-duplicates of each other
FEW = 4  # of so few prompts nothing can be told


@dataclass(frozen=True)
class Frames:
    """Openings end and endings begin with a space; of those that begin (or end) alike, the longest comes first."""

    openings: tuple[str, ...] = ()
    endings: tuple[str, ...] = ()

    @staticmethod
    def of(texts: Collection[str]) -> Frames:
        """The frames of normalised texts, no two of which are equal.

        A frame is a run of n words with which one in n of the texts begins, and more than 10 of them (or all, where they
        are no more than that): a long instruction may be one of many, three words must begin every third text.
        """
        openings = _shared_openings([text + " " for text in texts])
        endings = _shared_openings([text[::-1] + " " for text in texts])
        return Frames(tuple(openings), tuple(ending[::-1] for ending in endings))

    def core(self, text: str) -> str:
        """The text without its frame. Something is always left."""
        if text.startswith(self.openings):
            text = text[len(next(filter(text.startswith, self.openings))) :]
        if text.endswith(self.endings):
            text = text[: -len(next(filter(text.endswith, self.endings)))]
        return text


def _shared_openings(texts: list[str]) -> list[str]:
    """The openings of texts of which each ends with a space, the longest first."""
    least = min(max(FEW, len(texts) - 1), MANY)
    found = set()
    groups = [texts] if len(texts) > least else []
    while groups:
        group = groups.pop()
        shared = commonprefix([min(group), max(group)])  # noqa: RUF071 - of texts, character by character
        shared = shared[: shared.rfind(" ") + 1]
        if len(group) * shared.count(" ") >= len(texts):
            found.add(shared)
        by_word = defaultdict(list)
        for text in group:
            by_word[text[len(shared) : text.find(" ", len(shared))]].append(text)
        groups += [members for members in by_word.values() if len(members) > least]
    found.discard("")
    return sorted(found, key=lambda opening: (-len(opening), opening))
