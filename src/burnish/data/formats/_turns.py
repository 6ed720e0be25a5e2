"""Texts, messages and prompts, read alike by every format that holds them.

The order of turns: at most one system turn, which comes first; then the user; a tool's turn follows the assistant's or another
tool's; the assistant never speaks twice in a row. The user may, as people do who send a second message at once: that is noted,
since some chat templates refuse it. A conversation may end with the user, whose last turn is then not answered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from burnish.data.formats._place import Place, number, parsed_json, plain
from burnish.data.rows import Conversation, Role, Turn, Turns

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
MESSAGE_KEYS = frozenset(
    {"role", "content", "from", "value", "name", "tool_calls", "function_call", "tool_call_id", "weight", "loss"}
)
PROMPTS = ("prompt", "instruction", "question", "query", "input", "conversations", "messages")
ANSWERS = ("completion", "answer", "response", "output")
BESIDE_PROMPT = ("system", "input", "context", "history")  # what may stand beside the column of the prompt


def text(value: Any, field: str, place: Place) -> str:
    """A text, or a list of text parts as the OpenAI format writes them, joined line by line."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in value]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "\n".join(texts)
    raise place.error("no text where text is needed", field, value, "a text", "write it in quotes, as text")


def filled(value: Any, field: str, place: Place, reason: str) -> str:
    """A text that is not blank; `reason` says what is wrong where it is."""
    found = "" if value is None else text(value, field, place)
    if not found.strip():
        raise place.error(reason, field, value, "some text to learn from", "leave the row out, or fill it in")
    return found


def answer_text(value: Any, field: str, place: Place) -> str:
    """An answer: text, or an object or list to be learnt as compact JSON text."""
    if isinstance(value, dict | list):
        return compact(value, field, place)
    return filled(value, field, place, "the answer is empty")


def compact(value: Any, field: str, place: Place) -> str:
    return json.dumps(plain(value, field, place), ensure_ascii=False, separators=(",", ":"))


def answer(value: Any, field: str, place: Place) -> Turns:
    """What the assistant says: a text, a JSON value, one message, or messages of which the first is the assistant's."""
    if is_message(value):
        value = [value]
    if not (isinstance(value, list) and value and all(is_message(item) for item in value)):
        return (Turn("assistant", answer_text(value, field, place)),)
    turns = messages(value, field, place)
    if turns[0].role != "assistant":
        raise place.error("the answer begins with somebody else", f"{field}[0].role", turns[0].role, "assistant")
    return turns


def is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and (value.keys() >= {"role", "content"} or value.keys() >= {"from", "value"})


def messages(value: Any, field: str, place: Place) -> Turns:
    """The turns of a list of messages, written role/content or from/value; also as JSON text, as a CSV cell holds them.

    A blank system turn is none. Raises RowError for an unknown role, broken tool calls, blank turns, a weight out of bounds.
    """
    if isinstance(value, str):
        value = parsed_json(value, field, place, "a list of messages")
    found = value if isinstance(value, list) else []
    turns = [_turn(message, f"{field}[{index}]", place) for index, message in enumerate(found)]
    spoken = tuple(turn for turn in turns if turn.role != "system" or turn.content.strip())
    if not spoken:
        raise place.error("no messages", field, value, "a list of messages, each with role and content")
    return spoken


def _turn(message: Any, field: str, place: Place) -> Turn:
    if not isinstance(message, Mapping):
        raise place.error(
            "a message that is no object", field, message, 'an object such as {"role": ..., "content": ...}'
        )
    role_key, content_key = ("role", "content") if "role" in message else ("from", "value")
    said = message.get(role_key)
    role = ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        expected = f"one of {', '.join(ROLES)}"
        raise place.error("an unknown role", f"{field}.{role_key}", said, expected, "rename it, or leave the row out")
    content = message.get(content_key)
    if len(message) == 2 and isinstance(content, str) and said != "function_call":
        return Turn(role, _spoken(role, content, f"{field}.{content_key}", place))
    if said == "function_call":
        return Turn(role, "", _weight(message, field, place), _written_calls(content, f"{field}.{content_key}", place))
    calls = _calls(message, field, place)
    if calls and role != "assistant":
        raise place.error(
            "a malformed tool call", f"{field}.{role_key}", said, "calls in a turn of the assistant alone"
        )
    if unread := [key for key, held in message.items() if key not in MESSAGE_KEYS and held is not None]:
        fix = "nothing, if the model need not learn it"
        place.note("a key of a message that is not read", f"{field}: {', '.join(unread)}", fix)
    name, call_id = (str(message.get(key) or "") for key in ("name", "tool_call_id"))
    spoken = _spoken("tool" if calls else role, content, f"{field}.{content_key}", place)
    return Turn(role, spoken, _weight(message, field, place), calls, name, call_id)


def _spoken(role: Role, content: Any, field: str, place: Place) -> str:
    """The text of a turn, which may be blank where it is the system's or a tool's."""
    if role == "assistant":
        return filled(content, field, place, "the answer is empty")
    if role == "user":
        return filled(content, field, place, "the user says nothing")
    return "" if content is None else text(content, field, place)


def _weight(message: Mapping[str, Any], field: str, place: Place) -> float | None:
    """What the turn counts in the loss, from `weight` or `loss`, which may also be true or false."""
    given = {key: message[key] for key in ("weight", "loss") if message.get(key) is not None}
    if not given:
        return None
    weights = {
        float(value) if isinstance(value, bool) else number(value, f"{field}.{key}", place)
        for key, value in given.items()
    }
    weight = min(weights)
    if len(weights) > 1 or weight < 0:
        key = min(given)
        raise place.error("a weight that cannot be used", f"{field}.{key}", given[key], "one number of 0 or more")
    return weight


def _calls(message: Mapping[str, Any], field: str, place: Place) -> tuple[Mapping[str, Any], ...]:
    """The tool calls of a message, in the OpenAI way of writing them; `function_call` is that format's older way."""
    calls, field_calls = message.get("tool_calls"), f"{field}.tool_calls"
    if calls is None and message.get("function_call") is not None:
        calls, field_calls = [message["function_call"]], f"{field}.function_call"
    if calls is None:
        return ()
    if not isinstance(calls, list):
        raise place.error("a malformed tool call", field_calls, calls, "a list of calls")
    return tuple(_call(call, f"{field_calls}[{index}]", place) for index, call in enumerate(calls))


def _written_calls(value: Any, field: str, place: Place) -> tuple[Mapping[str, Any], ...]:
    """The calls that the ShareGPT format writes as JSON text: {"name": ..., "arguments": {...}}, or a list of those."""
    if isinstance(value, str):
        value = parsed_json(value, field, place, 'a call as JSON: {"name": ..., "arguments": {...}}')
    calls = value if isinstance(value, list) else [value]
    return tuple(_call(call, f"{field}[{index}]", place) for index, call in enumerate(calls))


def _call(call: Any, field: str, place: Place) -> Mapping[str, Any]:
    if isinstance(call, Mapping) and "function" not in call and "name" in call:
        call = {"type": "function", "function": dict(call)}
    function = call.get("function") if isinstance(call, Mapping) else None
    expected = '{"function": {"name": ..., "arguments": {...}}}'
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise place.error("a malformed tool call", field, call, expected)
    arguments, where = function.get("arguments"), f"{field}.function.arguments"
    if isinstance(arguments, str):
        arguments = parsed_json(arguments, where, place, "the arguments as a JSON object")
    if not isinstance(arguments, Mapping):
        raise place.error("a malformed tool call", where, arguments, "the arguments as a JSON object")
    found: Mapping[str, Any] = plain(call, field, place)
    return found


def tools(record: Mapping[str, Any], place: Place) -> tuple[Mapping[str, Any], ...]:
    """The tools that a conversation may call: a list of objects, or that list as JSON text."""
    value = record.get("tools")
    if isinstance(value, str) and value.strip():
        value = parsed_json(value, "tools", place, "a list of tools")
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        hint = "columns: {my_tools: tools}   where the column means something else"
        raise place.error("malformed tools", "tools", value, "a list of tools", hint)
    return tuple(plain(tool, "tools", place) for tool in value)


def with_system(record: Mapping[str, Any], turns: Turns, place: Place) -> Turns:
    """The turns behind the system prompt of the column `system`, where it has one."""
    system = record.get("system")
    if system is None or system == "":
        return turns
    content = text(system, "system", place)
    return (Turn("system", content), *turns) if content.strip() else turns


def in_order(turns: Turns, field: str, place: Place) -> Turns:
    """The turns, if their order can be learnt from; see the head of this file. Raises RowError otherwise."""
    before = ""
    for index, turn in enumerate(turns):
        role = turn.role
        if role == "system" and index:
            raise place.error("a late system turn", f"{field}[{index}]", turn.content, "one system turn, at the start")
        if role != "system" and before in ("", "system") and role != "user":
            raise place.error("turns out of order", f"{field}[{index}].role", role, "the user to speak first")
        if role == "tool" and before not in ("assistant", "tool"):
            raise place.error("turns out of order", f"{field}[{index}].role", role, "the assistant's call before it")
        if role == before == "assistant":
            raise place.error(
                "turns out of order", f"{field}[{index}].role", role, "one answer at a time; join the two"
            )
        if role == before == "user":
            fix = "nothing, unless the model's chat template refuses it; then join the two"
            place.note("the user speaks twice in a row", f"{field}[{index}]", fix)
        before = role
    if before in ("", "system"):
        raise place.error("nobody speaks", field, [turn.as_json() for turn in turns], "a turn of the user")
    return turns


def conversation(
    record: Mapping[str, Any], turns: Turns, field: str, used: tuple[str, ...], place: Place
) -> Conversation:
    """A conversation to imitate. Raises RowError where its turns are out of order or nothing in it would be learnt."""
    weights = [turn.weight for turn in in_order(turns, field, place) if turn.role == "assistant"]
    if not weights:
        roles = [turn.role for turn in turns]
        raise place.error("no answer to learn from", field, roles, "at least one turn of the assistant")
    if all(weight == 0 for weight in weights):
        raise place.error("every answer has the weight 0", field, weights, "an answer that counts in the loss")
    extra = place.rest(record, *used, "system", "tools")
    return Conversation(file=place.file, line=place.line, extra=extra, turns=turns, tools=tools(record, place))


def prompt(record: Mapping[str, Any], place: Place, names: tuple[str, ...] = PROMPTS) -> tuple[Turns, tuple[str, ...]]:
    """The turns before an answer and the columns that they were read from, whichever of the names the prompt has."""
    if "instruction" in names and "instruction" in record and names[0] not in record:
        return instruction(record, place), ("instruction", *BESIDE_PROMPT)
    key = place.key(record, names)
    value = record[key]
    if isinstance(value, list) or key in ("messages", "conversations"):
        turns = messages(value, key, place)
    else:
        turns = (Turn("user", filled(value, key, place, "the prompt is empty")),)
    return with_system(record, turns, place), (key, "system")


def ends_open(turns: Turns, field: str, place: Place) -> Turns:
    """The turns in order, if the assistant is the next to speak. Raises RowError otherwise."""
    if in_order(turns, field, place)[-1].role == "assistant":
        raise place.error("the prompt ends with an answer", field, turns[-1].content, "the last turn to be the user's")
    return turns


def instruction(record: Mapping[str, Any], place: Place) -> Turns:
    """The Alpaca way: `history` gives earlier turns, and `input` (or `context`) follows `instruction` after a blank line."""
    parts = [text(record.get(key) or "", key, place) for key in ("instruction", "input", "context")]
    asked = "\n\n".join(part for part in parts if part.strip())
    asked = filled(asked, "instruction", place, "the instruction is empty")
    turns: list[Turn] = []
    history = record.get("history") or []
    if not isinstance(history, list):
        raise place.error("a malformed history", "history", history, "a list of [question, answer]")
    for index, exchange in enumerate(history):
        field = f"history[{index}]"
        if not isinstance(exchange, list | tuple) or len(exchange) != 2:
            raise place.error("a malformed history", field, exchange, "[question, answer]")
        turns.append(Turn("user", filled(exchange[0], field, place, "the user says nothing")))
        turns.append(Turn("assistant", filled(exchange[1], field, place, "the answer is empty")))
    return with_system(record, (*turns, Turn("user", asked)), place)
