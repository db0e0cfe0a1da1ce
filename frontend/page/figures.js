/** What so many columns come to. */

import { Column } from "./column.js";

/**
 * @typedef {object} Figures
 * @property {number} numSteps
 * @property {number} stepsPerS
 * @property {number} tokensPerS output
 * @property {number} promptTokensPerS
 * @property {{p50: number | null, p90: number | null, p99: number | null}} itl_ms
 * @property {Record<string, number>} phases_us of a mean step
 */

/**
 * @param {Iterable<Column | import("./column.js").Gap>} columns oldest first
 * @returns {Figures}
 */
export function figuresOf(columns) {
  const steps = [...columns].filter((column) => column instanceof Column);
  const busy_s = busySeconds(steps);
  const gaps_ms = steps.flatMap((step) => step.gaps_ms).sort((a, b) => a - b);
  return {
    numSteps: steps.length,
    stepsPerS: busy_s ? steps.length / busy_s : 0,
    tokensPerS: busy_s ? total(steps, (step) => step.numNewTokens) / busy_s : 0,
    promptTokensPerS: busy_s ? total(steps, (step) => step.numPromptTokens) / busy_s : 0,
    itl_ms: { p50: percentile(gaps_ms, 50), p90: percentile(gaps_ms, 90), p99: percentile(gaps_ms, 99) },
    phases_us: meanPhases(steps),
  };
}

/**
 * Without the pauses in which nothing ran.
 * @param {Column[]} steps
 */
function busySeconds(steps) {
  let busy_us = 0;
  steps.forEach((step, index) => {
    const pause_us = index ? Math.max(0, step.began_us - steps[index - 1].end_us) : 0;
    busy_us += step.duration_us + (pause_us < 100_000 ? pause_us : 0);
  });
  return busy_us / 1e6;
}

/**
 * @param {Column[]} steps
 * @param {(step: Column) => number} count
 */
function total(steps, count) {
  return steps.reduce((sum, step) => sum + count(step), 0);
}

/**
 * The nearest rank.
 * @param {number[]} sorted
 * @param {number} percent
 * @returns {number | null}
 */
export function percentile(sorted, percent) {
  if (!sorted.length) return null;
  return sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)];
}

/** @param {Column[]} steps */
function meanPhases(steps) {
  /** @type {Record<string, number>} */
  const means = {};
  for (const step of steps) {
    for (const [name, us] of Object.entries(step.phases_us)) {
      means[name] = (means[name] ?? 0) + us / steps.length;
    }
  }
  return means;
}
