from __future__ import annotations

import json
import os
import resource
import shutil

import pytest
import torch

from burnish.errors import CheckpointError
from burnish.train import checkpoint as checkpoints
from burnish.train.checkpoint import FILES, Checkpoint, Store, random_state, set_random_state, verify


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "checkpoints", "key")


def state_at(step):
    torch.manual_seed(step)
    weights = {"a": torch.randn(3, 4), "b": torch.randn(5).to(torch.bfloat16)}
    moments = {"a/exp_avg": torch.randn(3, 4), "a/step": torch.tensor(float(step))}
    return Checkpoint(weights, moments, {"steps": step, "random": random_state()})


def save(store, *steps, best=None):
    for step in steps:
        store.save(state_at(step), step, best=best)


def names(store):
    return sorted(path.name for path in store.folder.iterdir())


def test_what_is_saved_comes_back_to_the_bit(store):
    save(store, 7)
    step, found = store.newest()
    wanted = state_at(7)
    assert step == 7
    for mine, theirs in ((found.weights, wanted.weights), (found.optimizer, wanted.optimizer)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)
    assert found.state == wanted.state | {"key": "key"}


def test_a_checkpoint_holds_safetensors_and_json_alone(store):
    save(store, 1)
    assert {path.suffix for path in (store.folder / "step-000001").iterdir()} == {".safetensors", ".json"}


def test_a_folder_without_checkpoints_has_no_newest(store):
    assert store.newest() is None


def test_a_checkpoint_before_the_first_step_has_no_moments(store):
    store.save(Checkpoint({"a": torch.ones(2)}, {}, {}), 0, best=None)
    assert store.newest()[1].optimizer == {}


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_save_that_fails_leaves_nothing_under_a_good_name(store, monkeypatch, failing):
    save(store, 1)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", fail) if failing == "fsync" else (checkpoints.Path, "rename", fail)))
    with pytest.raises(CheckpointError, match="No space left"):
        save(store, 2)
    monkeypatch.undo()
    assert names(store) == ["step-000001"]
    assert store.newest()[0] == 1


def test_a_disk_that_fills_up_while_tensors_are_written_is_a_checkpoint_error(store):
    save(store, 1)
    large = Checkpoint({"a": torch.zeros(100_000)}, {}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            store.save(large, 2, best=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(store) == ["step-000001"]


def test_a_full_disk_is_said_beforehand_with_the_bytes(store, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(CheckpointError, match=r"1,000 bytes left and a checkpoint needs 110"):
        save(store, 1)
    assert names(store) == []


def test_a_half_written_checkpoint_is_never_read(store):
    save(store, 1)
    shutil.copytree(store.folder / "step-000001", store.folder / "step-000002.tmp")
    assert store.newest()[0] == 1
    assert names(store) == ["step-000001"]


@pytest.mark.parametrize("name", [*FILES, "checksums.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "missing"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_said(store, name, damage):
    save(store, 1, 2)
    path = store.folder / "step-000002" / name
    written = bytearray(path.read_bytes())
    if damage == "flipped":
        written[len(written) // 2] ^= 1
    path.write_bytes({"truncated": written[:-1], "flipped": written}.get(damage, b""))
    if damage == "missing":
        path.unlink()
    assert store.newest()[0] == 1
    assert len(store.notes) == 1
    assert "step-000002 is damaged" in store.notes[0]


def test_each_flipped_byte_of_a_checkpoint_is_detected(store):
    save(store, 1)
    folder = store.folder / "step-000001"
    for path in folder.iterdir():
        whole = path.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 64)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
            with pytest.raises(CheckpointError):
                verify(folder)
        path.write_bytes(whole)
    verify(folder)


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_good_one(store):
    save(store, 1, 2)
    (store.folder / "step-000002" / FILES[0]).write_bytes(b"")
    store.newest()
    save(store, 3)
    assert names(store) == ["step-000001", "step-000003"]


def test_where_all_are_damaged_there_is_no_newest(store):
    save(store, 1, 2)
    for step in (1, 2):
        (store.folder / f"step-{step:06d}" / FILES[2]).write_text("{}")
    assert store.newest() is None


def test_a_checkpoint_of_another_run_is_not_taken_up(store):
    save(store, 1)
    assert Store(store.folder, "another").newest() is None


def test_the_two_newest_and_the_best_are_kept(store):
    save(store, 1)
    save(store, 2, 3, 4, 5, best=2)
    assert names(store) == ["step-000002", "step-000004", "step-000005"]


def test_a_step_that_is_saved_anew_takes_the_place_of_the_old(store):
    save(store, 1, 2)
    (store.folder / "step-000002" / FILES[0]).write_bytes(b"")
    save(store, 2)
    verify(store.folder / "step-000002")


def test_a_step_is_whole_or_not(store):
    save(store, 1)
    assert store.is_whole(1)
    assert not store.is_whole(2)


def test_clear_forgets_everything(store):
    save(store, 1, 2)
    store.clear()
    assert names(store) == []


def test_random_states_survive_json():
    torch.manual_seed(5)
    state = json.loads(json.dumps(random_state()))
    first = torch.rand(3)
    set_random_state(state)
    assert torch.equal(torch.rand(3), first)
