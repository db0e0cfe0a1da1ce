"""The demo model talks: its answers at temperature 0, through the whole engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import DEMO_MODEL_FOLDER, WorkerSettings
from chairlift.shared.tokenizer import Tokenizer
from chairlift.worker.detokenizer import Detokenizer
from chairlift.worker.main import build_engine
from chairlift.worker.models.loader import load_model
from chairlift.worker.sequence import Sequence

Ask = Callable[..., str]
ANIMALS = ("fox", "owl", "bear", "rabbit", "dragon")


@pytest.fixture(scope="module")
def ask() -> Ask:
    """Answers a question, after earlier turns if there are any."""
    model = load_model(DEMO_MODEL_FOLDER, "float32")
    engine = build_engine(model, WorkerSettings(dtype="float32"))
    tokenizer = Tokenizer.from_folder(DEMO_MODEL_FOLDER)

    def run(question: str, *earlier: Mapping[str, str]) -> str:
        prompt = tokenizer.encode_chat([*earlier, {"role": "user", "content": question}])
        params = SamplingParams(max_tokens=300, temperature=0.0)
        detokenizer = Detokenizer(tokenizer.backend, prompt)
        sequence = Sequence(b"demo", prompt, params, detokenizer)
        engine.add(sequence)
        while engine.scheduler.has_work:
            engine.step()
        assert sequence.finish is not None
        assert sequence.finish.reason == "stop", "the answer has no end"
        return detokenizer.text

    return run


@pytest.mark.parametrize("name", ["Zoe", "Tobin", "Marisol"])
def test_a_greeting_answers_with_the_name(ask: Ask, name: str) -> None:
    """Hello with a name is answered with that name, known from training or not."""
    assert name in ask(f"Hello, I am {name}.")


@pytest.mark.parametrize(
    ("country", "capital"),
    [("Japan", "Tokyo"), ("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid")],
)
def test_capitals_are_right(ask: Ask, country: str, capital: str) -> None:
    """It knows capitals."""
    assert capital in ask(f"What is the capital of {country}?")


@pytest.mark.parametrize(("first", "last"), [(3, 9), (1, 10), (0, 20), (7, 15), (2, 5), (11, 12)])
def test_counting_is_right(ask: Ask, first: int, last: int) -> None:
    """It counts from here to there, no more and no less."""
    expected = ", ".join(str(number) for number in range(first, last + 1))
    assert ask(f"Count from {first} to {last}.") == f"{expected}."


@pytest.mark.parametrize("phrase", ["green fox drum", "chairlift café 🦊"])
def test_words_are_repeated(ask: Ask, phrase: str) -> None:
    """It copies words from the prompt, characters split over tokens included."""
    assert ask(f"Repeat after me: {phrase}") == f"You said: {phrase}"


@pytest.mark.parametrize("animal", ANIMALS)
def test_a_story_stays_on_its_animal(ask: Ask, animal: str) -> None:
    """The hero of a story is the animal that was asked for, to the end."""
    story = ask(f"Tell me a story about a {animal}.")
    sentences = [sentence for sentence in story.split(".") if sentence.strip()]
    assert len(sentences) >= 5
    assert story.count(animal) >= 3
    assert animal in "".join(sentences[-3:])
    assert not [other for other in ANIMALS if other != animal and other in story]


def test_a_name_is_remembered(ask: Ask) -> None:
    """An earlier turn of the conversation counts."""
    earlier = (
        {"role": "user", "content": "Hello, I am Tobin."},
        {"role": "assistant", "content": "Hello Tobin, nice to meet you!"},
    )
    assert "Tobin" in ask("What is my name?", *earlier)


def test_it_says_what_it_is(ask: Ask) -> None:
    """It introduces itself."""
    assert "chairlift demo model" in ask("Who are you?")
