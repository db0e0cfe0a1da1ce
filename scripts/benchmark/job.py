"""One measurement to be made; crosses processes as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from . import workload
from .workload import Request, Workload

Policy = Literal["continuous", "static"]
Dtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Job:
    """A model, a workload and what the worker is told."""

    folder: str  # of the checkpoint
    workload_name: str
    policy: Policy
    limit: int | None  # of requests
    max_num_batched_tokens: int
    max_model_len: int
    num_threads: int | None
    dtype: Dtype
    timeout_s: float
    given: Mapping[str, str | bool] = field(default_factory=dict)  # more WorkerSettings, by name
    load: int | None = None  # requests at a time instead of the workload's own number

    def under(self, load: int) -> Self:
        """The same with so many requests at a time."""
        return replace(self, load=load)

    @property
    def workload(self) -> Workload:
        named = workload.WORKLOADS[self.workload_name]
        return named.under(self.load) if self.load else named

    @property
    def concurrency(self) -> int:
        return self.workload.concurrency

    @property
    def vocab_size(self) -> int:
        return int(self._config["vocab_size"])

    @property
    def dtype_of_weights(self) -> str:
        """The checkpoint's own, unless another was asked for."""
        own = self._config.get("dtype") or self._config.get("torch_dtype", "float32")
        return str(own) if self.dtype == "auto" else self.dtype

    def requests(self) -> list[Request]:
        """Raises BenchmarkError when the model can't take them."""
        requests = workload.draw(self.workload, self._config["vocab_size"], self.limit)
        workload.check_fits(requests, self.model_len)
        return requests

    def warm_up(self) -> list[Request]:
        return workload.warm_up(self.workload, self._config["vocab_size"])

    def settings(self) -> dict[str, Any]:
        """WorkerSettings by name; those left at their default are not in it."""
        values = {
            "model": self.folder,
            "policy": self.policy,
            "speculation": "off",  # random models repeat themselves as no text does
            "dtype": self.dtype,
            "max_num_seqs": self.concurrency,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "max_model_len": self.model_len,
            "hang_timeout_s": self.timeout_s,  # static batching reads all prompts in one step
            "num_threads": self.num_threads,
        }
        return {name: value for name, value in values.items() if value is not None} | {**self.given}

    @property
    def model_len(self) -> int:
        return min(self.max_model_len, int(self._config["max_position_embeddings"]))

    @property
    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((Path(self.folder) / "config.json").read_bytes())
        return config
