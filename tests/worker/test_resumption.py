"""The seam: a worker that takes over in the middle of a text goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tokenizers

from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker.detokenizer import Detokenizer
from chairlift.worker.ownership import Ownership
from chairlift.worker.sequence import Sequence
from chairlift.worker.stopping import take_token
from chairlift.worker.stream import Frontend, Reading, Stream
from tests.fake_engine import make_engine, run_to_the_end
from tests.tokenizer_files import byte_level, sentencepiece

TEXT = "👩‍👩‍👧‍👦 naïve 🇫🇷 日本語 👍👍 e\u0301 Ω·… " * 8
NO_END: frozenset[int] = frozenset()


def make_sequence(tokenizer: tokenizers.Tokenizer, params: SamplingParams) -> Sequence:
    prompt = tokenizer.encode("Say: ").ids
    return Sequence(b"r" * 16, prompt, params, Detokenizer(tokenizer, prompt, params.stop))


def row_after(sequence: Sequence, num_sent: int) -> tuple[int, str]:
    """Where the text begins, and the text, that a reader with `num_sent` tokens is given."""
    request: Any = None  # only its tokens and text are read
    stream = Stream(request, sequence, Ownership(0))
    row = Reading(stream, Frontend(b"f" * 8, 0.0), num_sent).row()
    return (0, "") if row is None else (row.text_offset, row.text)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize(
    "stop", [(), ("日本語 👍👍 é", "no such thing"), ("👍👍 e\u0301 Ω·… 👩‍👩‍👧‍👦 naïve 🇫🇷 日本",)]
)
def test_the_text_is_the_same_whatever_token_the_worker_dies_at(
    make: Callable[[], tokenizers.Tokenizer], stop: tuple[str, ...]
) -> None:
    """Killed after every single token of a text of emoji: pieces before and after make the text of
    the undisturbed run, with split characters and stop strings across the seam."""
    tokenizer = make()
    token_ids = tokenizer.encode(TEXT).ids[:200]
    params = SamplingParams(max_tokens=len(token_ids), stop=stop)
    whole = make_sequence(tokenizer, params)
    for token_id in token_ids:
        if whole.finish is None:
            take_token(whole, token_id, NO_END)
    output = whole.token_ids[whole.num_prompt_tokens :]
    assert len(output) > 20
    for cut in range(len(output)):
        first, second = make_sequence(tokenizer, params), make_sequence(tokenizer, params)
        for token_id in output[:cut]:
            take_token(first, token_id, NO_END)
            take_token(second, token_id, NO_END)
        given = row_after(first, 0)[1]
        for token_id in output[cut:]:
            take_token(second, token_id, NO_END)
        start, rest = row_after(second, cut)
        assert given[:start] + rest == whole.detokenizer.text
        assert len(given) == start, "text that was given never changes"
        assert second.finish == whole.finish


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.0},
        {"temperature": 0.9, "seed": 5},
        {"temperature": 1.3, "seed": 6, "top_p": 0.9, "top_k": 20},
        {"temperature": 1.0, "seed": 7, "presence_penalty": 0.8, "repetition_penalty": 1.3},
        {"temperature": 0.0, "frequency_penalty": 1.5, "min_tokens": 10},
    ],
    ids=str,
)
def test_the_tokens_are_the_same_whatever_token_the_worker_dies_at(
    changes: dict[str, float],
) -> None:
    """Greedy, seeded, with filters and penalties: another worker samples what this one would."""
    params = SamplingParams(max_tokens=16, ignore_eos=True, **changes)  # type: ignore[arg-type]
    prompt = [5, 9, 5, 7]
    engine = make_engine()
    whole = Sequence(b"w" * 16, prompt, params)
    engine.add(whole)
    run_to_the_end(engine)
    output = whole.token_ids[len(prompt) :]
    assert len(output) == 16
    for cut in range(16):
        engine = make_engine()
        resumed = Sequence(b"r" * 16, prompt, params)
        engine.add(resumed, output[:cut])
        run_to_the_end(engine)
        assert resumed.token_ids == whole.token_ids
