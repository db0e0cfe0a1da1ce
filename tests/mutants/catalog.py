"""Ways to break the protocol, each of which the simulation has to notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """`old`, which `file` has exactly once, becomes `new`.

    The `wanted` kinds of trouble bring it out soon.
    """

    name: str
    file: str
    old: str
    new: str
    wanted: tuple[str, ...] = ()

    def apply(self, package: Path) -> None:
        """Raises ValueError when the source has changed and the mutant must be written anew."""
        path = package / self.file
        source = path.read_text("utf-8")
        count = source.count(self.old)
        if count != 1:
            raise ValueError(f"mutant {self.name!r}: {self.file} has its text {count} times")
        path.write_text(source.replace(self.old, self.new), "utf-8")


STREAM, STREAMS = "worker/stream.py", "worker/streams.py"
OWNERSHIP, PUBLISHER = "worker/ownership.py", "worker/publisher.py"
INTAKE, SCORES = "worker/intake.py", "worker/scores.py"
FRONTEND, MESSAGES = "frontend/protocol.py", "shared/messages.py"

MUTANTS = (
    Mutant(
        "no rewind",
        STREAM,
        "if self.num_sent > num_held or (self.is_finish_sent and self.num_sent == num_held):",
        "if False:",
    ),
    Mutant(
        "rewind of what is in flight",
        STREAMS,
        "if reading is not None and (sync.has_gap or sync.frame_number >= reading.last_frame):",
        "if reading is not None:",
        ("freezes",),
    ),
    Mutant(
        "rewind at a gap only",
        STREAMS,
        "if reading is not None and (sync.has_gap or sync.frame_number >= reading.last_frame):",
        "if reading is not None and sync.has_gap:",
        ("frame_loss", "request_loss"),
    ),
    Mutant(
        "a finish is not sent again",
        STREAM,
        "if self.num_sent > num_held or (self.is_finish_sent and self.num_sent == num_held):",
        "if self.num_sent > num_held:",
        ("ttls", "frame_loss", "joins", "cancels"),
    ),
    Mutant(
        "the finish is taken for sent after a rewind",
        STREAM,
        "self.num_sent, self.is_finish_sent = num_held, False",
        "self.num_sent = num_held",
        ("ttls", "frame_loss", "joins", "cancels"),
    ),
    Mutant(
        "a reader who is ahead is sent nothing",
        STREAM,
        "is_ended = sequence.finish is not None and not self.is_finish_sent",
        "is_ended = False",
    ),
    Mutant(
        "the pointer moves on a refused send",
        PUBLISHER,
        "if not send(frontend.frontend_id, encode(frame)):\n                return\n",
        "send(frontend.frontend_id, encode(frame))\n",
    ),
    Mutant(
        "only the pointer moves on a refused send",
        PUBLISHER,
        "            if not send(frontend.frontend_id, encode(frame)):\n                return\n"
        "            frontend.frame_number += 1\n",
        "            frontend.frame_number += send(frontend.frontend_id, encode(frame))\n",
    ),
    Mutant(
        "a frame's number moves on a refused send",
        PUBLISHER,
        "if not send(frontend.frontend_id, encode(frame)):\n                return\n",
        "if not send(frontend.frontend_id, encode(frame)):\n"
        "                frontend.frame_number += 1\n                return\n",
        ("freezes",),
    ),
    Mutant(
        "a forgotten frontend's frame numbers are not taken over",
        PUBLISHER,
        "        frontend.frame_number = max(frontend.frame_number, sync.frame_number)\n",
        "",
        ("resets", "frame_loss"),
    ),
    Mutant(
        "a place in the queue for what has begun",
        FRONTEND,
        "if request is None or request.submit is None or request.output_token_ids:",
        "if request is None or request.submit is None:",
        ("crashes",),
    ),
    Mutant(
        "the lease forgets the subscription",
        PUBLISHER,
        "if not frontend.is_subscribed:  # else",
        "if True:  # else",
        ("long_freezes",),
    ),
    Mutant(
        "a lost greeting is not sent again",
        PUBLISHER,
        "            frontend.needs_greeting = True\n            return False",
        "            return False",
    ),
    Mutant(
        "the window is ignored",
        PUBLISHER,
        "is_stalled = frontend.frame_number - frontend.acknowledged >= MAX_UNACKNOWLEDGED_FRAMES",
        "is_stalled = False",
        ("freezes",),
    ),
    Mutant(
        "heartbeats are sent to nobody",
        PUBLISHER,
        "elif now - frontend.last_sent >= HEARTBEAT_S:",
        "elif now - frontend.last_sent >= 100 * HEARTBEAT_S:",
    ),
    Mutant(
        "who is silent keeps its lease",
        STREAM,
        "is_silent = bool(self.readings) and now - self.last_heard > LEASE_S",
        "is_silent = False",
    ),
    Mutant(
        "who is gone keeps the long lease",
        STREAM,
        "now - self.unsubscribed_at > UNSUBSCRIBED_LEASE_S",
        "now - self.unsubscribed_at > LEASE_S",
    ),
    Mutant(
        "no answer to what is unknown",
        STREAMS,
        "frontend.unknown.append(request_id)",
        "pass",
    ),
    Mutant(
        "a verdict is said once",
        STREAMS,
        "frontend.unsaid[request_id] = verdict",
        "pass",
    ),
    Mutant(
        "what a Sync leaves out is kept",
        STREAMS,
        "            self.leave(frontend, request_id, now)\n        frontend.unknown = []",
        "            pass\n        frontend.unknown = []",
    ),
    Mutant(
        "a Submit sent anew is passed over",
        STREAMS,
        "            num_held = len(submit.output_token_ids) // 4\n",
        "            if submit.request_id in frontend.readings:\n                return\n"
        "            num_held = len(submit.output_token_ids) // 4\n",
    ),
    Mutant(
        "no grace for orphans",
        STREAMS,
        "        if not stream.is_kept:\n            self._forget(stream)",
        "        if True:\n            self._forget(stream)",
        ("detaches",),
    ),
    Mutant(
        "orphans are kept for ever",
        STREAMS,
        "if now - s.unread_since > self._grace_s]",
        "if now < 0]",
    ),
    Mutant(
        "what can't be resumed is kept",
        STREAM,
        "return self.request.is_resumable and not self.has_failed",
        "return not self.has_failed",
    ),
    Mutant(
        "a takeover does not fence",
        STREAMS,
        "self._follow(stream, former)",
        "self._follow(stream, None)",
    ),
    Mutant(
        "a takeover is no new generation",
        OWNERSHIP,
        "min(self.generation + 1, MAX_GENERATION)",
        "self.generation",
        ("takeovers", "freezes", "crashes", "joins"),
    ),
    Mutant(
        "a takeover said again takes it back",
        OWNERSHIP,
        "if former is not None and is_repeated and former.generation < self.generation:",
        "if False:",
        ("takeovers", "request_loss", "frame_loss"),
    ),
    Mutant(
        "a lower generation is accepted",
        OWNERSHIP,
        "return was_owner and submit.generation < self.generation and not is_owner",
        "return False",
        ("takeovers", "freezes", "crashes", "joins"),
    ),
    Mutant(
        "a fresh Submit is taken for a former owner's",
        OWNERSHIP,
        "return was_owner and submit.generation < self.generation and not is_owner",
        "return submit.generation < self.generation and not is_owner",
        (
            "joins",
            "takeovers",
        ),
    ),
    Mutant(
        "a higher generation does not fence",
        STREAMS,
        "is_former = reading is former or reading.was_owner",
        "is_former = reading is former",
        ("takeovers", "freezes", "crashes", "joins"),
    ),
    Mutant(
        "a higher generation fences whoever is there",
        STREAMS,
        "            if stream.ownership.submit(submit):  # another was faster after a restart\n"
        "                self._follow(stream, None)\n",
        "            former = stream.owner\n"
        "            if stream.ownership.submit(submit):\n"
        "                self._follow(stream, former)\n",
        ("takeovers", "freezes", "crashes", "joins"),
    ),
    Mutant(
        "a Submit from before the verdict undoes it",
        STREAMS,
        "was_owner=submit.was_owner or is_untold",
        "was_owner=submit.was_owner",
        ("takeovers", "resets"),
    ),
    Mutant(
        "nobody inherits",
        OWNERSHIP,
        "self.line.remove(frontend_id)",
        "del self.line[self.line.index(frontend_id) :]",
        (
            "joins",
            "detaches",
        ),
    ),
    Mutant(
        "who owns it unknowingly is not told",
        STREAMS,
        "reading.announce()  # it",
        "pass  # it",
        ("joins", "crashes"),
    ),
    Mutant(
        "an heir is not told",
        STREAMS,
        "            stream.owner.announce()\n",
        "            pass\n",
        ("joins", "detaches"),
    ),
    Mutant(
        "watchers inherit",
        STREAMS,
        "if attach.takes_over and stream.sequence.finish is not None:",
        "if not attach.takes_over or stream.sequence.finish is not None:",
        (
            "watchers",
            "detaches",
        ),
    ),
    Mutant(
        "another body under a known id is joined",
        MESSAGES,
        "return (self.tokenizer, self.prompt_token_ids, self.params, self.pooling) == (",
        "return True or (self.tokenizer, self.prompt_token_ids, self.params, self.pooling) == (",
    ),
    Mutant(
        "Detach cancels",
        INTAKE,
        "self._streams.leave(frontend, message.request_id, now)",
        "self._cancel(Cancel(frontend.frontend_id, message.request_id), frontend, now)",
    ),
    Mutant(
        "a Cancel from anybody ends",
        INTAKE,
        "if reading is not None and reading.is_owner:",
        "if reading is not None:",
        (
            "cancels",
            "watchers",
        ),
    ),
    Mutant(
        "a Cancel is a Detach",
        INTAKE,
        "            self.end(reading.stream.sequence, CANCELLED)\n",
        "            pass\n",
        ("cancels",),
    ),
    Mutant(
        "abandoned requests are computed on",
        INTAKE,
        "self.end(self._streams.abandoned.pop(), CANCELLED)",
        "self._streams.abandoned.pop()",
    ),
    Mutant(
        "deadlines pass",
        INTAKE,
        "if now >= stream.deadline:",
        "if now < 0:",
    ),
    Mutant(
        "suspects run with the others",
        INTAKE,
        "sequence.is_suspect = self._admission.is_suspect(submit.request_id)",
        "pass",
    ),
    Mutant(
        "the condemned are let in",
        "worker/admission.py",
        "if self._quarantine.is_condemned(submit.request_id):",
        "if False:",
    ),
    Mutant(
        "resumed tokens have no text",
        "worker/engine.py",
        "            self._take(sequence, token_id)\n            if sequence.finish is not None:",
        "            sequence.append(token_id)\n"
        "            sequence.detokenizer.skip()\n"
        "            if sequence.finish is not None:",
    ),
    Mutant(
        "former epochs are listened to",
        FRONTEND,
        "if message.epoch in self._former_epochs:",
        "if False:",
        (
            "stale_frames",
            "crashes",
        ),
    ),
    Mutant(
        "frames of any epoch are taken",
        FRONTEND,
        "if self.greeting is None or message.epoch != self.greeting.epoch:",
        "if self.greeting is None:",
        ("stale_frames", "crashes"),
    ),
    Mutant(
        "nothing is submitted again to a new worker",
        FRONTEND,
        "            self._send_opening(request_id, now)\n"
        "        if self._requests or self.wants_tokenizer:\n",
        "        if self.wants_tokenizer:\n",
        ("crashes",),
    ),
    Mutant(
        "a reader is not patient after a restart",
        FRONTEND,
        "return self.attach is not None and now < self.patient_until",
        "return False",
    ),
    Mutant(
        "what is unknown is not submitted again",
        FRONTEND,
        "            if request_id in self._requests:\n                self._send_opening",
        "            if request_id in b'':\n                self._send_opening",
    ),
    Mutant(
        "its time begins anew when it is submitted again",
        FRONTEND,
        "max(1, round((request.deadline - now) * 1000))",
        "max(1, round((request.deadline - now) * 1000) + 5000)",
        ("ttls",),
    ),
    Mutant(
        "offsets are not looked at",
        FRONTEND,
        "if num_known < 0 or num_known_text < 0:",
        "if False:",
    ),
    Mutant(
        "known tokens are taken again",
        FRONTEND,
        "row.token_ids[num_known:], row.text[num_known_text:]",
        "row.token_ids, row.text",
    ),
    Mutant(
        "a finish is accepted despite a gap",
        FRONTEND,
        "            self._has_gap = True\n            return []\n        token_ids, text",
        "            if row.finish is None:\n                self._has_gap = True\n"
        "                return []\n            num_known = num_known_text = 0\n"
        "        token_ids, text",
    ),
    Mutant(
        "heartbeats' numbers are not looked at",
        FRONTEND,
        "self._has_gap |= frame.number > expected",
        "self._has_gap |= frame.number > expected and not frame.is_heartbeat",
    ),
    Mutant(
        "frames' numbers are not looked at",
        FRONTEND,
        "self._has_gap |= frame.number > expected",
        "pass",
    ),
    Mutant(
        "a gap waits for the next Sync",
        FRONTEND,
        "        if self._has_gap:\n            self._sync_soon(now)\n        elif",
        "        if",
    ),
    Mutant(
        "frames are never acknowledged but by a Sync",
        FRONTEND,
        "            self._send_sync(live=None)  # a mere acknowledgement\n",
        "            pass\n",
    ),
    Mutant(
        "farewells are said once",
        FRONTEND,
        "            self._farewells[request_id] = farewell\n",
        "            pass\n",
        (
            "request_loss",
            "cancels",
        ),
    ),
    Mutant(
        "the worker is not told that all has come",
        FRONTEND,
        "            self._has_finished = True\n        elif",
        "            pass\n        elif",
    ),
    Mutant(
        "rows are taken before the answer to an Attach",
        FRONTEND,
        "if request.submit is None and row.token_ids:",
        "if False:",
        (
            "request_loss",
            "takeovers",
            "joins",
        ),
    ),
    Mutant(
        "a lost Attach is not sent again",
        FRONTEND,
        "if request.is_attaching or request.is_patient(now):",
        "if request.is_patient(now):",
        (
            "request_loss",
            "takeovers",
            "watchers",
        ),
    ),
    Mutant(
        "an Attach is answered with any request",
        FRONTEND,
        "if request.submit is not None and not request.submit.is_same(joined):",
        "if False:",
        (
            "conflicts",
            "watchers",
            "crashes",
        ),
    ),
    Mutant(
        "who takes over stays an attacher",
        FRONTEND,
        "        if is_owner:\n            request.attach = None\n",
        "",
        (
            "takeovers",
            "crashes",
            "frontend_deaths",
        ),
    ),
    Mutant(
        "who has no tokens says that it was the owner",
        FRONTEND,
        "was_owner=request.is_owner and bool(held)",
        "was_owner=request.is_owner",
        ("takeovers", "joins"),
    ),
    Mutant(
        "who submits again without tokens still believes what it was told",
        FRONTEND,
        "request.is_owner |= not held",
        "pass",
        ("joins", "detaches", "crashes"),
    ),
    Mutant(
        "whoever has tokens says that it was the owner",
        FRONTEND,
        "was_owner=request.is_owner and bool(held)",
        "was_owner=bool(held)",
        ("takeovers", "freezes", "crashes", "joins"),
    ),
    Mutant(
        "a former owner does not say that it was one",
        FRONTEND,
        "was_owner=request.is_owner and bool(held)",
        "was_owner=False",
        ("takeovers", "freezes", "crashes", "joins"),
    ),
    Mutant(
        "tokens run ahead of their log probabilities",
        SCORES,
        "return min(num_output_tokens, len(self.output) // record_bytes(self._num_top))",
        "return num_output_tokens",
        ("crashes",),
    ),
    Mutant(
        "tokens run ahead of the prompt's log probabilities",
        SCORES,
        "if self.next_index is not None and self.next_index < self._num_prompt_tokens:",
        "if False:",
        ("crashes",),
    ),
    Mutant(
        "a row has the log probabilities of those before, too",
        SCORES,
        "self.output[start * size : end * size]",
        "self.output[: (end - start) * size]",
    ),
)
