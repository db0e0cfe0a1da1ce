"""Loading checkpoints: whole, sharded, in other types, and every way they can be broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chairlift.shared.errors import ModelError
from chairlift.worker.models import loader
from chairlift.worker.models.loader import has_native_bfloat16, load_model
from tests.checkpoints import MAX_LENGTH, make_checkpoint

Tensors = dict[str, torch.Tensor]
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A llama checkpoint in one float32 file."""
    make_checkpoint("llama", tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Callable[[Tensors], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def logits_of(folder: Path) -> torch.Tensor:
    """A stand-in for the whole model: what its head makes of its embedding."""
    weights = load_model(folder, "float32").decoder.weights
    x = weights.embedding[:8]
    return weights.head(weights.layers[-1].down(weights.layers[0].gate_up(x)[:, :96]))


def test_a_sharded_checkpoint_loads_as_a_whole_one_does(tmp_path: Path) -> None:
    """Many files with an index hold the same model."""
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    make_checkpoint("llama", whole)
    make_checkpoint("llama", sharded, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert torch.equal(logits_of(sharded), logits_of(whole))


@pytest.mark.parametrize(
    ("stored", "choice", "expected"),
    [
        (torch.float32, "auto", torch.float32),
        (torch.float16, "auto", torch.float32),
        (torch.float16, "bfloat16", torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
    ],
)
def test_weights_are_converted_to_the_chosen_type(
    tmp_path: Path, stored: torch.dtype, choice: str, expected: torch.dtype
) -> None:
    """Whatever type the file has, the model has the type asked for."""
    make_checkpoint("qwen3", tmp_path, stored)
    model = load_model(tmp_path, choice)  # type: ignore[arg-type]  # a parameter of the test
    assert model.dtype == expected
    assert model.decoder.weights.embedding.dtype == expected
    assert model.decoder.weights.head(model.decoder.weights.embedding[:1]).dtype == expected


@pytest.mark.parametrize(
    ("is_native", "small_bytes", "expected"),
    [
        (True, 0, torch.bfloat16),
        (False, 0, torch.float32),
        (True, 1 << 30, torch.float32),
    ],
)
def test_auto_keeps_bfloat16_only_where_it_pays(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_native: bool,
    small_bytes: int,
    expected: torch.dtype,
) -> None:
    """For large models on a CPU that computes in it; elsewhere float32 is as fast, and exact."""
    monkeypatch.setattr(loader, "has_native_bfloat16", lambda: is_native)
    monkeypatch.setattr(loader, "SMALL_MODEL_BYTES", small_bytes)
    make_checkpoint("qwen3", tmp_path, torch.bfloat16)
    assert load_model(tmp_path).dtype == expected


def test_native_bfloat16_is_looked_up() -> None:
    """Whatever this CPU can, the question has an answer."""
    assert isinstance(has_native_bfloat16(), bool)


def test_the_length_is_capped_by_the_model(folder: Path) -> None:
    """By default all positions; fewer on request; more is refused with both numbers."""
    assert load_model(folder).max_model_len == MAX_LENGTH
    assert load_model(folder, max_model_len=100).max_model_len == 100
    with pytest.raises(ModelError, match=r"1000.*256"):
        load_model(folder, max_model_len=1000)


def test_harmless_extra_tensors_are_ignored(tmp_path: Path) -> None:
    """Stored rotary frequencies, and the head of a tied model, are known elsewhere."""
    make_checkpoint("qwen2", tmp_path)

    def add(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewrite(tmp_path, add)
    load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop(QUERY), [QUERY, "has no tensor"]),
        (lambda tensors: tensors.pop("lm_head.weight"), ["lm_head.weight", "has no tensor"]),
        (
            lambda tensors: tensors.update({QUERY: torch.ones(64, 32)}),
            [QUERY, "[64, 32]", "[64, 64]", "model.safetensors"],
        ),
        (
            lambda tensors: tensors.update({"model.layers.9.extra": torch.ones(1)}),
            ["model.layers.9.extra", "no use"],
        ),
        (
            lambda tensors: tensors.update({QUERY: torch.ones(64, 64, dtype=torch.int8)}),
            [QUERY, "I8", "BF16"],
        ),
    ],
)
def test_wrong_tensors_are_named(
    folder: Path, change: Callable[[Tensors], object], named: list[str]
) -> None:
    """Missing, of another shape or type, or without a use."""
    rewrite(folder, change)
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    for text in named:
        assert text in str(caught.value)


def test_a_truncated_file_is_named(folder: Path) -> None:
    """A download that stopped half-way is told from a foreign format."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model\.safetensors.*not downloaded to the end"):
        load_model(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    """The index names a file that is not there."""
    make_checkpoint("llama", tmp_path, max_shard_size="100KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        load_model(tmp_path)


def test_an_index_can_not_leave_the_folder(tmp_path: Path) -> None:
    """A path in the index is refused, wherever it leads."""
    make_checkpoint("llama", tmp_path, max_shard_size="100KB")
    index = {"weight_map": {QUERY: "../model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="not in the folder"):
        load_model(tmp_path)


def test_weights_in_other_formats_say_what_to_do(folder: Path) -> None:
    """Pickled .bin files are never opened; the error tells to convert them."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="convert them to safetensors"):
        load_model(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        load_model(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The path is in the error."""
    with pytest.raises(ModelError, match="nowhere"):
        load_model(tmp_path / "nowhere")
