/** Puts steps and what ended in them together again: they come in two events, one right after the other. */

/** @typedef {import("./column.js").StepRecord} StepRecord */
/** @typedef {import("./column.js").Ended} Ended */

export class Together {
  /** @type {StepRecord[]} */
  #steps = [];
  /** @type {Ended[]} */
  #ended = [];
  #isDue = false;
  #onNews;

  /** @param {(steps: StepRecord[], ended: Ended[]) => void} onNews */
  constructor(onNews) {
    this.#onNews = onNews;
  }

  /** @param {StepRecord[]} steps */
  addSteps(steps) {
    this.#steps.push(...steps);
    this.#wait();
  }

  /** @param {Ended[]} ended */
  addEnded(ended) {
    this.#ended.push(...ended);
    this.#wait();
  }

  /** Now. */
  flush() {
    this.#isDue = false;
    const steps = this.#steps, ended = this.#ended;
    this.#steps = [];
    this.#ended = [];
    if (steps.length || ended.length) this.#onNews(steps, ended);
  }

  /** Until all is read that has come. */
  #wait() {
    if (!this.#isDue) setTimeout(() => this.flush());
    this.#isDue = true;
  }
}
