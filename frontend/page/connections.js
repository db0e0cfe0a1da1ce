/** Six connections are what browsers open to one server over HTTP/1.1, and the feed holds one. */

const MAX_AT_ONCE = 5;

export class Connections {
  #numFree = isMultiplexed() ? Infinity : MAX_AT_ONCE;
  /** @type {(() => void)[]} */
  #waiting = [];

  get areTaken() {
    return this.#numFree === 0;
  }

  /**
   * Waits for one that is free.
   * @param {AbortSignal} signal raises when it is aborted meanwhile
   */
  async take(signal) {
    while (this.#numFree === 0) {
      await new Promise((/** @type {(value?: undefined) => void} */ resolve) => {
        this.#waiting.push(resolve);
        signal.addEventListener("abort", () => resolve(), { once: true });
      });
      signal.throwIfAborted();
    }
    this.#numFree -= 1;
  }

  giveBack() {
    this.#numFree += 1;
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

/** By HTTP/2 and later one connection carries all. */
function isMultiplexed() {
  const [visit] = /** @type {PerformanceNavigationTiming[]} */ (performance.getEntriesByType("navigation"));
  return /^h[23]/.test(visit?.nextHopProtocol ?? "");
}
