/** Who serves, how that is, and whether we still hear of it. */

import { element, say } from "./dom.js";

/** @typedef {{model: string | null, epoch: number, max_model_len: number, condition: string}} Worker */

const WORDS = {
  ok: "ready",
  starting: "the worker is starting",
  away: "the worker is away",
  wedged: "the worker stands still",
  draining: "shutting down",
};

export class Status {
  /** @type {number | null} */
  #epoch = null;
  #condition = "starting";
  #isLive = false;
  #onModel;

  /** @param {() => void} onModel when another model may be there */
  constructor(onModel) {
    this.#onModel = onModel;
  }

  /**
   * @param {Worker} worker
   * @returns {boolean} whether it is not the one before
   */
  meet(worker) {
    const isOther = this.#epoch !== null && this.#epoch !== worker.epoch;
    const name = worker.model ?? "no worker yet";
    if (this.#epoch !== null && element("model").textContent !== name) this.#onModel();
    this.#epoch = worker.epoch;
    say(element("model"), name);
    this.#tell();
    return isOther;
  }

  /** @param {Record<string, any>} stats */
  note({ condition }) {
    if (condition === this.#condition) return;
    if (condition === "ok") this.#onModel();
    this.#condition = condition;
    this.#tell();
  }

  /** @param {import("./feed.js").Phase} phase */
  show(phase) {
    this.#isLive = phase.name === "live";
    const notice = element("notice");
    if (phase.name === "lost") {
      const wait_s = Math.max(1, Math.round((phase.wait_ms ?? 0) / 1000));
      say(notice, `The feed of the batch broke off: ${phase.reason}. Trying again in ${wait_s} s.`);
      notice.hidden = false;
    }
    if (phase.name === "live") notice.hidden = true;
    this.#tell();
  }

  #tell() {
    const chip = element("condition");
    const words = /** @type {Record<string, string>} */ (WORDS)[this.#condition] ?? this.#condition;
    say(chip, this.#isLive ? words : "not connected");
    chip.dataset.kind = !this.#isLive ? "idle" : this.#condition === "ok" ? "good" : "bad";
  }
}
