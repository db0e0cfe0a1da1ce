"""Both sides' real cores on a network that loses, stalls and restarts, against an oracle that
knows every token."""

from __future__ import annotations

import pytest

from chairlift.shared.tokenizer import Tokenizer
from tests.simulation import NUM_BLOCKS, Simulation, letters

NUM_SEEDS = 150

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return letters()


def disturb(simulation: Simulation) -> None:
    """One turn's worth of arrivals and trouble."""
    random = simulation.random
    frontend = random.choice(simulation.frontends)
    if frontend.protocol.greeting is not None and random.random() < 0.15:
        simulation.submit(frontend)
    if random.random() < 0.02:
        simulation.cancel(frontend)
    if random.random() < 0.03:
        simulation.loss = random.choice([0.0, 0.05, 0.5])
    if random.random() < 0.02:
        frontend.is_stalled = not frontend.is_stalled
    if random.random() < 0.01:
        simulation.reset_connection(frontend)
    if random.random() < 0.005:
        simulation.crash_worker()
    simulation.turn()


@pytest.mark.parametrize("chunk", range(10))
def test_streams_arrive_whole_whatever_the_network_does(chunk: int, tokenizer: Tokenizer) -> None:
    """Every request yields exactly its tokens and one end, through loss, stalls and restarts."""
    for seed in range(chunk, NUM_SEEDS, 10):
        simulation = Simulation(seed, tokenizer)
        for _ in range(400):
            disturb(simulation)
        simulation.settle(max_turns=3000)
        for frontend in simulation.frontends:
            for expected in frontend.requests.values():
                assert expected.received == expected.correct_tokens(), f"seed {seed}"
                assert expected.num_ends == 1, f"seed {seed}"
                assert expected.text == tokenizer.decode(expected.received), f"seed {seed}"
        check_nothing_is_left(simulation, seed)


def check_nothing_is_left(simulation: Simulation, seed: int) -> None:
    """After the last ends are acknowledged the worker holds no block and knows no request."""
    for _ in range(300):  # three syncs
        simulation.turn()
    worker = simulation.worker
    assert worker.blocks.num_free_blocks == NUM_BLOCKS, f"seed {seed}"
    assert not worker.engine.scheduler.has_work, f"seed {seed}"
    known = [rid for rid in simulation.request_ids if worker.streams.find(rid) is not None]
    assert not known, f"seed {seed}"
