"""What int8 costs in accuracy: of single layers on random rows, and of the demo model's answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
import torch.nn.functional as F
import train_demo_model

from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import DEMO_MODEL_FOLDER, WorkerSettings
from chairlift.worker.batch import make_batch
from chairlift.worker.kernels.choice import cpu_kernels
from chairlift.worker.main import build_engine
from chairlift.worker.models.linear import Linear, LinearFactory, LinearLayer
from chairlift.worker.models.linear_choice import QuantizeName, linear_factory
from chairlift.worker.models.loader import DtypeChoice, LoadedModel, load_model
from chairlift.worker.models.native_layers import layers_of
from chairlift.worker.scheduler import Plan, ScheduledSequence
from chairlift.worker.sequence import Sequence as EngineSequence

TEXT_SEED = 10**6 + 1  # the training's is 0
NUM_ROWS = 64
LAYERS = {"gate_up of M": (9728, 896), "down of M": (896, 4864)}  # out, in
OUTLIERS = (1, 20, 100)  # how many times a row's other values one of them is
KINDS = ("float32", "bfloat16", "int8 on float32", "int8 on bfloat16")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much text is read and written."""

    num_documents: int = 200
    num_prompts: int = 64
    num_output_tokens: int = 64


QUICK = Sizes(num_documents=4, num_prompts=3, num_output_tokens=8)


@dataclass(frozen=True, slots=True)
class Table:
    """A section whose rows are measured at once; the first is the head."""

    title: str
    about: str
    rows: list[list[str]]

    def table(self) -> list[list[str]]:
        return self.rows

    def save(self, folder: Path) -> list[Path]:
        return []


@dataclass(frozen=True, slots=True)
class Document:
    """A conversation in the demo model's tokens; 1 where an answer's token is to be foretold."""

    token_ids: list[int]
    is_answer: torch.Tensor  # float [num_tokens - 1]


def layers() -> Table:
    """The relative root-mean-square error of a layer against float64 on the same inputs."""
    names = [f"one of a row's values {n} times as large" for n in OUTLIERS[1:]]
    rows = [["", "Gaussian rows", *names]]
    for name, (out_features, in_features) in LAYERS.items():
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(out_features, in_features, generator=generator).mul_(0.05).bfloat16()
        inputs = [_rows(in_features, outlier, generator) for outlier in OUTLIERS]
        factories: dict[str, LinearFactory] = {
            "bfloat16": Linear,
            "int8": linear_factory("int8", "auto"),
        }
        for kind, make_linear in factories.items():
            layer = make_linear(weight, None)
            errors = [_error(layer, x, weight) for x in inputs]
            rows.append([f"{name}, {kind}", *(f"{100 * error:.2f} %" for error in errors)])
    about = f"Relative RMS error against float64; {NUM_ROWS} rows of bfloat16, Gaussian weights."
    return Table("int8-layers", about, rows)


def _rows(size: int, outlier: float, generator: torch.Generator) -> torch.Tensor:
    x = torch.randn(NUM_ROWS, size, generator=generator)
    x[:, size // 2] = outlier * x[:, size // 2].sign() if outlier > 1 else x[:, size // 2]
    return x.bfloat16()


def _error(layer: LinearLayer, x: torch.Tensor, weight: torch.Tensor) -> float:
    expected = x.double() @ weight.double().T
    difference = layer(x).double() - expected
    return float(difference.pow(2).mean().sqrt() / expected.pow(2).mean().sqrt())


def demo_model(sizes: Sizes) -> Table:
    """Text that the demo model wasn't trained on, made by the same grammar, and greedy answers."""
    documents, prompts = _documents(sizes.num_documents), _prompts(sizes.num_prompts)
    models = {kind: _load(kind) for kind in KINDS}
    expected = [_log_probs(models["float32"], document) for document in documents]
    answers = {kind: _answers(model, prompts, sizes) for kind, model in models.items()}
    columns = [
        [
            *_foretelling(documents, expected, [_log_probs(model, one) for one in documents]),
            *_agreement(answers["float32"], answers[kind]),
        ]
        for kind, model in models.items()
    ]
    labels = [
        "cross-entropy of answers, nats a token",
        "KL divergence from float32, mean",
        "KL divergence from float32, greatest",
        "most likely token as in float32, %",
        "greedy answers that are float32's to the end, %",
        "greedy tokens before the first difference, %",
    ]
    num_tokens = round(sum(float(document.is_answer.sum()) for document in documents))
    about = (
        f"{num_tokens:,} answer tokens of {len(documents)} conversations; greedy answers to "
        f"{len(prompts)} prompts, of at most {sizes.num_output_tokens} tokens."
    )
    values = zip(labels, *columns, strict=True)
    return Table("int8-demo-model", about, [["", *KINDS], *map(list, values)])


def _load(kind: str) -> LoadedModel:
    dtype: DtypeChoice = "bfloat16" if kind.endswith("bfloat16") else "float32"
    quantize: QuantizeName = "int8" if kind.startswith("int8") else "none"
    make_linear = linear_factory(quantize, "auto")
    return load_model(DEMO_MODEL_FOLDER, dtype, make_linear=make_linear)


def _documents(count: int) -> list[Document]:
    tokenizer, draw = _tokenizer(), train_demo_model.Draw(random.Random(TEXT_SEED))
    return [_document(train_demo_model.document(draw), tokenizer) for _ in range(count)]


def _document(text: str, tokenizer: tokenizers.Tokenizer) -> Document:
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids
    weights = train_demo_model.loss_weights(torch.tensor([token_ids]), tokenizer)
    return Document(token_ids, weights[0, 1:])


def _prompts(count: int) -> list[list[int]]:
    """Conversations up to their last answer."""
    tokenizer, draw = _tokenizer(), train_demo_model.Draw(random.Random(TEXT_SEED + 1))
    prompts = []
    for _ in range(count):
        turns = train_demo_model.talk(draw)
        text = train_demo_model.render(turns).removesuffix(turns[-1].answer + train_demo_model.END)
        prompts.append(tokenizer.encode(text, add_special_tokens=False).ids)
    return prompts


def _tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(DEMO_MODEL_FOLDER / "tokenizer.json"))


@torch.inference_mode()
def _log_probs(model: LoadedModel, document: Document) -> torch.Tensor:
    """What the model foretells after each token but the last, [num_tokens - 1, vocab_size]."""
    num_tokens = len(document.token_ids)
    num_blocks = -(-num_tokens // 32)
    kernels = cpu_kernels("torch", model.config.attention_shape, num_blocks, model.dtype)
    attention = kernels.attention
    sequence = EngineSequence(bytes(16), document.token_ids, SamplingParams(max_tokens=1))
    sequence.block_table = list(range(num_blocks))
    plan = Plan((ScheduledSequence.next_of(sequence, num_tokens),))
    batch = make_batch(plan, attention.block_size, attention.null_slot, torch.device("cpu"))
    layers = layers_of(model.decoder, kernels)
    hidden = model.decoder.forward(batch, layers, attention.prepare(batch))
    return model.decoder.logits(hidden[: num_tokens - 1]).log_softmax(-1)


def _foretelling(
    documents: Sequence[Document], expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]
) -> list[str]:
    """Of the answers' tokens: cross-entropy, mean and greatest divergence, agreement."""
    p = torch.cat([a[d.is_answer > 0] for a, d in zip(expected, documents, strict=True)])
    q = torch.cat([b[d.is_answer > 0] for b, d in zip(found, documents, strict=True)])
    targets = torch.cat([torch.tensor(d.token_ids[1:])[d.is_answer > 0] for d in documents])
    divergence = (p.exp() * (p - q)).sum(-1).clamp(min=0)
    agreement = (p.argmax(-1) == q.argmax(-1)).float().mean()
    return [
        f"{F.nll_loss(q, targets):.4f}",
        f"{divergence.mean():.6f}",
        f"{divergence.max():.4f}",
        f"{100 * agreement:.2f}",
    ]


def _answers(model: LoadedModel, prompts: Sequence[list[int]], sizes: Sizes) -> list[list[int]]:
    engine = build_engine(model, WorkerSettings())
    params = SamplingParams(max_tokens=sizes.num_output_tokens, temperature=0.0)
    sequences = [
        EngineSequence(number.to_bytes(16), prompt, params) for number, prompt in enumerate(prompts)
    ]
    for sequence in sequences:
        engine.add(sequence)
    while engine.scheduler.has_work:
        engine.step()
    return [sequence.token_ids[sequence.num_prompt_tokens :] for sequence in sequences]


def _agreement(expected: Sequence[list[int]], found: Sequence[list[int]]) -> list[str]:
    """Whole answers that are equal, and tokens before an answer's first difference."""
    pairs = list(zip(expected, found, strict=True))
    num_equal = sum(a == b for a, b in pairs)
    num_alike = sum(_num_alike(a, b) for a, b in pairs)
    return [
        f"{100 * num_equal / len(pairs):.1f}",
        f"{100 * num_alike / sum(map(len, expected)):.1f}",
    ]


def _num_alike(a: list[int], b: list[int]) -> int:
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
