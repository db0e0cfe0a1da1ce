/** The batch as a picture: a row for each running request, a column for each step. */

import { Column } from "./column.js";
import { element } from "./dom.js";
import { paintMarks } from "./marks.js";
import { Tape } from "./tape.js";
import { AXIS, TimeAxis } from "./time_axis.js";

/** @typedef {import("./palette.js").Palette} Palette */
/** @typedef {import("./watched_request.js").WatchedRequest} WatchedRequest */

// Of so many rows, in CSS pixels each.
const ROW_HEIGHTS = [[12, 24], [16, 20], [20, 18], [24, 16], [28, 15], [32, 14], [40, 13], [48, 12], [64, 11]];
const LEAST_ROW_HEIGHT = 10;

/** What is at a place of the picture. */
/** @typedef {{column: Column | import("./column.js").Gap, request: WatchedRequest | null, entry: import("./column.js").Entry | null}} Hit */

export class BatchView {
  /** @type {WatchedRequest | null} */
  selected = null;
  numLanes = 0;
  rowHeight = 24;
  stage = element("rows");
  #history;
  #viewport;
  #tape = new Tape(this.stage, (context, place) => this.#paintColumn(context, place));
  /** @type {Palette} */
  #palette;
  #axis;
  #frame = element("chosen");
  #numSlots = ROW_HEIGHTS[0][0];
  #look = 0; // of the palette

  /**
   * @param {import("./history.js").History} history
   * @param {import("./viewport.js").Viewport} viewport
   * @param {Palette} palette
   */
  constructor(history, viewport, palette) {
    this.#history = history;
    this.#viewport = viewport;
    this.#palette = palette;
    this.#axis = new TimeAxis(history);
  }

  /** @param {Palette} palette */
  repaint(palette) {
    this.#palette = palette;
    this.#look += 1;
  }

  get height() {
    return AXIS + this.#numSlots * this.rowHeight;
  }

  /** @param {number} lane */
  top(lane) {
    return AXIS + lane * this.rowHeight;
  }

  /** @param {number} y in CSS pixels, from the stage's top */
  laneAt(y) {
    return Math.floor((y - AXIS) / this.rowHeight);
  }

  draw() {
    this.#fitRows();
    this.#tape.resize(this.height);
    this.#tape.draw(this.#viewport, this.#history, `${this.#look} ${this.#history.revision} ${this.rowHeight}`);
    this.#showSelection();
  }

  /** Rows as high as all of them allow. */
  #fitRows() {
    this.numLanes = 0;
    for (const column of this.#viewport.columns()) {
      if (column instanceof Column) this.numLanes = Math.max(this.numLanes, column.numLanes);
    }
    const fitting = ROW_HEIGHTS.find(([slots]) => this.numLanes <= slots);
    this.#numSlots = fitting ? fitting[0] : this.numLanes;
    this.rowHeight = fitting ? fitting[1] : LEAST_ROW_HEIGHT;
  }

  /**
   * @param {import("./marks.js").Context} context
   * @param {import("./tape.js").Place} place
   */
  #paintColumn(context, place) {
    const { index, x, width, height, unit } = place;
    const column = this.#history.at(index);
    const axis = AXIS * unit;
    if (!column) return;
    if (!(column instanceof Column)) {
      paintGap(context, { x, y: axis, width, height: height - axis, unit }, this.#palette);
      return;
    }
    this.#axis.label(place);
    if (this.#axis.secondAt(index) !== null || column.pause_us > 1e6) {
      context.fillStyle = this.#palette.line;
      context.fillRect(x, 0, Math.max(1, Math.round(unit)), height);
    }
    const rowHeight = this.rowHeight * unit;
    for (const { lane, marks } of column.entries) {
      const y = Math.round(axis + lane * rowHeight);
      const box = { x, y, width, height: Math.round(rowHeight), unit };
      paintMarks(context, marks, box, this.#palette);
    }
  }

  /** A frame around the chosen request's life. */
  #showSelection() {
    const request = this.selected;
    const isShown = request !== null && request.lane !== null && request.firstColumn !== null;
    this.#frame.hidden = !isShown;
    if (!isShown) return;
    const { right, columnWidth, width } = this.#viewport;
    const from = Math.max(-4, width - (right - Number(request.firstColumn)) * columnWidth);
    const until = Math.min(width + 4, width - (right - request.lastColumn - 1) * columnWidth);
    this.#frame.style.transform = `translate(${from - 1}px, ${this.top(Number(request.lane))}px)`;
    this.#frame.style.width = `${Math.max(0, until - from + 2)}px`;
    this.#frame.style.height = `${this.rowHeight}px`;
  }

  /**
   * @param {number} x in CSS pixels, from the stage's corner
   * @param {number} y
   * @returns {Hit | null}
   */
  hit(x, y) {
    const index = Math.floor(this.#viewport.right - (this.#viewport.width - x) / this.#viewport.columnWidth);
    const column = this.#history.at(index);
    if (!column) return null;
    const entry = (column instanceof Column && column.entryAt(this.laneAt(y))) || null;
    return { column, entry, request: entry?.request ?? null };
  }

  /**
   * What was last in each lane, up to the right edge and in sight.
   * @returns {(import("./column.js").Entry | undefined)[]}
   */
  holders() {
    /** @type {(import("./column.js").Entry | undefined)[]} */
    const holders = new Array(this.numLanes);
    let numMissing = this.numLanes;
    const first = Math.max(this.#history.first, Math.floor(this.#viewport.left));
    for (let index = Math.ceil(this.#viewport.right) - 1; index >= first && numMissing > 0; index--) {
      const column = this.#history.at(index);
      if (!(column instanceof Column)) continue;
      for (const entry of column.entries) {
        if (holders[entry.lane]) continue;
        holders[entry.lane] = entry;
        numMissing -= 1;
      }
    }
    return holders;
  }
}

/**
 * Steps that were not told: a torn edge.
 * @param {import("./marks.js").Context} context
 * @param {import("./marks.js").Box} box
 * @param {Palette} palette
 */
function paintGap(context, { x, y, width, height, unit }, palette) {
  context.fillStyle = palette.band;
  context.fillRect(x, y, width, height);
  context.strokeStyle = palette.muted;
  context.lineWidth = unit;
  context.beginPath();
  const middle = x + width / 2, reach = Math.min(width / 3, 3 * unit);
  for (let step = 0; step * 5 * unit <= height; step++) {
    context.lineTo(middle + (step % 2 ? reach : -reach), y + step * 5 * unit);
  }
  context.stroke();
}
