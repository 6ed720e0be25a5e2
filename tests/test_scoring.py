from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.errors import RecipeError
from burnish.scoring import METRICS, scorer_for

SCHEMA = {
    "type": "object",
    "required": ["urgency"],
    "properties": {"urgency": {"enum": ["low", "high"]}, "total": {"type": "number", "multipleOf": 0.01}},
}
LABELS = ("card_arrival", "lost_card")
EVERY = [
    scorer_for("chat"),
    scorer_for("generate"),
    scorer_for("classify", labels=LABELS),
    scorer_for("classify", "macro_f1", labels=LABELS),
    scorer_for("extract"),
    scorer_for("extract", "schema_valid", schema=SCHEMA),
]
NEEDS = {"schema_valid": {"schema": SCHEMA}}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
answers = st.text() | st.text("\ud800\udfff`{[\"']}:, \n0na") | json_values.map(json.dumps)

HOSTILE = {
    "empty": "",
    "lone surrogates": "\ud800\udfff" * 50,
    "ten megabytes": "word " * 2_000_000,
    "one long run of marks": "-" * 1_000_000,
    "combining marks": "a" + "\u0300\u0316" * 100_000,
    "an unfinished fence": "```json",
    "one tick too few": "```json``",
    "open brackets": "[" * 100_000,
    "nested lists": "[" * 900 + "]" * 900,
    "nested objects": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "a long key with many values": json.dumps({"k" * 100_000: [1] * 100_000}),
    "an integer of 10,000 digits": '{"total": ' + "9" * 10_000 + "}",
    "an integer too large for a float": '{"urgency": "low", "total": ' + "9" * 400 + "}",
    "a float beyond the range": '{"total": 1e999}',
    "NaN": '{"total": NaN}',
}


def extract(answer: object, reference: object, **options) -> dict[str, float]:
    texts = [value if isinstance(value, str) else json.dumps(value) for value in (answer, reference)]
    return scorer_for("extract", **options).score(*texts)


# All of them


@pytest.mark.parametrize("scorer", EVERY, ids=lambda scorer: f"{scorer.name}-{scorer.primary}")
@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
def test_no_answer_makes_a_scorer_raise(scorer, answer):
    figures = scorer.score(answer, '{"urgency": "low"}')
    assert all(0 <= figure <= 1 for figure in figures.values())


@pytest.mark.parametrize("scorer", EVERY, ids=lambda scorer: f"{scorer.name}-{scorer.primary}")
@settings(max_examples=150, deadline=None)
@given(answer=answers, reference=answers)
def test_figures_lie_in_0_to_1_and_hold_the_main_one(scorer, answer, reference):
    single, whole = scorer.score(answer, reference), scorer.summarize([(answer, reference)])
    assert scorer.primary in whole
    assert single.keys() <= whole.keys()
    assert all(0 <= figure <= 1 for figure in (*single.values(), *whole.values()))


@pytest.mark.parametrize("scorer", EVERY[:4], ids=lambda scorer: f"{scorer.name}-{scorer.primary}")
@settings(deadline=None)
@given(text=st.text())
def test_the_reference_itself_is_a_perfect_answer(scorer, text):
    assert scorer.summarize([(text, text)])[scorer.primary] == 1


@settings(deadline=None)
@given(value=json_values)
def test_the_reference_itself_is_a_perfect_json_answer(value):
    assert extract(json.dumps(value), json.dumps(value)) == {"json_fields": 1, "exact": 1, "valid_json": 1}


@pytest.mark.parametrize(("kind", "metric"), [(kind, metric) for kind, names in METRICS.items() for metric in names])
def test_every_metric_that_a_recipe_may_name_is_given_by_its_scorer(kind, metric):
    scorer = scorer_for(kind, metric, labels=LABELS, **NEEDS.get(metric, {}))
    assert scorer.primary == metric
    assert scorer.name == kind
    assert metric in scorer.summarize([("", "1")])


@pytest.mark.parametrize("scorer", EVERY, ids=lambda scorer: f"{scorer.name}-{scorer.primary}")
def test_of_no_items_there_are_no_figures(scorer):
    assert scorer.summarize([]) == {}


@pytest.mark.parametrize("kind", METRICS)
def test_the_first_metric_of_a_kind_is_its_default(kind):
    assert scorer_for(kind).primary == METRICS[kind][0]


def test_an_unknown_metric_is_answered_with_the_accepted_ones():
    with pytest.raises(RecipeError, match="token_f1, rouge_l") as caught:
        scorer_for("chat", "bleu")
    assert caught.value.where == "task.metric"


def test_an_unknown_kind_is_answered_with_the_accepted_ones():
    with pytest.raises(RecipeError, match="chat, generate, classify, extract"):
        scorer_for("translate")


# chat and generate


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ("The cat sat", "a cat sat down", 4 / 5),  # 2 words in common of 2 and 3, articles aside
        ("no no no", "no", 1 / 2),  # a word counts as often as it stands in both
        ("Don't!", "dont", 1),
        ("「東京都」", "京都", 4 / 5),  # 2 characters in common of 3 and 2
        ("", "something", 0),
        ("", "", 1),
        ("A", "B", 0),
        ("A.", "a", 1),  # an answer that is nothing but an article
    ],
)
def test_token_f1_counts_words_without_case_punctuation_and_articles(answer, reference, f1):
    assert scorer_for("chat").score(answer, reference)["token_f1"] == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "reference", "rouge"),
    [
        # Lin 2004, section 3.1: against "police killed the gunman" these share "police the gunman" and "the gunman".
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("b a", "a b c", 2 / 5),
        ("x", "a b", 0),
        ("+", "-", 0),
        ("a b c d", "a b c d", 1),
    ],
)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(answer, reference, rouge):
    assert scorer_for("chat").score(answer, reference)["rouge_l"] == pytest.approx(rouge)


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcd"), max_size=9), st.lists(st.sampled_from("abcd"), max_size=9))
def test_rouge_l_equals_the_table_of_the_textbook(found, wanted):
    table = [[0] * (len(wanted) + 1) for _ in range(len(found) + 1)]
    for i, one in enumerate(found, 1):
        for j, other in enumerate(wanted, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if one == other else max(table[i - 1][j], table[i][j - 1])
    expected = 2 * table[-1][-1] / (len(found) + len(wanted)) if found and wanted else float(found == wanted)
    assert scorer_for("chat").score(" ".join(found), " ".join(wanted))["rouge_l"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "inside"),
    [
        ("The Eiffel Tower.", "eiffel tower", 1, 1),
        ("It is the Eiffel Tower, of course", "Eiffel tower", 0, 1),
        ("42", "4", 0, 0),  # part of a word is not contained
        ("tower Eiffel", "Eiffel tower", 0, 0),
        ("anything", "", 0, 0),
        ("+", "-", 0, 0),
    ],
)
def test_exact_match_wants_the_whole_and_contains_a_part_of_whole_words(answer, reference, exact, inside):
    assert scorer_for("generate").score(answer, reference) == {"exact_match": exact, "contains": inside}


def test_figures_of_a_set_are_sums_over_counts():
    answered = [("a b", "a b"), ("x", "y"), ("x", "y"), ("x", "y")]
    assert scorer_for("generate").summarize(answered) == {"exact_match": 0.25, "contains": 0.25}


# classify


@pytest.mark.parametrize("answer", ["card_arrival", " Card Arrival.\n", "**card-arrival**", '"CARD__ARRIVAL"'])
def test_a_label_is_known_in_any_case_separator_and_quotes(answer):
    figures = scorer_for("classify", labels=LABELS).score(answer, "card_arrival")
    assert figures == {"accuracy": 1, "unparsed": 0}


@pytest.mark.parametrize("answer", ["", "card", "The label is card_arrival", "card_arrival, lost_card"])
def test_an_answer_that_is_no_label_is_wrong_and_unparsed(answer):
    figures = scorer_for("classify", labels=LABELS).score(answer, "card_arrival")
    assert figures == {"accuracy": 0, "unparsed": 1}


def test_another_label_is_wrong_but_not_unparsed():
    figures = scorer_for("classify", labels=LABELS).score("lost card", "card_arrival")
    assert figures == {"accuracy": 0, "unparsed": 0}


@pytest.mark.parametrize(
    "labels", [("1", "-1"), ("C", "C++", "C#"), ("a", "A"), ("x_y", "x-y"), ("?", "!"), ("yes", "yes.")]
)
def test_no_two_labels_are_taken_for_one(labels):
    scorer = scorer_for("classify", labels=labels)
    accuracy = [[scorer.score(one, other)["accuracy"] for one in labels] for other in labels]
    assert accuracy == [[float(one == other) for one in labels] for other in labels]


def test_without_known_labels_nothing_is_called_unparsed():
    assert scorer_for("classify").score("x", "y") == {"accuracy": 0}


def test_macro_f1_weighs_labels_alike_and_an_answer_that_is_no_label_opens_no_class():
    answered = [("a", "a"), ("a", "a"), ("nonsense", "a"), ("a", "b"), ("d", "b")]
    # a: 2 of 3 answers right, 2 of 3 found, so 2/3; b: never answered, 0; d: never wanted, 0; c occurs nowhere and does not count.
    figures = scorer_for("classify", labels=("a", "b", "c", "d")).summarize(answered)
    assert figures == pytest.approx({"accuracy": 2 / 5, "unparsed": 1 / 5, "macro_f1": 2 / 9})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("vwxyz"), st.sampled_from("vwxyz")), min_size=1, max_size=20))
def test_macro_f1_equals_that_of_scikit_learn(answered):
    metrics = pytest.importorskip("sklearn.metrics")
    given_labels, wanted = zip(*answered, strict=True)
    expected = metrics.f1_score(wanted, given_labels, average="macro", zero_division=0)
    assert scorer_for("classify", labels="vwxyz").summarize(answered)["macro_f1"] == pytest.approx(expected)


# extract


@pytest.mark.parametrize("text", [' \n{"a": 1}\t', '```json\n{"a": 1}\n```', ' ```json {"a": 1}``` '])
def test_a_json_fence_and_white_space_around_it_are_forgiven(text):
    assert extract(text, {"a": 1}) == {"json_fields": 1, "exact": 1, "valid_json": 1}


@pytest.mark.parametrize(
    "text",
    [
        'Here it is: {"a": 1}',
        '{"a": 1}.',
        "{'a': 1}",
        '{"a": 1,}',
        '```\n{"a": 1}\n```',
        '{"a": NaN}',
        "",
        "```json```",
    ],
)
def test_nothing_else_is_forgiven(text):
    assert extract(text, {"a": 1}) == {"json_fields": 0, "exact": 0, "valid_json": 0}


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, 1 / 2),
        ({"a": 1}, {"a": 1, "b": 2, "c": 3}, 1 / 2),  # precision 1, recall 1/3
        ({"a": 1, "b": 2, "c": 3}, {"a": 1}, 1 / 2),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 0}}, 1 / 2),
        ({"a": {"b": 1}}, {"a.b": 1}, 0),  # a dot in a name is no path
        ({"a": ["x", "y"]}, {"a": ["y", "x"]}, 0),  # lists by position
        ({"a": ["x", "y"]}, {"a": ["x"]}, 2 / 3),
        ({"a": []}, {"a": {}}, 0),
        ({"a": None}, {"a": None}, 1),
        ({"a": None}, {}, 0),
        ({"a": None}, {"a": ""}, 0),
        ({"a": 1.0}, {"a": 1}, 1),
        ({"a": 9007199254740993}, {"a": 9007199254740992}, 0),  # equal as floats, but order numbers are not floats
        ('{"a": ' + "9" * 5000 + ', "b": 1}', {"a": 1, "b": 1}, 1 / 2),  # Python reads no integer of that length
        ({"a": True}, {"a": 1}, 0),
        ({"a": "1"}, {"a": 1}, 0),
        ({"a": " LOW "}, {"a": "low"}, 1),
        ([1, 2], [1, 2], 1),
        ({"a": 1}, [1], 0),
    ],
)
def test_json_fields_is_f1_over_paths_and_values(answer, reference, f1):
    figures = extract(answer, reference)
    assert figures["json_fields"] == pytest.approx(f1)
    assert figures["exact"] == (f1 == 1)


def test_a_reference_that_is_no_json_is_met_by_no_object():
    assert extract({"a": 1}, "not json") == {"json_fields": 0, "exact": 0, "valid_json": 1}


def test_each_top_level_field_of_the_references_has_its_f1_over_the_set():
    references = [{"kind": "refund", "items": [1, 2]}, {"kind": "order", "items": [3]}, {"kind": "order"}]
    answers = [{"kind": "refund", "items": [1, 9]}, {"kind": "refund", "extra": 1}, "no json"]
    texts = [value if isinstance(value, str) else json.dumps(value) for value in answers]
    figures = scorer_for("extract").summarize(list(zip(texts, map(json.dumps, references), strict=True)))
    assert figures["field.kind"] == pytest.approx(2 * 1 / (2 + 3))  # 1 right, 2 given, 3 wanted
    assert figures["field.items"] == pytest.approx(2 * 1 / (2 + 3))
    assert "field.extra" not in figures
    assert figures["json_fields"] == pytest.approx((4 / 6 + 0 + 0) / 3)
    assert figures["valid_json"] == pytest.approx(2 / 3)


def test_schema_valid_tells_whether_the_answer_fits_the_schema():
    assert extract({"urgency": "low"}, {}, schema=SCHEMA)["schema_valid"] == 1
    assert extract({"urgency": "soon"}, {}, schema=SCHEMA)["schema_valid"] == 0
    assert extract({}, {}, schema=SCHEMA)["schema_valid"] == 0
    assert extract("no json", {}, schema=SCHEMA)["schema_valid"] == 0


def test_schema_valid_follows_references_within_the_schema():
    schema = {"$defs": {"name": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/name"}}}
    assert extract({"a": "x"}, {}, schema=schema)["schema_valid"] == 1
    assert extract({"a": 1}, {}, schema=schema)["schema_valid"] == 0


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        ({"type": "objekt"}, "objekt"),
        ({"properties": {"a": {"pattern": "("}}}, "is not a 'regex'"),
        ({"properties": {"a": {"$ref": "#/$defs/missing"}}}, "missing"),
        ({"$ref": "http://localhost:1/schema.json"}, "localhost"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_before_any_answer(schema, found):
    with pytest.raises(RecipeError, match=found) as caught:
        scorer_for("extract", schema=schema)
    assert caught.value.where.startswith("task.schema")


def test_schema_valid_cannot_be_the_metric_without_a_schema():
    with pytest.raises(RecipeError, match="needs a JSON schema"):
        scorer_for("extract", "schema_valid")
