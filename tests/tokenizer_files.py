"""Tiny real tokenizers, one of each kind that models come with, made in milliseconds.

Each has `<unk>`, `<s>` and `</s>` as ids 0, 1 and 2. `tokenizer.to_str().encode()` is what a
`tokenizer.json` holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
BOS_ID, EOS_ID = 1, 2
SPECIAL_TOKENS = [AddedToken(token, special=True) for token in (UNK, BOS, EOS)]
CORPUS = [
    "Once upon a time there was a small fox who lived by the river with the other foxes.",
    "The lift never stops; riders step on as it passes, and step off at the top!",
    "hello hello world, what is the capital of France? It is Paris.",
    "été, naïve, Zürich, smørrebrød, Ελλάδα, Москва и Киев",
    "日本語の文章です。今日は天気がいいですね。中文也可以。",
    "👍👍 😀😀😀 👩‍👩‍👧‍👦 🇫🇷🇩🇪 e\u0301a\u0308",
    "line one\nline two\n\n  indented\tand tabbed   x = {'a': [1, 2, 3]}",
]


def tokenizer_json(tokenizer: Tokenizer) -> bytes:
    """The content of its `tokenizer.json`."""
    return str(tokenizer.to_str()).encode()


@cache
def byte_level() -> Tokenizer:
    """Byte-level BPE, as GPT-2, Llama 3 and Qwen: any bytes at all, merged across characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def sentencepiece() -> Tokenizer:
    """SentencePiece BPE with byte fallback, as Llama 2 and Mistral: `▁` is a space."""
    trained = Tokenizer(models.BPE(unk_token=UNK))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    ascii_corpus = [line for line in CORPUS if line.isascii()]
    trainer = trainers.BpeTrainer(vocab_size=150, show_progress=False)
    trained.train_from_iterator(ascii_corpus, trainer)
    learned = json.loads(trained.to_str())["model"]
    tokens = [UNK, BOS, EOS, *_byte_tokens(), "\u00e9", *learned["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            {token: index for index, token in enumerate(dict.fromkeys(tokens))},
            [tuple(pair) for pair in learned["merges"]],
            unk_token=UNK,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)]
    )
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer


@cache
def unigram() -> Tokenizer:
    """Unigram with byte fallback and the Metaspace decoder, as T5 and ALBERT."""
    pieces = {word for line in CORPUS if line.isascii() for word in line.split()}
    letters = {character for line in CORPUS[:3] for character in line} - {" "}
    vocab = [(UNK, 0.0), (BOS, 0.0), (EOS, 0.0), ("▁", -4.0)]
    vocab += [(byte, -12.0) for byte in _byte_tokens()]
    vocab += [(f"▁{piece}", -6.0) for piece in sorted(pieces)]
    vocab += [(letter, -8.0) for letter in sorted(letters)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer


@cache
def wordpiece() -> Tokenizer:
    """WordPiece, as BERT: what it doesn't know is `<unk>`, spaces are its decoder's idea."""
    letters = sorted({character for line in CORPUS for character in line} - {" ", "\n", "\t"})
    words = sorted({word for line in CORPUS[:3] for word in line.lower().split()})
    tokens = [UNK, BOS, EOS, *letters, *(f"##{letter}" for letter in letters), *words]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer


def _byte_tokens() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level,
    "sentencepiece": sentencepiece,
    "unigram": unigram,
    "wordpiece": wordpiece,
}
