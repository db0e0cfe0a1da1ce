"""The tokenizer of the worker that a client talks to: given, kept from before, or sent along."""

from __future__ import annotations

from ..shared.errors import TokenizerMismatchError
from ..shared.messages import Greeting, TokenizerFiles
from ..shared.tokenizer import Tokenizer
from . import tokenizer_cache


class WorkerTokenizer:
    """`known` is None until the worker was met, and until it has sent what is not there."""

    def __init__(self, given: Tokenizer | None) -> None:
        self._given = given
        self.known: Tokenizer | None = None

    def meet(self, worker: Greeting) -> None:
        """Another worker may have another model. What was given stays: see `check`."""
        known = self._given or self.known
        if self._given is None and not _is_of(known, worker):
            known = tokenizer_cache.load(worker)
        self.known = known

    def take(self, files: TokenizerFiles) -> None:
        self.known = Tokenizer.from_files(files)
        tokenizer_cache.store(self.known)

    def check(self, worker: Greeting | None) -> None:
        """Raises TokenizerMismatchError when the one that was given is not the worker's."""
        given = self._given
        if given is not None and worker is not None and given.fingerprint != worker.tokenizer:
            raise TokenizerMismatchError(
                f"the client's tokenizer is not that of the worker's model {worker.model!r}: give "
                "the client the model's own, or none"
            )


def _is_of(tokenizer: Tokenizer | None, greeting: Greeting) -> bool:
    return tokenizer is not None and (
        (tokenizer.fingerprint, tokenizer.template_fingerprint)
        == (greeting.tokenizer, greeting.chat_template)
    )
