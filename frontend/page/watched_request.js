/** One request as the steps showed it, and its receipt once it has ended. */

/**
 * @typedef {object} Receipt
 * @property {string} request
 * @property {number} queued_ms
 * @property {number | null} ttft_ms
 * @property {number} total_ms
 * @property {number} max_gap_ms
 * @property {number} num_prompt_tokens
 * @property {number} num_cached_tokens
 * @property {number} num_output_tokens
 * @property {number} num_resumed_tokens
 * @property {number} num_steps
 * @property {number} num_chunks
 * @property {number} num_recomputed_tokens
 * @property {number} num_preemptions
 * @property {number} mean_mates
 * @property {number} max_mates
 */

/** @typedef {{reason: string, receipt: Receipt | null}} Ending */
/** @typedef {{endpoint: string, outcome: string, request_id: string}} HttpRequest */

/**
 * @typedef {object} Cell one row of one step
 * @property {number} num_tokens
 * @property {number} num_prompt_tokens
 * @property {number} num_drafts
 * @property {number} num_new_tokens
 * @property {number} num_computed_tokens
 * @property {number} num_total_tokens
 * @property {number} num_blocks
 */

export class WatchedRequest {
  /** @type {number | null} */
  lane = null;
  /** @type {number | null} the column of its first step */
  firstColumn = null;
  /** @type {number | null} of its newest step */
  lastStepColumn = null;
  /** the newest column that names it, in the batch or in the queue */
  lastColumn;
  /** @type {number} */
  seen_us;
  /** @type {number | null} */
  began_us = null;
  /** @type {number | null} */
  firstToken_us = null;
  /** @type {number | null} */
  lastToken_us = null;
  /** @type {number | null} */
  lastStep_us = null;
  maxGap_ms = 0;
  numSteps = 0;
  numChunks = 0;
  numPreemptions = 0;
  numCachedTokens = 0;
  numOutputTokens = 0;
  numPromptTokens = 0;
  sumMates = 0;
  maxMates = 0;
  isWaiting = false;
  isChunk = false;
  /** @type {boolean} whether steps of it were missed, so that counts are of what was seen */
  isPartial;
  /** @type {Cell | null} its newest */
  cell = null;
  /** @type {Ending | null} */
  ending = null;
  /** @type {HttpRequest | null} */
  http = null;

  /**
   * @param {string} hash
   * @param {number} column
   * @param {number} now_us
   * @param {boolean} isPartial
   */
  constructor(hash, column, now_us, isPartial) {
    this.hash = hash;
    this.lastColumn = column;
    this.seen_us = now_us;
    this.isPartial = isPartial;
  }

  get state() {
    if (this.ending) return this.ending.reason;
    if (this.isWaiting) return "waiting";
    return this.isChunk ? "prefill" : "decode";
  }

  get meanMates() {
    return this.numSteps ? this.sumMates / this.numSteps : 0;
  }

  /**
   * @param {Cell} cell
   * @param {number} column
   * @param {{began_us: number, end_us: number, numMates: number}} step
   * @returns {number | null} milliseconds since its last token, if the step gave it one
   */
  take(cell, column, step) {
    if (this.began_us === null) this.#begin(cell, column, step.began_us);
    const since_us = step.end_us - (this.lastStep_us ?? step.end_us);
    this.maxGap_ms = Math.max(this.maxGap_ms, since_us / 1000);
    this.lastStep_us = step.end_us;
    this.lastStepColumn = column;
    this.cell = cell;
    this.lastColumn = column;
    this.isWaiting = false;
    this.isChunk = cell.num_prompt_tokens > 0 || cell.num_tokens > 1;
    this.numSteps += 1;
    this.numChunks += Number(this.isChunk);
    this.numOutputTokens += cell.num_new_tokens;
    this.sumMates += step.numMates;
    this.maxMates = Math.max(this.maxMates, step.numMates);
    return cell.num_new_tokens > 0 ? this.#tokenAt(step.end_us) : null;
  }

  /**
   * @param {Cell} cell
   * @param {number} column
   * @param {number} now_us
   */
  #begin(cell, column, now_us) {
    this.began_us = now_us;
    this.firstColumn = column;
    this.isPartial ||= cell.num_prompt_tokens === 0;
    this.numCachedTokens = Math.max(0, cell.num_computed_tokens - cell.num_tokens);
    this.numPromptTokens = cell.num_total_tokens - cell.num_new_tokens;
  }

  /** @param {number} now_us */
  #tokenAt(now_us) {
    const gap_ms = this.lastToken_us === null ? null : (now_us - this.lastToken_us) / 1000;
    this.firstToken_us ??= now_us;
    this.lastToken_us = now_us;
    return gap_ms;
  }

  /** @returns {Receipt} the worker's own, or so much of it as was seen so far */
  receipt() {
    if (this.ending?.receipt) return this.ending.receipt;
    const until_us = this.lastStep_us ?? this.seen_us;
    return {
      request: this.hash,
      queued_ms: ((this.began_us ?? this.seen_us) - this.seen_us) / 1000,
      ttft_ms: this.firstToken_us === null ? null : (this.firstToken_us - this.seen_us) / 1000,
      total_ms: (until_us - this.seen_us) / 1000,
      max_gap_ms: this.maxGap_ms,
      num_prompt_tokens: this.numPromptTokens,
      num_cached_tokens: this.numCachedTokens,
      num_output_tokens: this.numOutputTokens,
      num_resumed_tokens: 0,
      num_steps: this.numSteps,
      num_chunks: this.numChunks,
      num_recomputed_tokens: 0,
      num_preemptions: this.numPreemptions,
      mean_mates: this.meanMates,
      max_mates: this.maxMates,
    };
  }
}
