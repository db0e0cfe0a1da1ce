"""The parts of `chairlift chat`: what was said, what is asked, and how an answer is shown."""

from __future__ import annotations

import io
import json
from collections.abc import Generator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.markdown import Markdown

from chairlift.frontend.replies.chunk import Chunk
from chairlift.frontend.results import Delta
from chairlift.frontend.terminal.chat_settings import ChatSettings
from chairlift.frontend.terminal.conversation import Conversation
from chairlift.frontend.terminal.live_answer import LiveAnswer, start_of_last_block
from chairlift.frontend.terminal.plain_answer import PlainAnswer
from chairlift.frontend.terminal.speaker import Speaker
from chairlift.shared.errors import ContextLengthError, InvalidRequestError
from chairlift.shared.messages import Finish
from chairlift.shared.settings import load_settings
from chairlift.shared.tokenizer import Tokenizer
from tests.tokenizer_files import byte_level, tokenizer_json

LINES = ["a", "b c", "", "", "- x", "  y", "1. x", "2. y", "```", "# h", "---", "> q", "|a|b|"]
THINKER = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"


def test_a_question_without_an_answer_gives_way() -> None:
    """Question and answer alternate whatever failed, and the last one can be asked again."""
    conversation = Conversation("Be nice.")
    with pytest.raises(InvalidRequestError, match="nothing was asked"):
        conversation.ask_again()
    for question, answer in [("a", "A"), ("b", ""), ("c", "C")]:
        conversation.ask(question)
        conversation.answer(answer)
    said = [message["content"] for message in conversation.messages]
    assert said == ["Be nice.", "a", "A", "c", "C"]
    conversation.ask_again()
    assert [message["content"] for message in conversation.messages] == ["Be nice.", "a", "A", "c"]
    conversation.clear()
    assert [message["role"] for message in conversation.messages] == ["system"]


@given(st.lists(st.sampled_from(LINES), max_size=12))
def test_what_is_printed_for_good_never_changes(lines: list[str]) -> None:
    """Wherever a text is cut, what then is taken for complete ends where a block of the whole
    text begins."""
    text = "\n".join(lines)
    numbers = [token.map[0] for token in Markdown(text).parsed if token.map and not token.level]
    starts = {sum(len(line) + 1 for line in lines[:number]) for number in numbers}
    for end in range(len(text)):
        assert start_of_last_block(text[:end]) in {0, *starts}


def test_a_long_answer_is_shown_whole() -> None:
    """Each paragraph is printed for good, in order, on a screen that is too small for them."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=40, height=5)
    with LiveAnswer(console) as answer:
        answer.add(Chunk(reasoning="hm"))
        for number in range(30):
            answer.add(Chunk(content=f"paragraph {number:02}\n\n"))
    shown = output.getvalue()
    places = [shown.rindex(f"paragraph {number:02}") for number in range(30)]
    assert places == sorted(places) and "hm" in shown


def test_a_model_cannot_steer_the_terminal() -> None:
    """Of its text nothing reaches a terminal that one would obey."""
    output = io.StringIO()
    hostile = (
        "a\x1b]52;c;eA==\x07b\x9b31mc <http://a/%1b]0;x%07> [d](http://e) <http://f/%c2%9bm>\u202eg"
    )
    with LiveAnswer(Console(file=output, force_terminal=True)) as answer:
        answer.add(Chunk(reasoning=hostile))
        answer.add(Chunk(content=hostile))
    shown = output.getvalue()
    assert not [sign for sign in ("\x1b]", "\x9b", "\x07", "\u202e") if sign in shown], shown
    simple = io.StringIO()
    simple.isatty = lambda: True  # type: ignore[method-assign]
    with PlainAnswer(simple) as plain:
        plain.add(Chunk(content=hostile))
    assert simple.getvalue().startswith("a]52;c;eA==b31mc <http://a/%1b]0;x%07>")


def test_a_pipe_gets_the_text_as_it_is() -> None:
    """To the last character, and without thoughts."""
    output = io.StringIO()
    with PlainAnswer(output) as answer:
        answer.add(Chunk(reasoning="hm"))
        answer.add(Chunk(content="**a**\x1b[1m"))
    assert output.getvalue() == "**a**\x1b[1m\n"


class FakeClient:
    """A worker's client whose answers are scripted; keeps what it was asked."""

    def __init__(self, texts: Sequence[str], max_model_len: int = 100) -> None:
        config = json.dumps({"chat_template": THINKER}).encode()
        self.tokenizer = Tokenizer(tokenizer_json(byte_level()), config)
        self.worker = SimpleNamespace(model="m", max_model_len=max_model_len)
        self.asked: list[dict[str, Any]] = []
        self._texts = texts

    def stream(self, prompt: list[int], **params: Any) -> Generator[Delta, None, None]:
        self.asked.append(params)
        for text in self._texts:
            yield Delta([], text)
        yield Delta([], "", Finish("stop"))


def speaker(client: FakeClient, *arguments: str) -> Speaker:
    return Speaker(client, load_settings(ChatSettings, "chat", arguments))  # type: ignore[arg-type]


def test_thoughts_are_told_apart() -> None:
    """As the model's chat template tells of them, also where the prompt opens them."""
    client = FakeClient(["h", "m</thi", "nk>\n\nyes"])
    pieces = [*speaker(client).answer([{"role": "user", "content": "a"}])]
    assert "".join(piece.chunk.reasoning for piece in pieces) == "hm"
    assert "".join(piece.chunk.content for piece in pieces) == "yes"
    assert pieces[-1].finish_reason == "stop"


def test_an_answer_has_the_room_that_is_left() -> None:
    """More tokens than fit are not asked for, and a conversation without room is refused."""
    client = FakeClient(["x"], max_model_len=30)
    messages = [{"role": "user", "content": "a"}]
    num_prompt_tokens = len(client.tokenizer.encode_chat(messages))
    for arguments in [(), ("--max-tokens", "5"), ("--max-tokens", "1000")]:
        list(speaker(client, *arguments).answer(messages))
    room = 30 - num_prompt_tokens
    assert [params["max_tokens"] for params in client.asked] == [room, 5, room]
    with pytest.raises(ContextLengthError, match="begin another one"):
        list(speaker(client).answer([{"role": "user", "content": "x" * 100}]))


def test_a_conversation_s_own_settings_are_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the worker is may stand in the environment; what else does is refused by name."""
    monkeypatch.setenv("CHAIRLIFT_ADDRESS", "ipc:///tmp/elsewhere")
    assert load_settings(ChatSettings, "chat", []).address == "ipc:///tmp/elsewhere"
    monkeypatch.setenv("CHAIRLIFT_TEMPERATURE", "0")
    with pytest.raises(SystemExit):
        load_settings(ChatSettings, "chat", [])
    assert "unknown environment variable CHAIRLIFT_TEMPERATURE" in capsys.readouterr().err
