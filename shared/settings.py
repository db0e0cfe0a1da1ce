"""What worker and frontends can be told, from flags, the environment and `.env`.

A flag beats the environment, the environment beats `.env`. Every variable is the flag's name in
capitals after CHAIRLIFT_. Python clients have no pydantic and read three of them by themselves.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar

import dotenv
from pydantic import (
    ByteSize,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    CliSuppress,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from .addresses import Endpoints, default_address
from .curve import FrontendCurve, WorkerCurve, check_curve
from .errors import AddressError

ENV_PREFIX = "CHAIRLIFT_"
ENV_FILE = ".env"
DEMO_MODEL = "demo"
MIN_CHUNK_TOKENS = 32  # a block of the KV cache: prompts are cut where blocks end
DEMO_MODEL_FOLDER = Path(__file__).parent / "demo_model"

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


def _name_of_model(values: dict[str, Any]) -> str:
    model = Path(str(values.get("model", DEMO_MODEL)))
    return model.name or model.resolve().name or "model"


class _Settings(BaseSettings):
    """What all processes need: where they meet and how they log."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file=ENV_FILE,
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",  # both read the same `.env`; `refuse_unknown_variables` finds the typos
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    address: str = Field(
        default_factory=default_address,
        description="Where worker and frontends meet: ipc:///directory or tcp://127.0.0.1:port.",
    )
    curve_key: Path | None = Field(
        default=None,
        description="File with this process's own secret key, for tcp; see chairlift keygen.",
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="Format of the log."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severity that is logged."
    )

    @field_validator("address")
    @classmethod
    def _is_address(cls, address: str) -> str:
        try:
            Endpoints.parse(address)
        except AddressError as error:
            raise ValueError(str(error)) from None
        return address

    def _check_curve(self, load: Callable[[], WorkerCurve | FrontendCurve | None]) -> None:
        try:
            check_curve(Endpoints.parse(self.address), load())
        except AddressError as error:
            raise ValueError(str(error)) from None


class WorkerSettings(_Settings):
    """One worker: the model, its numbers, and how much it takes on at a time."""

    curve_frontends: Path | None = Field(
        default=None,
        description="Directory with the .key files of the frontends that may connect over tcp.",
    )
    model: str = Field(
        default=DEMO_MODEL,
        min_length=1,
        description="Folder or Hugging Face name; 'demo' is the small model in the package.",
    )
    served_model_name: str = Field(
        default_factory=_name_of_model,
        min_length=1,
        max_length=256,
        description="Name that requests use; by default the last part of the model's.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit on Hugging Face.")
    offline: bool = Field(default=False, description="Never download, use what is on this machine.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where the model runs; auto takes a GPU where there is one."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Of the weights."
    )
    quantize: Literal["none", "int8"] = Field(
        default="none",
        description="int8 multiplies in 8 bits: faster, with answers of its own; docs/int8.md.",
    )
    max_model_len: Positive | None = Field(
        default=None,
        description="Prompt and answer together, in tokens; by default the model's, <= 8192.",
    )
    max_num_seqs: Annotated[int, Field(gt=0, le=4096)] = Field(
        default=32, description="Sequences in one step; on a GPU by default 256."
    )
    max_num_batched_tokens: Positive = Field(
        default=512, description="Tokens in one step; on a GPU by default 2048."
    )
    target_itl_ms: Annotated[float, Field(gt=0, le=60_000)] | None = Field(
        default=None,
        description="Milliseconds that a step with decodes may take, chunks of prompts included; "
        "by default 20, or 1.65 times what the decodes take alone, with several prompts up to 3.5.",
    )
    policy: Literal["continuous", "static"] = Field(
        default="continuous", description="'static' is the measuring stick, not for serving."
    )
    speculation: Literal["auto", "off"] = Field(
        default="auto",
        description="Verify tokens that are guessed from the text so far in rows that a small "
        "batch has to spare; answers stay the same.",
    )
    kv_cache_bytes: Annotated[ByteSize, Field(gt=0)] | None = Field(
        default=None,
        description="Memory for keys and values, like 2GiB; by default what is sensible.",
    )
    prefix_caching: bool = Field(
        default=True, description="Reuse blocks of equal prompt beginnings."
    )
    max_waiting: Positive = Field(
        default=1024, description="Requests that may wait; more are refused."
    )
    max_waiting_tokens: Positive = Field(
        default=1 << 20, description="Tokens that waiting requests may have together."
    )
    queue_timeout_s: Seconds = Field(
        default=60.0, description="Seconds that a request may wait for its place in a step."
    )
    orphan_grace_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=30.0,
        description="Seconds that a resumable stream is kept while nobody reads it.",
    )
    drain_timeout_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=2.5, description="Seconds to finish running requests after SIGTERM."
    )
    hang_timeout_s: Seconds = Field(
        default=30.0, description="Seconds that one step may take before the worker is restarted."
    )
    logits_processors: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Names, with commas, of installed packages' chairlift.logits_processors.",
    )
    deterministic: bool = Field(
        default=False,
        description="Start only if no answer depends, in any bit, on what is computed beside it; "
        "on a GPU that takes other kernels.",
    )
    kernels: Literal["auto", "native", "torch"] = Field(
        default="auto",
        description="Those of our own, which the first start compiles, or torch's; auto takes "
        "torch's where there is no compiler.",
    )
    num_threads: Annotated[int, Field(gt=0, le=1024)] | None = Field(
        default=None,
        description="CPU threads; by default torch's, or as many as a container's limit.",
    )

    @property
    def model_source(self) -> str:
        """The folder or hub name to load; the demo model's name is resolved."""
        return str(DEMO_MODEL_FOLDER) if self.model == DEMO_MODEL else self.model

    def load_curve(self) -> WorkerCurve | None:
        """From the files as they are now. Raises AddressError."""
        match self.curve_key, self.curve_frontends:
            case None, None:
                return None
            case Path() as key, Path() as frontends:
                return WorkerCurve.load(key, frontends)
        raise AddressError("--curve-key and --curve-frontends go together: give both or none")

    @model_validator(mode="after")
    def _curve_suits_the_address(self) -> Self:
        self._check_curve(self.load_curve)
        return self

    @field_validator("logits_processors", mode="before")
    @classmethod
    def _split_names(cls, names: object) -> object:
        return tuple(names.replace(",", " ").split()) if isinstance(names, str) else names

    @model_validator(mode="after")
    def _int8_is_for_cpus(self) -> Self:
        if self.device == "cuda" and self.quantize != "none":
            raise ValueError(
                f"quantize {self.quantize} is for CPUs, and device is cuda: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _budget_holds_a_step(self) -> Self:
        least = self.max_num_seqs + MIN_CHUNK_TOKENS
        if self.max_num_batched_tokens < least:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs + {MIN_CHUNK_TOKENS} ({least}), so that a prompt chunk fits "
                "beside the running sequences"
            )
        return self


ToolFormat = Literal["auto", "none", "hermes", "llama_json", "pythonic", "mistral", "mistral_args"]


class ClientSettings(_Settings):
    """What every frontend needs: the worker, and the keys to it."""

    curve_worker: Path | None = Field(
        default=None, description="File with the worker's public key, for tcp."
    )

    def load_curve(self) -> FrontendCurve | None:
        """From the files as they are now. Raises AddressError."""
        return FrontendCurve.given(self.curve_key, self.curve_worker)

    @model_validator(mode="after")
    def _curve_suits_the_address(self) -> Self:
        self._check_curve(self.load_curve)
        return self


class ServeSettings(ClientSettings):
    """One HTTP server: where it listens, who may ask, how much. `--frontend NAME` runs another."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Interface to listen on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=8000,
        description="Port to listen on; without CHAIRLIFT_PORT the variable PORT counts too.",
    )
    api_key_file: FilePath | None = Field(
        default=None, description="File of API keys, one a line; CHAIRLIFT_API_KEYS works as well."
    )
    api_keys: CliSuppress[Annotated[tuple[SecretStr, ...] | None, NoDecode]] = None
    max_body_bytes: Annotated[ByteSize, Field(gt=0)] = Field(
        default=ByteSize(4 << 20), description="Largest request body, like 4MiB."
    )
    body_timeout_s: Seconds = Field(default=30.0, description="Seconds to send the body in.")
    keep_alive_s: Seconds = Field(
        default=10.0, description="Seconds between comments on a quiet stream."
    )
    stall_timeout_s: Seconds = Field(
        default=30.0, description="Seconds that a reader may take nothing of its answer."
    )
    header_timeout_s: Seconds = Field(
        default=30.0, description="Seconds from connecting to the end of a request's headers."
    )
    max_requests_per_key: Positive = Field(
        default=64, description="Requests in flight for one API key."
    )
    max_requests: Positive = Field(default=1024, description="Requests in flight for all.")
    max_buffer_bytes: Annotated[ByteSize, Field(gt=0)] = Field(
        default=ByteSize(1 << 20),
        description="Text that may wait for a slow reader of a stream before it is cut off.",
    )
    request_timeout_s: Seconds = Field(
        default=600.0, description="Seconds that a request may take from coming in to its end."
    )
    best_priority: Annotated[int, Field(ge=-100, le=100)] = Field(
        default=0, description="Lowest `priority` that a request may have: lower ones go first."
    )
    isolate_prefix_cache: bool = Field(
        default=False, description="Reuse cached prompt prefixes within one API key only."
    )
    idempotency_secret_file: FilePath | None = Field(
        default=None,
        description="Secret for Idempotency-Key, the same for all frontends of a worker; by "
        "default a file beside the ipc sockets.",
    )
    tool_format: ToolFormat = Field(
        default="auto",
        description="How the model writes calls of tools; by default as its chat template tells.",
    )
    max_step_s: Seconds = Field(
        default=10.0, description="Seconds that one step may take before /health calls it wedged."
    )
    otel_traces: bool = Field(
        default=False,
        description="Send OpenTelemetry's spans to OTEL_EXPORTER_OTLP_ENDPOINT; needs "
        "chairlift[otel].",
    )
    drain_delay_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=0.0,
        description="Seconds after SIGTERM that requests are still taken while /health says 503.",
    )
    # The worker reads the same variable; 3 s and a worker's 2.5 both end within honcho's 5.
    drain_timeout_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=3.0, description="Seconds to finish running requests after that."
    )

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, keys: object) -> object:
        return tuple(keys.replace(",", " ").split()) if isinstance(keys, str) else keys

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, dotenv_settings, _PlainPort(settings_cls)


class _PlainPort(PydanticBaseSettingsSource):
    """PORT, as process managers and platforms set it; the weakest source."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return os.environ.get("PORT") or None, field_name, False

    def __call__(self) -> dict[str, Any]:
        value = os.environ.get("PORT")
        return {"port": value} if value else {}


S = TypeVar("S", bound=_Settings)


def load_settings(kind: type[S], command: str, arguments: Sequence[str]) -> S:
    """The settings for `chairlift COMMAND ARGUMENTS`; exits with code 2 and one line if bad."""
    if any(argument.split("=")[0] == "--api-keys" for argument in arguments):
        _refuse(command, "--api-keys would show them to all users here: use --api-key-file")
    try:
        refuse_unknown_variables([*os.environ, *dotenv.dotenv_values(ENV_FILE)])
        flags: CliSettingsSource[S] = CliSettingsSource(
            kind,
            cli_prog_name=f"chairlift {command}",
            cli_parse_args=list(arguments),
            add_argument_method=_add_argument,
        )
        source: dict[str, Any] = {"_cli_settings_source": flags}
        return kind(**source)
    except ValidationError as error:
        _refuse(command, _one_line(error))
    except ValueError as error:
        _refuse(command, str(error))


_NO_DEFAULT = re.compile(r" \(default(: None| factory: \w+)\)$")


def _add_argument(parser: argparse.ArgumentParser, *flags: str, **options: Any) -> argparse.Action:
    """As argparse does it, but for defaults that only a programmer understands."""
    shown = f" (default: {default_address()})" if "--address" in flags else ""
    options["help"] = _NO_DEFAULT.sub("", options["help"]) + shown.replace("%", "%%")
    return parser.add_argument(*flags, **options)


# What Kubernetes sets for a service of our name.
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)|_PORT_[0-9]+_(TCP|UDP)")


def refuse_unknown_variables(names: Iterable[str]) -> None:
    """Raises ValueError for a CHAIRLIFT_ variable that no setting reads: probably a typo."""
    fields = {*WorkerSettings.model_fields, *ServeSettings.model_fields}
    known = sorted(ENV_PREFIX + field.upper() for field in fields)
    for name in names:
        is_ours = name.upper().startswith(ENV_PREFIX) and not _SERVICE_LINK.search(name)
        if is_ours and name.upper() not in known:
            nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.8)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}"
            raise ValueError(f"unknown environment variable {name}: {hint}")


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    name = str(first["loc"][0])
    flag = "--" + name.replace("_", "-")
    return f"{flag} ({ENV_PREFIX}{name.upper()}): {message}"


def _refuse(command: str, message: str) -> NoReturn:
    print(f"chairlift {command}: {message}", file=sys.stderr)
    raise SystemExit(2)
