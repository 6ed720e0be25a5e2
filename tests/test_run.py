"""The folder of a run: its steps, what they keep, and the list of runs."""

from __future__ import annotations

import json

import pytest

from burnish.data.rows import Conversation, Labelled, Text, Turn
from burnish.errors import CheckpointError, Interrupted, RecipeError
from burnish.folder import Run, cut_back, files_key, key_of, list_runs, read_report, runs_table, write_text
from burnish.guards import Evidence
from burnish.progress import Progress, as_time
from burnish.recipe import make_recipe

ROWS = [
    Conversation(
        file="a.jsonl",
        line=1,
        turns=(Turn("system", "be short"), Turn("user", "naïve\u2028?"), Turn("assistant", "yes")),
        extra={"customer": 7},
    ),
    Text(file="b.txt", line=2, text="line\nline"),
    Labelled(file="c.csv", line=3, turns=(Turn("user", "text"),), label="class"),
]


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run", Progress(quiet=True), Evidence(make_recipe({"data": {"train": "a.jsonl"}})), "run")


def report(verdict="ship", created="2026-01-01T00:00:00+00:00", **parts):
    return {"verdict": verdict, "created": created, "steps": [{"seconds": 90.0}], **parts}


def save(folder, found):
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(found), encoding="utf-8")


# Steps ---------------------------------------------------------------------------------------------------------------


def test_a_step_that_ends_is_done(run):
    with run.step("clean") as record:
        record["summary"] = "all is well"
    assert run.steps[1] | {"seconds": 0} == {
        "n": 2,
        "name": "clean",
        "status": "done",
        "seconds": 0,
        "summary": "all is well",
    }


def test_a_step_that_raises_failed_and_says_why_in_one_line(run):
    with pytest.raises(RecipeError), run.step("clean"):
        raise RecipeError("it is wrong", where="here", hint="do this")
    assert (run.steps[1]["status"], run.steps[1]["summary"]) == ("failed", "here: it is wrong")


def test_a_step_that_meets_a_defect_of_ours_names_its_kind(run):
    with pytest.raises(ZeroDivisionError), run.step("clean"):
        raise ZeroDivisionError
    assert run.steps[1]["summary"] == "ZeroDivisionError"


@pytest.mark.parametrize("stop", [Interrupted("stopped"), KeyboardInterrupt()])
def test_a_step_that_was_told_to_stop_did_not_fail(run, stop):
    with pytest.raises(type(stop)), run.step("train"):
        raise stop
    assert run.steps[6]["status"] == "not_run"


# What is kept --------------------------------------------------------------------------------------------------------


def test_what_is_kept_under_a_key_comes_back_under_that_key_only(run):
    run.keep("clean", "key", {"rows": 3})
    assert run.kept("clean", "key") == {"rows": 3}
    assert run.kept("clean", "another") is None
    assert run.kept("train", "key") is None


def test_what_is_forgotten_is_not_kept(run):
    run.keep("clean", "key", {})
    run.forget("clean")
    run.forget("clean")
    assert run.kept("clean", "key") is None


@pytest.mark.parametrize("content", ["", "{", '{"key": "key"', "[]", "3", '{"key": "key"}', "\x00"])
def test_a_damaged_note_is_as_good_as_none(run, content):
    run.keep("clean", "key", {})
    (run.folder / "steps" / "clean.json").write_text(content, encoding="utf-8")
    assert run.kept("clean", "key") is None


def test_rows_come_back_as_they_were(run):
    run.write_rows("train", ROWS)
    assert run.read_rows("train") == ROWS


@pytest.mark.parametrize(
    "content", ["{", "[]\n", '{"place": ["a", 1], "row": {}}\n', '{"row": {"text": "t"}}\n', "\udcff"]
)
def test_damaged_rows_say_which_file_to_remove(run, content):
    run.write_rows("train", ROWS)
    (run.folder / "data" / "train.jsonl").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(CheckpointError) as caught:
        run.read_rows("train")
    assert caught.value.where.endswith("train.jsonl")
    assert caught.value.hint


# Keys and files ------------------------------------------------------------------------------------------------------


def test_a_key_does_not_depend_on_the_order_of_names_but_on_every_value():
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    assert key_of("a", "b") != key_of("ab")


def test_the_key_of_files_follows_their_content_and_name(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("text", encoding="utf-8")
    other.write_text("text", encoding="utf-8")
    before = files_key([str(one)])
    assert before == files_key([str(one)])
    assert before != files_key([str(other)])
    assert before != files_key([f"{one}#5"])
    one.write_text("texts", encoding="utf-8")
    assert before != files_key([str(one)])


def test_the_key_of_something_that_is_no_file_is_its_name():
    assert files_key(["org/one"]) != files_key(["org/other"])


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path):
    write_text(tmp_path / "a" / "file", "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a" / "file", "after \ud800")
    assert [(path.name, path.read_text(encoding="utf-8")) for path in (tmp_path / "a").iterdir()] == [
        ("file", "before")
    ]


def test_cutting_back_drops_only_what_was_appended(tmp_path):
    path = tmp_path / "file"
    path.write_text("before", encoding="utf-8")
    cut_back(path, 100)
    assert path.read_text(encoding="utf-8") == "before"
    cut_back(path, 3)
    assert path.read_text(encoding="utf-8") == "bef"


# The list of runs ----------------------------------------------------------------------------------------------------


def test_runs_are_listed_from_the_newest_on(tmp_path):
    save(tmp_path / "old", report(created="2026-01-01"))
    save(tmp_path / "new", report(created="2026-02-01"))
    assert [found["folder"] for found in list_runs(tmp_path)] == [str(tmp_path / "new"), str(tmp_path / "old")]


@pytest.mark.parametrize("content", ["{", "[]", "{}", "null", '{"created": "x"}'])
def test_a_folder_without_a_readable_report_is_no_run(tmp_path, content):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "report.json").write_text(content, encoding="utf-8")
    assert list_runs(tmp_path) == []


def test_a_missing_folder_holds_no_runs(tmp_path):
    assert list_runs(tmp_path / "none") == []
    assert "burnish run" in runs_table([])


def test_the_table_of_runs_has_a_line_for_each_with_its_gain(tmp_path):
    evaluation = {"metric": "accuracy", "n": 9, "base": 0.25, "tuned": 0.5, "delta": 0.25, "ci95": [0.1, 0.4]}
    save(tmp_path / "good", report(evaluation=evaluation, training={"steps": 12}))
    save(tmp_path / "failed", report(verdict="stop"))
    lines = runs_table(list_runs(tmp_path)).splitlines()
    assert len(lines) == 3
    assert "+0.250 (+0.100 to +0.400)" in "\n".join(lines)
    assert any("stop" in line and "1.5" in line for line in lines)


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: folder.mkdir(), lambda folder: folder.touch()])
def test_what_is_no_run_is_named(tmp_path, make):
    make(tmp_path / "it")
    with pytest.raises(CheckpointError, match="this is no run"):
        read_report(tmp_path / "it")


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_report_says_how_to_write_it_again(tmp_path, content):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_report(tmp_path)
    assert "burnish run" in caught.value.hint


# What is shown meanwhile ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (75, "1 min 15 s"), (3600, "1 h 00 min"), (9000, "2 h 30 min")],
)
def test_a_time_is_told_in_two_units_at_most(seconds, text):
    assert as_time(seconds) == text


def test_progress_that_is_quiet_says_nothing(capsys):
    progress = Progress(quiet=True)
    progress.begin(1, "choose")
    progress.update("on the way")
    progress.say("a line")
    assert capsys.readouterr() == ("", "")


def test_progress_goes_to_stderr(capsys):
    Progress().say("a line")
    assert capsys.readouterr() == ("", "a line\n")
