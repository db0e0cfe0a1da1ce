/** The picture's rows in words, for those who don't see it; written anew at a calm rate. */

import { element, make, say } from "./dom.js";

/** @typedef {import("./watched_request.js").WatchedRequest} WatchedRequest */

export class RunningTable {
  #details = /** @type {HTMLDetailsElement} */ (element("table"));
  #body = element("table-rows");
  /** @type {Map<WatchedRequest, HTMLTableRowElement>} */
  #rows = new Map();
  #onSelect;

  /** @param {(request: WatchedRequest) => void} onSelect */
  constructor(onSelect) {
    this.#onSelect = onSelect;
  }

  /** @param {Iterable<WatchedRequest>} living */
  show(living) {
    if (!this.#details.open) return;
    const sorted = [...living].sort((a, b) => (a.lane ?? 0) - (b.lane ?? 0));
    for (const [request, row] of this.#rows) {
      if (sorted.includes(request)) continue;
      row.remove();
      this.#rows.delete(request);
    }
    sorted.forEach((request, index) => {
      const row = this.#rowOf(request);
      if (this.#body.children[index] !== row) this.#body.insertBefore(row, this.#body.children[index] ?? null);
      this.#fill(row, request);
    });
  }

  /** @param {WatchedRequest} request */
  #rowOf(request) {
    let row = this.#rows.get(request);
    if (!row) {
      const button = make("button", "hash", request.hash);
      button.type = "button";
      button.addEventListener("click", () => this.#onSelect(request));
      const head = make("th", "", button);
      head.scope = "row";
      row = make("tr", "", head, ...Array.from({ length: 7 }, () => make("td")));
      this.#rows.set(request, row);
    }
    return row;
  }

  /**
   * @param {HTMLTableRowElement} row
   * @param {WatchedRequest} request
   */
  #fill(row, request) {
    const { cell } = request;
    const values = [
      request.state, cell?.num_computed_tokens ?? 0, cell?.num_total_tokens ?? 0, request.numOutputTokens,
      request.numChunks, request.numPreemptions, cell?.num_blocks ?? 0,
    ];
    values.forEach((value, index) => say(row.cells[index + 1], String(value)));
  }
}
