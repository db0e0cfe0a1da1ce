"""The scripts that measure engines on a GPU run to their end on a CPU, by the interpreter."""

from __future__ import annotations

import importlib
import re
import sys
import types

import pytest
import torch

from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker.scheduler import Plan, ScheduledSequence
from chairlift.worker.sequence import Sequence
from tests.worker.cuda.gpu_scripts import ROOT, gpu_script, last_table

pytestmark = [pytest.mark.checkout, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def test_step_runs() -> None:
    """A row for each batch, all of whose sequences decode, with its time and the roofline's; and a
    word where there is nothing to profile."""
    done = gpu_script("step", "--tiny", "--profile")
    assert (done.returncode, done.stderr.strip()) == (0, "")
    head, *rows = last_table(done.stdout)
    assert head[0] == "sequences" and [row[0] for row in rows] == ["1", "3"]
    assert all(float(row[3]) > 0 for row in rows)
    assert done.stdout.count("there is no device to profile") == 2


def test_offline_runs() -> None:
    """Every token that was asked for comes, never faster than the roofline; then a peer's."""
    asked = ("--peer", "transformers", "--peer-requests", "2")
    done = gpu_script("offline", "--tiny", *asked)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    offline, workload = (importlib.import_module(n) for n in ("gpu.offline", "benchmark.workload"))
    requests = offline.requests_of(4, workload.Range(2, 8), 256)
    num_output = [sum(r.num_output_tokens for r in requests[:n]) for n in (4, 2, 2)]
    _, *rows = last_table(done.stdout)
    assert ["chairlift" in row[0] for row in rows] == [True, True, False]
    assert [int(row[2]) for row in rows] == num_output
    assert all(float(row[5]) >= 1 for row in rows)
    assert "handicapped without flash-attn" in done.stdout


def test_offline_says_why_a_peer_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version without continuous batching is no failure of ours."""
    peer = importlib.import_module("gpu.transformers_peer")
    monkeypatch.setitem(sys.modules, "transformers", types.ModuleType("transformers"))
    monkeypatch.delitem(sys.modules, "benchmark.transformers_batching", raising=False)
    with pytest.raises(peer.NotRunError, match="has no continuous batching here"):
        peer.run(None, [], torch.float32, torch.device("cpu"))


def test_offline_has_the_requests_that_others_publish() -> None:
    """nano-vllm's and mini-sglang's figures are of so many tokens."""
    offline = importlib.import_module("gpu.offline")
    requests = offline.requests_of(256, offline.LENGTHS, 151_936)
    num_prompt = sum(len(request.prompt_token_ids) for request in requests)
    num_output = sum(request.num_output_tokens for request in requests)
    assert (num_prompt, num_output) == (142_827, 133_966)


def test_serve_runs() -> None:
    """A row for each rate, whose requests all get their tokens, and its roofline; a start-up."""
    done = gpu_script("serve", "--tiny")
    assert (done.returncode, done.stderr.strip()) == (0, "")
    _, *rows = last_table(done.stdout)
    assert [row[0] for row in rows] == ["inf", "its roofline", "16", "its roofline"]
    for measured, floor in zip(rows[::2], rows[1::2], strict=True):
        per_s, tokens_per_s = (float(cell.replace(",", "")) for cell in measured[1:3])
        assert tokens_per_s == pytest.approx(4 * per_s, abs=0.7)  # of each request, rounded
        assert 0 < per_s < float(floor[1])
        for p50, p99 in (measured[3:5], measured[5:7]):
            assert 0 < float(p50) <= float(p99)
        assert 0 <= float(measured[7].rstrip("%")) < 100
    found = re.search(r"after ([\d.]+) s, first token after ([\d.]+) s", done.stdout)
    assert found
    ready, first = found.groups()
    assert 0 < float(ready) <= float(first)


def test_invariance_runs() -> None:
    """A column for each mode: every subject is compared, and a step is timed."""
    done = gpu_script("invariance", "--tiny")
    assert (done.returncode, done.stderr.strip()) == (0, "")
    head, *rows = last_table(done.stdout)
    assert head[1:] == ["default", "deterministic", "roofline"]
    *shares, step = rows
    assert len(shares) == 2 * 2 * 2  # neighbours, kinds, tokens and bits
    for _, *cells, least in shares:
        assert all(re.fullmatch(r"1 of 1 \(100%\)|0 of 1 \(0%\)", cell) for cell in cells)
        assert least == "100%"
    assert step[0].startswith("decode of 1 at ")
    assert all(float(cell) > float(step[3]) for cell in step[1:3])


def test_answers_agree_by_tokens_and_by_bits() -> None:
    """A bit of a log probability counts, as does a token; whoever else there was does not."""
    crowd = importlib.import_module("gpu.crowd")
    alone = {number: crowd.Answer([1, 2], bytes(8)) for number in range(4)}
    among = alone | {1: crowd.Answer([1, 2], b"\x01" + bytes(7)), 2: crowd.Answer([1, 3], bytes(8))}
    found = crowd.agreement("greedy", 3, alone, among, [0, 1, 2])
    assert found == crowd.Agreement("greedy", 3, 3, num_same_tokens=2, num_same_bits=1)


def test_every_subject_of_a_crowd_is_in_one_group() -> None:
    """Of so many, with others to fill the last; each request is there greedily and sampled."""
    crowd = importlib.import_module("gpu.crowd")
    members = crowd.crowd(num_requests=3, size=16, vocab_size=256, num_tokens=8)
    assert sorted(member.number for member in members) == list(range(16))
    subjects = [member for member in members if member.is_subject]
    assert subjects == members[:6]
    assert sorted(member.kind for member in subjects) == ["greedy"] * 3 + ["sampled"] * 3
    for size, num_groups in {2: 3, 4: 2, 16: 1}.items():
        groups = crowd.groups(members, 6, size)
        assert [len(group) for group in groups] == [size] * num_groups
        together = [member for group in groups for member in group]
        assert together[:6] == subjects


def test_the_device_is_idle_where_no_step_is_and_somebody_waits() -> None:
    """Two requests overlap, the third comes later: what is between them is nobody's time."""
    serve, metered, figures, workload = (
        importlib.import_module(name)
        for name in ("gpu.serve", "gpu.metered_worker", "benchmark.figures", "benchmark.workload")
    )
    spans = [(1.0, 3.0), (2.0, 5.0), (7.0, 9.0)]
    request, span = workload.Request([1], 1), metered.Span
    exchanges = [figures.Exchange(request, begin, [end], [1], 1) for begin, end in spans]
    times = serve.busy_times(exchanges)
    assert times == [span(1.0, 5.0), span(7.0, 9.0)]
    steps = [span(0.0, 2.0), span(2.5, 4.5), span(4.5, 7.5)]
    assert serve.idle_share(times, steps) == pytest.approx(1 - (1.0 + 2.0 + 0.5 + 0.5) / 6)


def test_requests_come_at_their_rate() -> None:
    """As many a second as was asked for, in the mean, and never two runs with other times."""
    serve = importlib.import_module("gpu.serve")
    starts = serve.starts_of(16.0, 500)
    assert starts == sorted(starts) == serve.starts_of(16.0, 500)
    assert starts[-1] == pytest.approx(500 / 16, rel=0.15)
    assert set(serve.starts_of(float("inf"), 3)) == {0.0}


def test_the_work_of_a_step_counts_what_it_reads_and_multiplies() -> None:
    """Of a decode after 9 tokens and a chunk of 3 after 4, of which only the first samples."""
    work, shapes = (importlib.import_module(f"gpu.{name}") for name in ("work", "shapes"))
    sequence = Sequence(bytes(16), [1], SamplingParams(max_tokens=1))
    entries = (
        ScheduledSequence(sequence, 1, 0, is_sampled=True, first=9),
        ScheduledSequence(sequence, 3, 3, is_sampled=False, first=4),
    )
    model, found = shapes.TINY, work.StepWork.of(Plan(entries))
    assert found == work.StepWork(4, 1, num_context_tokens=17, num_pairs=10 + 5 + 6 + 7)
    kv_bytes = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, numbers, bytes
    layers = 2 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96)
    assert found.num_bytes(model, torch.float32) == 4 * (layers + 256 * 64) + 17 * kv_bytes
    assert found.num_flops(model) == 2 * (4 * layers + 256 * 64) + 28 * 4 * 2 * 64
    chunk = work.StepWork.of(Plan(entries[1:]))
    assert chunk.num_bytes(model, torch.float32) == 4 * layers + 7 * kv_bytes
