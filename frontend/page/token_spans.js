/** Tokens shaded by how likely they were, with what else could have stood there. */

import { element, make } from "./dom.js";

/** @typedef {import("./answer_stream.js").Token} Token */

const LEVELS = [0.9, 0.6, 0.3, 0.1]; // from sure to surprising

export class TokenSpans {
  #output;
  /** @type {Map<Element, Token>} */
  #tokens = new Map();
  /** @type {Element | null} */
  #current = null;

  /** @param {HTMLElement} output holds the spans */
  constructor(output) {
    this.#output = output;
    output.addEventListener("pointerover", (event) => this.#show(event.target));
    output.addEventListener("click", (event) => this.#show(event.target));
    output.addEventListener("pointerleave", () => this.#hide());
    output.addEventListener("blur", () => this.#hide());
    output.addEventListener("keydown", (event) => this.#key(event));
  }

  clear() {
    this.#tokens.clear();
    this.#hide();
  }

  /** @param {Token} token */
  add(token) {
    const level = LEVELS.findIndex((limit) => Math.exp(token.logprob) >= limit);
    const span = make("span", "token", token.text);
    span.dataset.level = String(level < 0 ? LEVELS.length : level);
    this.#tokens.set(span, token);
    this.#output.append(span);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const spans = [...this.#tokens.keys()];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") this.#hide();
    if (!step || !spans.length) return;
    event.preventDefault();
    const at = this.#current ? spans.indexOf(this.#current) + step : 0;
    this.#show(spans[Math.min(spans.length - 1, Math.max(0, at))]);
  }

  /** @param {EventTarget | null} target */
  #show(target) {
    const span = /** @type {HTMLElement} */ (target);
    const token = this.#tokens.get(span);
    if (!token) return this.#hide();
    this.#hide();
    this.#current = span;
    span.classList.add("current");
    const tip = element("tip");
    tip.replaceChildren(make("b", "", `${quoted(token.text)} ${percent(token.logprob)}`), ...alternatives(token));
    tip.hidden = false;
    const { left, bottom } = span.getBoundingClientRect();
    const x = Math.max(8, Math.min(left, innerWidth - tip.offsetWidth - 8));
    tip.style.transform = `translate(${x}px, ${bottom + 6}px)`;
  }

  #hide() {
    this.#current?.classList.remove("current");
    this.#current = null;
    element("tip").hidden = true;
  }
}

/** @param {Token} token */
function alternatives(token) {
  return token.alternatives.map(({ text, logprob }) => {
    const bar = make("i");
    bar.style.width = `${100 * Math.exp(logprob)}%`;
    return make("span", "alternative", make("span", "", quoted(text)), make("span", "track", bar), make("span", "", percent(logprob)));
  });
}

/** @param {string} text */
function quoted(text) {
  return JSON.stringify(text).slice(1, -1).replaceAll(" ", "␣") || "∅";
}

/** @param {number} logprob */
function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  if (value < 0.005) return "<0.01 %";
  return `${value >= 10 ? Math.round(value) : value.toFixed(value < 0.1 ? 2 : 1)} %`;
}
