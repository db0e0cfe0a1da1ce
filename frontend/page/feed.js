/** GET watch: what the server tells of the running batch, for as long as the page is open. */

import { ApiError } from "./session.js";
import { eventsOf } from "./sse.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8_000;
const SILENCE_MS = 20_000; // stats come once a second

/**
 * @typedef {object} Phase
 * @property {"connecting" | "live" | "lost"} name
 * @property {string} [reason] why it was lost
 * @property {number} [wait_ms] until it is tried again
 */

export class Feed {
  #session;
  #onEvent;
  #onPhase;
  #wait_ms = FIRST_WAIT_MS;

  /**
   * @param {import("./session.js").Session} session
   * @param {(name: string, data: any) => void} onEvent
   * @param {(phase: Phase) => void} onPhase
   */
  constructor(session, onEvent, onPhase) {
    this.#session = session;
    this.#onEvent = onEvent;
    this.#onPhase = onPhase;
  }

  /** Never returns: what breaks off is opened again, after longer and longer waits. */
  async run() {
    for (;;) {
      this.#onPhase({ name: "connecting" });
      const reason = await this.#read();
      const wait_ms = Math.round(this.#wait_ms * (0.75 + Math.random() / 2));
      this.#wait_ms = Math.min(2 * this.#wait_ms, LONGEST_WAIT_MS);
      this.#onPhase({ name: "lost", reason, wait_ms });
      await new Promise((resolve) => setTimeout(resolve, wait_ms));
    }
  }

  /** @returns {Promise<string>} why it ended */
  async #read() {
    const abort = new AbortController();
    const watchdog = new Watchdog(SILENCE_MS, () => abort.abort());
    try {
      const response = await this.#session.fetch("watch", { signal: abort.signal });
      if (!response.body) return "the answer is empty";
      for await (const { event, data } of eventsOf(response.body, () => watchdog.calm())) {
        this.#wait_ms = FIRST_WAIT_MS;
        if (event === "worker") this.#onPhase({ name: "live" });
        this.#onEvent(event, JSON.parse(data));
      }
      return "the server ended it";
    } catch (error) {
      if (abort.signal.aborted) return "nothing came any more";
      return error instanceof ApiError || error instanceof SyntaxError
        ? error.message
        : "the server can't be reached";
    } finally {
      watchdog.end();
    }
  }
}

/** Barks once when it has not been calmed for so long. */
class Watchdog {
  #limit_ms;
  #bark;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /**
   * @param {number} limit_ms
   * @param {() => void} bark
   */
  constructor(limit_ms, bark) {
    this.#limit_ms = limit_ms;
    this.#bark = bark;
  }

  calm() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(this.#bark, this.#limit_ms);
  }

  end() {
    clearTimeout(this.#timer);
  }
}
