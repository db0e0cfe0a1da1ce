"""Output token ids to text that is final, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers.decoders import DecodeStream

NUM_CONTEXT_TOKENS = 6  # of the prompt: enough for a decoder to know whether a space comes first
MAX_HELD_TOKENS = 8  # a character has at most 4 bytes, a token at least one


class IncrementalDecoder:
    """Text of one token after another, never half a character.

    Wraps the library's decode stream, which waits for ever on bytes that are no UTF-8 and gives
    up when a byte-fallback decoder changes its mind about bytes already shown; both happen only
    with text that no model was trained on, and both are mended by starting afresh.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, prompt_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        context = list(prompt_token_ids[-NUM_CONTEXT_TOKENS:])
        self._stream = DecodeStream(context, skip_special_tokens=True)
        self._held: list[int] = []

    def append(self, token_id: int) -> str:
        """The text that the token completes; empty while a character is incomplete."""
        self._held.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception:  # the library's bare Exception: shown bytes would read otherwise now
            return self._restart(self._held)
        if text:
            self._held = []
            return str(text)
        return self._release() if len(self._held) > MAX_HELD_TOKENS else ""

    def flush(self) -> str:
        """What is left when no token follows: incomplete characters become U+FFFD."""
        text, self._held = self._decode(self._held), []
        return text

    def _release(self) -> str:
        """Shows what can no longer become a character: all but the last few tokens, cut where
        the two halves read the same as the whole."""
        whole = self._decode(self._held)
        for cut in range(len(self._held) - 3, 0, -1):
            shown = self._decode(self._held[:cut])
            if shown + self._decode(self._held[cut:]) == whole:
                return shown + self._restart(self._held[cut:])
        return ""

    def _restart(self, held: list[int]) -> str:
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held = []
        return "".join(self.append(token_id) for token_id in held)

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))


class Detokenizer:
    """The text of one sequence, with its stop strings watched.

    `text` only ever grows, and its length after k tokens (`released_ends[k - 1]`) depends on the
    first k tokens alone: any replay yields the same pieces. Held back is the longest ending that
    might be the beginning of a stop string.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        prompt_token_ids: Sequence[int],
        stop: Sequence[str] = (),
    ) -> None:
        self._decoder = IncrementalDecoder(tokenizer, prompt_token_ids)
        self._stop = stop
        self._held = ""  # decoded, but possibly part of a stop string
        self.text = ""
        self.released_ends: list[int] = []

    def append(self, token_id: int, *, is_stop_checked: bool = True) -> str | None:
        """Takes the next token; the stop string that it completes, or None.

        The text then ends right before the stop string.
        """
        self._held += self._decoder.append(token_id)
        matched = self._cut_at_stop() if is_stop_checked else None
        if matched is None:
            self._release(len(self._held) - self._num_possible_stop())
        self.released_ends.append(len(self.text))
        return matched

    def skip(self) -> None:
        """The next token is part of the output but not of the text, as an EOS is."""
        self.released_ends.append(len(self.text))

    def flush(self, *, is_stop_checked: bool = False) -> str | None:
        """The sequence ended: nothing can complete what was held back.

        The stop string that an incomplete character makes up after all, or None.
        """
        self._held += self._decoder.flush()
        matched = self._cut_at_stop() if is_stop_checked else None
        if matched is None:
            self._release(len(self._held))
        return matched

    def _cut_at_stop(self) -> str | None:
        """Cuts at the stop string that begins first; the longest of those that begin there."""
        found = [(self._held.find(s), -len(s), s) for s in self._stop if s in self._held]
        if not found:
            return None
        start, _, matched = min(found)
        self._held = self._held[:start]
        self._release(start)
        return matched

    def _num_possible_stop(self) -> int:
        """Length of the longest ending that is a proper beginning of a stop string."""
        return max(
            (n for s in self._stop for n in range(1, len(s)) if self._held.endswith(s[:n])),
            default=0,
        )

    def _release(self, count: int) -> None:
        self.text += self._held[:count]
        self._held = self._held[count:]


class NoText:
    """Stands in for a Detokenizer where token ids are all that is wanted: no text, no stops."""

    text = ""

    def __init__(self) -> None:
        self.released_ends: list[int] = []

    def append(self, token_id: int, *, is_stop_checked: bool = True) -> None:
        self.released_ends.append(0)

    def skip(self) -> None:
        self.released_ends.append(0)

    def flush(self, *, is_stop_checked: bool = False) -> None:
        pass
