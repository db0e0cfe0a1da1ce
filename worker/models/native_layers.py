"""A decoder's layers by one call a step (kernels/layers.c), with the bits of PlainLayers."""

from __future__ import annotations

import ctypes

import torch

from ..attention.native import NativeCpuAttention, NativeStep, ShapeStruct
from ..kernels.choice import Kernels
from ..kernels.compiler import FLOAT, INT, LONG, POINTER, load_kernels
from .decoder import Decoder, DecoderLayer, Layers, PlainLayers
from .native_linear import KINDS, Matrix, address
from .native_operations import NativeOperations
from .rope import Rotation


class _Layer(ctypes.Structure):
    _fields_ = (
        *(("input_norm", POINTER), ("post_attention_norm", POINTER)),
        *(("qk_norm", POINTER), ("qk_eps", FLOAT), ("window", INT)),
        *((name, ctypes.POINTER(Matrix)) for name in ("qkv", "output", "gate_up", "down")),
        *(("keys", POINTER), ("values", POINTER)),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *(("is_bf16", INT), ("rows_per_item", INT), ("shape", ShapeStruct), ("eps", FLOAT)),
        *((name, LONG) for name in ("hidden_size", "intermediate_size", "num_layers")),
        ("layers", ctypes.POINTER(_Layer)),
        *((name, POINTER) for name in ("norm", "cosines", "sines")),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        *(("num_rows", LONG), ("num_real_rows", LONG)),
        *((name, POINTER) for name in ("positions", "slots", "segments", "items", "tables")),
        ("num_items", LONG),
    )


class _Room(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in ("normed", "delta", "q", "attended", "wide", "gated")),
        *((name, POINTER) for name in ("bytes", "row_scales", "sums")),
    )


def layers_of(decoder: Decoder, kernels: Kernels) -> Layers:
    """The fastest that there are for these kernels and the decoder's products."""
    attention, operations = kernels.attention, kernels.operations
    matrices = [_matrices(layer) for layer in decoder.weights.layers]
    are_ours = isinstance(operations, NativeOperations) and all(map(all, matrices))
    if isinstance(attention, NativeCpuAttention) and are_ours:
        return NativeLayers(decoder, attention, matrices)
    return PlainLayers(decoder, kernels)


def _matrices(layer: DecoderLayer) -> list[Matrix | None]:
    """Of its products; None of those that are not by kernels of our own."""
    return [one.native for one in (layer.qkv, layer.output, layer.gate_up, layer.down)]


class NativeLayers:
    """Layers whose kernels call one another."""

    gains_by_padding = False

    def __init__(
        self, decoder: Decoder, attention: NativeCpuAttention, matrices: list[list[Matrix | None]]
    ) -> None:
        """`matrices` are the decoder's, all of them."""
        self._kernels = load_kernels()
        self._decoder, self._attention = decoder, attention  # whose memory the structures point to
        weights, config = decoder.weights, decoder.config
        self._matrices = [[one for one in layer if one is not None] for layer in matrices]
        layers = [self._layer(index) for index in range(len(weights.layers))]
        self._layers = (_Layer * len(layers))(*layers)
        self._dtype = weights.norm.dtype
        self._model = _Model(
            *(self._dtype == torch.bfloat16, attention.rows_per_item, attention.struct),
            *(config.rms_norm_eps, config.hidden_size, config.intermediate_size, len(layers)),
            self._layers,
            *map(address, (weights.norm, decoder.rotary.cos, decoder.rotary.sin)),
        )
        present = [matrix for layer in self._matrices for matrix in layer]
        q_size, widest = config.num_heads * config.head_dim, max(x.num_outputs for x in present)
        self._sizes = (  # of _Room, as far as they have the model's type
            *(config.hidden_size, config.hidden_size, q_size, q_size),
            *(widest, config.intermediate_size),
        )
        of_bytes = [matrix for matrix in present if matrix.kind == KINDS[torch.int8]]
        self._widest_inputs = max((matrix.row_bytes for matrix in of_bytes), default=0)
        self._widest_outputs = max((matrix.num_outputs for matrix in of_bytes), default=0)

    def _layer(self, index: int) -> _Layer:
        layer, attention = self._decoder.weights.layers[index], self._attention
        qk_norm = layer.qk_norm
        return _Layer(
            *(address(layer.input_norm), address(layer.post_attention_norm)),
            *((address(qk_norm.weight), qk_norm.eps) if qk_norm is not None else (None, 0.0)),
            attention.shape.sliding_windows[index] or 0,
            *map(ctypes.pointer, self._matrices[index]),
            *(address(attention.keys[index]), address(attention.values[index])),
        )

    def run(self, x: torch.Tensor, rotation: Rotation, prepared: NativeStep) -> torch.Tensor:
        num_rows, out = len(x), torch.empty_like(x)
        step = _Step(
            *(num_rows, prepared.num_rows),
            *(address(rotation.positions), address(prepared.slot_mapping)),
            *(one.ctypes.data for one in (prepared.segments, prepared.items, prepared.tables)),
            len(prepared.items),
        )
        buffers = self._buffers(num_rows)
        room = _Room(*map(address, buffers))
        structures = (ctypes.byref(one) for one in (self._model, step, room))
        self._kernels.run_layers(*structures, address(x), address(out))
        return out

    def _buffers(self, num_rows: int) -> tuple[torch.Tensor, ...]:
        """In the order of _Room."""
        rows = [torch.empty(num_rows, size, dtype=self._dtype) for size in self._sizes]
        values = torch.empty(num_rows, self._widest_inputs, dtype=torch.uint8)
        return *rows, values, torch.empty(num_rows), torch.empty(num_rows, self._widest_outputs)
