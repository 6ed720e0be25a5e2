"""How alike texts are: one normal form, exact fingerprints, MinHash over character 5-grams, and shared runs of 13 words.

MinHash: Broder 1997, "On the resemblance and containment of documents". Banding: Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", section 3.4. Runs of 13 words as a sign of contamination: Brown et al. 2020 (arXiv 2005.14165, appendix C).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from burnish.data.frames import Frames

SHINGLE = 5  # characters
HASHES = 64  # minima in a signature; the estimate of a Jaccard of 0.8 then has a standard error of 0.05
SLACK = 0.15  # how far an estimate may fall below the limit before the pair is not looked at: three standard errors
CROWD = 128  # texts in one bucket up to which each is compared with each
NEIGHBOURS = 8  # in a larger one, a text is compared with this many before it and with the first
SAMPLE = 2000  # prompts that tell what many share
WORDS = 13
RUNS_HELD = 20_000_000  # runs of words looked at in one pass
BATCH = 1 << 20  # characters hashed at once

_KEPT = r"\w\s+*=<>^|~$€£#@%&\\"  # words, and the signs that change what a formula or a line of code says
_PUNCTUATION = re.compile(rf"(?<!\d)(?!(?<!\w)-\d)[^{_KEPT}]|[^{_KEPT}](?!\d)")
_SEPARATOR = "\x00"

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]


def normalise(text: str) -> str:
    """The form in which texts are compared: compatibility characters, case, punctuation and white space evened out.

    Punctuation becomes a space, so that "top-up" is "top up"; signs of formulas stay, and so do marks inside and before a
    number, since 1.5 is not 15 and -1 is not 1. A text that is nothing but punctuation stays as it is.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(_PUNCTUATION.sub(" ", text.casefold()).split()) or " ".join(text.replace(_SEPARATOR, " ").split())


def fingerprint(text: str) -> int:
    """64 bits that are equal for texts of one normal form, and the same in every process."""
    return _digest(normalise(text))


def _digest(normal: str) -> int:
    return int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def shingles(normal: str) -> set[str]:
    """The character 5-grams of a normalised text; a shorter one is its own only shingle."""
    return {normal[start : start + SHINGLE] for start in range(max(1, len(normal) - SHINGLE + 1))}


def jaccard(first: str, second: str) -> float:
    """Shared shingles of two normalised texts over all of theirs, 0 to 1."""
    if first == second:
        return 1.0
    one, other = shingles(first), shingles(second)
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


class Index:
    """What it takes to find equal and near texts among many, in about 300 bytes and the text's own for each.

    An item is a prompt, or a prompt and its answer. Their normal forms lie in one buffer of bytes and their signatures in one
    matrix, so that no Python object is kept for an item or a shingle. What many prompts begin or end with does not count for
    their likeness (see `frames`).
    """

    def __init__(self) -> None:
        self._texts = bytearray()
        self._ends = array("Q")
        self._digests = array("Q")
        self._frames: Frames | None = None

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, *parts: str) -> None:
        """Add one item. Its number is how many were added before it."""
        normal = _SEPARATOR.join(map(normalise, parts))
        self._texts += normal.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._texts))
        self._digests.append(_digest(normal))
        self._frames = None

    def parts(self, number: int) -> list[str]:
        """The normalised texts of an item."""
        start = self._ends[number - 1] if number else 0
        return self._texts[start : self._ends[number]].decode("utf-8", "surrogatepass").split(_SEPARATOR)

    def core(self, number: int) -> str:
        """The normalised prompt of an item without the frame that it shares with many."""
        return self.frames.core(self.parts(number)[0])

    def likeness(self, one: int, other: int) -> float:
        """Jaccard of two prompts, or of their cores where that is less."""
        first, second = self.parts(one)[0], self.parts(other)[0]
        return min(jaccard(first, second), jaccard(self.frames.core(first), self.frames.core(second)))

    @property
    def frames(self) -> Frames:
        """What many of the prompts share, told from 2,000 of them, whatever their order."""
        if self._frames is None:
            _, firsts = np.unique(self.digests, return_index=True)  # by digest: a sample at random
            self._frames = Frames.of({self.parts(number)[0] for number in firsts[:SAMPLE].tolist()})
        return self._frames

    @property
    def digests(self) -> Hashes:
        """(items,) one fingerprint for each item."""
        return np.frombuffer(self._digests.tobytes(), dtype=np.uint64)

    def signatures(self) -> NDArray[np.uint32]:
        """(items, 64) the minima of each item's shingles under 64 hash functions."""
        signatures = np.empty((len(self), HASHES), np.uint32)
        waiting: list[str] = []
        characters = 0
        for number in range(len(self)):
            prompt, *rest = self.parts(number)
            waiting.append(_SEPARATOR.join([self.frames.core(prompt), *rest]))
            characters += len(waiting[-1]) + SHINGLE
            if characters >= BATCH or number + 1 == len(self):
                signatures[number + 1 - len(waiting) : number + 1] = _minhash(waiting)
                waiting, characters = [], 0
        return signatures


def _minhash(texts: Sequence[str]) -> NDArray[np.uint32]:
    """(texts, 64) signatures of normalised texts."""
    padded = [text.ljust(SHINGLE) for text in texts]
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    windows = len(points) - SHINGLE + 1
    hashes = np.zeros(windows, np.uint64)
    for offset in range(SHINGLE):
        hashes = hashes * np.uint64(0x100000001B3) + points[offset : offset + windows]
    hashes = (hashes ^ (hashes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    lengths = np.array([len(text) for text in padded])
    ends = np.cumsum(lengths)
    within = np.ones(windows, bool)
    for offset in range(1, SHINGLE):  # a window that begins here runs into the next text
        within[ends[:-1] - offset] = False
    offsets = np.concatenate([[0], np.cumsum(lengths - SHINGLE + 1)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes[within], offsets, HASHES, 0)
    return np.array(matrix.to_rows(), dtype=np.uint32)


def candidates(
    signatures: NDArray[np.uint32],
    near: float,
    *,
    among: Numbers | None = None,
    sides: Numbers | None = None,
    salt: Hashes | None = None,
) -> Iterator[tuple[Numbers, Numbers]]:
    """Pairs of items that may be at least `near` alike, as two equal arrays of numbers, the lower number first.

    Banded: two items meet where 4 neighbouring minima are equal (3 where near < 0.7), which finds 99.9% of the pairs at
    a Jaccard of 0.8 (94% at 0.5), and their estimate must come near the limit. among: the items to look at, ascending;
    all of them by default. sides: (items,) where given, only pairs whose sides differ. salt: (items,) where given, only
    pairs whose salt is equal.
    """
    size = 4 if near >= 0.7 else 3
    numbers = np.arange(len(signatures)) if among is None else among
    for band in range(HASHES // size):
        keys = _band_keys(signatures[:, band * size : (band + 1) * size])
        if salt is not None:
            keys ^= salt
        met = numbers if sides is None else _on_several_sides(numbers, keys, sides)
        order = met[np.argsort(keys[met], kind="stable")]
        for one, other in _bucket_pairs(order, keys[order]):
            first, second = _across(np.minimum(one, other), np.maximum(one, other), sides)
            alike = _estimates(signatures, first, second) >= near - SLACK
            if alike.any():
                yield first[alike], second[alike]


def _across(first: Numbers, second: Numbers, sides: Numbers | None) -> tuple[Numbers, Numbers]:
    if sides is None:
        return first, second
    across = sides[first] != sides[second]
    return first[across], second[across]


def _band_keys(minima: NDArray[np.uint32]) -> Hashes:
    keys = np.zeros(len(minima), np.uint64)
    for column in minima.T:
        keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(32)
    return keys


def _on_several_sides(numbers: Numbers, keys: Hashes, sides: Numbers) -> Numbers:
    """The items whose key stands on several sides, shuffled, so that neighbours in a large bucket come from all of them."""
    order = numbers[np.lexsort((sides[numbers], keys[numbers]))]
    changes = np.flatnonzero(np.diff(keys[order])) + 1
    starts, ends = np.append(0, changes), np.append(changes, len(order))
    if not len(order):
        return order
    mixed = sides[order[starts]] != sides[order[ends - 1]]
    return np.random.default_rng(0).permutation(order[np.repeat(mixed, ends - starts)])


def _bucket_pairs(order: Numbers, keys: Hashes) -> Iterator[tuple[Numbers, Numbers]]:
    """Pairs within runs of equal keys: all of them, but in a run of more than 128 only neighbours, and each with the first."""
    _, starts, place, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    crowded = counts[place] > CROWD
    yield from _lagged(order[~crowded], keys[~crowded], CROWD)
    yield from _lagged(order[crowded], keys[crowded], NEIGHBOURS)
    yield order[starts[place]][crowded], order[crowded]


def _lagged(order: Numbers, keys: Hashes, longest: int) -> Iterator[tuple[Numbers, Numbers]]:
    """Pairs of items with equal keys that stand at most `longest` places apart."""
    for lag in range(1, min(longest, len(keys) - 1) + 1):
        same = keys[lag:] == keys[:-lag]
        if not same.any():
            return
        yield order[:-lag][same], order[lag:][same]


def _estimates(signatures: NDArray[np.uint32], first: Numbers, second: Numbers) -> NDArray[np.float64]:
    """(pairs,) share of equal minima, an estimate of the Jaccard of each pair."""
    chunks = range(0, len(first), 100_000)
    shares = [
        (signatures[first[at : at + 100_000]] == signatures[second[at : at + 100_000]]).mean(axis=1) for at in chunks
    ]
    return np.concatenate(shares) if shares else np.empty(0)


def distinct_pairs(pairs: Iterator[tuple[Numbers, Numbers]], items: int) -> Iterator[tuple[int, int]]:
    """Each pair once, ordered by its second number and then its first."""
    codes = np.empty(0, np.int64)
    waiting: list[Numbers] = []
    for first, second in pairs:
        waiting.append(second * np.int64(items) + first)
        if sum(map(len, waiting)) > len(codes) + BATCH:
            codes, waiting = np.unique(np.concatenate([codes, *waiting])), []
    for code in np.unique(np.concatenate([codes, *waiting])):
        later, earlier = divmod(int(code), items)
        if earlier != later:
            yield earlier, later


def shared_runs(index: Index, *, sides: Numbers | None = None) -> Iterator[tuple[Numbers, Numbers]]:
    """Pairs of items whose prompts share a run of 13 words, as `candidates` gives them.

    A run that stands in more than 10 texts and in more than one of a thousand is boilerplate, such as a signature, and says
    nothing. Without `sides`, the items that share a run are given as a chain, enough to join them.
    """
    limit = max(10, len(index) // 1000)
    parts = 1 + sum(_count_words(index.core(number)) for number in range(len(index))) // RUNS_HELD
    for part in range(parts):  # each takes the runs whose hash falls to it, so that memory stays bounded
        runs, owner = _runs_of_words(index, part, parts)
        _, place, counts = np.unique(runs, return_inverse=True, return_counts=True)
        telling = (counts[place] > 1) & (counts[place] <= limit)
        runs, owner = runs[telling], owner[telling]
        order = np.argsort(runs, kind="stable")
        for first, second in _lagged(owner[order], runs[order], limit if sides is not None else 1):
            yield _across(first, second, sides)


def _count_words(text: str) -> int:
    return text.count(" ") + 1


def _runs_of_words(index: Index, part: int, parts: int) -> tuple[Hashes, Numbers]:
    """The runs of this part, each once for each text, and the items that they stand in, ascending."""
    found: list[tuple[Hashes, Numbers]] = [(np.empty(0, np.uint64), np.empty(0, np.int64))]
    words: list[int] = []
    owners: list[int] = []
    for number in range(len(index)):
        if _count_words(text := index.core(number)) >= WORDS:
            hashes = list(map(hash, text.split()))
            words += hashes
            owners += [number] * len(hashes)
        if words and (len(words) > BATCH or number + 1 == len(index)):
            found.append(_hash_runs(np.array(words).view(np.uint64), np.array(owners), part, parts))
            words, owners = [], []
    return np.concatenate([runs for runs, _ in found]), np.concatenate([owner for _, owner in found])


def _hash_runs(words: Hashes, owners: Numbers, part: int, parts: int) -> tuple[Hashes, Numbers]:
    windows = len(words) - WORDS + 1
    runs = np.zeros(windows, np.uint64)
    for offset in range(WORDS):
        runs = (runs ^ words[offset : offset + windows]) * np.uint64(0x9E3779B97F4A7C15)
        runs ^= runs >> np.uint64(32)
    mine = (owners[:windows] == owners[WORDS - 1 :]) & (runs % np.uint64(parts) == part)
    runs, owner = runs[mine], owners[:windows][mine]
    order = np.lexsort((runs, owner))
    runs, owner = runs[order], owner[order]
    fresh = np.concatenate([[True], (runs[1:] != runs[:-1]) | (owner[1:] != owner[:-1])])[: len(runs)]
    return runs[fresh], owner[fresh]
