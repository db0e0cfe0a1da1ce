"""Tiny models of the families that call tools: each has the family's template and its tags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from tests import chat_templates as templates
from tests.tiny_model import make_tiny_model

MAX_MODEL_LEN = 8192  # few characters are a token
NOW_CALL = "[now()]"  # no random model would say that in several tokens


@dataclass(frozen=True)
class ToolModel:
    """One family's; `opens_thoughts` is a switch of the thinking one's template."""

    name: str
    template: str
    tags: tuple[str, ...]
    has_special_tags: bool = False
    takes_one_call: bool = False  # of an earlier answer

    def make(self, folder: Path) -> Path:
        tokens = [AddedToken(tag, special=self.has_special_tags) for tag in self.tags]
        return make_tiny_model(
            folder,
            chat_template=self.template,
            added_tokens=tokens,
            max_model_len=MAX_MODEL_LEN,
        )


HERMES = ToolModel("hermes", templates.QWEN25, ("<tool_call>", "</tool_call>"))
THINKING = ToolModel(
    "thinking",
    templates.QWEN3.replace(
        r"assistant\n'", r"assistant\n' + ('<think>\n' if opens_thoughts is defined else '')"
    ),
    ("<tool_call>", "</tool_call>", "<think>", "</think>"),
)
LLAMA_JSON = ToolModel(
    "llama_json", templates.LLAMA, ("<|python_tag|>",), has_special_tags=True, takes_one_call=True
)
MISTRAL = ToolModel("mistral", templates.MISTRAL, ("[TOOL_CALLS]",), has_special_tags=True)
MISTRAL_ARGS = ToolModel(
    "mistral_args", templates.MISTRAL_V11, ("[TOOL_CALLS]", "[ARGS]"), has_special_tags=True
)
PYTHONIC = ToolModel("pythonic", templates.LLAMA4, (NOW_CALL,))
CONSTRAINED = (HERMES, THINKING, LLAMA_JSON, MISTRAL, MISTRAL_ARGS)


@dataclass(frozen=True)
class Served:
    """A tool model with a worker and a frontend of its own."""

    kind: ToolModel
    model: Path
    url: str
    address: str  # of the worker
    worker_pid: int  # its parent's

    def bias(self, tokens: Mapping[str, float]) -> dict[str, float]:
        """For `logit_bias`, of those tokens that the model has."""
        vocab = Tokenizer.from_file(str(self.model / "tokenizer.json")).get_vocab()
        return {str(vocab[token]): value for token, value in tokens.items() if token in vocab}


def only(kind: ToolModel, *others: ToolModel) -> pytest.MarkDecorator:
    """Which models the fixture `served` has run."""
    kinds = (kind, *others)
    return pytest.mark.parametrize(
        "served", kinds, ids=[one.name for one in kinds], indirect=True, scope="module"
    )
