"""Secrets and personal data: each kind is found in a sentence, look-alikes are not, and masking leaves nothing to find."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.data.private import find_private, masked

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----"
FOUND = {
    KEY: "private key",
    "AKIAIOSFODNN7EXAMPLE": "AWS key",
    "ghp_" + "a1B2" * 9: "GitHub token",
    "hf_" + "aBcDe1" * 6: "Hugging Face token",
    "sk-abcdEFGH1234ijklMNOP5678": "API key",
    "sk_live_4eC39HqLyjWDarjtT1zdp7dc": "API key",
    "xoxb-123456789012-abcdef": "Slack token",
    "AIza" + "Sy1_" * 8 + "abc": "Google key",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN": "web token",
    "PASSWORD=hunter2": "password",
    '"password": "hunter22': "password",
    "api_key: 9f8e7d6c": "password",
    "joe.bloggs+x@mail.example.co.uk": "e-mail",
    "DE89 3704 0044 0532 0130 00": "IBAN",
    "GB82WEST12345698765432": "IBAN",
    "4111 1111 1111 1111": "card number",
    "378282246310005": "card number",
    "078-05-1120": "social security number",
    "+49 151 23456789": "phone number",
    "+1 (555) 123-4567": "phone number",
    "(555) 123-4567": "phone number",
    "555-123-4567": "phone number",
}


@pytest.mark.parametrize("around", ["{}", "It is {}.", "({})", "{}, thanks", "see:\n{}\n"])
@pytest.mark.parametrize("secret", FOUND)
def test_each_kind_is_found_wherever_it_stands(secret: str, around: str):
    assert masked(around.format(secret)).count(f"[{FOUND[secret]}]") == 1


def test_a_card_is_found_before_its_date_and_code():
    assert masked("4111 1111 1111 1111 12/27 123") == "[card number] 12/27 123"


def test_a_key_that_is_cut_off_is_found():
    assert masked(KEY[:40]) == "[private key]"


@pytest.mark.parametrize(
    "text",
    [
        "Order 4111 1111 1111 1112 of 2024-05-06 12:30:45",
        "1111 1111 1111 1111",
        "timestamp 1716998400000",
        "version 10.0.19045.4291",
        "sk-learn-is-a-nice-machine-learning-library-2024",
        "the password is wrong",
        "password: unknown",
        "5 +10000 = 10005",
        "1999-2001-2005",
        "user@host",
        "follow @joe_bloggs",
        "AB12 CDEF GHIJ KLMN",
        "000-12-3456",
        "TW-48213",
    ],
)
def test_what_only_looks_like_it_is_not_found(text: str):
    assert find_private(text) == []


def test_findings_that_overlap_are_masked_as_one():
    assert masked("password: a1b2@example.com!") == "[password]"


@given(st.lists(st.sampled_from([*FOUND, " ", ":", "1", "a", "[", "]", "@", "password: "]), max_size=6).map("".join))
def test_in_a_masked_text_nothing_is_found(text: str):
    assert find_private(masked(text)) == []


@given(st.text())
def test_a_text_without_findings_is_its_own_mask(text: str):
    assert bool(find_private(text)) == (masked(text) != text)


def test_a_secret_behind_a_letter_of_another_script_is_found():
    assert masked("ะAKIAIOSFODNN7EXAMPLE") == "ะ[AWS key]"
