"""Checkpoints with random weights, made on the spot and kept in the user's cache.

The forward pass costs what a trained model of that shape costs. Greedily decoded, each token is
text at once (`silent_token_ids` never win), so that a client of the HTTP API can count tokens.
"""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from .errors import BenchmarkError

if TYPE_CHECKING:
    import torch

RECIPE = 2  # raise it when the files would come out differently
SEED = 20
MAX_LENGTH = 2048
INIT_STD = 0.05
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
CORPUS_BYTES_PER_TOKEN = 1000
TOKENIZER_CONFIG = {  # for the peers; chairlift needs tokenizer.json alone
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": END_OF_TEXT,
    "model_max_length": MAX_LENGTH,
}
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "lib2to3"}


@dataclass(frozen=True, slots=True)
class Shape:
    """A dense decoder's sizes."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    is_tied: bool
    dtype: str

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def has_qkv_bias(self) -> bool:
        return self.architecture == "Qwen2ForCausalLM"


SHAPES = {
    "S": Shape("LlamaForCausalLM", 288, 768, 6, 6, 6, 4096, False, "float32"),
    "M": Shape("Qwen2ForCausalLM", 896, 4864, 24, 14, 2, 32000, True, "bfloat16"),
    "tiny": Shape("LlamaForCausalLM", 64, 96, 2, 4, 2, 512, False, "float32"),  # for the tests
}


def model_folder(name: str) -> Path:
    """The folder of the model: a synthetic one's, made if need be, or the one that was named."""
    if name not in SHAPES:
        if (Path(name) / "config.json").is_file():
            return Path(name).resolve()
        raise BenchmarkError(f"{name} is no checkpoint folder and none of {', '.join(SHAPES)}")
    folder = cache_folder() / f"{name}-{RECIPE}"
    if not folder.is_dir():
        _make(SHAPES[name], folder)
    return folder


def cache_folder() -> Path:
    """Where what takes long to make is kept, for this user."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "chairlift" / "benchmark"


def _make(shape: Shape, folder: Path) -> None:
    """Whole or not at all: written beside its place, then renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        tokenizer = train_tokenizer(shape.vocab_size)
        tokenizer.save(str(work / "tokenizer.json"))
        for name, fields in {
            "config.json": _config(shape),
            "tokenizer_config.json": TOKENIZER_CONFIG,
            "generation_config.json": {"eos_token_id": END_OF_TEXT_ID},
        }.items():
            (work / name).write_text(json.dumps(fields, indent=2))
        _save_weights(shape, silent_token_ids(tokenizer), work / "model.safetensors")
        if not folder.is_dir():  # somebody else may have been faster
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def train_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """Byte-level BPE over the standard library's sources, of exactly this size."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(vocab_size * CORPUS_BYTES_PER_TOKEN), trainer)
    missing = vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<unused{number}>" for number in range(missing)])
    return tokenizer


def silent_token_ids(tokenizer: tokenizers.Tokenizer) -> list[int]:
    """Those that alone are no text: special ones and bytes of longer characters."""
    ids = range(tokenizer.get_vocab_size())
    texts = tokenizer.decode_batch([[token_id] for token_id in ids])
    return [i for i, text in zip(ids, texts, strict=True) if not text or "\ufffd" in text]


def _corpus(max_bytes: int) -> Iterator[str]:
    """ASCII alone, so that only the single bytes are tokens with a part of a character."""
    for path in _sources(Path(sysconfig.get_path("stdlib"))):
        text = path.read_text("ascii", errors="ignore")
        yield text
        max_bytes -= len(text)
        if max_bytes < 0:
            return


def _sources(library: Path) -> Iterator[Path]:
    for path in sorted(library.rglob("*.py")):
        if not SKIPPED_FOLDERS & set(path.relative_to(library).parts):
            yield path


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": [shape.architecture],
        "model_type": shape.architecture.removesuffix("ForCausalLM").lower(),
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.is_tied,
        "max_position_embeddings": MAX_LENGTH,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "bos_token_id": None,
        "eos_token_id": END_OF_TEXT_ID,
        "torch_dtype": shape.dtype,
    }


def _save_weights(shape: Shape, silent: list[int], file: Path) -> None:
    import torch  # takes seconds, and only making a model needs it
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(SEED)
    dtype = getattr(torch, shape.dtype)

    def normal(*size: int) -> torch.Tensor:
        return torch.empty(*size).normal_(0, INIT_STD, generator=generator).to(dtype)

    tensors = {
        name: normal(*size) if len(size) == 2 else torch.full(size, fill, dtype=dtype)
        for name, size, fill in _tensors(shape)
    }
    head = "model.embed_tokens.weight" if shape.is_tied else "lm_head.weight"
    tensors[head][silent] = 0  # a logit of 0 is never the greatest
    save_file(tensors, file, {"format": "pt"})


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Name, size and, for vectors, the value throughout."""
    hidden, inner, vocab = shape.hidden_size, shape.intermediate_size, shape.vocab_size
    yield "model.embed_tokens.weight", (vocab, hidden), 0
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        for name, size, fill in _layer_tensors(shape, hidden, inner):
            yield prefix + name, size, fill
    yield "model.norm.weight", (hidden,), 1
    if not shape.is_tied:
        yield "lm_head.weight", (vocab, hidden), 0


def _layer_tensors(
    shape: Shape, hidden: int, inner: int
) -> Iterator[tuple[str, tuple[int, ...], float]]:
    kv_size = shape.num_kv_heads * shape.head_dim
    yield "input_layernorm.weight", (hidden,), 1
    for name, rows in {"q": hidden, "k": kv_size, "v": kv_size}.items():
        yield f"self_attn.{name}_proj.weight", (rows, hidden), 0
        if shape.has_qkv_bias:
            yield f"self_attn.{name}_proj.bias", (rows,), 0
    yield "self_attn.o_proj.weight", (hidden, hidden), 0
    yield "post_attention_layernorm.weight", (hidden,), 1
    yield "mlp.gate_proj.weight", (inner, hidden), 0
    yield "mlp.up_proj.weight", (inner, hidden), 0
    yield "mlp.down_proj.weight", (hidden, inner), 0
