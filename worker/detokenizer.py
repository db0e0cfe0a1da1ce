"""Output token ids to text that is final, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers.decoders import DecodeStream

NUM_CONTEXT_TOKENS = 6  # of the prompt: enough for a decoder to know whether a space comes first
NUM_TAIL_TOKENS = 32  # of the prompt, in which that context is looked for
MAX_HELD_TOKENS = 8  # then their text comes out, all but the last character
NUM_CHARACTER_TOKENS = 3  # a character lacks a byte, so it has at most 3, a token at least one
REPLACEMENT = "\ufffd"  # what bytes that are no UTF-8 are decoded to, or not yet


class IncrementalDecoder:
    """Text of one token after another, never half a character.

    Wraps the library's decode stream, which waits for ever on bytes that are no UTF-8 and gives
    up when a byte-fallback decoder changes its mind about bytes already shown; both happen only
    with text that no model was trained on, and both are mended by starting afresh. The stream
    must not see tokens without text: it would look back on all of them at every step.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        prompt_token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skips = skip_special_tokens
        self._stream = DecodeStream(self._context(prompt_token_ids), skip_special_tokens)
        self._held: list[int] = []
        self._num_shown = 0  # characters of the held tokens' text that are out already

    def append(self, token_id: int) -> str:
        """The text that the token completes; empty while a character is incomplete."""
        if not self._has_text(token_id):
            return ""
        self._held.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception:  # the library's bare Exception: shown bytes would read otherwise now
            return self._restart(self._held, self._num_shown)
        if text:
            shown, self._num_shown, self._held = self._num_shown, 0, []
            return str(text)[shown:]
        return self._release() if len(self._held) > MAX_HELD_TOKENS else ""

    def flush(self) -> str:
        """What is left when no token follows: incomplete characters become U+FFFD."""
        text = self._decode(self._held)[self._num_shown :]
        self._held, self._num_shown = [], 0
        return text

    def _release(self) -> str:
        """Shows all but the last character, which alone may be incomplete still."""
        text = self._decode(self._held)[self._num_shown : -1]
        tail = self._held[-NUM_CHARACTER_TOKENS:]
        return text + self._restart(tail, len(self._decode(tail)) - 1)

    def _restart(self, held: list[int], num_shown: int) -> str:
        """A new stream that has read `held`; their text from `num_shown` on, if it is complete."""
        text = self._decode(held)
        self._stream = DecodeStream(held, self._skips)
        if text.endswith(REPLACEMENT):
            self._held, self._num_shown = held, num_shown
            return ""
        self._held, self._num_shown = [], 0
        return text[num_shown:]

    def _context(self, prompt_token_ids: Sequence[int]) -> list[int]:
        """Some of the prompt's last tokens, with text that ends with a whole character: where it
        does not, the stream shows the context itself with the first token that follows."""
        tail = [i for i in prompt_token_ids[-NUM_TAIL_TOKENS:] if self._has_text(i)]
        for end in range(len(tail), 0, -1):
            for start in range(max(0, end - NUM_CONTEXT_TOKENS), end):
                if not self._decode(tail[start:end]).endswith(REPLACEMENT):
                    return tail[start:end]
        return []

    def _has_text(self, token_id: int) -> bool:
        """Not a special token, where those are left out. Of two, since decoders strip the space
        that the first may be."""
        return bool(self._decode([token_id, token_id]))

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=self._skips))


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
        *,
        skip_special_tokens: bool = True,
        include_stop_str_in_output: bool = False,
    ) -> None:
        self._decoder = IncrementalDecoder(
            tokenizer, prompt_token_ids, skip_special_tokens=skip_special_tokens
        )
        self._stop = stop
        self._includes_stop = include_stop_str_in_output
        self._held = ""  # decoded, but possibly part of a stop string
        self.text = ""
        self.released_ends: list[int] = []

    def append(self, token_id: int, *, is_stop_checked: bool = True) -> str | None:
        """Takes the next token; the stop string that it completes, or None.

        The text then ends right before the stop string, or with it where it is to be included.
        """
        piece = self._decoder.append(token_id)
        self._held += piece
        matched = self._cut_at_stop(len(piece)) if is_stop_checked else None
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
        piece = self._decoder.flush()
        self._held += piece
        matched = self._cut_at_stop(len(piece)) if is_stop_checked else None
        if matched is None:
            self._release(len(self._held))
        return matched

    def _cut_at_stop(self, num_new: int) -> str | None:
        """Cuts where a stop string begins, or ends, that the last `num_new` characters complete.

        It is the one that ends first, the longest of those that end there: so the text does not
        depend on where one token ends and the next begins.
        """
        num_old = len(self._held) - num_new
        starts = {s: self._held.find(s, max(0, num_old - len(s) + 1)) for s in self._stop}
        found = [(start + len(s), start, s) for s, start in starts.items() if start >= 0]
        if not found:
            return None
        end, start, matched = min(found)
        self._held = self._held[: end if self._includes_stop else start]
        self._release(len(self._held))
        return matched

    def _num_possible_stop(self) -> int:
        """Length of the longest ending that is a proper beginning of a stop string."""
        held = self._held
        return max(
            (
                n
                for s in self._stop
                for n in range(1, min(len(s), len(held) + 1))
                if held.endswith(s[:n])
            ),
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
