from __future__ import annotations

import copy
import math
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.evaluate import report as pages

STEPS = ("choose", "clean", "tokenize", "smoke", "set up", "metric", "train", "evaluate", "deploy")
HOSTILE = "</style></title></textarea>--><script>alert(1)</script><img src=x onerror=alert(1)>\"' onload='alert(1) {{7*7}} \ud800\x00\u202e"
EMPTY_TAGS = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would make of a page: tags, attributes and text, and whether every tag is closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in EMPTY_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def full_report(text: str = "some text") -> dict:
    """A report with every part, in which every text that a user's data can reach is `text`."""
    guards = ("pass", "warn", "fail", "not_run")
    evidence = {
        text: 34,
        "numbers": [1, 2.5],
        "nested": {text: [text, {text: text}]},
        "none": None,
        "empty": [],
        "yes": True,
    }
    example = {
        "where": text,
        "prompt": text,
        "reference": text,
        "base": text,
        "tuned": text,
        "base_score": 0.0,
        "tuned_score": 1.0,
    }
    looks = [{"step": step, "loss": 2.0 - step / 20, "metric": step / 30, "answers": [text]} for step in (0, 10, 20)]
    finding = {"kind": text, "action": "changed", "count": 2, "where": [text], "fix": text}
    entry = {"where": text, "action": "changed", "reason": text, "before": text, "after": text}
    curve = [{"step": s, "loss": 2.0 / s, "learning_rate": 1e-4, "gradient_norm": 1.0} for s in range(1, 21)]
    return {
        "schema": 1,
        "burnish": "0.1.0",
        "name": text,
        "created": "2026-11-24T14:22:48+00:00",
        "goal": text,
        "verdict": "ship",
        "reasons": [text],
        "recipe": text,
        "model": {
            "name": text,
            "parameters": 1000,
            "trained_parameters": 100,
            "method": "lora",
            "trained": [{"group": text, "parameters": 100}],
        },
        "task": {"kind": "extract", "metric": "json_fields"},
        "steps": [
            {"n": n, "name": name, "status": "done", "seconds": 1.2, "summary": text} for n, name in enumerate(STEPS, 1)
        ],
        "guards": [
            {"n": n, "mistake": "overfitting", "status": status, "found": text, "evidence": evidence, "fix": text}
            for n, status in enumerate(guards, 1)
        ],
        "data": {
            "read": 340,
            "dropped": {text: 2},
            "changed": {text: 3},
            "train": 270,
            "validation": 34,
            "test": 34,
            "trained_tokens": 11200,
            "tokens": 31000,
            "truncated": 1,
            "lengths": {"bins": [[0, 64], [64, 128]], "counts": [200, 70]},
            "findings": [finding],
            "labels": {text: 51},
            "ledger": [entry],
        },
        "training": {
            "steps": 20,
            "best_step": 10,
            "seconds": 201.2,
            "tokens_per_second": 240.1,
            "peak_memory_bytes": 1.9e9,
            "learning_rate": 0.0013,
            "batch": 8,
            "epochs": 3,
            "precision": "fp32",
            "device": "cpu",
            "stopped": "ran to its end",
            "curve": curve,
            "validations": looks,
            "prompts": [text],
            "notes": [text],
        },
        "evaluation": {
            "metric": "json_fields",
            "n": 34,
            "base": 0.02,
            "tuned": 0.81,
            "delta": 0.79,
            "ci95": [0.72, 0.86],
            "p_value": 0.00001,
            "method": "paired bootstrap",
            "detectable": 0.08,
            "figures": [{"name": text, "base": 0.1, "tuned": 1.0, "delta": 0.9, "ci95": None}],
            "perplexity": {"base": 12.1, "tuned": 2.3},
            "examples": [example],
        },
        "deploy": {"parity": {"prompts": 4, "status": "pass", "largest_difference": 1e-5, "same_text": True}},
        "artifacts": {"adapter": text},
        "versions": {text: text},
    }


def headline(report: dict) -> str:
    html = pages.render_html(report)
    return Page(html[html.index("<h1>") : html.index("</h1>") + 5]).text


def test_hostile_texts_add_no_element_and_no_attribute():
    plain = "".join(mark if mark.isalnum() or mark.isspace() else "x" for mark in HOSTILE)
    harmless, hostile = Page(pages.render_html(full_report(plain))), Page(pages.render_html(full_report(HOSTILE)))
    assert hostile.tags == harmless.tags
    assert {name for name, _ in hostile.attributes} == {name for name, _ in harmless.attributes}


@pytest.mark.parametrize("length", [1, 30])
def test_no_script_runs_and_nothing_is_loaded(length):
    page = Page(pages.render_html(full_report(HOSTILE * length)))
    assert not {"script", "img", "iframe", "link", "object", "embed", "base", "form"} & set(page.tags)
    assert not [
        name for name, _ in page.attributes if name.startswith("on") or name in {"src", "style", "srcset", "action"}
    ]
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert not page.open


def test_hostile_texts_are_shown_as_they_are():
    assert "<script>alert(1)</script>" in Page(pages.render_html(full_report(HOSTILE))).text
    assert "{{7*7}}" in Page(pages.render_html(full_report(HOSTILE))).text


def test_the_page_forbids_scripts_and_loading_by_its_own_policy():
    attributes = Page(pages.render_html(full_report())).attributes
    policy = next(value for name, value in attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_marks_that_are_not_printed_are_spelled_out():
    shown = pages.printable({"a\x00": ["\ud800", "\u202eabc", "tab\tline\r\nend", "\x85"]})
    assert shown == {"a⟨U+0000⟩": ["⟨U+D800⟩", "⟨U+202E⟩abc", "tab\tline\nend", "⟨U+0085⟩"]}


def test_a_text_too_long_for_the_page_says_how_much_is_left_out():
    shown = pages.printable("y" * (pages.LONGEST + 1234))
    assert len(shown) < pages.LONGEST + 100
    assert "1,234 more characters" in shown


def test_a_long_text_is_folded_and_a_short_one_is_not():
    report = full_report()
    report["evaluation"]["examples"][0]["tuned"] = "word " * 300
    assert 'class="fold"' in pages.render_html(report)
    assert 'class="fold"' not in pages.render_html(full_report())


@settings(max_examples=20, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_any_text_gives_a_page_that_utf8_can_hold(text):
    page = Page(pages.render_html(full_report(text)).encode("utf-8").decode("utf-8"))
    assert not page.open


@pytest.mark.parametrize(
    "missing", ["model", "task", "steps", "guards", "data", "training", "evaluation", "deploy", "artifacts", "versions"]
)
def test_a_report_without_one_of_its_parts_still_makes_a_page(missing):
    report = full_report()
    del report[missing]
    assert not Page(pages.render_html(report)).open
    assert not Page(pages.render_html({**report, missing: None})).open


def test_an_empty_report_says_in_words_what_is_not_there():
    text = Page(pages.render_html({})).text
    for sentence in (
        "Base and tuned were not compared",
        "no curve yet",
        "before its data was read",
        "No model was written",
        "No guard was asked",
    ):
        assert sentence in text


@pytest.mark.parametrize("odd", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["training", "evaluation"])
def test_figures_that_are_no_numbers_do_not_break_the_page(part, odd):
    report = full_report()
    for key, value in report[part].items():
        if isinstance(value, int | float):
            report[part][key] = odd
    for point in report["training"]["curve"]:
        point["loss"] = odd
    report["evaluation"]["ci95"] = [odd, odd]
    assert not Page(pages.render_html(report)).open


def test_the_headline_of_a_failed_run_names_its_step():
    report = full_report() | {"verdict": "stop", "evaluation": None}
    report["steps"][3]["status"] = "failed"
    assert "step 4, smoke" in headline(report)


def test_a_gain_under_a_failed_guard_is_not_called_real():
    text = Page(pages.render_html(full_report() | {"verdict": "stop"})).text
    assert "It seems so" in text
    assert "this gain cannot be trusted" in text
    assert "the gain is real" not in text


@pytest.mark.parametrize(
    ("interval", "outcome", "words"),
    [
        ([0.1, 0.2], "better", "the gain is real"),
        ([-0.2, -0.1], "worse", "the loss is real"),
        ([-0.1, 0.1], "unclear", "may be no gain at all"),
        ([0.0, 0.1], "unclear", "may be no gain at all"),
        (None, "unmeasured", "There is no interval"),
    ],
)
def test_the_words_follow_the_interval(interval, outcome, words):
    report = full_report() | {"guards": []}
    report["evaluation"]["ci95"] = interval
    assert pages.outcome_of(report["evaluation"]) == outcome
    assert words in Page(pages.render_html(report)).text


def test_the_first_screen_holds_figures_interval_and_rows():
    html = pages.render_html(full_report())
    text = Page(html[html.index("<header") : html.index("</header>") + 9]).text
    for figure in ("+0.790", "0.020", "0.810", "+0.720 to +0.860", "34 locked test rows", "p < 0.001"):
        assert figure in text


def test_examples_that_changed_come_before_those_that_did_not():
    scores = [(0.5, 0.5), (0.9, 0.1), (0.0, 1.0), (0.2, 0.3)]
    examples = [{"base_score": base, "tuned_score": tuned} for base, tuned in scores]
    groups = [
        (side, [(one["base_score"], one["tuned_score"]) for one in group])
        for side, group in pages.example_groups(examples)
    ]
    assert groups == [("better", [(0.0, 1.0), (0.2, 0.3)]), ("worse", [(0.9, 0.1)]), ("the same", [(0.5, 0.5)])]


def test_an_answer_that_stays_the_same_is_told_once_with_its_steps():
    looks = [{"step": step, "answers": [answer]} for step, answer in [(0, "a"), (5, "b"), (10, "b"), (15, "a")]]
    (record,) = pages.answers_over_time({"prompts": ["p", "unanswered"], "validations": looks, "best_step": 10})
    assert record["answers"] == [(0, 0, "a", False), (5, 10, "b", True), (15, 15, "a", False)]


def test_words_that_differ_from_the_wanted_answer_are_marked_and_escaped():
    assert pages.compared('{"a": <b>, "c": 1}', '{"a": 2, "c": 1}').count("<mark>") >= 1
    assert "&lt;" in pages.compared('{"a": <b>, "c": 1}', '{"a": 2, "c": 1}')
    assert "<i>" not in pages.compared("<i> costs 1 and <i> 2", "<i> costs 1 and <i> 3")
    assert "<mark>" not in pages.compared("the same", "the same")
    assert "<mark>" not in pages.compared("nothing here is alike", '{"a": 2}')


@pytest.mark.parametrize(
    ("fix", "expected"),
    [
        ("burnish data check FILE   shows why", ("burnish data check FILE", "shows why")),
        ("--set data.test=0.2", ("--set data.test=0.2", "")),
        ("collect 3 more rows", ("", "collect 3 more rows")),
        (None, ("", "")),
    ],
)
def test_only_what_can_be_typed_is_shown_as_a_command(fix, expected):
    assert pages.typed(fix) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (134515008, "134,515,008"),
        (0.0013, "0.0013"),
        (-2.5, "−2.5"),
        (1.1e-5, "1.1e-05"),
        (None, "–"),
        (math.nan, "not a number"),
        (0, "0"),
    ],
)
def test_numbers_are_written_for_people(value, expected):
    assert pages.number(value) == expected


def test_rows_that_the_recipe_leaves_out_are_not_told_as_dropped():
    left_out = {"data.sample": 40}
    data = {"read": 100, "dropped": {"empty answer": 10}, "left_out": left_out, "train": 40, "validation": 5, "test": 5}
    chart = pages.data_flow(data)
    assert "left out 40" in chart
    assert "dropped 10" in chart


def test_the_page_is_written_whole_and_the_report_is_left_alone(tmp_path):
    report = full_report(HOSTILE)
    before = copy.deepcopy(report)
    pages.write_html(report, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == pages.render_html(report)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert report == before
