/** The newest steps and the requests in them: what there is to scroll through, and no more. */

import { ABSENT, Column, FAILED, FINISHED, Gap, PREEMPTED, cellAt, marksOf } from "./column.js";
import { Lanes } from "./lanes.js";
import { WatchedRequest } from "./watched_request.js";

/** @typedef {import("./column.js").StepRecord} StepRecord */
/** @typedef {import("./column.js").Ended} Ended */

export const MAX_COLUMNS = 6_000;
const SWEEP_EVERY = 256;
const LOST_AFTER = 64; // columns without a sign of a request whose end may have been missed

export class History {
  /** @type {(Column | Gap)[]} a ring: column i is at i % MAX_COLUMNS */
  #columns = [];
  #lanes = new Lanes();
  #numBlocks = 0;
  /** @type {number | null} */
  #number = null;
  #isLossy = false; // whether the end of a living request may have been missed
  #lossyUntil = 0;
  end = 0;
  revision = 0; // of columns that were there already
  /** @type {Map<string, WatchedRequest>} */
  requests = new Map();
  /** @type {Set<WatchedRequest>} those with a lane */
  living = new Set();

  get first() {
    return Math.max(0, this.end - MAX_COLUMNS);
  }

  /** @param {number} index */
  at(index) {
    return index < this.first || index >= this.end ? undefined : this.#columns[index % MAX_COLUMNS];
  }

  /** The newest that is a step. */
  get newest() {
    const column = this.at(this.end - 1);
    return column instanceof Column ? column : undefined;
  }

  /** @param {number} numBlocks */
  size(numBlocks) {
    this.#numBlocks = numBlocks;
  }

  /** The worker that comes now is another, or began anew. */
  restart() {
    for (const request of [...this.living]) this.#leave(request);
    if (this.#number !== null) this.#push(new Gap(0, "another worker"));
    this.#number = null;
  }

  /** The feed broke off; what was missed shows by the next step's number. */
  breakOff() {
    this.#suspect();
  }

  /**
   * Steps that were told together, and what ended in them.
   * @param {StepRecord[]} steps
   * @param {Ended[]} ended
   */
  take(steps, ended) {
    const inStep = steps.map(() => /** @type {Ended[]} */ ([]));
    for (const one of ended) {
      const index = steps.findLastIndex(({ rows }) => rows.request.includes(one.request));
      if (index < 0) this.#endLate(one);
      else inStep[index].push(one);
    }
    steps.forEach((step, index) => this.#add(step, inStep[index]));
  }

  /**
   * @param {StepRecord} step
   * @param {Ended[]} ended
   */
  #add(step, ended) {
    if (this.#number !== null && step.number <= this.#number) return;
    this.#noteGap(step.number);
    const waiting = step.waiting.map((hash) => this.#waitingRequest(hash, step));
    const column = new Column(step, this.#numBlocks, waiting);
    column.pause_us = step.began_us - (this.newest?.end_us ?? step.began_us);
    this.#takeRows(column, step);
    this.#takePreempted(column, step);
    for (const one of ended) this.#end(column, one);
    for (const request of this.living) {
      if (request.lastStep_us !== column.end_us) this.#absent(column, request);
    }
    this.#push(column);
    for (const { request } of ended) this.#leave(this.requests.get(request));
    if (this.#isLossy) this.#forgetTheLost();
  }

  /** Nothing runs: whose end was missed has ended. */
  calm() {
    for (const request of [...this.living]) this.#leave(request);
  }

  /** @param {import("./watched_request.js").HttpRequest & {requests: string[]}} ended */
  noteHttp(ended) {
    for (const hash of ended.requests) {
      const request = this.requests.get(hash);
      if (request) request.http = ended;
    }
  }

  /** @param {number} number */
  #noteGap(number) {
    const numMissed = this.#number === null ? 0 : number - this.#number - 1;
    if (numMissed > 0) {
      this.#push(new Gap(numMissed, "not told"));
      this.#suspect();
    }
    this.#number = number;
  }

  #suspect() {
    this.#isLossy = true;
    this.#lossyUntil = this.end + LOST_AFTER;
    for (const request of this.living) request.isPartial = true;
  }

  /**
   * @param {string} hash
   * @param {StepRecord} step
   */
  #request(hash, step) {
    let request = this.requests.get(hash);
    if (!request || request.ending) {
      request = new WatchedRequest(hash, this.end, step.began_us, false);
      this.requests.set(hash, request);
    }
    return request;
  }

  /**
   * @param {string} hash
   * @param {StepRecord} step
   */
  #waitingRequest(hash, step) {
    const request = this.#request(hash, step);
    request.isWaiting = true;
    request.lastColumn = this.end;
    return request;
  }

  /**
   * @param {Column} column
   * @param {StepRecord} step
   */
  #takeRows(column, step) {
    const { rows } = step;
    const moment = { began_us: column.began_us, end_us: column.end_us, numMates: rows.request.length - 1 };
    rows.request.forEach((hash, index) => {
      const request = this.#request(hash, step);
      const cell = cellAt(rows, index);
      const gap_ms = request.take(cell, this.end, moment);
      if (gap_ms !== null) column.gaps_ms.push(gap_ms);
      column.add({ request, lane: this.#laneOf(request), marks: marksOf(cell), cell });
    });
  }

  /** @param {WatchedRequest} request */
  #laneOf(request) {
    request.lane ??= this.#lanes.take();
    this.living.add(request);
    return request.lane;
  }

  /**
   * @param {Column} column
   * @param {StepRecord} step
   */
  #takePreempted(column, step) {
    for (const hash of step.preempted) {
      const request = this.#request(hash, step);
      request.numPreemptions += 1;
      request.isWaiting = true;
      this.#mark(column, request, PREEMPTED);
    }
  }

  /**
   * @param {Column} column of its last step
   * @param {Ended} ended
   */
  #end(column, { request: hash, reason, receipt }) {
    const request = this.requests.get(hash);
    if (!request) return;
    request.ending = { reason, receipt };
    const hasFailed = reason === "error" || reason === "abort";
    this.#mark(column, request, hasFailed ? FAILED : FINISHED);
  }

  /**
   * Its last step was told before: columns that are there already change.
   * @param {Ended} ended
   */
  #endLate(ended) {
    const request = this.requests.get(ended.request);
    if (!request || request.ending) return;
    request.ending = { reason: ended.reason, receipt: ended.receipt };
    if (request.lane === null) return;
    const last = request.lastStepColumn ?? this.end - 1;
    for (let index = last + 1; index < this.end; index++) this.#absolve(index, request);
    const column = this.at(last);
    if (column instanceof Column) this.#end(column, ended);
    request.lastColumn = last;
    this.#leave(request);
    this.revision += 1;
  }

  /**
   * It had no part in this column.
   * @param {number} index
   * @param {WatchedRequest} request
   */
  #absolve(index, request) {
    const column = this.at(index);
    if (!(column instanceof Column)) return;
    column.entries = column.entries.filter((entry) => entry.request !== request || entry.marks & PREEMPTED);
  }

  /**
   * @param {Column} column
   * @param {WatchedRequest} request
   * @param {number} marks
   */
  #mark(column, request, marks) {
    const lane = this.#laneOf(request);
    const entry = column.entryAt(lane);
    if (entry) entry.marks |= marks;
    else column.add({ request, lane, marks, cell: null });
  }

  /**
   * @param {Column} column
   * @param {WatchedRequest} request
   */
  #absent(column, request) {
    if (!column.entryAt(request.lane ?? -1)) this.#mark(column, request, ABSENT);
  }

  /** @param {WatchedRequest | undefined} request */
  #leave(request) {
    if (!request) return;
    if (request.lane !== null && this.living.delete(request)) this.#lanes.free(request.lane);
    request.ending ??= { reason: "lost sight of", receipt: null };
  }

  #forgetTheLost() {
    if (this.end < this.#lossyUntil) return;
    this.#isLossy = false;
    for (const request of [...this.living]) {
      if (request.lastColumn < this.end - LOST_AFTER) this.#leave(request);
    }
  }

  /** @param {Column | Gap} column */
  #push(column) {
    this.#columns[this.end % MAX_COLUMNS] = column;
    this.end += 1;
    if (this.end % SWEEP_EVERY === 0) this.#sweep();
  }

  /** Requests that no column names any more. */
  #sweep() {
    for (const [hash, request] of this.requests) {
      if (request.lastColumn < this.first && !this.living.has(request)) this.requests.delete(hash);
    }
  }
}

