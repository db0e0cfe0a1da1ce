/** One step, as the picture and the figures want it; or a gap, where steps are missing. */

/** @typedef {import("./watched_request.js").WatchedRequest} WatchedRequest */
/** @typedef {import("./watched_request.js").Cell} Cell */
/** @typedef {import("./watched_request.js").Receipt} Receipt */

/**
 * @typedef {object} StepRecord what the feed says of a step
 * @property {number} number
 * @property {number} began_us
 * @property {Record<string, number>} phases_us
 * @property {number} num_waiting
 * @property {string[]} waiting
 * @property {number} num_free_blocks
 * @property {number} num_shared_blocks
 * @property {string[]} preempted
 * @property {Record<"num_tokens" | "num_prompt_tokens" | "num_drafts" | "num_new_tokens"
 *   | "num_computed_tokens" | "num_total_tokens" | "num_blocks", number[]> & {request: string[]}} rows
 */

/** @typedef {{request: string, reason: string, receipt: Receipt}} Ended what is no longer in the batch */

/** What a request did in a column; where several hold they are drawn over each other. */
export const DECODE = 1;
export const CHUNK = 2;
export const ACCEPTED = 4; // guessed tokens that were right
export const PREEMPTED = 8;
export const FINISHED = 16;
export const FAILED = 32; // finished by an error or abort
export const ABSENT = 64; // lives, and the step had no room for it

/** @typedef {{request: WatchedRequest, lane: number, marks: number, cell: Cell | null}} Entry */

export class Column {
  /** @type {Entry[]} */
  entries = [];
  /** @type {number[]} */
  gaps_ms = [];
  numLanes = 0;
  pause_us = 0; // since the step before
  numPromptTokens = 0;
  numChunkTokens = 0; // of prompts, and of what is computed again
  numDecodeTokens = 0;
  numNewTokens = 0;

  /**
   * @param {StepRecord} step
   * @param {number} numBlocks of the worker
   * @param {WatchedRequest[]} waiting
   */
  constructor(step, numBlocks, waiting) {
    this.isGap = false;
    this.number = step.number;
    this.began_us = step.began_us;
    this.phases_us = step.phases_us;
    this.duration_us = Object.values(step.phases_us).reduce((sum, us) => sum + us, 0);
    this.numWaiting = step.num_waiting;
    this.waiting = waiting;
    this.numUsedBlocks = Math.max(0, numBlocks - step.num_free_blocks);
    this.numSharedBlocks = step.num_shared_blocks;
    this.numBlocks = numBlocks;
  }

  get end_us() {
    return this.began_us + this.duration_us;
  }

  /** @param {Entry} entry */
  add(entry) {
    this.entries.push(entry);
    this.numLanes = Math.max(this.numLanes, entry.lane + 1);
    const { cell } = entry;
    if (!cell) return;
    const numChunk = entry.marks & CHUNK ? cell.num_tokens : 0;
    this.numPromptTokens += cell.num_prompt_tokens;
    this.numChunkTokens += numChunk;
    this.numDecodeTokens += cell.num_tokens - numChunk;
    this.numNewTokens += cell.num_new_tokens;
  }

  /** Those that go on after it. */
  get numRunning() {
    return this.entries.filter(({ cell, marks }) => cell && !(marks & (FINISHED | FAILED))).length;
  }

  /** @param {number} lane */
  entryAt(lane) {
    return this.entries.find((entry) => entry.lane === lane);
  }
}

/** Steps that were not told: as wide as one. */
export class Gap {
  isGap = true;

  /**
   * @param {number} numMissed
   * @param {string} reason
   */
  constructor(numMissed, reason) {
    this.numMissed = numMissed;
    this.reason = reason;
  }
}

/**
 * @param {StepRecord["rows"]} rows
 * @param {number} index
 * @returns {Cell}
 */
export function cellAt(rows, index) {
  return {
    num_tokens: rows.num_tokens[index],
    num_prompt_tokens: rows.num_prompt_tokens[index],
    num_drafts: rows.num_drafts[index],
    num_new_tokens: rows.num_new_tokens[index],
    num_computed_tokens: rows.num_computed_tokens[index],
    num_total_tokens: rows.num_total_tokens[index],
    num_blocks: rows.num_blocks[index],
  };
}

/**
 * @param {Cell} cell
 * @returns {number}
 */
export function marksOf(cell) {
  const isChunk = cell.num_prompt_tokens > 0 || cell.num_tokens > 1;
  const hasAccepted = cell.num_drafts > 0 && cell.num_new_tokens > 1;
  return (isChunk ? CHUNK : DECODE) | (hasAccepted ? ACCEPTED : 0);
}
