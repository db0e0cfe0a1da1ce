"""What other libraries' attention is given is what ours computes."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.worker.cuda.device import DEVICE
from tests.worker.cuda.gpu_scripts import ROOT

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.slow,
    pytest.mark.skipif(DEVICE.type == "cuda", reason="its peers are made up, and on the CPU"),
]

CPU = torch.device("cpu")


class PagedAttention:
    """A wrapper of FlashInfer's that computes in float64 what its plan says."""

    def __init__(self, workspace: torch.Tensor, kv_layout: str, **_: bool) -> None:
        assert kv_layout == "HND" and not workspace.any()

    def plan(self, *arguments: Any, causal: bool = False, **numbers: Any) -> None:
        *starts, self._begins, self._pages, self._lasts = arguments[:-4]
        self._size, self._causal, self._scale = arguments[-1], causal, numbers["sm_scale"]
        num_seqs = len(self._lasts)
        self._starts = starts[0] if starts else torch.arange(num_seqs + 1)

    def run(self, q: torch.Tensor, pool: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        for number, last in enumerate(self._lasts.tolist()):
            begin, end = self._begins[number : number + 2].tolist()
            pages = pool[self._pages[begin:end].long()].double().permute(1, 2, 0, 3, 4)
            context_len = (end - begin - 1) * self._size + last
            k, v = pages.flatten(2, 3)[:, :, :context_len]
            first, after = self._starts[number : number + 2].tolist()
            rows = q[first:after].double().transpose(0, 1)
            mask = torch.ones(after - first, context_len, dtype=torch.bool)
            if self._causal:
                mask = mask.tril(context_len - (after - first))
            found = F.scaled_dot_product_attention(
                rows[None], k[None], v[None], mask, scale=self._scale, enable_gqa=True
            )
            out[first:after] = found[0].transpose(0, 1)
        return out


FLASHINFER = SimpleNamespace(
    BatchDecodeWithPagedKVCacheWrapper=PagedAttention,
    BatchPrefillWithPagedKVCacheWrapper=PagedAttention,
)


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@pytest.fixture
def peers() -> Any:
    return importlib.import_module("gpu.attention_peers")


def task_of(num_seqs: int, num_rows: int, context_len: int) -> Any:
    """Ours in it is what the interpreter computes."""
    attention, shapes = (importlib.import_module(f"gpu.{name}") for name in ("attention", "shapes"))
    case = attention.Case(num_seqs, num_rows, context_len)
    return attention.ours_of(case, attention.shape_of(shapes.TINY, 1), torch.float32, CPU).task


@pytest.mark.parametrize(("num_rows", "context_len"), [(1, 70), (1, 128), (20, 20), (20, 70)])
def test_flashinfer_is_given_the_pool_as_it_lies(
    peers: Any, num_rows: int, context_len: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pages, the last one's length and the mask are such that what comes out is ours."""
    monkeypatch.setattr(peers, "WORKSPACE_BYTES", 1024)
    task = task_of(3, num_rows, context_len)
    if num_rows == 1:
        attend = peers.flashinfer_decode(FLASHINFER, task, use_tensor_cores=True)
    else:
        attend = peers.flashinfer_chunks(FLASHINFER, task)
    torch.testing.assert_close(attend(task.pools[0]), task.ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("context_len", [20, 70])
def test_keys_and_values_are_gathered_in_order(peers: Any, context_len: int) -> None:
    """Attention over them, by queries sorted by sequence, is ours."""
    task = task_of(2, 20, context_len)
    k, v = task.gathered(task.pools[0])
    mask = torch.ones(20, context_len, dtype=torch.bool).tril(context_len - 20)
    found = F.scaled_dot_product_attention(
        task.by_sequence(task.q), k, v, mask, scale=task.shape.scale, enable_gqa=True
    )
    torch.testing.assert_close(found, task.by_sequence(task.ours), rtol=1e-4, atol=1e-4)


def test_a_chunk_is_compared_by_what_each_computes(
    peers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that takes as long for twice the flops is twice as fast, and rows that decode are
    compared by seconds."""
    chunk, decode = task_of(1, 20, 20), task_of(1, 1, 70)
    theirs = [peers.Timed(1e-6, 2 * chunk.num_flops), peers.Timed(2e-6, decode.num_flops)]
    monkeypatch.setattr(peers, "timed", lambda *_: theirs.pop(0))
    assert peers.cells("cudnn", chunk, 1e-6) == ["1.0, 0 TFLOP/s", "0.50"]
    assert peers.cells("flashinfer", decode, 1e-6) == ["2.0", "2.00"]


def test_a_peer_that_fails_says_so_in_its_cell(
    peers: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In its error's first line, or in a few words where the reason is known; the run goes on."""
    task = task_of(1, 1, 70)
    monkeypatch.setattr(peers, "timed", raising(RuntimeError("no kernel | for it\nsm_90")))
    assert peers.cells("flashinfer", task, 1.0) == ["no kernel / for it", ""]
    assert "sm_90" in capsys.readouterr().err
    monkeypatch.setattr(peers, "timed", raising(peers.NotRunError("not installed")))
    assert peers.cells("flashinfer", task, 1.0) == ["not installed", ""]


def test_a_peer_whose_result_differs_is_not_timed(
    peers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A yardstick that computes something else is none."""
    task = task_of(2, 20, 70)
    monkeypatch.setattr(peers, "import_module", lambda _: FLASHINFER)
    monkeypatch.setattr(peers, "seconds_per_call", lambda *_: 1.0)
    monkeypatch.setattr(peers, "WORKSPACE_BYTES", 1024)
    assert peers.PEERS["flashinfer"](task) == peers.Timed(1.0, task.num_flops)
    monkeypatch.setattr(PagedAttention, "run", lambda *_, out: out.fill_(0.1))
    with pytest.raises(peers.NotRunError, match="differs by"):
        peers.PEERS["flashinfer"](task)


def raising(error: Exception) -> Any:
    def fail(*_: Any) -> None:
        raise error

    return fail
