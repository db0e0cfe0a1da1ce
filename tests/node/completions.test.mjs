import assert from "node:assert/strict";
import { test } from "node:test";

import { client, collected, model, repeatable } from "./client.mjs";

const asked = { ...repeatable, prompt: "abc" };

test("a completion has its text, its reason and its usage", async () => {
  const answer = await client.completions.create(asked);
  assert.match(answer.id, /^cmpl-[0-9a-f]{32}$/);
  assert.equal(answer.object, "text_completion");
  assert.equal(answer.model, model);
  const [choice, ...others] = answer.choices;
  assert.equal(others.length, 0);
  assert.ok(choice.text.length > 0);
  assert.equal(choice.finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 12);
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + 12);
  assert.match(answer._request_id, /^req-/);
});

test("a stream's pieces make the whole, and only the last has a reason", async () => {
  const whole = await client.completions.create(asked);
  const chunks = await collected(await client.completions.create({ ...asked, stream: true }));
  assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(""), whole.choices[0].text);
  const reasons = chunks.map((chunk) => chunk.choices[0].finish_reason);
  assert.equal(reasons.pop(), "length");
  assert.ok(reasons.every((reason) => reason === null));
  assert.equal(new Set(chunks.map((chunk) => chunk.id)).size, 1);
  assert.ok(chunks.every((chunk) => !("usage" in chunk)));
});

test("prompts times n choices are numbered through", async () => {
  const answer = await client.completions.create({ ...asked, prompt: ["abc", "cab"], n: 2 });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2, 3]);
  assert.equal(answer.usage.completion_tokens, 4 * 12);
});

test("a stop string ends the text and is no part of it", async () => {
  const text = (await client.completions.create(asked)).choices[0].text;
  const stop = text.slice(4, 6);
  const stopped = (await client.completions.create({ ...asked, stop })).choices[0];
  assert.equal(stopped.text, text.slice(0, text.indexOf(stop)));
  assert.equal(stopped.finish_reason, "stop");
});
