"""Guesses at the tokens that come next, which a step verifies as further rows. Knows no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .pace import Pace, Work
from .sequence import Sequence

MAX_DRAFTS = 15  # of one sequence in one step: with the row that it has anyway, half a block
NUM_MATCHED = 2  # last tokens by which a place is found; 3 found less, and was hardly more right
MAX_INDEXED = 8192  # tokens of a prompt, its last
FRESH_CHANCE, FOLLOWED_CHANCE = 0.3, 0.9  # to begin with, as texts of the demo model have it
SMOOTHING = 0.125  # the weight of the newest guess in its chance
MARGIN = 1.5  # times its cost must a row be worth: the best chances are the most overestimated
MAX_LOSS = 0.1  # by how much a step may last longer for those who gain less


class PromptLookup:
    """Guesses that a sequence goes on as it did where it last read like its end.

    (Prompt lookup decoding: Saxena 2023.) A place is followed as long as it is right, then another
    one is looked up. Every token tells whether the guess at it was right, though nobody may have
    used it: so the chances, one for a place just found and one for a place that was right before,
    and all else here depend on the tokens alone. Useless guesses end, and better ones come back.
    """

    def __init__(self, sequence: Sequence) -> None:
        self._token_ids = sequence.token_ids  # the list itself, which grows
        self._num_prompt_tokens = sequence.num_prompt_tokens
        self._num_seen = max(0, len(sequence.token_ids) - MAX_INDEXED)
        self._places: dict[tuple[int, ...], int] = {}  # behind which the tokens came last
        self._place: int | None = None  # of the token that the next one is guessed to be
        self._is_followed = False
        self._chances = [FRESH_CHANCE, FOLLOWED_CHANCE]

    def catch_up(self) -> None:
        """Reads the tokens that are new."""
        for index in range(self._num_seen, len(self._token_ids)):
            self._read(index)
        self._num_seen = len(self._token_ids)

    def chances(self, most: int, least: float = 0.0) -> list[float]:
        """Of each of the next guesses, that it and all before it are right: `most` at the most, and
        as long as that is more than `least`."""
        chances: list[float] = []
        chance = self._chances[self._is_followed] if self._place is not None else 0.0
        while len(chances) < most and chance > least:
            chances.append(chance)
            chance *= self._chances[True]
        return chances

    def drafts(self, count: int) -> tuple[int, ...]:
        """The next `count` guesses. A place close to the end leads into the guesses themselves."""
        assert self._place is not None, "nothing to guess from"
        period = self._num_seen - self._place
        return tuple(self._token_ids[self._place + n % period] for n in range(count))

    def _read(self, index: int) -> None:
        self._judge(index)
        first = index + 1 - NUM_MATCHED
        if first < 0:
            return
        key = tuple(self._token_ids[first : index + 1])
        if self._place is None:
            self._place = self._places.get(key)
        self._places[key] = index + 1

    def _judge(self, index: int) -> None:
        """Whether the guess at this token was right; the prompt's say little about the output."""
        if self._place is None:
            return
        is_right = self._token_ids[self._place] == self._token_ids[index]
        if index >= self._num_prompt_tokens:
            chance = self._chances[self._is_followed]
            self._chances[self._is_followed] += SMOOTHING * (is_right - chance)
        self._place = self._place + 1 if is_right else None
        self._is_followed = is_right


class Speculation:
    """Says which guesses the decodes of a step are to verify: those worth their rows.

    (Speculative decoding: Leviathan et al., arXiv 2211.17192. A sampled token is a function of
    logits, parameters, seed and index, so a guess is right where it is that token, and no answer
    changes.) A row pays where it raises the step's expected tokens by a larger share than its time:
    in small batches, as the pace knows how nearly free their rows are. No sequence's expected pace
    falls by more than MAX_LOSS; nor may a step last longer than one with chunks of prompts may.

    No guesses are made for requests whose choice depends on more than that: penalties, bad_words, a
    grammar, min_tokens that have not come yet.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._lookups: dict[Sequence, PromptLookup] = {}  # of those that run

    def forget(self, sequence: Sequence) -> None:
        self._lookups.pop(sequence, None)

    def drafts(
        self, rooms: Mapping[Sequence, int], work: Work, max_rows: int
    ) -> dict[Sequence, tuple[int, ...]]:
        """For some of the decodes, which are `work` together: at most `max_rows` in all, and for
        each as many as it has room for. The likeliest first, as long as they pay."""
        max_rows = min(max_rows, MAX_DRAFTS * len(rooms))
        seconds = self._pace.model.seconds_with_decodes(work, max_rows)
        if max_rows <= 0 or seconds[0] <= 0:
            return {}
        num_tokens = float(len(rooms))  # that the step is expected to yield
        least = _least_chance(seconds, 0, num_tokens)
        if least >= 1:  # not even a certain one pays
            return {}
        chances = {s: self._chances(s, room, least) for s, room in rooms.items()}
        least_gain = min(each[0] if each else 0.0 for each in chances.values())
        limit_s = min(seconds[0] * (1 + max(MAX_LOSS, least_gain)), self._pace.limit_s(work))
        rows = [(chance, sequence) for sequence, each in chances.items() for chance in each]
        rows.sort(key=lambda row: row[0], reverse=True)
        counts = Counter[Sequence]()
        for number, (chance, sequence) in enumerate(rows[:max_rows]):
            is_worth_it = chance > _least_chance(seconds, number, num_tokens)
            if not is_worth_it or seconds[number + 1] > limit_s:
                break
            counts[sequence] += 1
            num_tokens += chance
        return {sequence: self._lookups[sequence].drafts(n) for sequence, n in counts.items()}

    def _chances(self, sequence: Sequence, room: int, least: float) -> list[float]:
        count = min(MAX_DRAFTS, room, sequence.max_num_tokens - sequence.num_tokens - 1)
        if count <= 0 or not _may_guess(sequence):
            return []
        if sequence not in self._lookups:
            self._lookups[sequence] = PromptLookup(sequence)
        lookup = self._lookups[sequence]
        lookup.catch_up()
        return lookup.chances(count, least)


def _least_chance(seconds: NDArray[np.float64], number: int, num_tokens: float) -> float:
    """What a step that lasts `seconds[number]` with so many guesses, and is expected to yield
    `num_tokens`, has to be promised of the next one."""
    row_s = seconds[number + 1] - seconds[number]
    return float(MARGIN * row_s * num_tokens / seconds[number])


def _may_guess(sequence: Sequence) -> bool:
    params = sequence.params
    has_memory = params.has_penalties or params.bad_words or params.grammar is not None
    return not has_memory and sequence.num_output_tokens >= params.min_tokens
