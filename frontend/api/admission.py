"""How much may be in flight: for one API key, and for all together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ...shared.errors import InvalidRequestError, OverloadedError
from .errors import HttpError, retry_in

RETRY_S = 1.0


class Admission:
    """Counts generations in flight; what is held is given back on leaving the block."""

    def __init__(self, max_per_tenant: int | None, max_total: int) -> None:
        """No limit for a tenant when there is but one."""
        self._max_per_tenant = max_per_tenant
        self._max_total = max_total
        self._held: Counter[str] = Counter()

    @property
    def num_in_flight(self) -> int:
        return self._held.total()

    @contextmanager
    def hold(self, tenant: str, count: int, *, num_held: int = 0) -> Iterator[None]:
        """`num_held` of the same request's are held already.

        Raises HttpError 429 when the tenant has too many, OverloadedError when all together have,
        and InvalidRequestError for what would be too much even alone.
        """
        self._check_size(count + num_held)
        self._check(tenant, count)
        self._held[tenant] += count
        try:
            yield
        finally:
            self._held[tenant] -= count
            if not self._held[tenant]:
                del self._held[tenant]

    def _check_size(self, count: int) -> None:
        most = min(self._max_per_tenant or self._max_total, self._max_total)
        if count > most:
            message = f"one request may ask for {most} answers at most, not {count}"
            raise InvalidRequestError(message, param="n")

    def _check(self, tenant: str, count: int) -> None:
        limit = self._max_per_tenant
        if limit is not None and self._held[tenant] + count > limit:
            raise HttpError(
                429,
                f"{limit} generations may be in flight for one API key: wait for some to end",
                code="rate_limit_exceeded",
                headers=retry_in(RETRY_S),
            )
        if self.num_in_flight + count > self._max_total:
            message = f"{self._max_total} generations are in flight, which is all that may be"
            raise OverloadedError(message, retry_after_s=RETRY_S)
