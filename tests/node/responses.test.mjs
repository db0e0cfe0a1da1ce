import assert from "node:assert/strict";
import { test } from "node:test";

import { BadRequestError } from "openai";

import { client, collected, model } from "./client.mjs";

const asked = { model, input: "abc", seed: 7, max_output_tokens: 12, ignore_eos: true };

test("a response is an assistant's message in an item", async () => {
  const answer = await client.responses.create({ ...asked, metadata: { order: "7" } });
  assert.match(answer.id, /^resp_[0-9a-f]{32}$/);
  assert.equal(answer.object, "response");
  assert.equal(answer.status, "incomplete");
  assert.equal(answer.incomplete_details.reason, "max_output_tokens");
  assert.deepEqual(answer.metadata, { order: "7" });
  assert.equal(answer.output[0].role, "assistant");
  assert.equal(answer.output_text, answer.output[0].content[0].text);
  assert.equal(answer.usage.output_tokens, 12);
  assert.equal(answer.usage.output_tokens_details.reasoning_tokens, 0);
});

test("a stream tells what comes whole, event by event, and numbers its events", async () => {
  const whole = await client.responses.create(asked);
  const events = await collected(await client.responses.create({ ...asked, stream: true }));
  assert.deepEqual(
    events.map((event) => event.sequence_number),
    events.map((_, number) => number),
  );
  assert.deepEqual(
    events.slice(0, 4).map((event) => event.type),
    [
      "response.created",
      "response.in_progress",
      "response.output_item.added",
      "response.content_part.added",
    ],
  );
  const deltas = events.filter((event) => event.type === "response.output_text.delta");
  assert.equal(deltas.map((event) => event.delta).join(""), whole.output_text);
  assert.equal(events.at(-1).type, "response.incomplete");
  assert.deepEqual(events.at(-1).response.usage.output_tokens, 12);
});

test("the client's own assembly of a stream is the whole response", async () => {
  const whole = await client.responses.create(asked);
  const assembled = await client.responses.stream(asked).finalResponse();
  assert.equal(assembled.output_text, whole.output_text);
  assert.equal(assembled.status, "incomplete");
});

test("a response can be sent back as it came", async () => {
  const first = await client.responses.create(asked);
  const input = [
    { role: "developer", content: "Be kind." },
    { role: "user", content: "abc" },
    ...first.output,
    { role: "user", content: [{ type: "input_text", text: "cab" }] },
  ];
  const second = await client.responses.create({ ...asked, input });
  assert.ok(second.usage.input_tokens > first.usage.input_tokens + 12);
});

test("what would need a store is refused by name", async () => {
  const refused = client.responses.create({ ...asked, previous_response_id: "resp_1" });
  await assert.rejects(refused, (error) => {
    assert.ok(error instanceof BadRequestError);
    assert.equal(error.param, "previous_response_id");
    assert.equal(error.code, "unsupported_parameter");
    return true;
  });
});
