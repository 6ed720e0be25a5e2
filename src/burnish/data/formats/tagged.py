"""Token tagging: the words of a text and a tag for each, as CoNLL's columns become in JSON.

    {"tokens": ["Ada", "lives", "here"], "tags": ["B-PER", "O", "O"]}

Tags of spans begin with B- or I- (BIO), and O is a word outside of all; other tags, such as parts of speech, are accepted as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.data.formats._place import Place, Shape
from burnish.data.rows import Row, Tagged

NAME = "tagged"
WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags")
SHAPES = (Shape(30, (WORDS, TAGS)),)


def read(record: Mapping[str, Any], place: Place) -> Row:
    words_key, tags_key = place.key(record, WORDS), place.key(record, TAGS)
    words, tags = (_texts(record[key], key, place) for key in (words_key, tags_key))
    if len(words) != len(tags):
        found = f"{len(words)} {words_key} and {len(tags)} {tags_key}"
        raise place.error("tokens and tags are not equally many", tags_key, found, "one tag for each token")
    extra = place.rest(record, words_key, tags_key)
    return Tagged(file=place.file, line=place.line, extra=extra, words=words, tags=tags)


def _texts(value: Any, field: str, place: Place) -> tuple[str, ...]:
    """A list of texts without white space. Raises RowError for anything else, such as the numbers of a data set's own classes."""
    if not isinstance(value, list) or not value:
        raise place.error("no list of texts", field, value, "a list of texts, one for each word")
    for number, item in enumerate(value):
        if not isinstance(item, str) or len(item.split()) != 1:
            raise place.error("a token or tag is no single word", f"{field}[{number}]", item, "a text without spaces")
    return tuple(item.strip() for item in value)
