"""Noise on a text: slips as people make them, and nothing that carries its meaning touched."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.data.noise import KINDS, NEIGHBOURS, noisy, protected_parts

WORDS = "Please transfer the remaining balance from my savings account"


def noise(text, kind, seed=0, rate=0.3):
    return noisy(text, random.Random(seed), rate=rate, kinds=[kind])[0]


def test_keys_that_lie_beside_each_other_are_neighbours():
    assert set(NEIGHBOURS["g"]) == set("fhtyvb")
    assert all(one in NEIGHBOURS[other] for one, others in NEIGHBOURS.items() for other in others)


@pytest.mark.parametrize("seed", range(20))
def test_a_typo_is_one_neighbouring_key(seed):
    changed = noise("transfer", "typo", seed)
    (place,) = [n for n, (one, other) in enumerate(zip(changed, "transfer", strict=True)) if one != other]
    assert changed[place] in NEIGHBOURS["transfer"[place]]


@pytest.mark.parametrize("seed", range(20))
def test_swapped_letters_are_the_same_letters_and_the_first_stays(seed):
    changed = noise("transfer", "swap", seed)
    assert changed != "transfer"
    assert (sorted(changed), changed[0]) == (sorted("transfer"), "t")


@pytest.mark.parametrize("seed", range(20))
def test_a_letter_less_is_one_letter_less_and_the_first_stays(seed):
    changed = noise("transfer", "letter", seed)
    assert any("transfer"[:n] + "transfer"[n + 1 :] == changed for n in range(1, 8))


def test_casing_changes_nothing_but_the_case():
    changed = noise(WORDS, "case", rate=1)
    assert changed == "please TRANSFER THE REMAINING BALANCE FROM MY SAVINGS ACCOUNT"


def test_a_left_out_word_leaves_no_second_space():
    changed = noise(WORDS, "word", rate=0.3)
    assert "  " not in changed
    assert [word for word in WORDS.split() if word in changed.split()] == changed.split()
    assert len(changed.split()) == 6


def test_one_word_stays_when_all_are_to_go():
    assert len(noise("transfer balance today", "word", rate=1).split()) == 1


@pytest.mark.parametrize(
    "part",
    [
        "https://example.com/Where?is=It",
        "joe.miller@example.com",
        "{customer_name}",
        "{{ order }}",
        "<ORDER>",
        "[NAME HERE]",
        "B2B",
        "1,250.00",
        "`pip install things`",
        "my_variable",
        "/usr/local/share",
        "sendMoney",
        "os.path.join",
        "not",
        "don't",
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_carries_the_meaning_is_never_touched(part, kind):
    for seed in range(5):
        assert part in noise(f"please look at {part} tomorrow", kind, seed, rate=1)


def test_code_between_fences_is_never_touched():
    code = "```\nfor item in things:\n    print(item)\n```"
    assert code in noise(f"what does this do\n{code}\nexplain please", "typo", rate=1)


def test_words_to_keep_are_left_alone():
    changed, _ = noisy("transfer balance", random.Random(0), rate=1, kinds=["case"], keep={"balance"})
    assert changed == "TRANSFER balance"


@pytest.mark.parametrize("text", ["", "   ", "42", "{name}", "not", "https://example.com"])
def test_a_text_in_which_nothing_may_be_changed_stays_as_it_is(text):
    assert noisy(text, random.Random(0), rate=1, kinds=list(KINDS)) == (text, [])


def test_the_rate_is_the_share_of_words_that_are_changed():
    words = " ".join(f"{'abcdefghij'[n % 10] * 3}transfer" for n in range(40))
    changed = noise(words, "case", rate=0.25)
    assert sum(one != other for one, other in zip(words.split(), changed.split(), strict=True)) == 10


def test_the_same_seed_gives_the_same_noise_and_another_another():
    all_kinds = list(KINDS)
    one, again, other = (noisy(WORDS, random.Random(s), rate=0.5, kinds=all_kinds) for s in (1, 1, 2))
    assert one == again != other


@given(st.text(max_size=60), st.integers(0, 5), st.floats(0.01, 1))
def test_any_text_keeps_its_protected_parts(text, seed, rate):
    changed, used = noisy(text, random.Random(seed), rate=rate, kinds=list(KINDS))
    assert used or changed == text
    assert all(part in changed for part in protected_parts(text))


def test_protected_parts_stand_without_the_marks_around_them():
    assert protected_parts("See (https://example.com/a), order 1234; for {name}.") == [
        "1234",
        "https://example.com/a",
        "{name}",
    ]
