/** The style sheet's colours, for what is drawn. */

const NAMES = /** @type {const} */ ([
  "ink", "muted", "faint", "line", "band", "life", "decode", "chunk", "chunk-line", "accepted",
  "bad", "wait", "used", "shared", "phase-0", "phase-1", "phase-2", "phase-3", "phase-4", "phase-5",
]);

/** @typedef {Record<typeof NAMES[number], string>} Palette */

/**
 * As they are now, light or dark.
 * @returns {Palette}
 */
export function readPalette() {
  const probe = document.createElement("span");
  document.body.append(probe);
  const entries = NAMES.map((name) => {
    probe.style.color = `var(--${name})`;
    return [name, getComputedStyle(probe).color];
  });
  probe.remove();
  return Object.fromEntries(entries);
}
