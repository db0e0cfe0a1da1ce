"""A real worker with `--quantize int8`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import chairlift
from chairlift.shared.settings import DEMO_MODEL
from tests.gpu import for_cpus
from tests.integration.processes import chairlift as running
from tests.vnni import needs_vnni

pytestmark = [needs_vnni, for_cpus]
MESSAGES = [{"role": "user", "content": "What is the capital of Japan?"}]


def test_a_worker_answers_in_int8_and_says_so(address: str, tmp_path: Path) -> None:
    """Its answer is right, the same alone and among others, and its log names the mode."""
    log = tmp_path / "log"

    async def run() -> list[str]:
        async with chairlift.AsyncClient(address, connect_timeout_s=60) as client:
            alone = await client.chat(MESSAGES, temperature=0.0)
            calls = [client.chat(MESSAGES, temperature=0.0)]
            calls += [client.complete(f"Count {i}", max_tokens=9, seed=i) for i in range(5)]
            together, *_ = await asyncio.gather(*calls)
            return [alone.text, together.text]

    settings = {"model": DEMO_MODEL, "quantize": "int8", "log_format": "json"}
    with running("worker", log=log, address=address, **settings):
        answers = asyncio.run(run())
    assert answers == ["The capital of Japan is Tokyo."] * 2
    assert '"quantize": "int8"' in log.read_text("utf-8")
