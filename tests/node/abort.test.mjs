import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

import { client, figure, repeatable, until } from "./client.mjs";

const long = { ...repeatable, prompt: "abc", max_tokens: 450, n: 8 };
const ALL = long.n * long.max_tokens;

async function isIdle() {
  return (await figure("num_requests_running")) === 0;
}

async function tokensWhile(action) {
  await until(isIdle);
  const before = await figure("generation_tokens_total");
  await action();
  await until(isIdle);
  return (await figure("generation_tokens_total")) - before;
}

test("a stream that is aborted ends here without an error, and there without more work", async () => {
  const numTokens = await tokensWhile(async () => {
    const stream = await client.completions.create({ ...long, stream: true });
    let numChunks = 0;
    for await (const _ of stream) {
      numChunks += 1;
      if (numChunks === 3) stream.controller.abort();
    }
    assert.ok(numChunks >= 3);
  });
  assert.ok(numTokens < ALL, `${numTokens} tokens`);
});

test("leaving the loop aborts as well", async () => {
  const numTokens = await tokensWhile(async () => {
    for await (const _ of await client.completions.create({ ...long, stream: true })) break;
  });
  assert.ok(numTokens < ALL, `${numTokens} tokens`);
});

test("a signal aborts an answer that is no stream", async () => {
  const numTokens = await tokensWhile(async () => {
    const abort = new AbortController();
    const asking = client.completions.create(long, { signal: abort.signal });
    const refused = assert.rejects(asking, OpenAI.APIUserAbortError);
    await until(async () => !(await isIdle()));
    abort.abort();
    await refused;
  });
  assert.ok(numTokens < ALL, `${numTokens} tokens`);
});

test("a time-out of the client's is its own error", async () => {
  const asking = client.completions.create(long, { timeout: 20 });
  await assert.rejects(asking, OpenAI.APIConnectionTimeoutError);
  await until(isIdle);
});
