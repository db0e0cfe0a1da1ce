"""One message of every kind, as this version sends it; `tests/golden/` holds their bytes.

A message whose bytes change breaks whoever runs another release: the protocol's version has to
change with it. `python -m tests.golden_messages` writes the files of a new version.
"""

from __future__ import annotations

from pathlib import Path

from chairlift.shared.codec import VERSION, encode
from chairlift.shared.messages import (
    Attach,
    Cancel,
    Detach,
    Extras,
    Finish,
    Frame,
    Greeting,
    Joined,
    Message,
    Steps,
    Submit,
    Sync,
    TokenizerFiles,
    Watch,
    WorkerStats,
    pack_live,
    pack_token_ids,
)
from chairlift.shared.queue_place import QueuePlace
from chairlift.shared.sampling_params import Grammar, SamplingParams
from chairlift.shared.steps import Ended, Receipt, StepRecord, request_hash

FOLDER = Path(__file__).parent / "golden"
FRONTEND, REQUEST, OTHER = b"frontend", b"request-id-16-by", b"another-request!"
PARAMS = SamplingParams(
    max_tokens=8,
    temperature=0.7,
    top_k=40,
    top_p=0.9,
    min_p=0.05,
    seed=2**63 - 1,
    presence_penalty=0.5,
    frequency_penalty=-0.5,
    repetition_penalty=1.1,
    logit_bias=((3, -1.5),),
    stop=("\n", "é"),
    stop_token_ids=(7,),
    min_tokens=2,
    ignore_eos=True,
    num_logprobs=2,
    num_prompt_logprobs=0,
    bad_words=((5, 6),),
    skip_special_tokens=False,
    include_stop_str_in_output=True,
    grammar=Grammar("regex", "[ab]+"),
)
SUBMIT = Submit(
    frontend_id=FRONTEND,
    request_id=REQUEST,
    tokenizer=b"tokenize",
    prompt_token_ids=pack_token_ids([1, 2]),
    output_token_ids=pack_token_ids([3]),
    params=PARAMS,
    generation=2,
    is_resumable=True,
    context=b"context",
    cache_salt=b"salt",
    ttl_ms=60_000,
    was_owner=True,
    priority=-1,
    pooling="last",
    tenant=b"tenant",
    wants_queue_news=True,
)
REQUESTS: dict[str, Message] = {
    "submit": SUBMIT,
    "attach": Attach(FRONTEND, REQUEST, 3, True),
    "detach": Detach(FRONTEND, REQUEST),
    "cancel": Cancel(FRONTEND, REQUEST),
    "sync": Sync(FRONTEND, 1, 2, False, True, pack_live({REQUEST: 4, OTHER: 0})),
    "acknowledgement": Sync(FRONTEND, 1, 2, True, False, None),
    "watch": Watch(FRONTEND),
}
RECEIPT = Receipt(
    queued_us=12_000,
    first_token_us=80_000,
    total_us=912_000,
    max_gap_us=44_000,
    num_prompt_tokens=200,
    num_cached_tokens=64,
    num_output_tokens=50,
    num_resumed_tokens=3,
    num_steps=53,
    num_chunks=5,
    num_recomputed_tokens=201,
    num_preemptions=1,
    num_mates=318,
    max_mates=9,
)
STEP = StepRecord(
    number=1234,
    began_us=1_764_540_000_000_000,
    phases_us=(80, 310, 18_500, 400, 350, 500),
    num_waiting=1,
    waiting=request_hash(b"waiting-request!"),
    num_free_blocks=100,
    num_shared_blocks=2,
    preempted=request_hash(b"preempted-reques"),
    requests=request_hash(REQUEST) + request_hash(OTHER),
    num_tokens=[1, 64],
    num_prompt_tokens=[0, 64],
    num_drafts=[0, 0],
    num_new_tokens=[1, 0],
    num_computed_tokens=[120, 64],
    num_total_tokens=[121, 200],
    num_blocks=[4, 7],
)
REPLIES: dict[str, Message] = {
    "greeting": Greeting(1, "model", 0, b"12345678", b"87654321", 100, 64, 0),
    "tokenizer": TokenizerFiles(b"{}", b"{}"),
    "frame": Frame(
        epoch=2**63 - 1,
        number=7,
        state="ready",
        stats=WorkerStats(
            num_running=1, phases_us=(1, 2, 3, 4, 5, 6), num_refused=[("overloaded", 1)]
        ),
        unknown=OTHER,
        joined=[Joined(True, SUBMIT)],
        request_ids=REQUEST + OTHER,
        offsets=[0, 3],
        num_tokens=[2, 0],
        token_ids=pack_token_ids([5, 6]),
        text_offsets=[0, 9],
        texts=["hé", ""],
        finishes=[(1, Finish("stop", "\n", num_cached_tokens=32, queue=QueuePlace(1, 1000)))],
        extras=[(0, Extras(bytes(24), bytes(4), bytes(8), RECEIPT))],
        queued=[(OTHER, QueuePlace(3, 1200))],
    ),
    "steps": Steps(1, [STEP], [Ended(request_hash(REQUEST), "stop", RECEIPT)]),
}


def path_of(name: str) -> Path:
    return FOLDER / f"v{VERSION}-{name}.msgpack"


def main() -> None:
    for name, message in (REQUESTS | REPLIES).items():
        path_of(name).write_bytes(encode(message))


if __name__ == "__main__":
    main()
