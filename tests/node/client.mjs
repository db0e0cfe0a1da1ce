// The official client as an application makes it: OPENAI_BASE_URL and OPENAI_API_KEY say where.

import OpenAI from "openai";

export const model = process.env.CHAIRLIFT_TEST_MODEL;
export const client = new OpenAI({ maxRetries: 0, timeout: 30_000 });

// The tests' model is random: what it says is long, but the same for the same seed.
export const repeatable = { model, seed: 7, max_tokens: 12, ignore_eos: true };

export async function collected(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

// One of the server's figures, as the worker told it last.
export async function figure(name) {
  const url = new URL("/metrics", client.baseURL);
  const text = await (await fetch(url)).text();
  return Number(text.match(new RegExp(`^chairlift:${name} (\\S+)$`, "m"))[1]);
}

export async function until(condition, timeoutMs = 10_000) {
  const deadline = Date.now() + timeoutMs;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`not within ${timeoutMs} ms: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
