/** Hands on the picture: keys, the pointer, the wheel, the slider and the buttons. */

import { announce } from "./announce.js";
import { element, say } from "./dom.js";
import { CHUNK, Column } from "./column.js";
import { counted, milliseconds } from "./wording.js";

const CLICK_REACH = 4; // CSS pixels that a click may slip

/** @typedef {import("./watched_request.js").WatchedRequest} WatchedRequest */

export class Controls {
  #view;
  #viewport;
  #history;
  #onSelect;
  #redraw;
  #timeline = element("timeline");
  #slider = /** @type {HTMLInputElement} */ (element("scroll"));
  #isSliding = false;
  #isDragging = false;

  /**
   * @param {import("./batch_view.js").BatchView} view
   * @param {import("./viewport.js").Viewport} viewport
   * @param {import("./history.js").History} history
   * @param {(request: WatchedRequest | null) => void} onSelect
   * @param {() => void} redraw
   */
  constructor(view, viewport, history, onSelect, redraw) {
    this.#view = view;
    this.#viewport = viewport;
    this.#history = history;
    this.#onSelect = onSelect;
    this.#redraw = redraw;
    this.#listen();
  }

  #listen() {
    element("pause").addEventListener("click", () => this.#toggle());
    element("zoom-in").addEventListener("click", () => this.#zoom(1));
    element("zoom-out").addEventListener("click", () => this.#zoom(-1));
    this.#slider.addEventListener("input", () => this.#slide());
    this.#slider.addEventListener("change", () => this.#letGo());
    document.addEventListener("keydown", (event) => this.#key(event));
    this.#timeline.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    for (const stage of [this.#view.stage, element("strips")]) this.#listenToPointer(stage);
    element("gutter").addEventListener("click", (event) => this.#clickGutter(event));
  }

  /** Says where we are. */
  show() {
    const { isLive, right } = this.#viewport;
    const { first, end } = this.#history;
    say(element("pause"), isLive ? "Pause" : "Resume");
    element("pause").setAttribute("aria-pressed", String(!isLive));
    if (!this.#isSliding) {
      const page = first + Math.floor(this.#viewport.numColumns);
      this.#slider.min = String(Math.max(0, Math.min(end - 1, page)));
      this.#slider.max = String(end);
      this.#slider.value = String(isLive ? end : Math.round(right));
    }
    const text = isLive ? "live" : this.#distance();
    say(element("position"), text);
    this.#slider.setAttribute("aria-valuetext", text);
  }

  #distance() {
    const column = this.#history.at(Math.round(this.#viewport.right) - 1);
    const { newest } = this.#history;
    if (!(column instanceof Column) || !newest) return "paused";
    return `step ${column.number}, ${milliseconds((newest.end_us - column.end_us) / 1000)} back`;
  }

  #toggle() {
    if (this.#viewport.isLive) this.#viewport.pause();
    else this.#viewport.resume();
    this.#changed();
    announce(this.#viewport.isLive ? "live" : `paused at ${element("position").textContent}`);
  }

  #changed() {
    this.show();
    this.#redraw();
  }

  /** @param {number} by */
  #zoom(by) {
    this.#viewport.zoom(by);
    this.#changed();
  }

  #slide() {
    this.#isSliding = true;
    this.#viewport.scrollTo(Number(this.#slider.value));
    this.#changed();
  }

  #letGo() {
    this.#isSliding = false;
    if (this.#slider.value === this.#slider.max) this.#viewport.resume();
    this.#changed();
  }

  /** @param {number} numColumns */
  #scroll(numColumns) {
    this.#viewport.scrollBy(numColumns);
    this.#changed();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isHere = document.activeElement === this.#timeline;
    const isNowhere = document.activeElement === document.body;
    if (event.key === " " ? !isHere && !isNowhere : !isHere) return;
    const page = Math.floor(this.#viewport.numColumns * 0.9);
    /** @type {Record<string, () => void>} */
    const actions = {
      " ": () => this.#toggle(),
      ArrowLeft: () => this.#scroll(event.shiftKey ? -10 : -1),
      ArrowRight: () => this.#scroll(event.shiftKey ? 10 : 1),
      PageUp: () => this.#scroll(-page),
      PageDown: () => this.#scroll(page),
      Home: () => this.#scroll(-Infinity),
      End: () => (this.#viewport.resume(), this.#changed()),
      ArrowUp: () => this.#choose(-1),
      ArrowDown: () => this.#choose(1),
      Escape: () => this.#onSelect(null),
      "+": () => this.#zoom(1),
      "-": () => this.#zoom(-1),
    };
    const action = Object.hasOwn(actions, event.key) ? actions[event.key] : undefined;
    if (!action) return;
    event.preventDefault();
    action();
  }

  /**
   * The next row's request, up or down.
   * @param {number} direction
   */
  #choose(direction) {
    const holders = this.#view.holders();
    const { selected } = this.#view;
    const start = selected?.lane ?? (direction > 0 ? -1 : holders.length);
    for (let lane = start + direction; lane >= 0 && lane < holders.length; lane += direction) {
      const entry = holders[lane];
      if (entry) return this.#onSelect(entry.request);
    }
  }

  /** @param {WheelEvent} event */
  #wheel(event) {
    const delta = event.shiftKey && !event.deltaX ? event.deltaY : event.deltaX;
    if (!delta || Math.abs(delta) < Math.abs(event.deltaY) / 2) return;
    event.preventDefault();
    this.#scroll(delta / this.#viewport.columnWidth);
  }

  /** @param {HTMLElement} stage */
  #listenToPointer(stage) {
    let from = { x: 0, right: 0, hasMoved: false };
    stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.target instanceof HTMLButtonElement) return;
      from = { x: event.clientX, right: this.#viewport.right, hasMoved: false };
      this.#isDragging = true;
      stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", (event) => {
      const moved = event.clientX - from.x;
      if (!this.#isDragging) return this.#point(event, stage);
      from.hasMoved ||= Math.abs(moved) > CLICK_REACH;
      if (!from.hasMoved) return;
      this.#hideTip();
      this.#viewport.scrollTo(from.right - moved / this.#viewport.columnWidth);
      this.#changed();
    });
    stage.addEventListener("pointerup", (event) => {
      if (this.#isDragging && !from.hasMoved) this.#click(event, stage);
      this.#isDragging = false;
    });
    stage.addEventListener("pointercancel", () => (this.#isDragging = false));
    stage.addEventListener("pointerleave", () => this.#hideTip());
  }

  /**
   * @param {PointerEvent} event
   * @param {HTMLElement} stage
   */
  #click(event, stage) {
    if (stage !== this.#view.stage) return;
    const { left, top } = stage.getBoundingClientRect();
    const hit = this.#view.hit(event.clientX - left, event.clientY - top);
    this.#onSelect(hit?.request ?? null);
  }

  /** @param {MouseEvent} event */
  #clickGutter(event) {
    const { top } = element("gutter").getBoundingClientRect();
    const lane = this.#view.laneAt(event.clientY - top);
    this.#onSelect(this.#view.holders()[lane]?.request ?? null);
  }

  /**
   * Tells what is under the pointer.
   * @param {PointerEvent} event
   * @param {HTMLElement} stage
   */
  #point(event, stage) {
    const { left, top } = stage.getBoundingClientRect();
    const isRows = stage === this.#view.stage;
    const hit = this.#view.hit(event.clientX - left, isRows ? event.clientY - top : -1);
    if (!hit || event.pointerType === "touch") return this.#hideTip();
    const tip = element("tip");
    say(tip, tipText(hit));
    tip.hidden = false;
    const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    tip.style.transform = `translate(${Math.max(8, x)}px, ${event.clientY + 16}px)`;
  }

  #hideTip() {
    element("tip").hidden = true;
  }
}

/** @param {import("./batch_view.js").Hit} hit */
function tipText({ column, request, entry }) {
  if (!(column instanceof Column)) return gapText(column);
  const step = `step ${column.number}, ${milliseconds(column.duration_us / 1000)}`;
  if (!request || !entry) {
    return `${step}\n${column.numDecodeTokens} decoded, ${column.numChunkTokens} in chunks`;
  }
  const { cell } = entry;
  if (!cell) return `${request.hash}\n${step}\nnot in this step`;
  const what = entry.marks & CHUNK ? `chunk of ${cell.num_tokens}` : "decode";
  const drafts = cell.num_drafts ? `, ${cell.num_new_tokens} new of ${cell.num_drafts} guessed` : "";
  return `${request.hash}\n${step}\n${what}${drafts}, ${cell.num_computed_tokens}/${cell.num_total_tokens}`;
}

/** @param {import("./column.js").Gap} gap */
function gapText({ numMissed, reason }) {
  return numMissed ? `${counted(numMissed, "step")} ${reason}` : reason;
}
