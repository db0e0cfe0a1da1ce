/** How each mark is drawn: by its shape first, by its colour as well. */

import { ABSENT, ACCEPTED, CHUNK, DECODE, FAILED, FINISHED, PREEMPTED } from "./column.js";

/** @typedef {import("./palette.js").Palette} Palette */
/** @typedef {{x: number, y: number, width: number, height: number, unit: number}} Box `unit` is a CSS pixel */
/** @typedef {CanvasRenderingContext2D} Context */

/**
 * @param {Context} context
 * @param {number} marks
 * @param {Box} box
 * @param {Palette} palette
 */
export function paintMarks(context, marks, box, palette) {
  if (marks & ABSENT) return paintAbsence(context, box, palette);
  paintLife(context, box, palette);
  if (marks & CHUNK) paintChunk(context, box, palette);
  if (marks & DECODE) paintDecode(context, box, palette);
  if (marks & ACCEPTED) paintAccepted(context, box, palette);
  if (marks & PREEMPTED) paintPreemption(context, box, palette);
  if (marks & (FINISHED | FAILED)) paintEnd(context, box, palette, (marks & FAILED) > 0);
}

/**
 * @param {Context} context
 * @param {Box} box
 * @param {Palette} palette
 */
function paintLife(context, { x, y, width, height, unit }, palette) {
  context.fillStyle = palette.life;
  context.fillRect(x, y + unit, width, height - 2 * unit);
}

/**
 * @param {Context} context
 * @param {Box} box
 * @param {Palette} palette
 */
function paintAbsence(context, { x, y, width, height, unit }, palette) {
  context.fillStyle = palette.wait;
  const size = Math.max(1, Math.round(unit * 1.5));
  context.fillRect(Math.round(x + (width - size) / 2), Math.round(y + (height - size) / 2), size, size);
}

/**
 * A block as high as the row, with lines across.
 * @param {Context} context
 * @param {Box} box
 * @param {Palette} palette
 */
function paintChunk(context, { x, y, width, height, unit }, palette) {
  const top = y + unit, bottom = y + height - unit;
  context.fillStyle = palette.chunk;
  context.fillRect(x, top, width - Math.max(1, Math.round(unit / 2)), bottom - top);
  context.fillStyle = palette["chunk-line"];
  const thin = Math.max(1, Math.round(unit));
  for (let line = top + 2 * unit; line + thin <= bottom - unit; line += 3 * unit) {
    context.fillRect(x, Math.round(line), width - Math.max(1, Math.round(unit / 2)), thin);
  }
}

/**
 * A small bead on the row's middle.
 * @param {Context} context
 * @param {Box} box
 * @param {Palette} palette
 */
function paintDecode(context, { x, y, width, height, unit }, palette) {
  const bead = Math.max(2 * unit, Math.round(height * 0.36));
  context.fillStyle = palette.decode;
  const wide = Math.max(2 * unit, width - 2 * unit);
  context.fillRect(Math.round(x + (width - wide) / 2), Math.round(y + (height - bead) / 2), wide, bead);
}

/**
 * A dot above the bead and one below it: more than one token.
 * @param {Context} context
 * @param {Box} box
 * @param {Palette} palette
 */
function paintAccepted(context, { x, y, width, height, unit }, palette) {
  const size = Math.max(Math.round(1.5 * unit), Math.round(height * 0.14));
  const wide = Math.max(2 * unit, width - 2 * unit);
  const start = Math.round(x + (width - wide) / 2);
  context.fillStyle = palette.accepted;
  context.fillRect(start, Math.round(y + 2 * unit), wide, size);
  context.fillRect(start, Math.round(y + height - 2 * unit - size), wide, size);
}

/**
 * A cross.
 * @param {Context} context
 * @param {Box} box
 * @param {Palette} palette
 */
function paintPreemption(context, { x, y, width, height, unit }, palette) {
  const size = Math.min(width, height - 2 * unit);
  const left = x + (width - size) / 2, top = y + (height - size) / 2;
  context.strokeStyle = palette.bad;
  context.lineWidth = Math.max(1.5 * unit, size / 5);
  context.beginPath();
  context.moveTo(left, top);
  context.lineTo(left + size, top + size);
  context.moveTo(left + size, top);
  context.lineTo(left, top + size);
  context.stroke();
}

/**
 * A bar at the right, which is broken where the request failed.
 * @param {Context} context
 * @param {Box} box
 * @param {Palette} palette
 * @param {boolean} hasFailed
 */
function paintEnd(context, { x, y, width, height, unit }, palette, hasFailed) {
  const wide = Math.round((hasFailed ? 3 : 2) * unit);
  const left = x + width - wide;
  context.fillStyle = hasFailed ? palette.bad : palette.ink;
  if (!hasFailed) {
    context.fillRect(left, y + unit, wide, height - 2 * unit);
    return;
  }
  const part = Math.round((height - 2 * unit) * 0.36);
  context.fillRect(left, y + unit, wide, part);
  context.fillRect(left, y + height - unit - part, wide, part);
}
