"""When a sequence ends, and that a replay of its tokens ends it in the same place."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chairlift.shared.messages import Finish
from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker.detokenizer import Detokenizer
from chairlift.worker.grammar import GrammarError
from chairlift.worker.sequence import Sequence
from chairlift.worker.stopping import take_token
from tests.tokenizer_files import byte_level

EOS = frozenset({1, 2})
A, B, C = (byte_level().encode(letter).ids[0] for letter in "abc")


def make_sequence(with_text: bool = True, **params: Any) -> Sequence:
    values = SamplingParams(**{"max_tokens": 10, **params})
    prompt = [C]
    detokenizer = Detokenizer(
        byte_level(),
        prompt,
        values.stop,
        skip_special_tokens=values.skip_special_tokens,
        include_stop_str_in_output=values.include_stop_str_in_output,
    )
    return Sequence(bytes(16), prompt, values, detokenizer if with_text else None)


def run(sequence: Sequence, token_ids: list[int]) -> Finish | None:
    """Takes tokens until it has ended."""
    for token_id in token_ids:
        assert sequence.finish is None
        take_token(sequence, token_id, EOS)
        if sequence.finish is not None:
            break
    return sequence.finish


def text_of(sequence: Sequence) -> str:
    return sequence.detokenizer.text


@pytest.mark.parametrize("eos", sorted(EOS))
def test_each_eos_id_ends_it(eos: int) -> None:
    """Models have several EOS ids; any of them is taken, shows no text and names no reason."""
    sequence = make_sequence()
    assert run(sequence, [A, B, eos]) == Finish("stop")
    assert (text_of(sequence), sequence.num_output_tokens) == ("ab", 3)
    assert sequence.detokenizer.released_ends == [1, 2, 2]


def test_ignored_eos_is_a_token_like_any_other() -> None:
    """With ignore_eos only max_tokens ends it."""
    sequence = make_sequence(ignore_eos=True, max_tokens=4)
    assert run(sequence, [A, 1, 2, B]) == Finish("length")
    assert text_of(sequence) == "ab"


def test_stop_token_id_is_named_and_not_shown() -> None:
    """The finish says which of the stop ids it was, and its text is left out."""
    sequence = make_sequence(stop_token_ids=(B,))
    assert run(sequence, [A, B]) == Finish("stop", B)
    assert text_of(sequence) == "a"


def test_eos_among_the_stop_ids_counts_though_eos_is_ignored() -> None:
    """What the request itself asks for holds."""
    sequence = make_sequence(ignore_eos=True, stop_token_ids=(2,))
    assert run(sequence, [1, 2]) == Finish("stop", 2)


def test_nothing_stops_it_before_min_tokens() -> None:
    """EOS, stop ids and stop strings count from the min_tokens-th token on."""
    params = {"min_tokens": 4, "stop_token_ids": (B,), "stop": ("cc",)}
    sequence = make_sequence(**params)
    assert run(sequence, [1, B, C, C, C]) == Finish("stop", "cc")
    assert sequence.num_output_tokens == 4
    assert text_of(sequence) == "b"
    sequence = make_sequence(**params)
    assert run(sequence, [A, A, A, B]) == Finish("stop", B)
    sequence = make_sequence(**params)
    assert run(sequence, [A, A, A, 2]) == Finish("stop")


def test_max_tokens_ends_it() -> None:
    """The last token allowed is taken and shown."""
    sequence = make_sequence(max_tokens=2)
    assert run(sequence, [A, B]) == Finish("length")
    assert text_of(sequence) == "ab"


def test_max_tokens_shows_what_a_stop_string_held_back() -> None:
    """The beginning of a stop string that never came is text after all."""
    sequence = make_sequence(max_tokens=2, stop=("bc",))
    assert run(sequence, [A, B]) == Finish("length")
    assert text_of(sequence) == "ab"
    assert sequence.detokenizer.released_ends == [1, 1]


def test_stop_at_exactly_max_tokens_is_a_stop() -> None:
    """When the last token allowed completes a stop, the reason is the stop."""
    sequence = make_sequence(max_tokens=2, stop=("ab",))
    assert run(sequence, [A, B]) == Finish("stop", "ab")
    assert text_of(sequence) == ""
    sequence = make_sequence(max_tokens=2)
    assert run(sequence, [A, 2]) == Finish("stop")


def test_stop_string_ends_it_inside_a_token() -> None:
    """A token may reach beyond the stop string; the text ends before it all the same."""
    sequence = make_sequence(stop=("el",))
    (hello,) = byte_level().encode("hello").ids
    assert run(sequence, [A, hello]) == Finish("stop", "el")
    assert text_of(sequence) == "ah"


def test_eos_shows_what_was_held_back() -> None:
    """At an EOS the beginning of a stop string and half a character become text."""
    half = byte_level().encode("本").ids[0]
    sequence = make_sequence(stop=("bc",))
    assert run(sequence, [A, B, half, 1]) == Finish("stop")
    assert text_of(sequence) == "ab\ufffd"
    sequence = make_sequence(stop=("b\ufffd",))  # even what half a character is shown as
    assert run(sequence, [A, B, half, 1]) == Finish("stop")
    assert text_of(sequence) == "a"


def test_without_text_only_ids_count() -> None:
    """A sequence without a detokenizer ends by EOS, ids and length."""
    sequence = make_sequence(with_text=False, max_tokens=3)
    assert run(sequence, [A, B, A]) == Finish("length")
    assert sequence.detokenizer.released_ends == [0, 0, 0]


def test_finish_tells_how_much_of_the_prompt_was_cached() -> None:
    """Every ordinary end carries the number that usage reports."""
    ends: list[tuple[int, dict[str, Any]]] = [
        (2, {}),
        (A, {"stop_token_ids": (A,)}),
        (A, {"stop": ("a",)}),
        (A, {"max_tokens": 1}),
    ]
    for token_id, params in ends:
        sequence = make_sequence(**params)
        sequence.num_cached_tokens = 1
        finish = run(sequence, [token_id])
        assert finish is not None
        assert finish.num_cached_tokens == 1


@settings(max_examples=300)
@given(
    tokens=st.lists(
        st.sampled_from([A, B, C, 1, 2, *byte_level().encode("é😀 hello").ids]), max_size=12
    ),
    max_tokens=st.integers(1, 12),
    min_tokens=st.integers(0, 12),
    ignore_eos=st.booleans(),
    stop=st.lists(st.sampled_from(["ab", "bc", "b", "ell", "😀", "lob"]), max_size=2).map(tuple),
    stop_token_ids=st.sampled_from([(), (C,), (2, B)]),
    skip_special_tokens=st.booleans(),
    include_stop_str_in_output=st.booleans(),
)
def test_replay_ends_where_the_live_run_did(tokens: list[int], **params: Any) -> None:
    """For every cut: taking the first tokens again, then the others, changes nothing at all."""
    live = make_sequence(**params)
    run(live, tokens)
    output = live.token_ids[live.num_prompt_tokens :]
    for cut in range(len(output) + 1):
        resumed = make_sequence(**params)
        run(resumed, output[:cut])
        if cut < len(output):
            assert resumed.finish is None
            assert resumed.detokenizer.released_ends == live.detokenizer.released_ends[:cut]
            assert text_of(live).startswith(text_of(resumed))
            run(resumed, output[cut:])
        assert resumed.finish == live.finish
        assert text_of(resumed) == text_of(live)
        assert resumed.detokenizer.released_ends == live.detokenizer.released_ends
        assert resumed.output_counts == live.output_counts


def test_stop_tokens_text_is_kept_where_stops_are_included() -> None:
    """Of a stop token, and of an EOS where special tokens are shown; the ids are the same."""
    sequence = make_sequence(stop_token_ids=(B,), include_stop_str_in_output=True)
    assert run(sequence, [A, B]) == Finish("stop", B)
    assert text_of(sequence) == "ab"
    sequence = make_sequence(include_stop_str_in_output=True)
    assert run(sequence, [A, 2]) == Finish("stop")
    assert text_of(sequence) == "a"
    sequence = make_sequence(include_stop_str_in_output=True, skip_special_tokens=False)
    assert run(sequence, [A, 2]) == Finish("stop")
    assert text_of(sequence) == "a</s>"
    assert sequence.detokenizer.released_ends == [1, 5]


def test_stop_string_is_kept_where_stops_are_included() -> None:
    """The text ends with the stop string, and not with what its last token has beyond it."""
    sequence = make_sequence(stop=("el",), include_stop_str_in_output=True)
    (hello,) = byte_level().encode("hello").ids
    assert run(sequence, [A, hello]) == Finish("stop", "el")
    assert text_of(sequence) == "ahel"


class Abc:
    """A constraint that wants A, B and C, may end after B, and has to after C."""

    def __init__(self) -> None:
        self._rest = [A, B, C]

    def take(self, token_id: int) -> None:
        if token_id != self._rest.pop(0):
            raise GrammarError("not that")

    def end(self) -> None:
        if len(self._rest) > 1:
            raise GrammarError("not yet")

    @property
    def is_complete(self) -> bool:
        return not self._rest


@pytest.mark.parametrize(
    ("tokens", "params", "finish"),
    [
        ([A, B, C], {}, Finish("stop")),
        ([A, B, C], {"max_tokens": 3}, Finish("stop")),
        ([A, B, C], {"stop": ("c",)}, Finish("stop", "c")),
        ([A, B, 2], {}, Finish("stop")),
        ([A, B], {"max_tokens": 2}, Finish("length")),
        ([A, B], {"stop_token_ids": (B,)}, Finish("stop", B)),
        ([A], {"stop_token_ids": (A,)}, Finish("stop", A)),
        ([A, A], {}, None),
        ([A, 2], {}, None),
    ],
)
def test_constraint_ends_it_where_it_is_complete(
    tokens: list[int], params: dict[str, Any], finish: Finish | None
) -> None:
    """No EOS needed; before that an EOS counts where it may come, and stops wherever they do."""
    sequence = make_sequence(**params)
    sequence.constraint = Abc()  # type: ignore[assignment]  # has what is asked of it
    if finish is not None:
        assert run(sequence, tokens) == finish
        return
    with pytest.raises(GrammarError):
        run(sequence, tokens)
