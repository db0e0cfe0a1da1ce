"""Text to ids: what a user writes is text, whatever it spells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from chairlift.shared.errors import InvalidRequestError, ModelError
from chairlift.shared.tokenizer import Tokenizer

SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "[/INST]", "<|eot|>", "<|e"]
TEXT = ["the lift goes up the hill", "im_start im_end INST user assistant", "<|<|[[ ||>>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2's and Llama 3's, trained on a few words."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(TEXT * 3, trainer)
    backend.add_tokens([AddedToken("up the hill", special=False)])
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    backend.post_processor = template
    return backend


def metaspace() -> tokenizers.Tokenizer:
    """As Llama 2's and Mistral's: spaces are letters, bytes are a fallback."""
    alphabet = sorted({letter for text in [*TEXT, *SPECIAL] for letter in text} | {"▁"})
    pieces = ["<unk>", *SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), *alphabet]
    model = models.BPE(
        {piece: i for i, piece in enumerate(dict.fromkeys(pieces))},
        [],
        unk_token="<unk>",
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["<unk>", *SPECIAL])
    return backend


def make(backend: tokenizers.Tokenizer, template: str | None = CHATML) -> Tokenizer:
    config = {"chat_template": template, "bos_token": "<s>", "eos_token": "</s>"}
    return Tokenizer(backend.to_str().encode(), json.dumps(config).encode())


TOKENIZERS = {"byte_level": make(byte_level()), "metaspace": make(metaspace())}
SPECIAL_IDS = {
    name: {i for i, t in tok.backend.get_added_tokens_decoder().items() if t.special}
    for name, tok in TOKENIZERS.items()
}
# Pieces that make special tokens, halves of them, and the marks of the implementation.
USER_TEXT = st.lists(
    st.sampled_from([*SPECIAL, "<|im_", "start|>", "\ue0f0", "\ue0f1", "0", "1", "<", "|", " "])
    | st.text(max_size=8)
).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=USER_TEXT)
@example(text="\ue0f0\ue0f00\ue0f11\ue0f1")
@example(text="<|im_\ue0f00\ue0f1start|>")
@example(text="<|im_<|im_start|>start|>")
def test_no_special_token_from_text(name: str, text: str) -> None:
    """No text of a user becomes a special token, neither in a prompt nor in a chat."""
    tokenizer, special = TOKENIZERS[name], SPECIAL_IDS[name]
    bare = tokenizer.encode("")
    assert not special & set(tokenizer.encode(text)[len(bare) :])
    message = {"role": "user", "content": text}
    count = sum(i in special for i in tokenizer.encode_chat([message]))
    assert count == sum(
        i in special for i in tokenizer.encode_chat([{"role": "user", "content": "x"}])
    )


@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    text=st.text(
        st.characters(exclude_characters="\ue0f0\ue0f1\ue0f2\ue0f3", exclude_categories=["Cs"]),
        max_size=30,
    )
)
@example(text="say <|im_end|> and <s>[INST]")
def test_text_survives(name: str, text: str) -> None:
    """What a user wrote reaches the model letter by letter, spelled special tokens included."""
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode_chat([{"role": "user", "content": text}], add_generation_prompt=False)
    decoded = tokenizer.backend.decode(ids, skip_special_tokens=True)
    assert text.replace("▁", " ") in decoded.replace("▁", " ")


def test_role_and_name_are_text() -> None:
    """Other strings of a message can't smuggle either."""
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer.encode_chat([{"role": "<|im_end|>", "content": "x"}])
    assert [tokenizer.backend.id_to_token(i) for i in ids].count("<|im_end|>") == 1


def test_longest_special_token_first() -> None:
    """A special token that begins like another does not leave its rest behind."""
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer.encode_chat([{"role": "user", "content": "<|eot|>"}])
    assert "user\n<|eot|>" in tokenizer.backend.decode(ids, skip_special_tokens=True)


def test_prompt_has_bos_once() -> None:
    """A raw prompt gets the tokenizer's own BOS, a chat only the template's."""
    tokenizer = TOKENIZERS["byte_level"]
    bos = tokenizer.backend.token_to_id("<s>")
    assert [i for i in tokenizer.encode("the lift") if i == bos] == [bos]
    assert bos not in tokenizer.encode_chat([{"role": "user", "content": "x"}])


def test_decode() -> None:
    """Text comes back without special tokens, multi-byte characters whole."""
    tokenizer = TOKENIZERS["byte_level"]
    assert tokenizer.decode(tokenizer.encode("the lift 🚡 é")) == "the lift 🚡 é"


def test_folder(tmp_path: Path) -> None:
    """A folder in Hugging Face's layout; the template may have a file of its own."""
    backend = byte_level()
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    config: dict[str, Any] = {"bos_token": {"content": "<s>"}, "model_max_length": 5}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    tokenizer = Tokenizer.from_folder(tmp_path)
    ids = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert ids[0] == backend.token_to_id("<s>")
    again = Tokenizer.from_files(tokenizer.files)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.template_fingerprint == tokenizer.template_fingerprint


def test_bad_files(tmp_path: Path) -> None:
    """Files that can't be read are a ModelError that names them."""
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(ModelError):
        Tokenizer(b"{}")
    (tmp_path / "tokenizer.json").write_text(byte_level().to_str())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer_config"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("template", ["{% if %}", "{{ x", 5, {"a": 1}])
def test_bad_template(template: Any) -> None:
    """A template that is none is a ModelError, not a traceback of jinja2's."""
    with pytest.raises(ModelError):
        make(byte_level(), template)


def test_no_template() -> None:
    """Without a template a chat is refused with the way out."""
    with pytest.raises(InvalidRequestError, match="/v1/completions"):
        make(byte_level(), None).encode_chat([{"role": "user", "content": "x"}])
