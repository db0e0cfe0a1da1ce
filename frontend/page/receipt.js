/** What one request got: queued, chunks, mates, preemptions, cached tokens, latencies. */

import { element, make } from "./dom.js";
import { counted, milliseconds, short } from "./wording.js";

/** @typedef {import("./watched_request.js").Receipt} Receipt */
/** @typedef {import("./watched_request.js").WatchedRequest} WatchedRequest */

const HINT = "Choose a request by a click on its row, or with the arrow keys, to see what it got.";

export class ReceiptView {
  #panel = element("receipt");
  #onFind;
  #onClose;
  #shown = "";

  /**
   * @param {(request: WatchedRequest) => void} onFind brings it into sight
   * @param {() => void} onClose
   */
  constructor(onFind, onClose) {
    this.#onFind = onFind;
    this.#onClose = onClose;
    this.clear();
  }

  clear() {
    this.#shown = "";
    this.#panel.dataset.request = "";
    const title = make("h3", "", "Receipt");
    title.id = "receipt-title";
    this.#panel.replaceChildren(title, make("p", "help", HINT));
  }

  /** @param {WatchedRequest} request as it is now */
  show(request) {
    const note = request.ending ? request.ending.reason : `${request.state}, so far`;
    this.#render(request.receipt(), note, request);
  }

  /**
   * Of a request that the picture does not hold any more.
   * @param {Receipt} receipt
   */
  showAlone(receipt) {
    this.#render(receipt, "finished", null);
  }

  /**
   * @param {Receipt} receipt
   * @param {string} note
   * @param {WatchedRequest | null} request
   */
  #render(receipt, note, request) {
    const shown = JSON.stringify([receipt, note, request?.isPartial, request?.http]);
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.#panel.dataset.request = receipt.request;
    const parts = [this.#title(receipt, note, request), waterfall(receipt), list(receipt)];
    if (request?.isPartial && !request.ending?.receipt) {
      parts.push(make("p", "help", "Steps of it were missed: counted is what was seen."));
    }
    if (request?.http) parts.push(httpLine(request.http));
    const focused = document.activeElement?.id;
    this.#panel.replaceChildren(...parts);
    if (focused?.startsWith("receipt-")) document.getElementById(focused)?.focus();
  }

  /**
   * @param {Receipt} receipt
   * @param {string} note
   * @param {WatchedRequest | null} request
   */
  #title(receipt, note, request) {
    const title = make("h3", "", "Receipt ", make("span", "hash", receipt.request), make("span", "chip", note));
    title.id = "receipt-title";
    const close = button("receipt-close", "×", () => this.#onClose());
    close.setAttribute("aria-label", "Close the receipt");
    const buttons = make("div", "buttons", close);
    if (request?.firstColumn != null) {
      buttons.prepend(button("receipt-find", "Find", () => this.#onFind(request)));
    }
    return make("div", "receipt-head", title, buttons);
  }
}

/**
 * @param {string} id
 * @param {string} text
 * @param {() => void} onClick
 */
function button(id, text, onClick) {
  const made = make("button", "quiet", text);
  made.id = id;
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}

/**
 * Its time in three parts: in the queue, until the first token, until the end.
 * @param {Receipt} receipt
 */
function waterfall({ queued_ms, ttft_ms, total_ms }) {
  const first_ms = ttft_ms ?? total_ms;
  const parts = { wait: queued_ms, chunk: first_ms - queued_ms, decode: total_ms - first_ms };
  const bar = make("div", "bar");
  for (const [name, ms] of Object.entries(parts)) {
    const span = make("span");
    span.style.width = `${(100 * Math.max(0, ms)) / Math.max(total_ms, 0.001)}%`;
    span.style.background = `var(--${name})`;
    bar.append(span);
  }
  return bar;
}

/** @param {Receipt} receipt */
function list(receipt) {
  const rows = [
    ["queued", milliseconds(receipt.queued_ms)],
    ["first token after", milliseconds(receipt.ttft_ms)],
    ["total", milliseconds(receipt.total_ms)],
    ["longest gap", milliseconds(receipt.max_gap_ms)],
    ["prompt", counted(receipt.num_prompt_tokens, "token")],
    ["of it cached", counted(receipt.num_cached_tokens, "token")],
    ["output", counted(receipt.num_output_tokens, "token")],
    ["steps", short(receipt.num_steps)],
    ["of them chunks", short(receipt.num_chunks)],
    ["mates", `${receipt.mean_mates.toFixed(1)} mean, ${short(receipt.max_mates)} most`],
    ["preempted", receipt.num_preemptions ? counted(receipt.num_preemptions, "time") : "never"],
  ];
  if (receipt.num_recomputed_tokens) rows.push(["recomputed", counted(receipt.num_recomputed_tokens, "token")]);
  if (receipt.num_resumed_tokens) rows.push(["resumed with", counted(receipt.num_resumed_tokens, "token")]);
  return make("dl", "pairs", ...rows.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]));
}

/** @param {import("./watched_request.js").HttpRequest} http */
function httpLine(http) {
  return make("p", "help", `${http.endpoint} · ${http.outcome} · ${http.request_id}`);
}
