/** The picture with all that stands around it, drawn when something has changed. */

import { announce } from "./announce.js";
import { BatchView } from "./batch_view.js";
import { Controls } from "./controls.js";
import { element } from "./dom.js";
import { FiguresView } from "./figures_view.js";
import { Gutter } from "./gutter.js";
import { paintLegend } from "./legend.js";
import { readPalette } from "./palette.js";
import { ReceiptView } from "./receipt.js";
import { RunningTable } from "./running_table.js";
import { Strips } from "./strips.js";
import { Theme } from "./theme.js";
import { Viewport } from "./viewport.js";

const CALM_MS = 250; // between two looks at figures
const FRAME_MS = 30; // every second one of a usual screen: the browser may share the worker's cores
const LABELS_MS = 200;
const TABLE_EVERY = 4; // looks

/** @typedef {import("./watched_request.js").WatchedRequest} WatchedRequest */
/** @typedef {import("./watched_request.js").Receipt} Receipt */

export class Board {
  #history;
  #viewport;
  #palette = readPalette();
  #view;
  #strips;
  #gutter;
  #figures;
  #controls;
  #receipt = new ReceiptView((request) => this.#find(request), () => this.#select(null));
  #table = new RunningTable((request) => this.#select(request));
  /** @type {Record<string, number> | null} */
  #stats = null;
  #frame = 0;
  #drawn_ms = 0;
  #labelled_ms = 0;
  #numLooks = 0;
  #numIdle = 0; // figures in a row, without a step, in which nothing ran
  #seen = "";

  /** @param {import("./history.js").History} history */
  constructor(history) {
    this.#history = history;
    this.#viewport = new Viewport(history);
    this.#view = new BatchView(history, this.#viewport, this.#palette);
    this.#strips = new Strips(history, this.#viewport, this.#palette);
    this.#gutter = new Gutter(this.#view);
    this.#figures = new FiguresView(this.#viewport, history, (request) => this.#select(request));
    this.#controls = new Controls(
      this.#view, this.#viewport, history, (request) => this.#select(request), () => this.redraw(),
    );
    new Theme(element("theme"), () => this.#recolour());
    new ResizeObserver(() => this.#fit()).observe(element("rows"));
    element("table").addEventListener("toggle", () => this.#table.show(history.living));
    this.#recolour();
    setInterval(() => this.#look(), CALM_MS);
  }

  /** Before the next frame, once, whatever asks for it. */
  redraw() {
    if (!this.#frame) this.#frame = requestAnimationFrame((now_ms) => this.#draw(now_ms));
  }

  /** Steps were told. */
  step() {
    this.#numIdle = 0;
    this.redraw();
  }

  /**
   * Figures may be older than the steps told before them: twice nothing is nothing.
   * @param {Record<string, number>} stats
   */
  note(stats) {
    this.#stats = stats;
    const isIdle = stats.num_running === 0 && stats.num_waiting === 0;
    this.#numIdle = isIdle ? this.#numIdle + 1 : 0;
    if (this.#isIdle) this.#history.calm();
  }

  get #isIdle() {
    return this.#numIdle > 1;
  }

  /**
   * Of an answer in the playground: on its row, if that is still there.
   * @param {Receipt} receipt
   */
  showReceipt(receipt) {
    const request = this.#history.requests.get(receipt.request);
    if (!request?.ending) return this.#receipt.showAlone(receipt);
    request.ending.receipt ??= receipt;
    this.#select(request);
    this.#find(request);
    element("batch").scrollIntoView({ block: "start" });
  }

  /** @param {number} now_ms */
  #draw(now_ms) {
    this.#frame = 0;
    if (now_ms - this.#drawn_ms < FRAME_MS) return this.redraw();
    const isMoving = this.#viewport.follow(Math.min(100, now_ms - this.#drawn_ms));
    this.#drawn_ms = now_ms;
    this.#view.draw();
    this.#strips.draw();
    if (!isMoving || now_ms - this.#labelled_ms > LABELS_MS) {
      this.#gutter.draw(this.#palette);
      this.#labelled_ms = now_ms;
    }
    if (isMoving) this.redraw();
  }

  /** What is read rather than watched. */
  #look() {
    this.#numLooks += 1;
    if (document.hidden) return;
    if (this.#numLooks % TABLE_EVERY === 0) this.#table.show(this.#history.living);
    element("idle").hidden = this.#history.end > 0;
    const seen = `${this.#history.end} ${this.#viewport.right} ${this.#viewport.width} ${this.#isIdle} ${this.#stats?.num_free_blocks}`;
    if (seen === this.#seen) return;
    this.#seen = seen;
    this.#strips.rescale();
    const idle = this.#viewport.isLive && (this.#isIdle || !this.#history.end) ? this.#stats : null;
    this.#figures.show(this.#palette, idle);
    this.#controls.show();
    if (this.#view.selected) this.#receipt.show(this.#view.selected);
    this.redraw();
  }

  #fit() {
    this.#viewport.width = element("rows").clientWidth;
    this.redraw();
  }

  #recolour() {
    this.#palette = readPalette();
    this.#view.repaint(this.#palette);
    this.#strips.repaint(this.#palette);
    paintLegend(this.#palette);
    this.#seen = "";
    this.redraw();
  }

  /** @param {WatchedRequest | null} request */
  #select(request) {
    this.#view.selected = request;
    if (request) this.#receipt.show(request);
    else this.#receipt.clear();
    announce(request ? inWords(request) : "no request is chosen");
    this.redraw();
  }

  /** @param {WatchedRequest} request */
  #find(request) {
    if (request.firstColumn !== null) this.#viewport.reveal(request.firstColumn);
    this.#controls.show();
    this.redraw();
  }
}

/** @param {WatchedRequest} request */
function inWords({ hash, state, cell }) {
  const progress = cell ? `, ${cell.num_computed_tokens}/${cell.num_total_tokens}` : "";
  return `request ${hash}, ${state}${progress}`;
}
