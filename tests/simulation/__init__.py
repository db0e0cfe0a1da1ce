"""The real protocol cores of a worker and its frontends in one process, on a simulated network.

Time, chance and the model are simulated. The next token is a function of those before it, so a
lost, doubled or reordered one shows at once. `python -m tests.simulation --help` runs many seeds.
"""

from .model import VOCAB_SIZE, letters, next_token
from .simulation import Simulation
from .violation import Violation
from .worker import BLOCK_SIZE, GRACE_S, NUM_BLOCKS, SimulatedWorker

__all__ = [
    "BLOCK_SIZE",
    "GRACE_S",
    "NUM_BLOCKS",
    "VOCAB_SIZE",
    "SimulatedWorker",
    "Simulation",
    "Violation",
    "letters",
    "next_token",
]
