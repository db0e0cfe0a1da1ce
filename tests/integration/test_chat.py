"""`chairlift chat` with a real worker, in a terminal and with a script."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from chairlift import AsyncClient
from tests.integration.conftest import short_address
from tests.integration.processes import chairlift, environment_of, stop
from tests.integration.terminal import CTRL_C, CTRL_D, ENTER, PASTE, PROMPT, UP, Terminal
from tests.tiny_model import make_tiny_model

MAX_MODEL_LEN = 8192  # an answer to the end takes long enough to be cut
TOO_LONG = "a " * MAX_MODEL_LEN
CHAT = ("-m", "chairlift", "chat", "--temperature", "0")
KEYBOARD = """
from chairlift.frontend.terminal.keyboard import Keyboard
print([*Keyboard().turns()])
"""


@pytest.fixture(scope="module")
def long_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a worker whose model never comes to an end by itself when it is greedy."""
    model = make_tiny_model(tmp_path_factory.mktemp("long"), max_model_len=MAX_MODEL_LEN)
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][0] = 0.0  # of its end, whose logit then is 0, too
    save_file(weights, model / "model.safetensors")
    with (
        short_address() as address,
        chairlift("worker", model=model, address=address, dtype="float32"),
    ):
        until_it_serves(address)
        yield address


def until_it_serves(address: str) -> None:
    async def meet() -> None:
        async with AsyncClient(address, connect_timeout_s=60) as client:
            await client.connect()

    asyncio.run(meet())


def scripted(address: str, text: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *CHAT, *options],
        input=text.encode(),
        capture_output=True,
        env=environment_of({"address": address}),
        cwd="/",
        timeout=60,
        check=False,
    )


def test_a_script_has_a_conversation(long_address: str) -> None:
    """Each line is a turn, answered on standard output, and the model hears all that was said."""

    async def expected() -> list[str]:
        messages, answers = [{"role": "system", "content": "Be nice."}], list[str]()
        async with AsyncClient(long_address) as client:
            for question in ("abc", "def"):
                messages.append({"role": "user", "content": question})
                answer = await client.chat(messages, max_tokens=20, temperature=0.0)
                messages.append({"role": "assistant", "content": answer.text})
                answers.append(answer.text)
        return answers

    done = scripted(long_address, "abc\n\ndef\n", "--system", "Be nice.", "--max-tokens", "20")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == "".join(f"{text}\n" for text in asyncio.run(expected()))


def test_seeds_are_counted_up(long_address: str) -> None:
    """A session with a seed can be repeated, and asking again in it gives another answer."""
    options = ("--temperature", "1", "--seed", "7", "--max-tokens", "20")
    once, again = (scripted(long_address, "abc\n/retry\n", *options).stdout for _ in range(2))
    assert once == again
    alone = scripted(long_address, "abc\n", *options).stdout
    assert once.startswith(alone) and once != alone * 2


@pytest.mark.parametrize(
    ("text", "said"),
    [(f"{TOO_LONG}\nabc\n", "tokens"), ("/nonsense\nabc\n", "/nonsense"), ("/retry\n", "asked")],
)
def test_a_script_ends_at_its_first_failure(long_address: str, text: str, said: str) -> None:
    """With one line that says why and exit code 1; what follows is not asked."""
    done = scripted(long_address, text)
    assert (done.returncode, done.stdout.strip()) == (1, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("chairlift chat: ") and said in line


def test_ctrl_c_cuts_the_answer_alone(long_address: str) -> None:
    """What came of it stays, marked as cut; the worker stops, and the chat goes on."""

    async def until_idle() -> None:
        async with AsyncClient(long_address) as client, asyncio.timeout(20):
            await client.connect()
            while client.stats.num_running:
                await asyncio.sleep(0.02)

    with Terminal(*CHAT, address=long_address) as terminal:
        terminal.until(PROMPT)
        terminal.type("abc" + ENTER)
        terminal.until(r"\x1b\[2K")  # a second picture of the answer
        terminal.type(CTRL_C)
        assert "cut" in terminal.until(PROMPT)
        asyncio.run(until_idle())
        terminal.type("/retry" + ENTER)
        terminal.until(r"\x1b\[2K")
        terminal.type(CTRL_C)
        assert "cut" in terminal.until(PROMPT)
        assert terminal.exit_code_after(CTRL_C) == 0


def test_what_is_typed_during_an_answer_waits(long_address: str) -> None:
    """It is not shown amid the answer, and is the next turn; so is Ctrl-D, which leaves."""
    with Terminal(*CHAT, "--max-tokens", "1000", address=long_address) as terminal:
        terminal.until(PROMPT)
        terminal.type("abc" + ENTER)
        terminal.until(r"\x1b\[2K")  # a second picture of the answer
        terminal.type("/nonsense" + ENTER)
        assert "nonsense" not in terminal.until(PROMPT)
        assert "there is no /nonsense" in terminal.until(PROMPT)
        terminal.type("abc" + ENTER)
        terminal.until(r"\x1b\[2K")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0


def test_what_fails_at_a_terminal_is_told(long_address: str) -> None:
    """In a line, without a traceback, and the next turn is taken."""
    with Terminal(*CHAT, "--max-tokens", "5", address=long_address) as terminal:
        assert "/help lists the commands" in terminal.until(PROMPT)
        for turn, said in [
            ("/nonsense", "there is no /nonsense"),
            ("/clear all", "/clear takes no text"),
            (PASTE.format(TOO_LONG), "begin another one"),
            ("/help", "/retry"),
            ("abc", "--max-tokens"),
        ]:
            terminal.type(turn + ENTER)
            shown = terminal.until(PROMPT)
            assert said in shown and "Traceback" not in shown
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0


def test_a_worker_that_is_away_ends_no_chat(tiny_model: Path, address: str) -> None:
    """It is told, and another one at the address goes on with the conversation."""
    settings = {"model": tiny_model, "address": address, "dtype": "float32"}
    with Terminal(*CHAT, "--max-tokens", "5", address=address) as terminal:
        with chairlift("worker", **settings) as worker:
            terminal.until(PROMPT)
            terminal.type("abc" + ENTER)
            assert "--max-tokens" in terminal.until(PROMPT)
            stop(worker)
        terminal.type("def" + ENTER)
        assert "the worker" in terminal.until(PROMPT)
        with chairlift("worker", **settings):
            until_it_serves(address)
            deadline, shown = time.monotonic() + 20, ""
            while "--max-tokens" not in shown and time.monotonic() < deadline:
                terminal.type(UP + ENTER)
                shown = terminal.until(PROMPT)
            assert "--max-tokens" in shown


def test_a_paste_is_one_turn() -> None:
    """However many lines it has; what is typed ends with a line."""
    with Terminal("-c", KEYBOARD) as terminal:
        terminal.until(PROMPT)
        terminal.type(PASTE.format("Hello,\n  I am\nZoe.") + ENTER)
        terminal.until(PROMPT)
        terminal.type("next" + ENTER)
        terminal.until(PROMPT)
        terminal.type(CTRL_D)
        terminal.until(r"\['Hello,\\n  I am\\nZoe.', 'next'\]")
        assert terminal.exit_code() == 0
