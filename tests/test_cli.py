"""The command line: exit codes, what goes to stdout and stderr, and that no bad input shows a traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from burnish import api, cli
from tiny_runs import asked_and_answered, recipe_of, write_rows

HEAVY = ("torch", "optuna", "transformers", "peft", "pydantic", "numpy", "yaml", "jinja2", "pyarrow")


@pytest.fixture
def call(monkeypatch, capsys):
    """A function that runs the command line in this process: (exit code, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["burnish", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


@pytest.fixture(scope="module")
def project(model_folder, tmp_path_factory):
    """A folder with rows.jsonl, recipe.yaml and the run of it."""
    folder = tmp_path_factory.mktemp("project")
    rows = write_rows(folder / "rows.jsonl", asked_and_answered())
    recipe = recipe_of(model_folder(), rows)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    api.run(folder / "recipe.yaml", out=folder / "runs" / "good", quiet=True)
    return folder


@pytest.fixture
def here(project, monkeypatch, tmp_path):
    """A folder to work in, with rows.jsonl and recipe.yaml."""
    for name in ("rows.jsonl", "recipe.yaml"):
        shutil.copy(project / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stopped(project, tmp_path):
    """A copy of the run, its verdict changed to "stop"."""
    folder = shutil.copytree(project / "runs" / "good", tmp_path / "stopped")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    report |= {"verdict": "stop", "reasons": ["It got worse."]}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return folder


# What is loaded, and what each verb takes ----------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["burnish", "burnish.cli"])
def test_nothing_heavy_is_imported_before_it_is_needed(module):
    code = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def every_verb():
    def walk(command, path):
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*path, name))
        if not hasattr(command, "commands"):
            yield pytest.param(path, command, id=" ".join(path))

    return list(walk(typer.main.get_command(cli.app), ()))


@pytest.mark.parametrize(("path", "command"), every_verb())
def test_every_verb_can_print_json_and_says_what_it_does(path, command):
    assert any("--json" in parameter.opts for parameter in command.params)
    assert command.help


@pytest.mark.parametrize(("path", "command"), every_verb())
def test_every_verb_has_a_page_of_help(call, path, command):
    code, out, err = call(*path, "--help")
    assert (code, err) == (0, "")
    assert command.help.splitlines()[0] in " ".join(out.split())


def test_the_verbs_are_those_that_exist():
    verbs = {param.values[0] for param in every_verb()}
    assert {"/".join(path) for path in verbs} == {
        "init",
        "doctor",
        "data/check",
        "data/clean",
        "data/augment",
        "data/split",
        "plan",
        "run",
        "tune",
        "distill",
        "fewshot",
        "chat",
        "export",
        "merge",
        "runs",
    }


# Results as JSON on stdout -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["init", "rows.jsonl", "-o", "new.yaml", "--goal", "g"], {"out", "recipe"}),
        (["data", "check", "rows.jsonl", "--model", ""], {"findings", "rendered"}),
        (["data", "clean", "rows.jsonl", "-o", "clean.jsonl"], {"read", "written", "ledger"}),
        (
            ["data", "augment", "rows.jsonl", "-o", "more.jsonl", "--noise", "0.5"],
            {"read", "written", "generated", "ledger"},
        ),
        (["data", "split", "rows.jsonl", "-o", "splits"], {"rows"}),
        (["plan", "recipe.yaml"], {"parameters", "memory", "steps", "seconds", "fits"}),
    ],
    ids=lambda words: " ".join(words[:2]) if isinstance(words, list) else "",
)
def test_json_is_all_that_stdout_holds(call, here, words, keys):
    code, out, _ = call(*words, "--json")
    assert code == 0
    assert keys <= json.loads(out).keys()


def test_doctor_tells_each_thing_with_its_status(call):
    _, out, _ = call("doctor", "--json")
    assert {record["status"] for record in json.loads(out)} <= {"ok", "warn", "fail"}


def test_a_run_prints_its_report_on_stdout_and_its_progress_on_stderr(call, project):
    code, out, err = call("run", project / "recipe.yaml", "--out", project / "runs" / "good", "--json")
    report = json.loads(out)
    assert (code, report["verdict"]) == (0, "ship")
    assert report == json.loads((project / "runs" / "good" / "report.json").read_text(encoding="utf-8"))
    assert [line for line in err.splitlines() if " 9 deploy" in line]


def test_a_quiet_run_says_nothing_on_stderr(call, project):
    code, out, err = call("run", project / "recipe.yaml", "--out", project / "runs" / "good", "--quiet")
    assert (code, err) == (0, "")
    assert out.startswith("verdict: ship")


def test_runs_are_listed_with_their_figures(call, project):
    code, out, _ = call("runs", project / "runs", "--json")
    assert code == 0
    assert [run["verdict"] for run in json.loads(out)] == ["ship"]


def test_a_listing_of_runs_names_folder_and_verdict(call, project):
    code, out, _ = call("runs", project / "runs")
    assert code == 0
    assert f"{project}/runs/good" in out
    assert "ship" in out


def test_chat_answers_one_prompt(call, project):
    code, out, _ = call("chat", project / "runs" / "good", "--prompt", "bako", "--json")
    assert code == 0
    assert json.loads(out).keys() == {"answer"}


def test_chat_answers_each_line_of_stdin(call, project, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("bako\n\nritu\n"))
    code, out, _ = call("chat", project / "runs" / "good", "--json")
    assert code == 0
    assert len([line for line in out.splitlines() if '"answer"' in line]) == 2


def test_export_prints_what_parity_found(call, project, tmp_path):
    code, out, _ = call("export", project / "runs" / "good", "--to", tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(out)["differences"].keys() == {"adapter", "merged"}


# Exit codes ----------------------------------------------------------------------------------------------------------


def test_a_sample_whose_verdict_is_not_ship_ends_with_one(call, here):
    few = ["--set", "data.validation=4", "--set", "data.test=4", "--set", "train.max_steps=1"]
    code, out, _ = call("run", "recipe.yaml", "--out", "run", "--sample", "16", *few)
    assert code == 1
    assert out.startswith("verdict: ")
    assert '"left out", "reason": "data.sample"' in (here / "run" / "ledger.jsonl").read_text(encoding="utf-8")


def test_a_run_goes_to_a_folder_named_after_the_recipe(call, here):
    shutil.move("recipe.yaml", "tickets.yaml")
    call("run", "tickets.yaml", "-q", "--set", "train.learning_rate=1e-9")
    assert Path("runs/tickets/report.json").is_file()


def test_a_leak_ends_with_one_and_names_the_rows(call, here):
    shutil.copy("rows.jsonl", "test.jsonl")
    code, _, err = call("run", "recipe.yaml", "--out", "run", "--set", "data.test=test.jsonl")
    assert code == 1
    assert "test.jsonl:1 = " in err


def test_a_failed_try_out_ends_with_three_and_its_report_says_stop(call, here):
    code, out, err = call("run", "recipe.yaml", "--out", "run", "--set", "train.learning_rate=1e-9")
    assert (code, out) == (3, "")
    assert "error: learning" in err
    assert json.loads(Path("run/report.json").read_text(encoding="utf-8"))["verdict"] == "stop"


def test_an_interrupt_ends_with_three_and_no_traceback(call, here, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "plan", interrupted)
    assert call("plan", "recipe.yaml") == (3, "", "")


def test_a_defect_of_ours_is_not_hidden(here, monkeypatch):
    def defective(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(api, "plan", defective)
    monkeypatch.setattr(sys, "argv", ["burnish", "plan", "recipe.yaml"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def make_unreadable(here):
    (here / "loop").symlink_to("loop")  # not even root can read it


BAD = {
    "augment with nothing to generate": ["data", "augment", "rows.jsonl", "-o", "more.jsonl"],
    "augment with an unknown kind": [
        "data",
        "augment",
        "rows.jsonl",
        "-o",
        "more.jsonl",
        "--noise",
        "1",
        "--kind",
        "x",
    ],
    "augment with a share below 0": ["data", "augment", "rows.jsonl", "-o", "more.jsonl", "--noise", "-1"],
    "augment without an endpoint": ["data", "augment", "rows.jsonl", "-o", "more.jsonl", "--rewrite", "1"],
    "no verb of ours": ["tune"],
    "an unknown option": ["run", "recipe.yaml", "--fast"],
    "no recipe given": ["run"],
    "a sample of a word": ["run", "recipe.yaml", "--sample", "few"],
    "a sample that is too small": ["run", "recipe.yaml", "--sample", "2"],
    "a missing recipe": ["run", "none.yaml"],
    "a recipe that is a folder": ["run", "."],
    "a recipe that cannot be read": ["run", "loop"],
    "a recipe with an endless name": ["run", "x" * 5000],
    "a recipe that is binary": ["run", "binary"],
    "a recipe that is no YAML": ["run", "rows.jsonl"],
    "an unknown key": ["run", "recipe.yaml", "--set", "train.epoch=3"],
    "a key without a value": ["run", "recipe.yaml", "--set", "train.epochs"],
    "a key through a value": ["run", "recipe.yaml", "--set", "model.name=x"],
    "a value of the wrong kind": ["run", "recipe.yaml", "--set", "train.epochs=many"],
    "data that is null": ["run", "recipe.yaml", "--set", "data=null"],
    "an unknown objective": ["run", "recipe.yaml", "--set", "objective=magic"],
    "an unknown model": ["run", "recipe.yaml", "--set", "model=nothing"],
    "a model folder without a model": ["run", "recipe.yaml", "--set", "model=."],
    "an unknown metric": ["run", "recipe.yaml", "--set", "task.metric=beauty"],
    "a missing file of rows": ["run", "recipe.yaml", "--set", "data.train=none.jsonl"],
    "a folder of rows that is empty": ["run", "recipe.yaml", "--set", "data.train=empty"],
    "rows that cannot be read": ["run", "recipe.yaml", "--set", "data.train=loop"],
    "rows that are binary": ["run", "recipe.yaml", "--set", "data.train=binary"],
    "a group that no row has": ["run", "recipe.yaml", "--set", "data.group_by=customer"],
    "layers that the model has not": ["run", "recipe.yaml", "--set", "freeze.layers=90"],
    "a rank above the model": ["run", "recipe.yaml", "--set", "adapter.rank=900"],
    "a schema that is missing": ["run", "recipe.yaml", "--set", "task={kind: extract, schema: none.json}"],
    "more held-out rows than there are": ["plan", "recipe.yaml", "--set", "data.test=90"],
    "a run into a file": ["run", "recipe.yaml", "--out", "rows.jsonl"],
    "a run below a file": ["run", "recipe.yaml", "--out", "rows.jsonl/run"],
    "a plan of nothing": ["plan", "none.yaml"],
    "init of a missing file": ["init", "none.jsonl"],
    "init of a folder without rows": ["init", "empty"],
    "init over a recipe": ["init", "rows.jsonl"],
    "init into a missing folder of a file": ["init", "rows.jsonl", "-o", "rows.jsonl/recipe.yaml"],
    "init into a folder": ["init", "rows.jsonl", "-o", "empty", "--force"],
    "a check of a missing file": ["data", "check", "none.jsonl"],
    "a check of an unreadable file": ["data", "check", "loop"],
    "a column without its name": ["data", "check", "rows.jsonl", "--column", "label"],
    "a clean copy over its source": ["data", "clean", "rows.jsonl", "-o", "rows.jsonl"],
    "a clean copy into a folder": ["data", "clean", "rows.jsonl", "-o", "empty", "--force"],
    "a split of more than all": ["data", "split", "rows.jsonl", "-o", "splits", "--test", "1.5", "--validation", "70"],
    "a split into a file": ["data", "split", "rows.jsonl", "-o", "recipe.yaml"],
}
NO_RUN = {
    "chat with nothing": ["chat", "none", "-p", "x"],
    "chat with a folder that is no run": ["chat", ".", "-p", "x"],
    "chat with a file": ["chat", "rows.jsonl", "-p", "x"],
    "augment at an endpoint that is not there": [
        *("data", "augment", "rows.jsonl", "-o", "more.jsonl", "--rewrite", "1"),
        *("--endpoint", "http://127.0.0.1:1/v1", "--model", "small"),
    ],
    "chat with a damaged run": ["chat", "damaged", "-p", "x"],
    "export of nothing": ["export", "none", "--to", "out"],
    "export of a folder that is no run": ["export", ".", "--to", "out"],
    "export of a run without a model": ["export", "bare", "--to", "out"],
}


@pytest.fixture
def messy(here):
    """The folder to work in, with things in it that are not what they are taken for."""
    make_unreadable(here)
    (here / "empty").mkdir()
    (here / "binary").write_bytes(bytes(range(256)) * 8)
    for name, report in {
        "damaged": "{",
        "bare": json.dumps(
            {
                "verdict": "ship",
                "created": "",
                "steps": [],
                "name": "bare",
                "model": {"source": "."},
                "task": {"system": ""},
            }
        ),
    }.items():
        (here / name).mkdir()
        (here / name / "report.json").write_text(report, encoding="utf-8")
    return here


def assert_explained(code, out, err, wanted):
    assert (code, out) == (wanted, "")
    assert "error: " in err.lower()
    assert "Traceback" not in err


@pytest.mark.parametrize("words", BAD.values(), ids=BAD.keys())
def test_bad_input_ends_with_two_and_an_explanation(call, messy, words):
    assert_explained(*call(*words), wanted=2)


@pytest.mark.parametrize("words", NO_RUN.values(), ids=NO_RUN.keys())
def test_what_is_no_whole_run_ends_with_three_and_an_explanation(call, messy, words):
    assert_explained(*call(*words), wanted=3)


def test_an_unknown_key_names_the_nearest_and_where_it_stands(call, here):
    _, _, err = call("run", "recipe.yaml", "--set", "train.epoch=3")
    assert err.startswith("error: recipe.yaml: unknown key `train.epoch`")
    assert "did you mean `epochs`?" in err


def test_a_listing_of_a_folder_without_runs_says_how_to_make_one(call, here):
    code, out, _ = call("runs")
    assert code == 0
    assert "burnish run" in out


# A model that should not be used -------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["chat", "-p", "x"], ["export", "--to", "out"]])
def test_a_stopped_run_is_refused_with_its_reasons(call, stopped, words):
    code, _, err = call(words[0], stopped, *words[1:])
    assert code == 3
    assert "It got worse." in err
    assert "--force" in err


def test_chat_with_a_stopped_run_can_be_forced(call, stopped):
    assert call("chat", stopped, "-p", "x", "--force")[0] == 0


def test_a_forced_export_says_so_in_its_card(call, stopped, tmp_path):
    assert call("export", stopped, "--to", tmp_path / "out", "--force")[0] == 0
    assert "by force" in (tmp_path / "out" / "card.md").read_text(encoding="utf-8")


def test_an_export_that_nobody_forced_does_not_say_so(call, project, tmp_path):
    assert call("export", project / "runs" / "good", "--to", tmp_path / "out")[0] == 0
    assert "by force" not in (tmp_path / "out" / "card.md").read_text(encoding="utf-8")


def test_a_list_option_takes_several_values_at_once(here, call, monkeypatch):
    asked, items = [], {"validation": 1, "test": 1}
    found = {"metric": "accuracy", "items": items, "seeds": [0], "curve": [], "advice": [], "folder": "study"}
    monkeypatch.setattr(api, "fewshot", lambda recipe, **given: asked.append(given) or found)
    words = ("fewshot", "recipe.yaml", "--k", 4, 8, "--methods", "lora", "head", "--seeds", 2, "--k", 16, "--json")
    assert call(*words)[0] == 0
    [given] = asked
    assert (given["k"], given["methods"], given["seeds"]) == ([4, 8, 16], ["lora", "head"], 2)


@pytest.mark.parametrize("words", [("--k", 0), ("--k", 4, "x"), ("--k",), ("--methods", "head")])
def test_a_study_that_cannot_be_is_refused_without_a_traceback(here, call, words):
    code, _, err = call("fewshot", "recipe.yaml", "-q", "--out", here / "study", *words)
    assert code == 2
    assert "Traceback" not in err
