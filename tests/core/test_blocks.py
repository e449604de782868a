"""Blocks of tokens: what is common to two arrays, and the digests that name a block."""

from __future__ import annotations

import struct
from array import array

import xxhash
from hypothesis import given
from hypothesis import strategies as st

from core.inside import block_hashes, common_prefix

SMALL = st.lists(st.sampled_from([40, 41]), max_size=60)


@given(n=st.integers(0, 600), a=SMALL, b=SMALL)
def test_the_common_prefix_is_what_counting_gives(n, a, b):
    one, other = [*range(n), *a], [*range(n), *b]
    expected = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    expected = min(len(one), len(other)) if expected is None else expected
    assert common_prefix(array("i", one), array("i", other)) == expected


@given(tokens=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=100), salt=st.binary(max_size=40))
def test_digests_of_blocks_are_what_the_xxhash_package_computes(tokens, salt):
    parent = seed = xxhash.xxh3_64_intdigest(salt)
    expected = []
    for start in range(0, len(tokens) // 16 * 16, 16):
        parent = xxhash.xxh3_64_intdigest(struct.pack("<Q16i", parent, *tokens[start : start + 16]))
        expected.append(parent)
    assert block_hashes(array("i", tokens), seed) == expected


def test_a_digest_is_the_same_in_every_process_and_release():
    seed = 0x9FCB_F6C9_5446_B4A4  # of the salt b"tenant"
    assert block_hashes(array("i", range(40)), seed) == [0xBF65_8511_21BD_DE1A, 0xC9A7_2A24_2D3D_A8A3]
