"""Every format of rows: a realistic example, what is read of it, and that it reads the same after it was written."""

from __future__ import annotations

import json

import pytest
from reading import again

from burnish.data.formats import formats, parse
from burnish.data.rows import Conversation, Judged, Labelled, Pair, Prompt, Ranking, Row, Text, Turn
from burnish.errors import RowError

HERE = {"file": "rows.jsonl", "line": 3}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Bonn"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def system(text: str) -> Turn:
    return Turn("system", text)


def user(text: str) -> Turn:
    return Turn("user", text)


def bot(text: str, **more) -> Turn:
    return Turn("assistant", text, **more)


def tool(text: str, **more) -> Turn:
    return Turn("tool", text, **more)


def talk(*turns: Turn, **more) -> Conversation:
    return Conversation(**HERE, turns=turns, **more)


def pair(prompt: tuple[Turn, ...], chosen: str, rejected: str, **more) -> Pair:
    return Pair(**HERE, prompt=prompt, chosen=(bot(chosen),), rejected=(bot(rejected),), **more)


def ranking(prompt: str, *answers: tuple[str, float], **more) -> Ranking:
    texts, grades = zip(*answers, strict=True)
    return Ranking(**HERE, prompt=(user(prompt),), answers=tuple((bot(text),) for text in texts), grades=grades, **more)


def studio(result: dict, *more: dict, **data) -> dict:
    """A task as Label Studio exports it, with one annotation for each result."""
    shown = {"prompt": "Name a colour.", "answer1": "Blue.", "answer2": "Dog."}
    return {"data": shown | data, "annotations": [{"result": [one]} for one in (result, *more)]}


def argilla(values: list, question: str = "review", **fields) -> dict:
    """A record as Argilla 2 exports it, with one submitted response for each value."""
    given = [{"value": value, "status": "submitted"} for value in values]
    return {"fields": fields, "responses": {question: given}}


SELECTED = {"type": "pairwise", "to_name": "answer1,answer2", "value": {"selected": "right"}}

EXAMPLES: dict[str, tuple[dict, Row]] = {
    "alpaca": (
        {"instruction": "Translate to German.", "input": "Good morning.", "output": "Guten Morgen."},
        talk(user("Translate to German.\n\nGood morning."), bot("Guten Morgen.")),
    ),
    "alpaca with system and history": (
        {
            "instruction": "And in French?",
            "input": "",
            "output": "Bonjour.",
            "system": "You translate.",
            "history": [["Good morning in German?", "Guten Morgen."]],
        },
        talk(
            system("You translate."),
            user("Good morning in German?"),
            bot("Guten Morgen."),
            user("And in French?"),
            bot("Bonjour."),
        ),
    ),
    "alpaca as Dolly writes it": (
        {"instruction": "Who wrote it?", "context": "Faust is by Goethe.", "response": "Goethe.", "category": "qa"},
        talk(user("Who wrote it?\n\nFaust is by Goethe."), bot("Goethe."), extra={"category": "qa"}),
    ),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good day!"}],
            "system": "Be polite.",
        },
        talk(system("Be polite."), user("Hello"), bot("Good day!")),
    ),
    "sharegpt with tools": (
        {
            "conversations": [
                {"from": "human", "value": "Weather in Bonn?"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"town": "Bonn"}}'},
                {"from": "observation", "value": "18 degrees"},
                {"from": "gpt", "value": "It is 18 degrees."},
            ],
            "tools": json.dumps([TOOL]),
        },
        talk(
            user("Weather in Bonn?"),
            bot("", calls=(CALL,)),
            tool("18 degrees"),
            bot("It is 18 degrees."),
            tools=(TOOL,),
        ),
    ),
    "messages": (
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]},
                {"role": "assistant", "content": "Hi.", "weight": 0},
                {"role": "user", "content": "Bye"},
                {"role": "assistant", "content": "Bye.", "loss": True},
            ]
        },
        talk(system("Be brief."), user("Hello\nthere"), bot("Hi.", weight=0.0), user("Bye"), bot("Bye.", weight=1.0)),
    ),
    "messages with tools": (
        {
            "messages": [
                {"role": "user", "content": "Weather in Bonn?"},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", **CALL}]},
                {"role": "tool", "name": "weather", "tool_call_id": "c1", "content": "18 degrees"},
                {"role": "assistant", "content": "It is 18 degrees."},
            ],
            "tools": [TOOL],
        },
        talk(
            user("Weather in Bonn?"),
            bot("", calls=({"id": "c1", **CALL},)),
            tool("18 degrees", name="weather", call_id="c1"),
            bot("It is 18 degrees."),
            tools=(TOOL,),
        ),
    ),
    "text": (
        {"text": "The harbour of Rotterdam is the largest of Europe.", "source": "atlas"},
        Text(**HERE, text="The harbour of Rotterdam is the largest of Europe.", extra={"source": "atlas"}),
    ),
    "prompt and completion": (
        {"prompt": "Capital of France?", "completion": "Paris"},
        talk(user("Capital of France?"), bot("Paris")),
    ),
    "prompt and completion as messages": (
        {
            "prompt": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi."},
                {"role": "user", "content": "Capital of France?"},
            ],
            "completion": [{"role": "assistant", "content": "Paris"}],
        },
        talk(user("Hello"), bot("Hi.", weight=0.0), user("Capital of France?"), bot("Paris")),
    ),
    "completion as an object": (
        {"prompt": "My lamp is broken!", "completion": {"product": "lamp", "urgent": True, "order": None}},
        talk(user("My lamp is broken!"), bot('{"product":"lamp","urgent":true,"order":null}')),
    ),
    "completion as a list": (
        {"prompt": "Which towns does the letter name?", "completion": ["Köln", "Bonn"]},
        talk(user("Which towns does the letter name?"), bot('["Köln","Bonn"]')),
    ),
    "question and answer": (
        {"question": "2 + 2?", "answer": "4", "topic": "sums"},
        talk(user("2 + 2?"), bot("4"), extra={"topic": "sums"}),
    ),
    "query and response": ({"query": "2 + 2?", "response": "4"}, talk(user("2 + 2?"), bot("4"))),
    "prompt alone": (
        {"prompt": "Write a limerick about a lighthouse.", "system": "You are a poet."},
        Prompt(**HERE, turns=(system("You are a poet."), user("Write a limerick about a lighthouse."))),
    ),
    "text and label": (
        {"text": "Where is my card?", "label": "card_arrival"},
        Labelled(**HERE, turns=(user("Where is my card?"),), label="card_arrival"),
    ),
    "text and category": (
        {"text": "Where is my card?", "category": "card_arrival"},
        Labelled(**HERE, turns=(user("Where is my card?"),), label="card_arrival"),
    ),
    "integer label": (
        {"text": "Fine.", "label": 2},
        Labelled(**HERE, turns=(user("Fine."),), label=2),
    ),
    "grade": (
        {"text": "Fine.", "label": 3.5},
        Labelled(**HERE, turns=(user("Fine."),), label=3.5),
    ),
    "several labels": (
        {"text": "Lamp broken, money back!", "label": ["defect", "refund"]},
        Labelled(**HERE, turns=(user("Lamp broken, money back!"),), label=("defect", "refund")),
    ),
    "messages and label": (
        {
            "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Go away."}],
            "label": "rude",
        },
        Labelled(**HERE, turns=(user("Hi"), bot("Go away.")), label="rude"),
    ),
    "preference": (
        {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Dog.", "margin": 1.5},
        pair((user("Name a colour."),), "Blue.", "Dog.", margin=1.5),
    ),
    "preference with an implicit prompt": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A colour?\n\nAssistant: Blue.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A colour?\n\nAssistant: Dog.",
        },
        pair((user("Hi"), bot("Hello."), user("A colour?")), "Blue.", "Dog."),
    ),
    "preference with whole conversations": (
        {
            "prompt": "A colour?",
            "chosen": [{"role": "user", "content": "A colour?"}, {"role": "assistant", "content": "Blue."}],
            "rejected": [{"role": "user", "content": "A colour?"}, {"role": "assistant", "content": "Dog."}],
        },
        pair((user("A colour?"),), "Blue.", "Dog."),
    ),
    "preference as LLaMA-Factory writes it": (
        {
            "conversations": [{"from": "human", "value": "A colour?"}],
            "chosen": {"from": "gpt", "value": "Blue."},
            "rejected": {"from": "gpt", "value": "Dog."},
        },
        pair((user("A colour?"),), "Blue.", "Dog."),
    ),
    "preference as OpenAI writes it": (
        {
            "input": {"messages": [{"role": "user", "content": "A colour?"}]},
            "preferred_output": [{"role": "assistant", "content": "Blue."}],
            "non_preferred_output": [{"role": "assistant", "content": "Dog."}],
        },
        pair((user("A colour?"),), "Blue.", "Dog."),
    ),
    "kto": (
        {"prompt": "Name a colour.", "completion": "Dog.", "label": False},
        Judged(**HERE, prompt=(user("Name a colour."),), completion=(bot("Dog."),), good=False),
    ),
    "kto_tag": (
        {
            "messages": [{"role": "user", "content": "A colour?"}, {"role": "assistant", "content": "Blue."}],
            "kto_tag": True,
        },
        Judged(**HERE, prompt=(user("A colour?"),), completion=(bot("Blue."),), good=True),
    ),
    "ranked completions": (
        {
            "prompt": "A colour?",
            "completions": [{"rank": 1, "completion": "Sky."}, {"rank": 0, "completion": "Blue."}],
        },
        ranking("A colour?", ("Sky.", -1.0), ("Blue.", 0.0)),
    ),
    "responses, best first": (
        {"prompt": "A colour?", "responses": ["Blue.", "Sky.", "Dog."]},
        ranking("A colour?", ("Blue.", 0.0), ("Sky.", -1.0), ("Dog.", -2.0)),
    ),
    "answers and scores": (
        {"prompt": "A colour?", "answers": ["Blue.", "Red.", "Dog."], "scores": [3, 3, 0.5]},
        ranking("A colour?", ("Blue.", 3.0), ("Red.", 3.0), ("Dog.", 0.5)),
    ),
    "label studio pairwise": (studio(SELECTED), pair((user("Name a colour."),), "Dog.", "Blue.")),
    "label studio ranker": (
        studio(
            {"type": "ranker", "value": {"ranker": {"rank": ["b", "a"]}}},
            items=[{"id": "a", "body": "Sky."}, {"id": "b", "body": "Blue."}],
        ),
        ranking("Name a colour.", ("Sky.", -1.0), ("Blue.", 0.0), extra={"answer1": "Blue.", "answer2": "Dog."}),
    ),
    "label studio choices": (
        {
            "data": {"text": "Where is my card?"},
            "annotations": [{"result": [{"type": "choices", "value": {"choices": ["card_arrival"]}}]}],
        },
        Labelled(**HERE, turns=(user("Where is my card?"),), label="card_arrival"),
    ),
    "label studio rating": (
        {
            "data": {"text": "Where is my card?"},
            "annotations": [{"result": [{"type": "rating", "value": {"rating": rating}}]} for rating in (2, 3)],
        },
        Labelled(**HERE, turns=(user("Where is my card?"),), label=2.5),
    ),
    "label studio textarea": (
        {
            "data": {"prompt": "Where is my card?"},
            "annotations": [{"result": [{"type": "textarea", "value": {"text": ["In the post."]}}]}],
        },
        talk(user("Where is my card?"), bot("In the post.")),
    ),
    "argilla ranking": (
        argilla(
            [[{"value": "reply-1", "rank": 2}, {"value": "reply-2", "rank": 1}, {"value": "reply-3", "rank": 1}]],
            **{"prompt": "A colour?", "reply-1": "Dog.", "reply-2": "Blue.", "reply-3": "Red."},
        ),
        ranking("A colour?", ("Dog.", -2.0), ("Blue.", -1.0), ("Red.", -1.0)),
    ),
    "argilla rating": (argilla([4, 5], text="Fine."), Labelled(**HERE, turns=(user("Fine."),), label=4.5)),
    "argilla label": (
        argilla(["good", "good", "bad"], text="Fine."),
        Labelled(**HERE, turns=(user("Fine."),), label="good"),
    ),
    "argilla labels": (
        argilla([["polite", "brief"]], text="Fine."),
        Labelled(**HERE, turns=(user("Fine."),), label=("brief", "polite")),
    ),
    "argilla text": (argilla(["Blue."], prompt="A colour?"), talk(user("A colour?"), bot("Blue."))),
    "argilla 1": (
        {
            "fields": {"text": "Fine."},
            "responses": [
                {"status": "submitted", "values": {"tone": {"value": "good"}}},
                {"status": "discarded", "values": {"tone": {"value": "bad"}}},
            ],
        },
        Labelled(**HERE, turns=(user("Fine."),), label="good"),
    ),
}


@pytest.mark.parametrize(("record", "row"), EXAMPLES.values(), ids=EXAMPLES)
def test_example_is_read_as(record: dict, row: Row):
    assert parse(record, **HERE) == row


@pytest.mark.parametrize("row", [row for _, row in EXAMPLES.values()], ids=EXAMPLES)
def test_a_written_row_reads_back_equal(row: Row):
    assert again(row) == row


def test_the_docstring_of_each_format_shows_a_row_that_it_reads():
    for format in formats():
        shown = "".join(line.strip() for line in _json_lines(format.__doc__))
        record, _ = json.JSONDecoder().raw_decode(shown)
        assert parse(record, **HERE) is not None, format.NAME


def _json_lines(text: str) -> list[str]:
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.lstrip().startswith("{"))
    return lines[start:]


def test_cells_of_a_table_may_hold_messages_as_json_text():
    told = json.dumps([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}])
    assert parse({"messages": told}, **HERE) == talk(user("Hello"), bot("Hi."))


def test_columns_of_no_format_are_named_with_the_line_to_type():
    with pytest.raises(RowError, match="no format has these columns") as caught:
        parse({"ticket": "My lamp is broken", "reply": "We are sorry."}, **HERE)
    assert caught.value.where == "rows.jsonl:3"
    assert caught.value.hint.startswith("columns: {prompt: ticket, completion: reply}")


def test_a_completion_beside_an_instruction_is_its_answer():
    row = parse({"instruction": "Translate.", "input": "Good day", "completion": "Guten Tag"}, **HERE)
    assert row == talk(user("Translate.\n\nGood day"), bot("Guten Tag"))


def test_columns_of_two_formats_are_ambiguous():
    record = {"messages": [{"role": "user", "content": "a"}], "prompt": "a", "completion": "b"}
    with pytest.raises(RowError, match="the columns fit two formats") as caught:
        parse(record, **HERE)
    assert caught.value.hint


def test_a_column_that_would_be_read_only_after_writing_is_refused():
    """Alpaca's row is written as `messages`, and the column of that name that nobody read cannot be kept beside it."""
    with pytest.raises(RowError, match="several columns mean the same"):
        parse({"instruction": "a", "output": "b", "messages": "17 of them"}, **HERE)


def test_two_columns_for_one_answer_are_refused():
    with pytest.raises(RowError, match="several columns mean the same"):
        parse({"prompt": "a", "answer": "b", "response": "c"}, **HERE)


def test_annotators_who_disagree_decide_nothing():
    other = SELECTED | {"value": {"selected": "left"}}
    with pytest.raises(RowError, match="the annotators disagree"):
        parse(studio(SELECTED, other), **HERE)


def test_the_majority_of_annotators_decides():
    other = SELECTED | {"value": {"selected": "left"}}
    assert parse(studio(SELECTED, other, SELECTED), **HERE) == pair((user("Name a colour."),), "Dog.", "Blue.")


def test_a_cancelled_annotation_does_not_count():
    record = studio(SELECTED)
    record["annotations"][0]["was_cancelled"] = True
    with pytest.raises(RowError, match="nothing was annotated"):
        parse(record, **HERE)


def test_a_conversation_in_which_nothing_would_be_learnt_is_refused():
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "weight": 0}]
    with pytest.raises(RowError, match="every answer has the weight 0"):
        parse({"messages": said}, **HERE)
