/** Asks the server that the page came from, with the API key if it wants one. */

const STORED = "chairlift-key";

/** A refusal, in the server's own words. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {number} status
   * @param {string | null} code
   */
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }

  /** @param {Response} response */
  static async of(response) {
    const text = await response.text();
    try {
      const { error } = JSON.parse(text);
      return new ApiError(String(error.message), response.status, error.code ?? null);
    } catch {
      return new ApiError(`${response.status} ${response.statusText}`, response.status, null);
    }
  }
}

/**
 * A header has bytes alone, so a key travels as its UTF-8, which is how the server reads it.
 * @param {string} text
 */
function inLatin1(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

/** The key lives in this tab's sessionStorage and goes with the tab. */
export class Session {
  /** @type {Promise<string> | null} */
  #asking = null;
  #key = sessionStorage.getItem(STORED) ?? "";
  #ask;

  /** @param {(reason: string) => Promise<string>} ask the user for a key; rejects when there is none */
  constructor(ask) {
    this.#ask = ask;
  }

  /**
   * The answer, once it is a good one. Raises ApiError, or what fetch raises.
   * @param {string} path relative to the page
   * @param {RequestInit} [options]
   * @returns {Promise<Response>}
   */
  async fetch(path, options = {}) {
    for (;;) {
      const key = this.#key;
      const headers = new Headers(options.headers);
      if (key) headers.set("Authorization", `Bearer ${inLatin1(key)}`);
      const response = await fetch(path, { ...options, headers, cache: "no-store" });
      if (response.ok) return response;
      const error = await ApiError.of(response);
      if (error.code !== "invalid_api_key") throw error;
      if (key === this.#key) await this.#unlock(error.message);
    }
  }

  /**
   * Who has declined once is not asked again.
   * @param {string} reason
   */
  async #unlock(reason) {
    this.#asking ??= this.#ask(reason);
    this.#key = await this.#asking;
    this.#asking = null;
    sessionStorage.setItem(STORED, this.#key);
  }
}
