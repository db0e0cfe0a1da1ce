/** The figures beside the picture: of the columns in sight. */

import { Column } from "./column.js";
import { element, make, say } from "./dom.js";
import { figuresOf } from "./figures.js";
import { PHASES, phaseColour } from "./strips.js";
import { counted, milliseconds, short } from "./wording.js";

const MAX_QUEUE = 12;

/** @typedef {import("./palette.js").Palette} Palette */
/** @typedef {import("./watched_request.js").WatchedRequest} WatchedRequest */

export class FiguresView {
  #viewport;
  #history;
  #onSelect;
  #shownQueue = "";

  /**
   * @param {import("./viewport.js").Viewport} viewport
   * @param {import("./history.js").History} history
   * @param {(request: WatchedRequest) => void} onSelect
   */
  constructor(viewport, history, onSelect) {
    this.#viewport = viewport;
    this.#history = history;
    this.#onSelect = onSelect;
  }

  /**
   * @param {Palette} palette
   * @param {Record<string, number> | null} idle the worker's own figures, where nothing runs
   */
  show(palette, idle) {
    const figures = figuresOf(this.#viewport.columns());
    const column = this.#lastColumn();
    say(element("steps-per-s"), figures.numSteps ? short(figures.stepsPerS) : "–");
    say(element("tokens-per-s"), figures.numSteps ? short(figures.tokensPerS) : "–");
    say(element("prompt-tokens-per-s"), figures.numSteps ? short(figures.promptTokensPerS) : "–");
    say(element("itl-p50"), milliseconds(figures.itl_ms.p50));
    say(element("itl-p90"), milliseconds(figures.itl_ms.p90));
    say(element("itl-p99"), milliseconds(figures.itl_ms.p99));
    this.#showPhases(figures.phases_us, palette);
    say(element("num-running"), short(idle ? 0 : column?.numRunning ?? 0));
    this.#showQueue(idle ? 0 : column?.numWaiting ?? 0, column?.waiting ?? []);
    this.#showBlocks(column, idle);
  }

  /** @returns {Column | undefined} at the right edge */
  #lastColumn() {
    const end = Math.min(this.#history.end, Math.ceil(this.#viewport.right));
    for (let index = end - 1; index >= this.#history.first; index--) {
      const column = this.#history.at(index);
      if (column instanceof Column) return column;
    }
    return undefined;
  }

  /**
   * @param {Record<string, number>} phases_us
   * @param {Palette} palette
   */
  #showPhases(phases_us, palette) {
    const names = [...PHASES.filter((name) => name in phases_us)];
    names.push(...Object.keys(phases_us).filter((name) => !PHASES.includes(name)));
    const sum_us = Object.values(phases_us).reduce((sum, us) => sum + us, 0);
    say(element("step-time"), sum_us ? milliseconds(sum_us / 1000) : "–");
    const parts = names.map((name) => ({
      name,
      share: phases_us[name] / sum_us,
      text: milliseconds(phases_us[name] / 1000),
      colour: phaseColour(name, palette),
    }));
    showBar(element("phase-bar"), parts);
    showKeys(element("phase-list"), parts);
  }

  /**
   * @param {Column | undefined} column
   * @param {Record<string, number> | null} idle
   */
  #showBlocks(column, idle) {
    const numBlocks = idle?.num_blocks ?? column?.numBlocks ?? 0;
    const numUsed = idle ? numBlocks - idle.num_free_blocks : column?.numUsedBlocks ?? 0;
    const numShared = idle ? 0 : column?.numSharedBlocks ?? 0;
    say(element("num-blocks"), numBlocks ? `${short(numUsed)} of ${short(numBlocks)}` : "–");
    const parts = [
      { name: "shared", share: numShared / numBlocks, text: short(numShared), colour: "var(--shared)" },
      { name: "used by one", share: (numUsed - numShared) / numBlocks, text: short(numUsed - numShared), colour: "var(--used)" },
      { name: "free", share: 0, text: short(numBlocks - numUsed), colour: "var(--band)" },
    ];
    showBar(element("block-bar"), numBlocks ? parts : []);
    showKeys(element("block-list"), numBlocks ? parts : []);
  }

  /**
   * @param {number} numWaiting
   * @param {WatchedRequest[]} waiting
   */
  #showQueue(numWaiting, waiting) {
    say(element("num-waiting"), short(numWaiting));
    say(element("queue-length"), numWaiting ? short(numWaiting) : "nobody");
    const shown = numWaiting ? waiting.slice(0, MAX_QUEUE) : [];
    const key = `${numWaiting} ${shown.map(({ hash }) => hash)}`;
    if (key === this.#shownQueue) return;
    this.#shownQueue = key;
    const items = shown.map((request) => {
      const button = make("button", "hash", request.hash);
      button.type = "button";
      button.addEventListener("click", () => this.#onSelect(request));
      return make("li", "", button);
    });
    const numMore = numWaiting - shown.length;
    if (numMore > 0) items.push(make("li", "more", `and ${counted(numMore, "more", "more")}`));
    element("queue").replaceChildren(...items);
  }
}

/** @typedef {{name: string, share: number, text: string, colour: string}} Part */

/**
 * @param {HTMLElement} bar
 * @param {Part[]} parts
 */
function showBar(bar, parts) {
  while (bar.children.length > parts.length) bar.lastElementChild?.remove();
  while (bar.children.length < parts.length) bar.append(make("span"));
  parts.forEach(({ share, colour }, index) => {
    const span = /** @type {HTMLElement} */ (bar.children[index]);
    span.style.width = `${(100 * Math.max(0, share || 0)).toFixed(2)}%`;
    span.style.background = colour;
  });
}

/**
 * @param {HTMLElement} list
 * @param {Part[]} parts
 */
function showKeys(list, parts) {
  while (list.children.length > parts.length) list.lastElementChild?.remove();
  while (list.children.length < parts.length) {
    list.append(make("li", "", make("i"), make("span"), make("b")));
  }
  parts.forEach(({ name, text, colour }, index) => {
    const [swatch, label, value] = /** @type {HTMLElement[]} */ ([...list.children[index].children]);
    swatch.style.background = colour;
    say(label, name);
    say(value, text);
  });
}
