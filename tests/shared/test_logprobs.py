"""Log probabilities as they travel."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chairlift.shared.logprobs import TokenLogprob, pack_logprob, record_bytes, unpack_logprobs

floats = st.floats(-(2.0**99), 0, width=32)
tops = st.lists(st.tuples(st.integers(0, 2**32 - 1), floats), min_size=3, max_size=3)


@given(st.lists(st.tuples(floats, tops)))
def test_what_is_packed_comes_back(tokens: list[tuple[float, list[tuple[int, float]]]]) -> None:
    packed = b"".join(
        pack_logprob(logprob, [i for i, _ in top], [p for _, p in top]) for logprob, top in tokens
    )
    assert len(packed) == record_bytes(3) * len(tokens)
    expected = [TokenLogprob(logprob, tuple(top)) for logprob, top in tokens]
    assert unpack_logprobs(packed, 3) == expected


def test_half_a_record_is_none() -> None:
    with pytest.raises(ValueError, match="records of 12 bytes"):
        unpack_logprobs(bytes(13), 1)
