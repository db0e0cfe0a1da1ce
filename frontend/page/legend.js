/** The marks in the legend: drawn as they are in the picture. */

import { ABSENT, ACCEPTED, CHUNK, DECODE, FAILED, FINISHED, PREEMPTED } from "./column.js";
import { paintMarks } from "./marks.js";

const WIDTH = 12;
const HEIGHT = 16;

/** @type {Record<string, number[]>} */
const EXAMPLES = {
  chunk: [CHUNK, CHUNK],
  decode: [DECODE, DECODE],
  accepted: [DECODE | ACCEPTED, DECODE],
  absent: [ABSENT, ABSENT],
  preempted: [DECODE, PREEMPTED],
  finished: [DECODE, DECODE | FINISHED],
  failed: [DECODE, DECODE | FAILED],
};

/** @param {import("./palette.js").Palette} palette */
export function paintLegend(palette) {
  for (const image of /** @type {NodeListOf<HTMLImageElement>} */ (document.querySelectorAll("[data-marks]"))) {
    image.src = pictureOf(EXAMPLES[image.dataset.marks ?? ""], palette);
  }
}

/**
 * @param {number[]} columns
 * @param {import("./palette.js").Palette} palette
 * @returns {string} a data address
 */
function pictureOf(columns, palette) {
  const unit = devicePixelRatio;
  const canvas = document.createElement("canvas");
  canvas.width = columns.length * WIDTH * unit;
  canvas.height = HEIGHT * unit;
  const context = canvas.getContext("2d");
  columns.forEach((marks, index) => {
    const box = { x: index * WIDTH * unit, y: 0, width: WIDTH * unit, height: HEIGHT * unit, unit };
    if (context) paintMarks(context, marks, box, palette);
  });
  return canvas.toDataURL();
}
