"""A worker's steps as GET /watch tells them, made up: the same for the same seed."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

BLOCK = 32
BEGAN_US = 1_764_540_000_000_000
COLUMNS = (
    "request",
    "num_tokens",
    "num_prompt_tokens",
    "num_drafts",
    "num_new_tokens",
    "num_computed_tokens",
    "num_total_tokens",
    "num_blocks",
)

Json = dict[str, Any]


@dataclass(eq=False)
class Actor:
    """One request, from its arrival on."""

    hash: str
    num_prompt: int
    num_wanted: int
    num_shared: int
    arrived_us: int
    num_computed: int = 0
    num_output: int = 0
    began_us: int = 0
    first_token_us: int = 0
    last_us: int = 0
    max_gap_us: int = 0
    num_cached: int = 0
    num_chunks: int = 0
    num_preemptions: int = 0
    mates: list[int] = field(default_factory=list)

    @property
    def num_total(self) -> int:
        return self.num_prompt + self.num_output

    @property
    def num_blocks(self) -> int:
        return -(-(self.num_total + 1) // BLOCK)

    def receipt(self) -> Json:
        return {
            "request": self.hash,
            "queued_ms": (self.began_us - self.arrived_us) / 1000,
            "ttft_ms": (self.first_token_us - self.arrived_us) / 1000,
            "total_ms": (self.last_us - self.arrived_us) / 1000,
            "max_gap_ms": self.max_gap_us / 1000,
            "num_prompt_tokens": self.num_prompt,
            "num_cached_tokens": self.num_cached,
            "num_output_tokens": self.num_output,
            "num_resumed_tokens": 0,
            "num_steps": len(self.mates),
            "num_chunks": self.num_chunks,
            "num_recomputed_tokens": 0,
            "num_preemptions": self.num_preemptions,
            "mean_mates": sum(self.mates) / max(1, len(self.mates)),
            "max_mates": max(self.mates, default=0),
        }


class Rehearsal:
    """Prompts in chunks beside decodes, with guesses, preemptions and a queue."""

    def __init__(
        self,
        seed: int = 7,
        *,
        max_num_seqs: int = 24,
        num_blocks: int = 420,
        arrivals_per_step: float = 0.3,
        num_output: tuple[int, int] = (30, 140),
    ) -> None:
        self._random = random.Random(seed)
        self._max_num_seqs = max_num_seqs
        self.num_blocks = num_blocks
        self._arrivals_per_step = arrivals_per_step
        self._num_output = num_output
        self._now_us = BEGAN_US
        self._number = 0
        self._waiting: deque[Actor] = deque()
        self._running: list[Actor] = []

    def worker(self) -> Json:
        return {
            "model": "Qwen/Qwen3-0.6B",
            "epoch": 1,
            "max_model_len": 4096,
        }

    def stats(self) -> Json:
        return {
            "condition": "ok",
            "num_running": len(self._running),
            "num_waiting": len(self._waiting),
            "num_free_blocks": self._num_free,
            "num_blocks": self.num_blocks,
            "num_steps": self._number,
        }

    def steps(self, count: int) -> list[Json]:
        return [self.step() for _ in range(count)]

    def step(self) -> Json:
        self._arrive()
        preempted = self._preempt()
        self._board()
        rows = self._rows()
        began_us, phases_us = self._now_us, self._phases(rows)
        self._now_us += sum(phases_us.values())
        self._number += 1
        finished = self._finish(rows)
        self._now_us += 300
        return {
            "number": self._number,
            "began_us": began_us,
            "phases_us": phases_us,
            "num_waiting": len(self._waiting),
            "waiting": [actor.hash for actor in self._waiting][:64],
            "num_free_blocks": self._num_free,
            "num_shared_blocks": self._num_shared,
            "preempted": preempted,
            "rows": {name: [row[name] for _, row in rows] for name in COLUMNS},
            "finished": finished,
        }

    @property
    def _num_free(self) -> int:
        held = sum(actor.num_blocks for actor in self._running)
        return max(0, self.num_blocks - held + self._num_shared)

    @property
    def _num_shared(self) -> int:
        return sum(actor.num_shared // BLOCK for actor in self._running) // 2

    def _arrive(self) -> None:
        chance = self._arrivals_per_step
        wave = 4 if self._number % 160 < 24 else 0.6
        while self._random.random() < chance * wave / (1 + chance * wave):
            num_prompt = int(
                self._random.choice((24, 60, 90, 180, 420)) * self._random.uniform(0.7, 1.4)
            )
            shares = self._random.random() < 0.4
            self._waiting.append(
                Actor(
                    f"{self._random.getrandbits(32):08x}",
                    num_prompt,
                    self._random.randint(*self._num_output),
                    min(64, num_prompt // BLOCK * BLOCK) if shares else 0,
                    self._now_us - self._random.randint(0, 9_000),
                )
            )

    def _preempt(self) -> list[str]:
        if self._num_free > len(self._running) // 4 or len(self._running) < 2:
            return []
        actor = self._running.pop()
        actor.num_preemptions += 1
        actor.num_computed = 0
        self._waiting.appendleft(actor)
        return [actor.hash]

    def _board(self) -> None:
        while self._waiting and len(self._running) < self._max_num_seqs:
            actor = self._waiting[0]
            if actor.num_blocks + 4 > self._num_free:
                return
            self._waiting.popleft()
            self._running.append(actor)
            if not actor.began_us:
                actor.began_us = self._now_us
                actor.num_cached = max(0, actor.num_shared - 1)
            actor.num_computed = max(0, actor.num_shared - 1)

    def _rows(self) -> list[tuple[Actor, Json]]:
        budget, rows = 160, []
        for actor in sorted(self._running, key=lambda one: one.num_total - one.num_computed > 1):
            lacking = actor.num_total - actor.num_computed
            num_tokens = min(lacking, budget, 96)
            if num_tokens <= 0:
                continue
            budget -= num_tokens
            rows.append((actor, self._row(actor, num_tokens)))
        for actor, row in rows:
            actor.mates.append(len(rows) - 1)
            actor.num_chunks += row["num_tokens"] > 1
        return rows

    def _row(self, actor: Actor, num_tokens: int) -> Json:
        num_prompt = max(0, min(num_tokens, actor.num_prompt - actor.num_computed))
        actor.num_computed += num_tokens
        is_caught_up = actor.num_computed == actor.num_total
        guesses = num_tokens == 1 and int(actor.hash, 16) % 5 == 0 and self._random.random() < 0.35
        num_new = int(is_caught_up) * (1 + (self._random.randint(0, 3) if guesses else 0))
        num_new = min(num_new, actor.num_wanted - actor.num_output)
        actor.num_output += num_new
        actor.num_computed += max(0, num_new - 1)
        return {
            "request": actor.hash,
            "num_tokens": num_tokens,
            "num_prompt_tokens": num_prompt,
            "num_drafts": 3 if guesses else 0,
            "num_new_tokens": num_new,
            "num_computed_tokens": actor.num_computed,
            "num_total_tokens": actor.num_total,
            "num_blocks": actor.num_blocks,
        }

    def _phases(self, rows: list[tuple[Actor, Json]]) -> dict[str, int]:
        num_tokens = sum(row["num_tokens"] for _, row in rows)
        jitter = self._random.uniform(0.9, 1.2)
        return {
            "arrivals": 80 + self._random.randint(0, 60),
            "schedule": 200 + 14 * len(rows),
            "forward": int((11_000 + 52 * num_tokens + 70 * len(rows)) * jitter),
            "sample": 350 + 24 * len(rows),
            "commit": 220 + 9 * len(rows),
            "publish": 300 + 22 * len(rows),
        }

    def _finish(self, rows: list[tuple[Actor, Json]]) -> list[Json]:
        finished = []
        for actor, row in rows:
            actor.max_gap_us = max(actor.max_gap_us, self._now_us - (actor.last_us or self._now_us))
            actor.last_us = self._now_us
            if row["num_new_tokens"] and not actor.first_token_us:
                actor.first_token_us = self._now_us
            is_hung_up = actor.num_output > 8 and self._random.random() < 0.0008
            if actor.num_output < actor.num_wanted and not is_hung_up:
                continue
            self._running.remove(actor)
            reason = "abort" if is_hung_up else self._random.choice(("stop", "stop", "length"))
            finished.append({"request": actor.hash, "reason": reason, "receipt": actor.receipt()})
        return finished
