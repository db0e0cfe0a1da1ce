"""What `chairlift tap` takes for an id, and how it words a receipt."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from chairlift.frontend.response_id import PREFIXES, ResponseId
from chairlift.frontend.terminal.receipt_words import in_words, milliseconds
from chairlift.frontend.terminal.tap import parse_id
from chairlift.shared.errors import InvalidRequestError
from tests.golden_messages import RECEIPT


@pytest.mark.parametrize("prefix", [*PREFIXES.values(), ""])
def test_an_id_as_an_answer_shows_it(prefix: str) -> None:
    """Of every endpoint, or its digits alone; each choice has a request of its own."""
    drawn = ResponseId.draw("chat")
    text = f" {prefix}{drawn.base.hex()}\n"
    assert [parse_id(text, choice) for choice in (0, 1)] == [drawn.base, drawn.of_choice(1)]


@pytest.mark.parametrize(
    "text", ["", "0a1b2c3d", "chatcmpl-", "chatcmpl-" + "0" * 31, "resp-" + "0" * 32, "G" * 32]
)
def test_what_is_no_id_is_refused(text: str) -> None:
    """With what an id looks like, and without what was given."""
    with pytest.raises(InvalidRequestError, match="like chatcmpl-"):
        parse_id(text, 0)


def test_a_receipt_in_words() -> None:
    """What happened is told, and what did not happen isn't."""
    assert in_words(RECEIPT) == (
        "queued 12.0 ms, first token after 80.0 ms, 50 tokens in 912 ms, 53 steps beside 6.0 "
        "others, longest gap 44.0 ms, 64 of 200 prompt tokens cached, 1 preemption, 3 tokens of "
        "another worker"
    )
    told = in_words(replace(RECEIPT, first_token_us=None, num_preemptions=0, num_output_tokens=1))
    assert "first token" not in told and "preemption" not in told and " 1 token in" in told
    assert [milliseconds(us) for us in (0, 40, 18_540, 1_234_567)] == [
        "0.00", "0.04", "18.5", "1,235",
    ]  # fmt: skip
