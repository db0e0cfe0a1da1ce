"""A decoder of a model's shape with random weights, made where they are needed."""

from __future__ import annotations

import torch

from chairlift.worker.attention.backend import HeadNorm
from chairlift.worker.cuda.linear import CudaLinear
from chairlift.worker.models.config import ModelConfig
from chairlift.worker.models.decoder import Decoder, DecoderLayer, DecoderWeights
from chairlift.worker.models.linear import LinearFactory, LinearLayer
from chairlift.worker.models.rope import Rope

from .shapes import MatrixShape, ModelShape

EPS = 1e-6
ROPE_THETA = 500_000.0
SCALE = 0.02  # of weights: numbers stay numbers through any number of layers


def architecture_of(model: ModelShape) -> str:
    return "Qwen3ForCausalLM" if model.has_qk_norm else "LlamaForCausalLM"


def config_of(model: ModelShape, max_model_len: int) -> ModelConfig:
    return ModelConfig(
        architecture=architecture_of(model),
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        max_position_embeddings=max_model_len,
        rms_norm_eps=EPS,
        rope=Rope(ROPE_THETA),
        sliding_windows=(None,) * model.num_layers,
        has_qkv_bias=False,
        has_output_bias=False,
        has_mlp_bias=False,
        has_qk_norm=model.has_qk_norm,
        has_tied_head=False,
        eos_token_ids=(0,),
    )


def random_decoder(
    model: ModelShape,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
    make_linear: LinearFactory | None = None,
) -> Decoder:
    """With matrices as a worker has them by default, or of another kind."""
    make = make_linear or (lambda weight, bias: CudaLinear(weight, bias, device))

    def matrix(shape: MatrixShape) -> LinearLayer:
        size = (shape.out_features, shape.in_features)
        return make(torch.empty(size, dtype=dtype, device=device).normal_(0, SCALE), None)

    def ones(*size: int) -> torch.Tensor:
        return torch.ones(size, dtype=dtype, device=device)

    num_heads = model.num_heads + model.num_kv_heads
    norm = HeadNorm(ones(num_heads, model.head_dim), EPS) if model.has_qk_norm else None
    layers = tuple(
        DecoderLayer(
            input_norm=ones(model.hidden_size),
            qkv=matrix(model.qkv),
            qk_norm=norm,
            output=matrix(model.output),
            post_attention_norm=ones(model.hidden_size),
            gate_up=matrix(model.gate_up),
            down=matrix(model.down),
        )
        for _ in range(model.num_layers)
    )
    embedding = torch.empty(model.vocab_size, model.hidden_size, dtype=dtype, device=device)
    weights = DecoderWeights(
        embedding.normal_(0, 1), layers, ones(model.hidden_size), matrix(model.head)
    )
    return Decoder(config_of(model, max_model_len), weights, max_model_len)
