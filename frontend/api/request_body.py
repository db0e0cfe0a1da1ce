"""What bodies have in common, whatever they ask for."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...shared.errors import InvalidRequestError
from ..request_options import RequestOptions
from .context import Context
from .parameters import Neutral, without_neutral

U31 = 2**31 - 1


class RequestBody(BaseModel):
    """Says which model is meant; what changes nothing is left out, what is unknown refused."""

    model_config = ConfigDict(strict=True, extra="forbid")
    known: ClassVar[frozenset[str]]
    neutral: ClassVar[Neutral] = {}
    harmless: ClassVar[frozenset[str]] = frozenset({"metadata", "user"})

    model: Annotated[
        str | None, Field(description="As /v1/models names it; without it, the one there is.")
    ] = None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        cls.known = frozenset(one.alias or name for name, one in cls.model_fields.items())

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, values: dict[str, Any]) -> dict[str, Any]:
        return without_neutral(values, cls.known, cls.neutral, cls.harmless)


class WorkerRequestBody(RequestBody):
    """Asks something of the worker, which has an order, an end and a cache."""

    priority: Annotated[
        int,
        Field(
            ge=-100, le=100, description="Lower ones go first; below 0 where the server allows it."
        ),
    ] = 0
    deadline_ms: Annotated[
        int | None,
        Field(
            ge=1,
            le=U31,
            description="To finish in, else the answer is an error. Half of it over, it goes ahead "
            "of some that wait.",
        ),
    ] = None
    cache_salt: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=256,
            description="Cached prompt prefixes are shared only with your requests of equal salt.",
        ),
    ] = None

    user: Annotated[
        str | None,
        Field(
            max_length=512,
            description="The worker's time is shared among these, or among API keys where there "
            "are several.",
        ),
    ] = None

    def options(self, context: Context, tenant: str) -> RequestOptions:
        """How the worker is asked for it. Raises InvalidRequestError for a priority too good."""
        best = context.settings.best_priority
        if self.priority < best:
            message = f"priority must be at least {best} here (--best-priority of the server)"
            raise InvalidRequestError(message, param="priority")
        ttl_s = context.settings.request_timeout_s
        return RequestOptions(
            cache_salt=context.cache_salt(tenant, self.cache_salt),
            ttl_s=min(ttl_s, self.deadline_ms / 1000) if self.deadline_ms else ttl_s,
            priority=self.priority,
            tenant=context.worker_tenant(tenant, self.user),
        )
