"""How many blocks the keys and values get."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chairlift.shared.errors import ModelError
from chairlift.worker import memory
from chairlift.worker.attention.backend import AttentionShape
from chairlift.worker.memory import block_bytes, num_cache_blocks, usable_memory_bytes

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
SHAPE = AttentionShape(
    num_layers=3,
    num_heads=8,
    num_kv_heads=2,
    head_dim=16,
    scale=0.25,
    sliding_windows=(None, None, None),
)


def limits(monkeypatch: pytest.MonkeyPatch, directory: Path, *contents: str) -> None:
    """Control group files with these contents; the last one is missing."""
    paths = []
    for number, content in enumerate(contents):
        path = directory / f"limit{number}"
        path.write_text(content)
        paths.append(str(path))
    monkeypatch.setattr(memory, "CGROUP_LIMITS", (*paths, str(directory / "missing")))


def test_block_holds_keys_and_values_of_all_layers() -> None:
    """2 x layers x KV heads x head dimension x tokens x bytes of an item."""
    assert block_bytes(SHAPE, 32, 4) == 2 * 3 * 2 * 16 * 32 * 4
    assert block_bytes(SHAPE, 32, 2) * 2 == block_bytes(SHAPE, 32, 4)


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ((), PHYSICAL),
        (("max\n",), PHYSICAL),
        (("1073741824\n",), 1 << 30),
        (("max\n", "536870912\n"), 1 << 29),
        (("9223372036854771712\n",), PHYSICAL),
        (("",), PHYSICAL),
    ],
)
def test_usable_memory_is_the_least_of_the_limits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, contents: tuple[str, ...], expected: int
) -> None:
    """The control group's limit counts where it is less than the machine's memory."""
    limits(monkeypatch, tmp_path, *contents)
    assert usable_memory_bytes() == expected


def test_no_more_blocks_than_all_sequences_need() -> None:
    """With room in plenty, every sequence gets its longest."""
    assert num_cache_blocks(1000, 8, max_num_seqs=4, cache_bytes=1 << 40) == 32


def test_no_more_blocks_than_the_limit_allows() -> None:
    """Whole blocks within the given bytes."""
    assert num_cache_blocks(1000, 8, max_num_seqs=4, cache_bytes=20_999) == 20


def test_default_is_a_share_of_the_usable_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a setting a quarter of what the process may use."""
    limits(monkeypatch, tmp_path, "100000\n")
    assert num_cache_blocks(1000, 8, max_num_seqs=100, cache_bytes=25_000) == 25


def test_too_small_a_cache_is_refused_with_the_numbers() -> None:
    """When not even one of the longest sequences fits, the error says what to change."""
    with pytest.raises(ModelError) as caught:
        num_cache_blocks(1_000_000, 8, max_num_seqs=4, cache_bytes=7_999_999)
    text = str(caught.value)
    assert "8,000,000 bytes" in text
    assert "7,999,999" in text
    assert "--max-model-len" in text
    assert "--kv-cache-bytes" in text
    assert num_cache_blocks(1_000_000, 8, max_num_seqs=4, cache_bytes=8_000_000) == 8
