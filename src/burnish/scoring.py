"""How an answer is scored, for each kind of task. The same scorers serve as rewards, so each is a pure function of text."""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from burnish.errors import RecipeError
from burnish.scoring_heads import HEADS

Figures = dict[str, float]
Answered = Sequence[tuple[str, str]]  # (answer, reference) of each item

METRICS: dict[str, tuple[str, ...]] = {  # what a recipe may name; the first of a kind is its default
    "chat": ("token_f1", "rouge_l"),
    "generate": ("exact_match", "contains"),
    "classify": ("accuracy", "macro_f1"),
    "extract": ("json_fields", "exact", "valid_json", "schema_valid"),
    "multilabel": ("micro_f1", "macro_f1", "sample_f1", "exact"),
    "regress": ("closeness", "spearman", "r2"),
    "tag": ("span_f1", "tag_accuracy"),
}


class Scorer(Protocol):
    """Holds answers against references. Every figure lies in 0..1, and of all but `unparsed` more is better."""

    @property
    def name(self) -> str:
        """The kind of task."""

    @property
    def primary(self) -> str:
        """The name of the main figure, which `score` and `summarize` both give."""

    def score(self, answer: str, reference: str) -> Figures:
        """The figures of one item. Never raises, whatever the answer is."""

    def summarize(self, answered: Answered) -> Figures:
        """The figures of a set of items, sums over counts; of no items there are none."""


def scorer_for(
    kind: str,
    metric: str | None = None,
    *,
    schema: Mapping[str, Any] | None = None,
    labels: Sequence[str] = (),
    span: tuple[float, float] = (0.0, 1.0),
) -> Scorer:
    """The scorer of a kind of task.

    metric: its main figure, one of METRICS[kind]; None is the first of them. schema: a JSON schema that an extracted object should fit.
    labels: the classes of a classification. span: the lowest and highest number of a regression's training
    labels. Raises RecipeError for a kind, a metric or a schema that cannot be used.
    """
    if kind not in METRICS:
        raise RecipeError(f"there is no task {kind!r}", where="task.kind", expected=f"one of {', '.join(METRICS)}")
    primary = metric or METRICS[kind][0]
    if primary not in METRICS[kind]:
        accepted = ", ".join(METRICS[kind])
        raise RecipeError(f"{kind} has no metric {primary!r}", where="task.metric", expected=f"one of {accepted}")
    if kind == "classify":
        return Classify(tuple(labels), primary)
    if kind in HEADS:
        return HEADS[kind](tuple(labels), span, primary)
    if kind == "extract":
        return Extract(None if schema is None else _validator(schema), primary)
    return Texts(kind, primary, TEXT_FIGURES[kind])


def words(text: str) -> list[str]:
    """The words of a text without case and punctuation: "Don't" is one word, each Chinese or Japanese character is one.

    A text of nothing but punctuation keeps it: "+" is an answer too.
    """
    text = text.casefold()
    bare = text.translate({ord(mark): None for mark in set(text) if _is_punctuation(mark)})
    return re.sub("([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])", r" \1 ", bare).split() or text.split()


def _is_punctuation(mark: str) -> bool:
    return mark in string.punctuation or unicodedata.category(mark).startswith("P")


def content_words(text: str) -> list[str]:
    """The words without English articles; where that leaves none, with them: "A" is an answer too.

    The normalisation of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250), which also drops punctuation, case and articles, widened from
    ASCII to Unicode as MLQA did (Lewis et al. 2020, arXiv 1910.07475).
    """
    found = words(text)
    return [word for word in found if word not in {"a", "an", "the"}] or found


def token_f1(answer: str, reference: str) -> float:
    """F1 of the words in common, each counted as often as it occurs in both: SQuAD's second figure."""
    found, wanted = content_words(answer), content_words(reference)
    if not found or not wanted:
        return float(found == wanted)
    return 2 * (Counter(found) & Counter(wanted)).total() / (len(found) + len(wanted))


def rouge_l(answer: str, reference: str) -> float:
    """F-measure over the longest common subsequence of words (Lin 2004, "ROUGE", section 3.1, with beta = 1)."""
    found, wanted = words(answer), words(reference)
    if not found or not wanted:
        return float(found == wanted)
    return 2 * _common_subsequence(found, wanted) / (len(found) + len(wanted))


def _common_subsequence(found: Sequence[str], wanted: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of the table at a time in the bits of one integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(wanted):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = (1 << len(wanted)) - 1
    row = everywhere  # a bit is 0 where the subsequence grows by that word
    for word in found:
        if here := row & places.get(word, 0):
            row = ((row + here) | (row - here)) & everywhere
    return len(wanted) - row.bit_count()


def exact_match(answer: str, reference: str) -> float:
    """Whether the content words are the same, in their order: SQuAD's first figure."""
    return float(content_words(answer) == content_words(reference))


def contains(answer: str, reference: str) -> float:
    """Whether the reference's content words stand in the answer, together and in order. An empty reference is only in an empty one."""
    found, wanted = content_words(answer), content_words(reference)
    if not wanted:
        return float(not found)
    return float(f" {' '.join(wanted)} " in f" {' '.join(found)} ")


TEXT_FIGURES: dict[str, dict[str, Callable[[str, str], float]]] = {
    "chat": {"token_f1": token_f1, "rouge_l": rouge_l},
    "generate": {"exact_match": exact_match, "contains": contains},
}


@dataclass(frozen=True)
class Texts:
    """Scores free text by functions of (answer, reference)."""

    name: str
    primary: str
    functions: Mapping[str, Callable[[str, str], float]]

    def score(self, answer: str, reference: str) -> Figures:
        return {name: function(answer, reference) for name, function in self.functions.items()}

    def summarize(self, answered: Answered) -> Figures:
        return _means([self.score(*pair) for pair in answered])


@dataclass(frozen=True)
class Classify:
    """Scores a label given as text.

    An answer is the label that it equals without case, outer punctuation and the kind of separator ("Card-arrival." is `card_arrival`).
    Where that would make two labels one, as with "C" and "c", less is forgiven. Any other answer is wrong, and `unparsed`.
    """

    labels: tuple[str, ...]
    primary: str = "accuracy"
    name = "classify"

    @cached_property
    def _form(self) -> Callable[[str], str]:
        """The most forgiving form in which no label is empty or equal to another."""
        names = {label.strip() for label in self.labels}
        for form in (_loose_label, _caseless_label):
            if len({form(name) for name in names} - {""}) == len(names):
                return form
        return str.strip

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(map(self._form, self.labels))

    def score(self, answer: str, reference: str) -> Figures:
        """accuracy: 1 for the right label. unparsed: 1 for an answer that is no label, given where the labels are known."""
        given, wanted = self._form(answer), self._form(reference)
        figures = {"accuracy": float(given == wanted)}
        if self.labels:
            figures["unparsed"] = float(given != wanted and given not in self._known)
        return figures

    def summarize(self, answered: Answered) -> Figures:
        """Accuracy, the share unparsed, and macro_f1: the plain mean of each label's F1, so that rare labels count as frequent ones do.

        As in scikit-learn, the labels are those that occur among references or answers, and one that is never answered, or never right,
        has F1 = 0. Unlike there, an answer that is no label opens no class of its own: it is a miss of the label that was wanted.
        """
        if not answered:
            return {}
        pairs = [(self._form(answer), self._form(reference)) for answer, reference in answered]
        given, wanted = Counter(given for given, _ in pairs), Counter(wanted for _, wanted in pairs)
        right = Counter(given for given, wanted in pairs if given == wanted)
        used = wanted.keys() | (given.keys() & self._known)
        f1 = [2 * right[label] / (given[label] + wanted[label]) for label in used]
        return _means([self.score(*pair) for pair in answered]) | {"macro_f1": sum(f1) / len(f1)}


def _loose_label(text: str) -> str:
    # Outer marks that a sentence adds; signs that tell labels apart (+, -, #) stay.
    bare = text.strip(string.whitespace + ".,:;!?\"'`*()[]{}“”‘’«»")
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", bare).casefold()


def _caseless_label(text: str) -> str:
    return text.strip().casefold()


@dataclass(frozen=True)
class Extract:
    """Scores a JSON answer by its fields, and against a JSON schema where there is one.

    A field is a path to a value that holds nothing further: a text, a number, true, false, null, {} or []. Lists are compared by
    position, numbers by value, texts without case and outer space, null only with null. A reference that is no JSON counts as one text.
    """

    validator: Any = None  # of jsonschema
    primary: str = "json_fields"
    name = "extract"

    def __post_init__(self) -> None:
        if self.primary == "schema_valid" and self.validator is None:
            raise RecipeError(
                "schema_valid needs a JSON schema", where="task.metric", hint="schema: answer.schema.json"
            )

    def score(self, answer: str, reference: str) -> Figures:
        """json_fields: F1 over the fields, 0 for an answer that is no JSON. exact: the same object. valid_json, schema_valid: 0 or 1."""
        found, valid = parse_json(answer)
        wanted = _reference(reference)
        right = _agreeing(found, wanted) if valid else 0
        given, asked = _leaves(found), _leaves(wanted)
        figures = {
            "json_fields": 2 * right / (given + asked),
            "exact": float(right == given == asked),
            "valid_json": float(valid),
        }
        if self.validator is not None:
            figures["schema_valid"] = float(valid and self._fits(found))
        return figures

    def _fits(self, value: Any) -> bool:
        try:
            return bool(self.validator.is_valid(value))
        except (RecursionError, ArithmeticError):  # nested too deep, or a number too large to be divided
            return False

    def summarize(self, answered: Answered) -> Figures:
        """The means over the items, and `field.NAME`: F1 over all items of what stands in that top-level field of the references.

        A field that only answers have shows in json_fields; it gets no figure of its own.
        """
        pairs = [(parse_json(answer)[0], _reference(reference)) for answer, reference in answered]
        names = {name: None for _, wanted in pairs if isinstance(wanted, dict) for name in wanted}  # in their order
        fields = {f"field.{name}": _field_f1(pairs, name) for name in names}
        return _means([self.score(*pair) for pair in answered]) | fields


def _field_f1(pairs: Sequence[tuple[Any, Any]], name: str) -> float:
    right = total = 0
    for pair in pairs:
        parts = [value[name] for value in pair if isinstance(value, dict) and name in value]
        total += sum(map(_leaves, parts))
        if len(parts) == 2:
            right += _agreeing(*parts)
    return 2 * right / total


def parse_json(text: str) -> tuple[Any, bool]:
    """(value, whether the text is JSON). White space and a ```json fence around it are forgiven, nothing else; NaN is no JSON."""
    bare = text.strip()
    if bare.startswith("```json") and bare.endswith("```") and len(bare) >= len("```json```"):
        bare = bare.removeprefix("```json").removesuffix("```").strip()
    try:
        return json.loads(bare, parse_int=_integer, parse_constant=_refuse), True
    except (ValueError, RecursionError):
        return None, False


def _integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # Python reads no integer of more than 4300 digits
        return float(digits)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _reference(text: str) -> Any:
    value, valid = parse_json(text)
    return value if valid else text


def _leaves(value: Any) -> int:
    """How many fields a JSON value has; without recursion, since answers may be nested deep."""
    count, waiting = 0, [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list) and value:
            waiting += value.values() if isinstance(value, dict) else value
        else:
            count += 1
    return count


def _agreeing(found: Any, wanted: Any) -> int:
    """How many fields two JSON values have in common, by path and value."""
    count, waiting = 0, [(found, wanted)]
    while waiting:
        one, other = waiting.pop()
        if isinstance(one, dict) and isinstance(other, dict) and one and other:
            waiting += [(one[key], other[key]) for key in one.keys() & other.keys()]
        elif isinstance(one, list) and isinstance(other, list) and one and other:
            waiting += zip(one, other, strict=False)
        else:
            count += _same_leaf(one, other)
    return count


def _same_leaf(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one.strip().casefold() == other.strip().casefold()
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other  # True equals 1 in Python, not in JSON
    if isinstance(one, dict | list) or isinstance(other, dict | list):
        return type(one) is type(other) and not one and not other
    return bool(one == other)


def _validator(schema: Mapping[str, Any]) -> Any:
    """A validator of the schema. Raises RecipeError for what is no JSON schema or refers to what is not in it."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
        # An empty registry: a reference is never fetched from the net.
        resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
        for reference in re.findall(r'"\$ref": "([^"]*)"', json.dumps(schema, ensure_ascii=False)):
            resolver.lookup(reference)
    except SchemaError as error:
        place = error.json_path.removeprefix("$")
        raise RecipeError(f"this is no JSON schema: {error.message}", where=f"task.schema{place}") from error
    except Unresolvable as error:
        raise RecipeError(
            f"the schema refers to {error.ref!r}, which is not in it",
            where="task.schema",
            expected="references to parts of the schema itself",
            hint='"$ref": "#/$defs/NAME"',
        ) from error
    return kind(schema, registry=Registry())


def _means(figures: Sequence[Figures]) -> Figures:
    names = figures[0] if figures else {}
    return {name: sum(item[name] for item in figures) / len(figures) for name in names}
