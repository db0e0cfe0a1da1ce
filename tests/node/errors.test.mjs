import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

import { client, model, repeatable } from "./client.mjs";

const asked = { ...repeatable, prompt: "abc" };

test("another model's name is a NotFoundError, asked once", async () => {
  let numRequests = 0;
  const counting = client.withOptions({
    maxRetries: 2,
    fetch: (...args) => {
      numRequests += 1;
      return fetch(...args);
    },
  });
  const asking = counting.completions.create({ ...asked, model: "no/such" });
  await assert.rejects(asking, (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError, String(error));
    assert.equal(error.status, 404);
    assert.equal(error.code, "model_not_found");
    assert.equal(error.type, "invalid_request_error");
    assert.match(error.requestID, /^req-/);
    assert.match(error.message, /no\/such/);
    return true;
  });
  assert.equal(numRequests, 1);
});

for (const [param, value, code] of [
  ["temperature", 3, "invalid_value"],
  ["n", "two", "invalid_value"],
  ["no_such_parameter", 1, "unknown_parameter"],
  ["suffix", "cba", "unsupported_parameter"],
]) {
  test(`a bad ${param} is a BadRequestError that names it`, async () => {
    await assert.rejects(client.completions.create({ ...asked, [param]: value }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError, String(error));
      assert.equal(error.param, param);
      assert.equal(error.code, code);
      assert.ok(error.message.includes(param));
      return true;
    });
  });
}

test("what can't fit is told as such, in a stream too before it begins", async () => {
  const tooMuch = { ...asked, max_tokens: 100_000, stream: true };
  await assert.rejects(client.completions.create(tooMuch), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError, String(error));
    assert.equal(error.code, "context_length_exceeded");
    return true;
  });
});

test("the models can be listed page by page and asked for by name", async () => {
  const names = [];
  for await (const one of client.models.list()) names.push(one.id);
  assert.deepEqual(names, [model]);
  assert.equal((await client.models.retrieve(model)).object, "model");
  await assert.rejects(client.models.retrieve("no/such"), OpenAI.NotFoundError);
});
