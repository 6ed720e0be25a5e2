"""Whether a trial is still run by somebody, and one process at a time."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from burnish.tuning.space import Choices, Range
from burnish.tuning.storage import (
    SILENT,
    STARTING,
    KernelLock,
    beating,
    distributions,
    is_dead,
    open_storage,
    this_process,
)

NOW = time.time()
ELSEWHERE = {"host": "another machine", "pid": 1, "began": "1"}


def running(started=NOW, **attributes):
    trial = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
    trial.datetime_start = datetime.fromtimestamp(started)
    return trial


HOLDING = """
import sys, time
from pathlib import Path
from burnish.tuning.storage import KernelLock
lock = KernelLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_a_process_that_is_killed_leaves_no_lock_on_the_journal(tmp_path):
    path = str(tmp_path / "journal.log.held")
    process = subprocess.Popen([sys.executable, "-c", HOLDING, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with open(path) as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.kill()
    process.wait()
    process.stdout.close()
    lock = KernelLock(Path(path))
    assert lock.acquire()
    lock.release()


def test_a_lock_that_another_kind_of_locking_left_is_in_nobodys_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink("journal.log", "journal.log.lock")
    study = optuna.create_study(storage=open_storage(None, Path()), study_name="study")
    study.set_user_attr("key", "value")
    assert study.user_attrs == {"key": "value"}


def test_a_trial_of_this_process_lives():
    assert not is_dead(running(process=this_process()), NOW)


def test_a_trial_whose_process_ended_is_dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    pid = process.pid
    time.sleep(0.2)
    found = {"host": socket.gethostname(), "pid": pid, "began": "1"}
    assert is_dead(running(process=found), NOW)  # ended, and not yet waited for
    process.wait()
    assert is_dead(running(process=found), NOW)


def test_another_process_under_the_same_number_is_not_the_trials():
    assert is_dead(running(process=this_process() | {"began": "1"}), NOW)


@pytest.mark.parametrize(("silent", "dead"), [(SILENT - 1, False), (SILENT + 1, True)])
def test_a_trial_on_another_machine_is_dead_after_a_long_silence(silent, dead):
    assert is_dead(running(NOW - 10 * SILENT, process=ELSEWHERE, beat=NOW - silent), NOW) is dead
    assert is_dead(running(NOW - silent, process=ELSEWHERE), NOW) is dead


@pytest.mark.parametrize(("age", "dead"), [(STARTING - 1, False), (STARTING + 1, True)])
def test_a_trial_that_names_no_process_was_cut_off_at_its_beginning(age, dead):
    assert is_dead(running(NOW - age), NOW) is dead


def test_a_running_trial_gives_signs_of_life_until_it_ends():
    study = optuna.create_study()
    trial = study.ask()
    with beating(trial, every=0.01):
        while "beat" not in trial.user_attrs:
            time.sleep(0.01)
    assert abs(trial.user_attrs["beat"] - time.time()) < 60
    assert os.getpid() == this_process()["pid"]


def test_a_space_in_the_words_of_the_storage():
    found = distributions({"a": Range(1, 8, log=True, whole=True), "b": Range(0, 1), "c": Choices((["x"], None, 2))})
    assert found == {
        "a": optuna.distributions.IntDistribution(1, 8, log=True),
        "b": optuna.distributions.FloatDistribution(0, 1),
        "c": optuna.distributions.CategoricalDistribution(['["x"]', "null", "2"]),
    }
