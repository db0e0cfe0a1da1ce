import assert from "node:assert/strict";
import { test } from "node:test";

import { client, collected, repeatable } from "./client.mjs";

const asked = { ...repeatable, messages: [{ role: "user", content: "abc" }] };
const streamed = { ...asked, stream: true, stream_options: { include_usage: true } };

test("an answer is an assistant's message", async () => {
  const answer = await client.chat.completions.create(asked);
  assert.match(answer.id, /^chatcmpl-[0-9a-f]{32}$/);
  assert.equal(answer.object, "chat.completion");
  assert.equal(answer.choices[0].message.role, "assistant");
  assert.equal(answer.choices[0].message.refusal, null);
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 12);
});

test("a stream opens with the role, and its last chunk is the usage that was asked for", async () => {
  const whole = await client.chat.completions.create(asked);
  const chunks = await collected(await client.chat.completions.create(streamed));
  assert.deepEqual(chunks[0].choices[0].delta, { role: "assistant", content: "" });
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(chunks.at(-2).choices[0].delta, {});
  assert.equal(chunks.at(-2).choices[0].finish_reason, "length");
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.equal(chunks.at(-1).usage.completion_tokens, 12);
  assert.ok(chunks.slice(0, -1).every((chunk) => chunk.usage === null));
});

test("the client's own assembly of a stream of two choices is the whole answer", async () => {
  const whole = await client.chat.completions.create({ ...asked, n: 2 });
  const pieces = [];
  const stream = client.chat.completions.stream({ ...streamed, n: 2 });
  stream.on("content", (piece) => pieces.push(piece));
  const assembled = await stream.finalChatCompletion();
  const texts = ({ choices }) => choices.map(({ message }) => message.content);
  assert.deepEqual(texts(assembled), texts(whole));
  assert.equal(assembled.usage.completion_tokens, 2 * 12);
  assert.equal(pieces.join("").length, texts(whole).join("").length); // of both, as they came
});

test("an answer can be sent back as it came", async () => {
  const first = await client.chat.completions.create(asked);
  const messages = [
    { role: "developer", content: "Be kind." },
    ...asked.messages,
    first.choices[0].message,
    { role: "user", content: [{ type: "text", text: "cab" }] },
  ];
  const second = await client.chat.completions.create({ ...asked, messages });
  assert.ok(second.usage.prompt_tokens > first.usage.prompt_tokens + 12);
});
