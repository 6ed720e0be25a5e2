"""A frozen body's features: the same scores by looking up as by going through it, and no second pass."""

from __future__ import annotations

import pytest
import torch

from burnish.core import Seq, pack
from burnish.model.adapt import adapt, trained_parameters
from burnish.model.features import FEATURE, CachedBody
from burnish.model.net import Net
from burnish.recipe import Adapter, Freeze

SCORE = frozenset({"score"})


def texts(count=12):
    return [[Seq(list(range(1 + n, 9 + 2 * n)), [0.0] * (8 + n), y=float(n % 3))] for n in range(count)]


@pytest.fixture
def net(make_classifier, architecture):
    return CachedBody(adapt(make_classifier(architecture), Adapter(method="head"), Freeze())).eval()


def test_only_the_head_is_trained(net):
    assert list(trained_parameters(net.model)) == ["score.weight"]


def test_scores_that_are_looked_up_are_those_of_the_whole_model(net):
    groups = texts()
    with torch.no_grad():
        expected = Net(net.model).eval()(pack(groups, row_tokens=64), SCORE).score
        net.remember(groups, row_tokens=64)
        found = net(pack(groups[::-1], row_tokens=64), SCORE).score.flip(0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_features_that_lie_in_a_file_are_not_computed_again(net, tmp_path, monkeypatch):
    groups, file, passes = texts(), tmp_path / "steps" / "features.safetensors", []
    net.remember(groups, row_tokens=64, file=file)
    first = net.features
    monkeypatch.setattr(net, "_computed", lambda *asked: passes.append(asked))
    net.remember(texts(), row_tokens=64, file=file)
    assert torch.equal(net.features, first)
    assert (passes, sorted(file.parent.iterdir())) == ([], [file])


@pytest.mark.parametrize("spoil", [lambda file: file.write_bytes(b"no features"), lambda file: file.unlink()])
def test_a_file_that_is_damaged_or_gone_is_written_again(net, tmp_path, spoil):
    file = tmp_path / "features.safetensors"
    net.remember(texts(), row_tokens=64, file=file)
    first, whole = net.features, file.read_bytes()
    spoil(file)
    net.remember(texts(), row_tokens=64, file=file)
    assert torch.equal(net.features, first)
    assert file.read_bytes() == whole


def test_a_file_that_cannot_be_written_costs_nothing_but_the_time(net, tmp_path):
    (tmp_path / "full").write_text("a file where a folder should be")
    net.remember(texts(), row_tokens=64, file=tmp_path / "full" / "features.safetensors")
    assert len(net.features) == 12


def test_features_of_fewer_sequences_are_not_taken(net, tmp_path):
    file = tmp_path / "features.safetensors"
    net.remember(texts(4), row_tokens=64, file=file)
    net.remember(texts(6), row_tokens=64, file=file)
    assert len(net.features) == 6


def test_the_gradient_of_the_head_is_that_of_the_whole_model(net):
    groups = texts()

    def gradient():
        net.zero_grad()
        net(pack(groups, row_tokens=64), SCORE).score.square().sum().backward()
        return net.model.score.weight.grad.clone()

    expected = gradient()
    net.remember(groups, row_tokens=64)
    torch.testing.assert_close(gradient(), expected, atol=1e-3, rtol=1e-4)


def test_what_was_remembered_never_meets_the_body_again(net, monkeypatch):
    groups, passes = texts(), []
    net.remember(groups, row_tokens=64)
    monkeypatch.setattr(net, "_hidden", lambda batch: passes.append(batch))
    for part in (groups[:3], groups[3:]):
        assert net(pack(part, row_tokens=64), SCORE).score.shape == (len(part), 3)
    assert passes == []


def test_a_text_that_was_not_remembered_goes_through_the_body(net):
    net.remember(texts(4), row_tokens=64)
    fresh = texts(6)
    with torch.no_grad():
        torch.testing.assert_close(
            net(pack(fresh, row_tokens=64), SCORE).score, Net(net.model)(pack(fresh, row_tokens=64), SCORE).score
        )


def test_remembering_again_replaces_what_was_kept(net):
    groups = texts(5)
    net.remember(groups, row_tokens=64)
    net.remember(groups[3:], row_tokens=64)
    assert net.features.shape[0] == 2
    assert [seq.values[FEATURE] for group in groups[3:] for seq in group] == [0.0, 1.0]


def test_what_is_remembered_beside_a_row_is_no_label_of_it():
    from burnish.objectives.multilabel import MultiLabel

    groups = [[Seq([1, 2, 3], [0.0] * 3, y=1.0, values={"label.0": 1.0, "label.1": 0.0})]]
    before = MultiLabel().count(pack(groups, row_tokens=64))
    groups[0][0].values[FEATURE] = 0.0
    assert MultiLabel().count(pack(groups, row_tokens=64)) == before == 2.0
