/** Beside the rows: whose each is, and how far it has come. */

import { FAILED, FINISHED } from "./column.js";
import { element } from "./dom.js";

/** @typedef {import("./column.js").Entry} Entry */

const HASH_WIDTH = 62;
const NARROW = 110;

export class Gutter {
  #canvas = /** @type {HTMLCanvasElement} */ (element("gutter"));
  #view;

  /** @param {import("./batch_view.js").BatchView} view */
  constructor(view) {
    this.#view = view;
  }

  /** @param {import("./palette.js").Palette} palette */
  draw(palette) {
    const width = this.#canvas.parentElement?.clientWidth ?? 0;
    const scale = devicePixelRatio;
    this.#canvas.width = Math.round(width * scale);
    this.#canvas.height = Math.round(this.#view.height * scale);
    this.#canvas.style.height = `${this.#view.height}px`;
    const context = this.#canvas.getContext("2d");
    if (!context) return;
    context.scale(scale, scale);
    const size = Math.min(12, Math.max(9, this.#view.rowHeight - 3));
    context.font = `${size}px ${getComputedStyle(this.#canvas).fontFamily}`;
    context.textBaseline = "middle";
    for (const entry of this.#view.holders()) {
      if (entry) this.#drawLabel(context, entry, width, palette);
    }
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {Entry} entry
   * @param {number} width
   * @param {import("./palette.js").Palette} palette
   */
  #drawLabel(context, entry, width, palette) {
    const { request, lane, marks } = entry;
    const hasEnded = (marks & (FINISHED | FAILED)) > 0;
    const top = this.#view.top(lane);
    const middle = top + this.#view.rowHeight / 2;
    const isSelected = request === this.#view.selected;
    if (isSelected) {
      context.fillStyle = palette.ink;
      context.fillRect(0, top + 1, 3, this.#view.rowHeight - 2);
    }
    context.textAlign = "left";
    context.fillStyle = hasEnded ? palette.faint : palette.ink;
    context.fillText(request.hash, 8, middle);
    if (width < NARROW) return;
    const right = width - 10;
    context.textAlign = "right";
    context.fillStyle = hasEnded ? palette.faint : palette.muted;
    context.fillText(progressOf(entry), right, middle, right - HASH_WIDTH - 12);
  }
}

/**
 * As it was in that column.
 * @param {Pick<Entry, "request" | "marks" | "cell">} entry
 */
function progressOf({ request, marks, cell }) {
  if (marks & (FINISHED | FAILED)) return request.ending?.reason ?? "";
  return cell ? `${cell.num_computed_tokens}/${cell.num_total_tokens}` : "waiting";
}
