"""How one request fares, step by step: what its receipt will say."""

from __future__ import annotations

from dataclasses import dataclass

from ..shared.steps import Receipt


@dataclass(slots=True)
class Journey:
    """Times in seconds by the engine's clock; None is not yet."""

    arrived: float = 0.0
    began: float | None = None
    last_step: float | None = None  # its end
    first_token: float | None = None
    ended: float | None = None
    max_gap: float = 0.0
    num_resumed_tokens: int = 0
    num_steps: int = 0
    num_chunks: int = 0
    num_recomputed_tokens: int = 0
    num_preemptions: int = 0
    num_mates: int = 0
    max_mates: int = 0
    num_ever_computed: int = 0  # from the first token on

    def ride(
        self, span: range, num_mates: int, began: float, ended: float, *, is_chunk: bool
    ) -> None:
        """A step has computed the tokens of that span, beside so many other rows."""
        if self.began is None:
            self.began = began
        if self.last_step is not None:
            self.max_gap = max(self.max_gap, ended - self.last_step)
        self.last_step = ended
        self.num_steps += 1
        self.num_chunks += is_chunk
        self.num_mates += num_mates
        self.max_mates = max(self.max_mates, num_mates)
        self.num_recomputed_tokens += max(0, min(self.num_ever_computed, span.stop) - span.start)
        self.num_ever_computed = max(self.num_ever_computed, span.stop)

    def receipt(
        self, num_prompt_tokens: int, num_cached_tokens: int, num_output_tokens: int
    ) -> Receipt:
        """Of a request that has ended."""
        assert self.ended is not None, "whoever ends it says when"
        began = self.ended if self.began is None else self.began
        first_token = None if self.first_token is None else _us(self.first_token - self.arrived)
        return Receipt(
            queued_us=_us(began - self.arrived),
            first_token_us=first_token,
            total_us=_us(self.ended - self.arrived),
            max_gap_us=_us(self.max_gap),
            num_prompt_tokens=num_prompt_tokens,
            num_cached_tokens=num_cached_tokens,
            num_output_tokens=num_output_tokens,
            num_resumed_tokens=self.num_resumed_tokens,
            num_steps=self.num_steps,
            num_chunks=self.num_chunks,
            num_recomputed_tokens=self.num_recomputed_tokens,
            num_preemptions=self.num_preemptions,
            num_mates=self.num_mates,
            max_mates=self.max_mates,
        )


def _us(seconds: float) -> int:
    return max(0, round(1e6 * seconds))
