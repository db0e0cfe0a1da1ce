/** The seconds above the columns. */

import { Column } from "./column.js";
import { make } from "./dom.js";

export const AXIS = 20; // CSS pixels
const LEAST_DISTANCE = 68;
const CLOCK = new Intl.DateTimeFormat([], { timeStyle: "medium", hourCycle: "h23" });

export class TimeAxis {
  #history;
  #labelled = -Infinity; // the column with the newest label

  /** @param {import("./history.js").History} history */
  constructor(history) {
    this.#history = history;
  }

  /**
   * @param {number} index of a column
   * @returns {number | null} the second that begins with it
   */
  secondAt(index) {
    const column = this.#history.at(index), before = this.#history.at(index - 1);
    if (!(column instanceof Column)) return null;
    const second = Math.floor(column.began_us / 1e6);
    const isFirst = !(before instanceof Column) || Math.floor(before.began_us / 1e6) !== second;
    return isFirst ? second : null;
  }

  /**
   * Writes the second that begins with a column, unless it would touch another's label.
   * @param {import("./tape.js").Place} place of the column
   */
  label({ index, x, width, unit, tile }) {
    const second = this.secondAt(index);
    const distance = (Math.abs(index - this.#labelled) * width) / unit;
    if (second === null || distance < LEAST_DISTANCE) return;
    this.#labelled = index;
    const label = make("span", "second", CLOCK.format(second * 1000));
    label.style.left = `${x / unit + 5}px`;
    tile.append(label);
  }
}
