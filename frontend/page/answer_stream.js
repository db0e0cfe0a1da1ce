/** One answer as the API streams it, chat and completion alike. */

import { ApiError } from "./session.js";
import { eventsOf } from "./sse.js";

/** @typedef {{text: string, logprob: number}} Alternative */
/** @typedef {{text: string, logprob: number, alternatives: Alternative[]}} Token */

/**
 * @typedef {object} News
 * @property {string} text
 * @property {string} thought
 * @property {Token[]} tokens only where probabilities were asked for
 * @property {string | null} finish_reason
 * @property {Usage | null} usage
 */

/**
 * @typedef {object} Usage
 * @property {number} prompt_tokens
 * @property {number} completion_tokens
 * @property {import("./watched_request.js").Receipt[]} [receipt]
 */

/**
 * Raises ApiError for what the server refuses, or tells in the midst of it.
 * @param {import("./session.js").Session} session
 * @param {import("./parameters.js").Ask} ask
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<News, void>}
 */
export async function* answer(session, ask, signal) {
  const response = await session.fetch(ask.path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Chairlift-Receipt": "1" },
    body: JSON.stringify(ask.body),
    signal,
  });
  if (!response.body) return;
  for await (const { data } of eventsOf(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(String(chunk.error.message), response.status, chunk.error.code);
    yield newsOf(chunk);
  }
  throw new ApiError("the answer broke off", response.status, "incomplete");
}

/**
 * @param {any} chunk
 * @returns {News}
 */
function newsOf(chunk) {
  const choice = chunk.choices?.[0] ?? {};
  return {
    text: choice.text ?? choice.delta?.content ?? "",
    thought: choice.delta?.reasoning_content ?? "",
    tokens: tokensOf(choice.logprobs),
    finish_reason: choice.finish_reason ?? null,
    usage: chunk.usage ?? null,
  };
}

/**
 * @param {any} logprobs in the way of chats, or of completions
 * @returns {Token[]}
 */
function tokensOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) {
    return logprobs.content.map((/** @type {any} */ entry) => ({
      text: entry.token,
      logprob: entry.logprob,
      alternatives: entry.top_logprobs.map((/** @type {any} */ top) => ({ text: top.token, logprob: top.logprob })),
    }));
  }
  return (logprobs.tokens ?? []).map((/** @type {string} */ text, /** @type {number} */ index) => ({
    text,
    logprob: logprobs.token_logprobs[index] ?? 0,
    alternatives: Object.entries(logprobs.top_logprobs[index] ?? {}).map(([top, logprob]) => ({ text: top, logprob })),
  }));
}
