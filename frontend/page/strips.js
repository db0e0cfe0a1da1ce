/** Below the rows, in the same columns: tokens, time, blocks and the queue of each step. */

import { Column } from "./column.js";
import { element, say } from "./dom.js";
import { Tape } from "./tape.js";
import { milliseconds, short } from "./wording.js";

/** @typedef {import("./palette.js").Palette} Palette */
/** @typedef {{value: number, colour: string}} Layer */

const HEIGHT = 46; // of a strip, with the space above it
const SPACE = 10;
export const PHASES = ["forward", "sample", "schedule", "commit", "publish", "arrivals"];

/**
 * @typedef {object} Strip
 * @property {string} name of its label's elements
 * @property {(column: Column, palette: Palette) => Layer[]} layers from the bottom up
 * @property {(limit: number) => string} unit
 */

/** @type {Strip[]} */
const STRIPS = [
  {
    name: "tokens",
    layers: (column, palette) => [
      { value: column.numDecodeTokens, colour: palette.decode },
      { value: column.numChunkTokens, colour: palette.chunk },
    ],
    unit: short,
  },
  {
    name: "time",
    layers: (column, palette) =>
      phasesOf(column).map(([name, us]) => ({ value: us, colour: phaseColour(name, palette) })),
    unit: (limit) => milliseconds(limit / 1000),
  },
  {
    name: "blocks",
    layers: (column, palette) => [
      { value: column.numSharedBlocks, colour: palette.shared },
      { value: column.numUsedBlocks - column.numSharedBlocks, colour: palette.used },
    ],
    unit: short,
  },
  {
    name: "queue",
    layers: (column, palette) => [{ value: column.numWaiting, colour: palette.wait }],
    unit: short,
  },
];

export class Strips {
  #history;
  #viewport;
  #palette;
  #look = 0;
  #limits = STRIPS.map(() => 1);
  #tape = new Tape(element("strips"), (context, place) => this.#paintColumn(context, place));

  /**
   * @param {import("./history.js").History} history
   * @param {import("./viewport.js").Viewport} viewport
   * @param {Palette} palette
   */
  constructor(history, viewport, palette) {
    this.#history = history;
    this.#viewport = viewport;
    this.#palette = palette;
  }

  /** @param {Palette} palette */
  repaint(palette) {
    this.#palette = palette;
    this.#look += 1;
  }

  /** To what is in sight, by round numbers. */
  rescale() {
    const columns = [...this.#viewport.columns()].filter((column) => column instanceof Column);
    if (!columns.length) return;
    this.#limits = STRIPS.map(({ layers, name }) => {
      if (name === "blocks") return Math.max(1, this.#history.newest?.numBlocks ?? 1);
      return roundUp(Math.max(1, ...columns.map((column) => sum(layers(column, this.#palette)))));
    });
    STRIPS.forEach(({ name, unit }, i) => say(element(`limit-${name}`), unit(this.#limits[i])));
  }

  draw() {
    this.#tape.resize(HEIGHT * STRIPS.length);
    this.#tape.draw(this.#viewport, this.#history, `${this.#look} ${this.#limits}`);
  }

  /**
   * @param {import("./marks.js").Context} context
   * @param {import("./tape.js").Place} place
   */
  #paintColumn(context, { index, x, width, unit }) {
    const column = this.#history.at(index);
    STRIPS.forEach(({ layers }, number) => {
      const bottom = Math.round((number + 1) * HEIGHT * unit);
      context.fillStyle = this.#palette.line;
      context.fillRect(x, bottom - Math.max(1, Math.round(unit)), width, Math.max(1, Math.round(unit)));
      if (!(column instanceof Column)) return;
      const scale = ((HEIGHT - SPACE) * unit) / this.#limits[number];
      let y = bottom - unit;
      for (const { value, colour } of layers(column, this.#palette)) {
        const height = value * scale;
        context.fillStyle = colour;
        context.fillRect(x, y - height, width - (width > 4 ? Math.round(unit) : 0), height);
        y -= height;
      }
    });
  }
}

/**
 * In the order that they are stacked in; what we don't know comes last.
 * @param {Column} column
 */
export function phasesOf(column) {
  const known = PHASES.filter((name) => name in column.phases_us);
  const others = Object.keys(column.phases_us).filter((name) => !PHASES.includes(name));
  return [...known, ...others].map((name) => /** @type {[string, number]} */ ([name, column.phases_us[name]]));
}

/**
 * @param {string} name
 * @param {Palette} palette
 */
export function phaseColour(name, palette) {
  const index = PHASES.indexOf(name);
  const key = /** @type {keyof Palette} */ (`phase-${index < 0 ? PHASES.length - 1 : index}`);
  return palette[key];
}

/** @param {Layer[]} layers */
function sum(layers) {
  return layers.reduce((total, { value }) => total + value, 0);
}

/**
 * The next of 1, 1.5, 2, 3, 4, 6, 8, 10, 15, ...
 * @param {number} value
 */
export function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 6, 8, 10].map((step) => step * power).find((limit) => limit >= value) ?? value;
}
