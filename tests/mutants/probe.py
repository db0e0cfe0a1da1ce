"""Runs seeds until one fails: prints how many it took, and the rule that was violated."""

from __future__ import annotations

import sys
from collections import Counter

from tests.simulation.runs import run_seeds


def main(max_seeds: int, wanted: list[str]) -> None:
    failure = next(run_seeds(range(max_seeds), Counter(), wanted), None)
    print(f"{failure.seed + 1} {failure.rule}" if failure else max_seeds)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
