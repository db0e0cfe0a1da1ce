/** Which row of the picture a request has: the lowest that is free, for as long as it lives. */

export class Lanes {
  /** @type {boolean[]} */
  #taken = [];

  /** @returns {number} */
  take() {
    const free = this.#taken.indexOf(false);
    const lane = free < 0 ? this.#taken.length : free;
    this.#taken[lane] = true;
    return lane;
  }

  /** @param {number} lane */
  free(lane) {
    this.#taken[lane] = false;
  }
}
