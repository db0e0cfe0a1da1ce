"""How much may be in flight: for one tenant, and for all together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...shared.errors import InvalidRequestError, OverloadedError
from .errors import HttpError, retry_in

MIN_RETRY_S = 1.0


class Places:
    """Counts generations in flight; what is held is given back on leaving the block."""

    def __init__(
        self,
        max_per_tenant: int | None,
        max_total: int,
        estimate_s: Callable[[], float] = lambda: MIN_RETRY_S,
    ) -> None:
        """No limit for a tenant when there is but one. `estimate_s` says when a queue that is as
        long as now will be through."""
        self._max_per_tenant = max_per_tenant
        self._max_total = max_total
        self._estimate_s = estimate_s
        self._held: Counter[str] = Counter()

    @property
    def num_in_flight(self) -> int:
        return self._held.total()

    @contextmanager
    def hold(
        self,
        tenant: str,
        count: int,
        *,
        num_held: int = 0,
        is_takeover: bool = False,
        param: str = "n",
    ) -> Iterator[None]:
        """`num_held` of the same request's are held already; `param` is what asks for so many. For
        takeovers there are as many places again: each ends another reader, who may hold a place
        without a caller behind it.

        Raises HttpError 429 when the tenant has too many, OverloadedError when all together have,
        and InvalidRequestError for what would be too much even alone.
        """
        factor = 2 if is_takeover else 1
        if not is_takeover:
            self._check_size(count + num_held, param)
        self._check_tenant(tenant, count, factor)
        self._check_total(count, factor)
        self._held[tenant] += count
        try:
            yield
        finally:
            self._held[tenant] -= count
            if not self._held[tenant]:
                del self._held[tenant]

    def _check_size(self, count: int, param: str) -> None:
        most = min(self._max_per_tenant or self._max_total, self._max_total)
        if count > most:
            message = f"one request may ask for {most} answers at most, not {count}"
            raise InvalidRequestError(message, param=param)

    def _check_tenant(self, tenant: str, count: int, factor: int) -> None:
        limit = self._max_per_tenant
        if limit is not None and self._held[tenant] + count > factor * limit:
            raise HttpError(
                429,
                f"{limit} generations of yours may be in flight: wait for some to end",
                code="rate_limit_exceeded",
                headers=retry_in(self._retry_s),
            )

    def _check_total(self, count: int, factor: int) -> None:
        if self.num_in_flight + count > factor * self._max_total:
            message = f"{self._max_total} generations are in flight, which is all that may be"
            raise OverloadedError(message, retry_after_s=self._retry_s)

    @property
    def _retry_s(self) -> float:
        return max(MIN_RETRY_S, self._estimate_s())
