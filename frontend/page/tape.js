/** A picture that grows to the right: columns are drawn once, into tiles, and the tiles are moved. */

import { make } from "./dom.js";

const TILE_COLUMNS = 64;

/**
 * @typedef {object} Place of a column
 * @property {number} index
 * @property {number} x in device pixels, as all that follows
 * @property {number} width
 * @property {number} height
 * @property {number} unit a CSS pixel
 * @property {HTMLElement} tile to put words in
 */

/** @typedef {(context: CanvasRenderingContext2D, place: Place) => void} PaintColumn */

/** Part of the tape, drawn up to a column. */
class Tile {
  #canvas = make("canvas");
  root = make("div", "tile", this.#canvas);

  /**
   * @param {number} first
   * @param {number} width in device pixels
   * @param {number} height
   */
  constructor(first, width, height) {
    this.next = first;
    this.#canvas.width = width;
    this.#canvas.height = height;
    this.#canvas.style.width = `${width / devicePixelRatio}px`;
    this.#canvas.style.height = `${height / devicePixelRatio}px`;
    const context = this.#canvas.getContext("2d");
    if (!context) throw new Error("this browser draws no pictures");
    this.context = context;
  }

  /** @param {number} x in CSS pixels */
  move(x) {
    this.root.style.transform = `translateX(${x}px)`;
  }
}

export class Tape {
  /** @type {Map<number, Tile>} */
  #tiles = new Map();
  #version = "";
  #height = 0;
  #stage;
  #paint;

  /**
   * @param {HTMLElement} stage shows what of the tape is in it
   * @param {PaintColumn} paint draws one column, which never changes afterwards
   */
  constructor(stage, paint) {
    this.#stage = stage;
    this.#paint = paint;
  }

  /** @param {number} height in CSS pixels */
  resize(height) {
    if (height === this.#height) return;
    this.#height = height;
    this.#stage.style.height = `${height}px`;
  }

  /**
   * @param {import("./viewport.js").Viewport} viewport
   * @param {{first: number, end: number}} history
   * @param {string} version of all that columns look like: with another one they are drawn anew
   */
  draw(viewport, history, version) {
    const width = Math.round(viewport.columnWidth * devicePixelRatio);
    const height = Math.round(this.#height * devicePixelRatio);
    this.#renew(`${version} ${width} ${height}`);
    const first = Math.max(history.first, Math.floor(viewport.left));
    const end = Math.min(history.end, Math.ceil(viewport.right));
    const firstTile = Math.floor(first / TILE_COLUMNS), lastTile = Math.floor((end - 1) / TILE_COLUMNS);
    for (let number = firstTile; number <= lastTile; number++) {
      const tile = this.#filled(number, width, height, history);
      const left = (viewport.right - number * TILE_COLUMNS) * width;
      tile.move(viewport.width - Math.round(left) / devicePixelRatio);
    }
    this.#forget(firstTile, lastTile);
  }

  /** @param {string} version */
  #renew(version) {
    if (version === this.#version) return;
    this.#version = version;
    this.#forget(0, -1);
  }

  /**
   * @param {number} number
   * @param {number} width
   * @param {number} height
   * @param {{first: number, end: number}} history
   */
  #filled(number, width, height, history) {
    const first = number * TILE_COLUMNS;
    let tile = this.#tiles.get(number);
    if (!tile) {
      tile = new Tile(Math.max(first, history.first), TILE_COLUMNS * width, height);
      this.#tiles.set(number, tile);
      this.#stage.append(tile.root);
    }
    const end = Math.min(history.end, first + TILE_COLUMNS);
    for (; tile.next < end; tile.next++) {
      const x = (tile.next - first) * width;
      const place = { index: tile.next, x, width, height, unit: devicePixelRatio, tile: tile.root };
      this.#paint(tile.context, place);
    }
    return tile;
  }

  /**
   * All but those in sight.
   * @param {number} firstTile
   * @param {number} lastTile
   */
  #forget(firstTile, lastTile) {
    for (const [number, tile] of this.#tiles) {
      if (number >= firstTile && number <= lastTile) continue;
      tile.root.remove();
      this.#tiles.delete(number);
    }
  }
}
