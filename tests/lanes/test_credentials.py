"""API keys as text: every slip is found, and nothing but the whole key gives its mac."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.lanes.credentials import Credentials, mac, mint

TOKEN = mint("acme", "k1", secret=bytes(range(32)))
organisations = st.from_regex(r"[A-Za-z0-9-]{1,64}", fullmatch=True)
keys = st.from_regex(r"[A-Za-z0-9-]{1,32}", fullmatch=True)


@given(organisation=organisations, key=keys, secret=st.binary(min_size=32, max_size=32))
def test_what_was_minted_reads_back(organisation: str, key: str, secret: bytes) -> None:
    token = mint(organisation, key, secret=secret)
    read = Credentials((b"pepper",)).read(token.encode())
    assert read is not None
    assert (read.organisation, read.key, read.macs) == (organisation, key, (mac(token, b"pepper"),))


@given(at=st.integers(0, len(TOKEN) - 1), byte=st.integers(0, 255))
def test_one_wrong_byte_anywhere_is_found_without_the_store(at: int, byte: int) -> None:
    wrong = bytearray(TOKEN.encode())
    if wrong[at] == byte:
        return
    wrong[at] = byte
    assert Credentials((b"pepper",)).read(bytes(wrong)) is None


@given(length=st.integers(0, len(TOKEN) - 1))
def test_a_cut_key_is_found_without_the_store(length: int) -> None:
    assert Credentials((b"pepper",)).read(TOKEN[:length].encode()) is None


def test_a_key_that_was_read_is_not_found_again_by_a_prefix_of_it() -> None:
    credentials = Credentials((b"pepper",))
    assert credentials.read(TOKEN.encode()) is not None
    assert credentials.read(TOKEN[:-1].encode()) is None
    assert credentials.read((TOKEN + "0").encode()) is None


def test_two_peppers_give_two_macs_newest_first() -> None:
    read = Credentials((b"new", b"old")).read(TOKEN.encode())
    assert read is not None
    assert read.macs == (mac(TOKEN, b"new"), mac(TOKEN, b"old"))


def test_memory_of_read_keys_is_bounded() -> None:
    credentials = Credentials((b"pepper",), remembered_max=10)
    for number in range(1000):
        assert credentials.read(mint("acme", f"k{number}", secret=bytes(32)).encode()) is not None
    assert len(credentials._read) <= 10


@pytest.mark.parametrize(
    ("organisation", "key"), [("a_b", "k"), ("a", "k_1"), ("", "k"), ("a", ""), ("a", "k" * 33), ("a" * 65, "k")]
)
def test_a_name_that_would_not_read_back_is_refused(organisation: str, key: str) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        mint(organisation, key, secret=bytes(32))


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="32 random bytes, not 16"):
        mint("acme", "k1", secret=bytes(16))


def test_an_empty_pepper_is_refused() -> None:
    with pytest.raises(ValueError, match="pepper"):
        Credentials((b"",))
