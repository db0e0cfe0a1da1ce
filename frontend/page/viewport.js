/** Which columns are looked at: it follows the newest one, or stays where it was put. */

const WIDTHS = [4, 6, 8, 12, 16, 24];
const EASE_MS = 120;
const CLOSE_ENOUGH = 0.02; // columns

export class Viewport {
  isLive = true;
  right = 0; // the column at the right edge, exclusive; between two while it moves
  width = 600; // CSS pixels
  #zoom = 2;
  #held = 0; // `right`, where it was let go of last
  #history;
  #prefersStill = matchMedia("(prefers-reduced-motion: reduce)");

  /** @param {import("./history.js").History} history */
  constructor(history) {
    this.#history = history;
  }

  get columnWidth() {
    return WIDTHS[this.#zoom];
  }

  get numColumns() {
    return this.width / this.columnWidth;
  }

  /** The first column that shows. */
  get left() {
    return this.right - this.numColumns;
  }

  /** The columns that show, oldest first. */
  *columns() {
    const end = Math.min(this.#history.end, Math.ceil(this.right));
    for (let index = Math.max(this.#history.first, Math.floor(this.left)); index < end; index++) {
      const column = this.#history.at(index);
      if (column) yield column;
    }
  }

  /**
   * Moves towards the newest column.
   * @param {number} elapsed_ms
   * @returns {boolean} whether it is still on its way
   */
  follow(elapsed_ms) {
    if (!this.isLive) {
      this.#clamp();
      return false;
    }
    const behind = this.#history.end - this.right;
    const isThere = behind < CLOSE_ENOUGH || behind > this.numColumns || this.#prefersStill.matches;
    this.right = isThere
      ? this.#history.end
      : this.right + behind * (1 - Math.exp(-elapsed_ms / EASE_MS));
    return !isThere;
  }

  pause() {
    this.isLive = false;
    this.right = this.#held = Math.round(this.right);
  }

  resume() {
    this.isLive = true;
  }

  /** @param {number} numColumns to the right; negative is back in time */
  scrollBy(numColumns) {
    this.scrollTo(this.right + numColumns);
  }

  /** @param {number} right */
  scrollTo(right) {
    if (this.isLive) this.pause();
    this.right = right;
    this.#clamp();
  }

  /**
   * So that it is in sight, a third from the left.
   * @param {number} column
   */
  reveal(column) {
    if (column < this.left || column >= this.right) {
      this.scrollTo(Math.round(column + (this.numColumns * 2) / 3));
    }
  }

  /** @param {number} by steps; positive is larger */
  zoom(by) {
    this.#zoom = Math.min(WIDTHS.length - 1, Math.max(0, this.#zoom + by));
    this.#clamp();
  }

  /** Not beyond the newest, nor so far back that less than a page shows, unless that is all. */
  #clamp() {
    const { first, end } = this.#history;
    const page = first + Math.floor(this.numColumns);
    const least = first > 0 ? page : Math.min(page, this.#held);
    this.right = Math.min(end, Math.max(least, this.right));
    this.#held = this.right;
  }
}
