"""How the orchestrator treats the processes of its arms."""

import argparse
import time

import pytest
import run
from options import changes_of


def options_of(tmp_path, seconds):
    return argparse.Namespace(
        scratch=tmp_path,
        seconds_per_arm=seconds,
        verbose=False,
        steps=1,
        warmup=0,
        tiny=True,
        rows=None,
        tokenizer=None,
        change=[],
    )


def process_of(tmp_path, monkeypatch, program, seconds=20.0):
    (tmp_path / "arm.py").write_text(program)
    monkeypatch.setattr(run, "HERE", tmp_path)
    return run.run_process("arm.py", [], options_of(tmp_path, seconds))


def test_the_last_marked_line_is_the_result(tmp_path, monkeypatch):
    program = """print("noise"); print('RESULT {"a": 1}'); print("more noise")"""
    assert process_of(tmp_path, monkeypatch, program) == {"a": 1}


def test_an_arm_that_dies_without_a_word_is_a_result(tmp_path, monkeypatch):
    found = process_of(tmp_path, monkeypatch, "import os; print('about to die', flush=True); os._exit(7)")
    assert found["error"] == "exit code 7; it last said: about to die"


def test_an_arm_that_hangs_is_ended_and_is_a_result(tmp_path, monkeypatch):
    began = time.monotonic()
    found = process_of(
        tmp_path, monkeypatch, "import time; print('compiling', flush=True); time.sleep(60)", seconds=1.0
    )
    assert found["error"] == "stopped after 1 s; it last said: compiling"
    assert time.monotonic() - began < 30


def test_a_failed_arm_is_kept_once_and_the_others_take_turns(tmp_path, monkeypatch):
    order = []

    def fake(work, arm, repeat, options):
        order.append((arm.name, repeat))
        about = {
            "work": work.name,
            "arm": arm.name,
            "title": arm.title,
            "side": arm.side,
            "started": str(len(order)),
            "repeat": repeat,
        }
        return about | {"error": "broken"}

    def fine(work, arm, repeat, options):
        found = fake(work, arm, repeat, options)
        if arm.name != "unsloth-best":
            del found["error"]
            found |= {
                "peak_gib": 1.0,
                "step_ms": [1.0, 1.0, 1.0],
                "tokens_per_second": 1.0,
                "of_rate": 0.1,
                "losses": [],
                "gradient_norms": [],
                "first_step_seconds": 1.0,
                "total_seconds": 1.0,
            }
        return found

    monkeypatch.setattr(run, "run_arm", fine)
    wanted = ["burnish-bf16", "unsloth-best", "trl-defaults"]
    run.run_all(argparse.Namespace(works=["8b-dense"], arms=wanted, repeats=2, total_seconds=None, out=tmp_path))
    assert order == [
        ("burnish-bf16", 1),
        ("unsloth-best", 1),
        ("trl-defaults", 1),
        ("burnish-bf16", 2),
        ("trl-defaults", 2),
    ]
    assert len(run.report.read_runs(tmp_path)) == 5


@pytest.mark.parametrize(("text", "value"), [("a=true", True), ("a=4096", 4096), ("a=mlp", "mlp"), ("a=null", None)])
def test_changes_are_read_as_json_where_they_are(text, value):
    assert changes_of([text]) == {"a": value}
