"""The documents and floors that every arm of the GPU comparison shares."""

import arms
import pytest
import work


def test_every_work_has_arms_of_both_sides_with_names_of_their_own():
    for name in work.WORKS:
        names = [arm.name for arm in arms.ARMS[name]]
        assert len(set(names)) == len(names)
        assert {arm.side for arm in arms.ARMS[name]} == {"burnish", "peer"}


@pytest.mark.parametrize("name", work.WORKS)
def test_the_same_steps_hold_the_same_documents_however_many_are_asked_for(name):
    task = work.WORKS[name].tiny()
    few, many = work.documents_of(task, 2), work.documents_of(task, 3)
    assert many[:2] == few
    assert [len(step) for step in many] == [task.documents] * 3


def test_dense_documents_are_all_trained_but_for_their_first_token():
    step = work.documents_of(work.WORKS["1b-dense"], 1)[0]
    assert {(len(document.ids), document.trained) for document in step} == {(2048, 2047)}


def test_packs_have_the_lengths_of_the_protocol():
    task = work.WORKS["8b-packs"]
    documents = [document for step in work.documents_of(task, 100) for document in step]
    lengths = sorted(len(document.ids) for document in documents)
    assert lengths[0] >= 32
    assert lengths[-1] <= 4096
    assert 340 < lengths[len(lengths) // 2] < 430
    assert sum(document.prompt for document in documents) / sum(lengths) == pytest.approx(0.6, abs=0.01)


def test_labels_hide_the_prompt_alone():
    assert work.Document([5, 6, 7, 8], prompt=3).labels == [-100, -100, -100, 8]


def test_the_weights_of_the_8b_shape_are_those_of_its_linear_layers():
    assert work.SHAPES["llama-3.1-8b"].weights == 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)


def test_model_flops_of_dense_rows_follow_the_formula():
    shape, length = work.SHAPES["llama-3.1-8b"], 2048
    document = work.Document(list(range(length)), 0)
    head = 4 * shape.head * (length - 1)
    attention = 7 * length * length * 32 * 128 * 32
    assert work.model_flops(shape, [document]) == 4 * shape.weights * length + head + attention


def test_two_short_documents_cost_less_than_one_long():
    shape = work.SHAPES["llama-3.2-1b"]
    long, short = work.Document(list(range(2048)), 0), work.Document(list(range(1024)), 0)
    assert work.model_flops(shape, [short, short]) < work.model_flops(shape, [long])


def test_the_floor_of_8b_with_lora_is_the_known_rate():
    step = [work.Document(list(range(1024)), 0)]
    assert 1024 / work.least_seconds(work.SHAPES["llama-3.1-8b"], step) == pytest.approx(25_600, rel=0.02)


def test_full_training_and_four_bits_raise_the_floor():
    shape, step = work.SHAPES["llama-3.2-1b"], [work.Document(list(range(512)), 0)]
    plain = work.least_seconds(shape, step)
    assert work.least_seconds(shape, step, four_bit=True) > plain
    assert work.least_seconds(shape, step, "full") > plain


def test_changed_settings_show_in_the_name_and_unknown_ones_are_refused():
    arm = arms.find_arm("1b-dense", "burnish-fp8")
    changed = arm.changed({"micro_tokens": 4096})
    assert changed.name == "burnish-fp8+micro_tokens=4096"
    assert changed.settings == arm.settings | {"micro_tokens": 4096}
    with pytest.raises(ValueError, match="no setting"):
        arm.changed({"micro": 1})
