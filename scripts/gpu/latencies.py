"""What a step costs besides its kernels' own time: launches, packets to the device, waiting."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .timing import Call, captured, seconds_on_host, seconds_per_call

CHAIN = 300  # about as many kernels as a step of Qwen3-0.6B has
PACKET_NUM_INTS = 1024
NUM_SAMPLED = 256


def measure_latencies(device: torch.device) -> dict[str, float]:
    """Seconds, by what was timed."""
    one = torch.zeros(1, device=device)
    chain = [lambda: one.add_(1)] * CHAIN

    def launch_all() -> None:
        for call in chain:
            call()

    synchronize = _synchronize(device)
    found = {
        "a kernel of a chain in a graph": seconds_per_call(chain, device),
        "a kernel of a chain, launched from Python": seconds_on_host(
            lambda: (launch_all(), synchronize()), num_repeats=10
        )
        / CHAIN,
        "4 KiB to the device, seen there by an event": _packet(device),
        "256 ids from the device, waited for": _ids(device),
    }
    if device.type == "cuda":
        found |= _graph_launch(chain) | _event()
    return found


def _synchronize(device: torch.device) -> Call:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def _host_ints(num_ints: int, device: torch.device) -> torch.Tensor:
    """Page-locked if there is a GPU, which then copies without a detour."""
    return torch.zeros(num_ints, dtype=torch.int32, pin_memory=device.type == "cuda")


def _packet(device: torch.device) -> float:
    source = _host_ints(PACKET_NUM_INTS, device)
    target = torch.empty_like(source, device=device)
    wait = _wait_for_event(device)

    def send() -> None:
        target.copy_(source, non_blocking=True)
        wait()

    send()
    return seconds_on_host(send)


def _ids(device: torch.device) -> float:
    source = torch.zeros(NUM_SAMPLED, dtype=torch.int32, device=device)
    target = _host_ints(NUM_SAMPLED, device)
    wait = _wait_for_event(device)

    def fetch() -> None:
        target.copy_(source, non_blocking=True)
        wait()

    fetch()
    return seconds_on_host(fetch)


def _wait_for_event(device: torch.device) -> Call:
    """Records one and waits until the device has come to it."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()

    def wait() -> None:
        event.record()
        event.synchronize()

    return wait


def _graph_launch(chain: Sequence[Call]) -> dict[str, float]:
    graph = captured(chain)
    return {
        f"a graph of {CHAIN} kernels, launched and waited for": seconds_on_host(
            lambda: (graph.replay(), torch.cuda.synchronize())
        ),
        "waiting for an idle device": seconds_on_host(torch.cuda.synchronize),
    }


def _event() -> dict[str, float]:
    event = torch.cuda.Event()
    event.record()
    torch.cuda.synchronize()
    return {
        "recording an event": seconds_on_host(event.record),
        "asking an event that has come": seconds_on_host(event.query),
        "waiting for an event that has come": seconds_on_host(event.synchronize),
    }
