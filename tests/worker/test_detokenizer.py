"""Text comes out whole and final: against decoding everything at once, for every tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream

from chairlift.worker import detokenizer as module
from chairlift.worker.detokenizer import Detokenizer, IncrementalDecoder
from tests.tokenizer_files import BOS_ID, EOS_ID, TOKENIZERS, byte_level, sentencepiece, unigram

REPLACEMENT = "\ufffd"
MAX_HELD_TOKENS = 12
PIECES = [
    *"abehlo tH.,!?'\n",
    *"éßñЖω日本語中文",
    "e\u0301",
    "a\u0308\u0323",
    "👍",
    "😀",
    "👩‍👩‍👧‍👦",
    "🇫🇷",
    "👍🏽",
    "\u200d",
    REPLACEMENT,
    " the",
    "  ",
    " hello",
    "once",
    "upon",
]
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=8)
prompts = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
kinds = st.sampled_from(sorted(TOKENIZERS))


def encode(tokenizer: Tokenizer, text: str, *, special: bool = False) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=special).ids)


def decode(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=True))


@dataclass(frozen=True)
class Decoded:
    """What an IncrementalDecoder said, token by token."""

    pieces: list[str]
    rest: str

    @property
    def text(self) -> str:
        return "".join(self.pieces) + self.rest

    def longest_silence(self) -> int:
        """Most tokens in a row without any text."""
        runs = "".join("x" if piece else " " for piece in self.pieces).split("x")
        return max(map(len, runs))


def run_decoder(tokenizer: Tokenizer, prompt: list[int], token_ids: list[int]) -> Decoded:
    decoder = IncrementalDecoder(tokenizer, prompt)
    pieces = [decoder.append(token_id) for token_id in token_ids]
    return Decoded(pieces, decoder.flush())


def split_tokens(data: st.DataObject, text: str) -> list[int]:
    """The text in byte-level tokens, cut at random places, even inside characters."""
    tokenizer = byte_level()
    token_ids: list[int] = []
    start = 0
    while start < len(text):
        end = start + data.draw(st.integers(1, 6))
        part = text[start:end]
        if data.draw(st.booleans()):
            token_ids += encode(tokenizer, part)
        else:
            token_ids += [byte_token(byte) for byte in part.encode()]
        start = end
    return token_ids


def byte_token(byte: int) -> int:
    """The byte-level token that is this one byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    character = chr(byte) if byte in printable else chr(256 + others.index(byte))
    token_id = byte_level().token_to_id(character)
    assert token_id is not None
    return int(token_id)


@settings(max_examples=500)
@given(kind=kinds, prompt=prompts, text=texts)
def test_pieces_add_up_to_the_whole_decode(kind: str, prompt: str, text: str) -> None:
    """Any text, after any prompt: the pieces are what decoding prompt and output at once adds.

    But for U+FFFD itself in bytes of a byte-fallback tokenizer: it looks like half a character, and
    when the run of bytes is let go its decoder reads all of them anew.
    """
    assume(kind not in ("sentencepiece", "unigram") or "\ufffd" not in text)
    tokenizer = TOKENIZERS[kind]()
    context, output = encode(tokenizer, prompt, special=True), encode(tokenizer, text)
    before = decode(tokenizer, context)
    whole = decode(tokenizer, context + output)
    assert whole.startswith(before)
    expected = whole[len(before) :]
    decoded = run_decoder(tokenizer, context, output)
    assert decoded.text == expected
    assert decoded.longest_silence() <= MAX_HELD_TOKENS


@settings(max_examples=300)
@given(st.data())
def test_any_bytes_read_like_the_whole_decode(data: st.DataObject) -> None:
    """Byte-level tokens that are no UTF-8 read as when decoded at once, and are not held long."""
    tokenizer = byte_level()
    output = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=40))
    decoded = run_decoder(tokenizer, [], output)
    assert decoded.text == decode(tokenizer, output)
    if not {0, BOS_ID, EOS_ID} & set(output):
        assert decoded.longest_silence() <= MAX_HELD_TOKENS


@settings(max_examples=200)
@given(st.data())
def test_characters_survive_being_cut_into_bytes(data: st.DataObject) -> None:
    """Wherever tokens cut the text, no piece ends in half a character and nothing is lost."""
    text = data.draw(texts)
    output = split_tokens(data, text)
    decoded = run_decoder(byte_level(), [], output)
    assert decoded.text == text
    assert REPLACEMENT in text or all(REPLACEMENT not in piece for piece in decoded.pieces)


@pytest.mark.parametrize("num_bad", range(16))
def test_character_behind_garbage_is_whole(num_bad: int) -> None:
    """Wherever the decoder gives up on bad bytes, the good character after them is not cut."""
    output = num_bad * [byte_token(0x80)] + [byte_token(byte) for byte in "😀é".encode()]
    decoded = run_decoder(byte_level(), [], output)
    assert decoded.text == num_bad * REPLACEMENT + "😀é"


@pytest.mark.parametrize("make", [sentencepiece, unigram], ids=lambda make: make.__name__)
@settings(max_examples=200)
@given(data=st.data())
def test_byte_fallback_garbage_is_shown_and_never_taken_back(make, data: st.DataObject) -> None:
    """Random ids of a byte-fallback tokenizer: no error, no endless silence."""
    tokenizer = make()
    first_byte = tokenizer.token_to_id("<0x00>")
    some_byte = st.sampled_from([0x0A, 0x41, 0x80, 0xA9, 0xC3, 0xEF, 0xF0, 0xFF])
    ids = st.integers(0, tokenizer.get_vocab_size() - 1) | some_byte.map(lambda b: first_byte + b)
    output = [i for i in data.draw(st.lists(ids, max_size=60)) if i not in (0, BOS_ID, EOS_ID)]
    prompt = data.draw(st.lists(ids, max_size=10))
    decoded = run_decoder(tokenizer, prompt, output)
    assert decoded.longest_silence() <= MAX_HELD_TOKENS


@pytest.mark.parametrize("make", [sentencepiece, unigram], ids=lambda make: make.__name__)
def test_one_bad_byte_does_not_silence_the_newlines_after_it(make) -> None:
    """A stray byte makes the library doubt all byte tokens after it; they come out all the same."""
    tokenizer = make()
    bad, newline = tokenizer.token_to_id("<0xFF>"), tokenizer.token_to_id("<0x0A>")
    decoded = run_decoder(tokenizer, encode(tokenizer, "a"), [bad] + 100 * [newline])
    assert len(decoded.text) == 101
    assert decoded.text.startswith(REPLACEMENT)
    assert decoded.text.endswith(80 * "\n")
    assert decoded.longest_silence() <= MAX_HELD_TOKENS


def test_tokens_that_all_end_inside_a_character_are_shown_in_time() -> None:
    """Tokens that each end one character and begin the next leave no clean place to cut, yet the
    text comes out in time and whole."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "ðŁ": 1, "ĺĢðŁ": 2, "ĺĢ": 3}, []))
    tokenizer.decoder = decoders.ByteLevel()
    decoded = run_decoder(tokenizer, [], [0, 1, *50 * [2], 3, 0])
    assert decoded.text == "a" + 51 * "😀" + "a"
    assert decoded.longest_silence() <= MAX_HELD_TOKENS


@pytest.mark.parametrize("kind", ["sentencepiece", "byte_level", "wordpiece"])
def test_space_after_the_prompt_is_kept(kind: str) -> None:
    """A first token that begins with a space shows it, though decoders strip a text's first."""
    tokenizer = TOKENIZERS[kind]()
    (token_id,) = encode(tokenizer, " upon")[-1:]
    prompt = encode(tokenizer, "once", special=True)
    assert run_decoder(tokenizer, prompt, [token_id]).text == " upon"


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
@pytest.mark.parametrize("count", [1, 9, 30])
def test_special_tokens_leave_no_trace(kind: str, count: int) -> None:
    """However many special tokens come first, the text after them reads the same."""
    tokenizer = TOKENIZERS[kind]()
    prompt, output = encode(tokenizer, "once", special=True), encode(tokenizer, " upon a time")
    plain = run_decoder(tokenizer, prompt, output)
    assert run_decoder(tokenizer, prompt, count * [EOS_ID] + output).text == plain.text
    doubled = [token_id for i in output for token_id in [i, *count * [BOS_ID]]]
    assert run_decoder(tokenizer, prompt, doubled).text == plain.text


@pytest.mark.parametrize("kind", ["sentencepiece", "unigram", "byte_level"])
@pytest.mark.parametrize("prompt", ["a 😀😀", "日本 語中文字", "hi \ufffd", "\ufffd\ufffd", "é"])
def test_prompt_never_shows_up_in_the_output(kind: str, prompt: str) -> None:
    """Whatever the prompt ends with, the output begins with its own first character."""
    tokenizer = TOKENIZERS[kind]()
    context = encode(tokenizer, prompt, special=True)
    decoded = run_decoder(tokenizer, context, encode(tokenizer, "the time"))
    assert decoded.text.strip() == "the time"


def test_prompt_that_ends_inside_a_character_is_not_repeated() -> None:
    """Half a character in a prompt of token ids can't be completed, nor brings the prompt back."""
    tokenizer = byte_level()
    prompt = encode(tokenizer, "abc") + [byte_token(b) for b in "😀".encode()[:2]]
    output = [byte_token(b) for b in "😀".encode()[2:]] + encode(tokenizer, "def")
    decoded = run_decoder(tokenizer, prompt, output)
    assert decoded.text == 2 * REPLACEMENT + "def"


@dataclass(frozen=True)
class Stopped:
    """How a Detokenizer with stop strings ended."""

    text: str
    matched: str | None
    ends: list[int]
    released: list[str]  # the text after each token


def run_stops(
    prompt: list[int], output: list[int], stop: tuple[str, ...], min_tokens: int = 0
) -> Stopped:
    detokenizer = Detokenizer(byte_level(), prompt, stop)
    released: list[str] = []
    matched = None
    for number, token_id in enumerate(output, start=1):
        matched = detokenizer.append(token_id, is_stop_checked=number >= min_tokens)
        released.append(detokenizer.text)
        if matched is not None:
            break
    else:
        matched = detokenizer.flush(is_stop_checked=len(output) >= min_tokens)
    return Stopped(detokenizer.text, matched, detokenizer.released_ends, released)


def first_stop(text: str, stop: tuple[str, ...], after: int = 0) -> tuple[int, str] | None:
    """Where the text is cut, and by what: the stop that is complete first, the longest of these.

    Only those that are complete after `after` characters count.
    """
    for end in range(after + 1, len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            matched = max(complete, key=len)
            return end - len(matched), matched
    return None


STOP_PIECES = ["a", "b", " ", "é", "😀", REPLACEMENT, " upon", "hello", "once", " the lift"]
STOPS = ["a", "ab", "bab", "b ", "é😀", "😀", REPLACEMENT, "l", "ll", "ello", "hello h", "up"]
STOPS += [" upon", "n", "pono", "once upon", "e", " ", "the lift the", "he", "aa"]
stop_texts = st.lists(st.sampled_from(STOP_PIECES), max_size=12).map("".join)
stop_sets = st.lists(st.sampled_from(STOPS), max_size=4).map(tuple)


@settings(max_examples=500)
@given(data=st.data(), text=stop_texts, stop=stop_sets)
def test_text_ends_before_the_first_stop(
    data: st.DataObject, text: str, stop: tuple[str, ...]
) -> None:
    """However the text is cut into tokens, it ends where the first stop string begins, and nothing
    beyond was ever released."""
    stopped = run_stops([], split_tokens(data, text), stop)
    expected = first_stop(text, stop)
    cut = len(text) if expected is None else expected[0]
    assert stopped.text == text[:cut]
    assert stopped.matched == (None if expected is None else expected[1])
    assert all(text[:cut].startswith(released) for released in stopped.released)
    assert stopped.ends == [len(released) for released in stopped.released]


@settings(max_examples=200)
@given(text=stop_texts, stop=stop_sets)
def test_stop_is_the_one_that_str_find_finds_first(text: str, stop: tuple[str, ...]) -> None:
    """Where no stop string contains another, the cut is at the earliest of all matches."""
    assume(not any(a != b and a in b for a in stop for b in stop))
    starts = [text.find(s) for s in stop if s in text]
    stopped = run_stops([], encode(byte_level(), text), stop)
    assert stopped.text == text[: min(starts, default=len(text))]


@settings(max_examples=300)
@given(data=st.data(), text=stop_texts, stop=stop_sets, min_tokens=st.integers(0, 12))
def test_stops_completed_before_min_tokens_do_not_count(
    data: st.DataObject, text: str, stop: tuple[str, ...], min_tokens: int
) -> None:
    """Only a stop string that is complete at min_tokens or later ends the text."""
    output = split_tokens(data, text)
    pieces = run_decoder(byte_level(), [], output).pieces
    after = len("".join(pieces[: max(0, min_tokens - 1)]))
    if len(output) < min_tokens:
        after = len(text)
    stopped = run_stops([], output, stop, min_tokens)
    expected = first_stop(text, stop, after)
    assert stopped.text == text[: len(text) if expected is None else expected[0]]
    assert stopped.matched == (None if expected is None else expected[1])


@settings(max_examples=200)
@given(data=st.data(), kind=kinds, prompt=prompts, text=texts, stop=stop_sets)
def test_any_replay_releases_the_same_pieces(
    data: st.DataObject, kind: str, prompt: str, text: str, stop: tuple[str, ...]
) -> None:
    """What was released after k tokens is the same in a run that was stopped after k of them."""
    tokenizer = TOKENIZERS[kind]()
    context, output = encode(tokenizer, prompt, special=True), encode(tokenizer, text)
    whole = Detokenizer(tokenizer, context, stop)
    texts_after = []
    for token_id in output:
        matched = whole.append(token_id)
        texts_after.append(whole.text)
        if matched is not None:
            break
    cut = data.draw(st.integers(0, len(texts_after)))
    replay = Detokenizer(tokenizer, context, stop)
    for token_id in output[:cut]:
        replay.append(token_id)
    assert replay.released_ends == whole.released_ends[:cut]
    assert replay.text == ["", *texts_after][cut]


class CountingStream:
    """The library's stream; `longest` is the most tokens that any had to look back on."""

    longest = 0

    def __init__(self, ids: list[int] | None = None, skip_special_tokens: bool = True) -> None:
        self._stream = DecodeStream(ids or [], skip_special_tokens=skip_special_tokens)
        self._num_ids = len(ids or [])

    def step(self, tokenizer: Tokenizer, token_id: int) -> str | None:
        self._num_ids += 1
        CountingStream.longest = max(CountingStream.longest, self._num_ids)
        text = self._stream.step(tokenizer, token_id)
        if text:
            self._num_ids = 0
        return text


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("repeated", [["</s>"], ["byte FF"], ["byte C3", "byte C3", "newline"]])
def test_a_token_costs_the_same_however_long_the_text(
    kind: str, repeated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither special tokens without end nor garbage make the decoder read back further."""
    tokenizer = TOKENIZERS[kind]()
    names = {
        "byte_level": {"byte FF": byte_token(0xFF), "byte C3": byte_token(0xC3)},
        "sentencepiece": {
            "byte FF": tokenizer.token_to_id("<0xFF>"),
            "byte C3": tokenizer.token_to_id("<0xC3>"),
        },
    }[kind]
    newline = byte_token(10) if kind == "byte_level" else tokenizer.token_to_id("<0x0A>")
    names |= {"</s>": EOS_ID, "newline": newline}
    num_decoded = 0
    decode_once = IncrementalDecoder._decode

    def counting(self: IncrementalDecoder, token_ids: list[int]) -> str:
        nonlocal num_decoded
        num_decoded += len(token_ids)
        return decode_once(self, token_ids)

    monkeypatch.setattr(IncrementalDecoder, "_decode", counting)
    monkeypatch.setattr(module, "DecodeStream", CountingStream)
    monkeypatch.setattr(CountingStream, "longest", 0)
    output = 100 * [names[name] for name in repeated]
    run_decoder(tokenizer, encode(tokenizer, "once"), output)
    assert CountingStream.longest <= 2 * MAX_HELD_TOKENS
    assert num_decoded <= 40 * len(output)


def test_stop_strings_hold_back_only_what_may_begin_one() -> None:
    """Of the longest stop strings, text holds back no more than it shares with a beginning."""
    stop = tuple(character * 256 for character in "0123456789abcdef")
    stopped = run_stops([], [byte_token(byte) for byte in b"Once a00x"], stop)
    assert [len(text) for text in stopped.released] == [1, 2, 2, 3, 5, 5, 6, 6, 9]


@pytest.mark.parametrize("is_stop_checked", [True, False])
def test_incomplete_character_at_the_end_may_complete_a_stop(is_stop_checked: bool) -> None:
    """What flush makes of half a character is text like any other, stop strings included."""
    detokenizer = Detokenizer(byte_level(), [], (f"a{REPLACEMENT}",))
    for byte in b"ba\xf0\x9f":
        assert detokenizer.append(byte_token(byte)) is None
    assert detokenizer.text == "b"
    matched = detokenizer.flush(is_stop_checked=is_stop_checked)
    assert matched == (f"a{REPLACEMENT}" if is_stop_checked else None)
    assert detokenizer.text == ("b" if is_stop_checked else f"ba{REPLACEMENT}")


@settings(max_examples=200)
@given(
    data=st.data(),
    kind=kinds,
    prompt=prompts,
    pieces=st.lists(st.sampled_from([*PIECES, "<s>", "</s>"]), max_size=12),
)
def test_special_tokens_show_where_they_are_not_skipped(
    data: st.DataObject, kind: str, prompt: str, pieces: list[str]
) -> None:
    """With special tokens between characters, the pieces are what decoding it all at once adds,
    and what was released after k tokens is the same in a run that was stopped after k of them."""
    tokenizer = TOKENIZERS[kind]()
    context = encode(tokenizer, prompt, special=True)
    output = [token_id for piece in pieces for token_id in encode(tokenizer, piece)]

    def released(token_ids: list[int]) -> Detokenizer:
        detokenizer = Detokenizer(tokenizer, context, skip_special_tokens=False)
        for token_id in token_ids:
            detokenizer.append(token_id)
        return detokenizer

    whole = released(output)
    cut = released(output[: data.draw(st.integers(0, len(output)))])
    assert whole.released_ends[: len(cut.released_ends)] == cut.released_ends
    assert whole.text.startswith(cut.text)
    whole.flush()
    before = str(tokenizer.decode(context, skip_special_tokens=False))
    expected = str(tokenizer.decode(context + output, skip_special_tokens=False))
    assume(expected.startswith(before))
    assert whole.text == expected[len(before) :]


@settings(max_examples=300)
@given(data=st.data(), text=stop_texts, stop=stop_sets)
def test_included_stop_string_ends_the_text(
    data: st.DataObject, text: str, stop: tuple[str, ...]
) -> None:
    """The same stop as without, and the text goes as far as its end; nothing is held longer."""
    output = split_tokens(data, text)
    without = run_stops([], output, stop)
    including = Detokenizer(byte_level(), [], stop, include_stop_str_in_output=True)
    matched = None
    for token_id in output:
        matched = including.append(token_id)
        if matched is not None:
            break
    if matched is None:
        matched = including.flush(is_stop_checked=True)
    assert matched == without.matched
    assert including.text == without.text + (matched or "")
    is_cut = slice(None, -1) if matched is not None else slice(None)
    assert including.released_ends[is_cut] == without.ends[: len(including.released_ends)][is_cut]
