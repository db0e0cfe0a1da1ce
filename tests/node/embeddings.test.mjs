import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

import { client, model } from "./client.mjs";

const asked = { model, input: ["abc", "cab"] };

function assertClose(one, other) {
  assert.equal(one.length, other.length);
  one.forEach((value, i) => assert.ok(Math.abs(value - other[i]) < 1e-6, `${value}, ${other[i]}`));
}

test("the client's own encoding and plain numbers are the same vectors of length 1", async () => {
  const byDefault = await client.embeddings.create(asked);
  const floats = await client.embeddings.create({ ...asked, encoding_format: "float" });
  assert.equal(byDefault.object, "list");
  assert.equal(byDefault.model, model);
  assert.deepEqual(byDefault.data.map((one) => one.index), [0, 1]);
  for (const [i, { embedding }] of byDefault.data.entries()) {
    assertClose(embedding, floats.data[i].embedding);
    assert.ok(Math.abs(Math.hypot(...embedding) - 1) < 1e-6);
  }
  assert.ok(byDefault.usage.prompt_tokens > 0);
  assert.equal(byDefault.usage.total_tokens, byDefault.usage.prompt_tokens);
});

test("fewer dimensions are the first ones, of length 1 again", async () => {
  const [whole] = (await client.embeddings.create({ model, input: "abc" })).data;
  const [cut] = (await client.embeddings.create({ model, input: "abc", dimensions: 5 })).data;
  const first = whole.embedding.slice(0, 5);
  const length = Math.hypot(...first);
  assertClose(cut.embedding, first.map((value) => value / length));
});

test("what can't be is a BadRequestError that names the parameter", async () => {
  for (const [param, value] of [["dimensions", 100_000], ["input", ""], ["pooling", "max"]]) {
    await assert.rejects(client.embeddings.create({ ...asked, [param]: value }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError, String(error));
      assert.equal(error.param, param);
      return true;
    });
  }
});
