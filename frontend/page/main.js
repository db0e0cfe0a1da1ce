/** All parts put together. */

import { Board } from "./board.js";
import { element } from "./dom.js";
import { Feed } from "./feed.js";
import { History } from "./history.js";
import { KeyDialog } from "./key_dialog.js";
import { Playground } from "./playground.js";
import { Session } from "./session.js";
import { Status } from "./status.js";
import { Together } from "./together.js";

const keyDialog = new KeyDialog();
const session = new Session((reason) => keyDialog.ask(reason));
const history = new History();
const board = new Board(history);
const playground = new Playground(session, (receipt) => board.showReceipt(receipt));
const status = new Status(() => void playground.loadModels());
const together = new Together((steps, ended) => {
  history.take(steps, ended);
  board.step();
});

/** @type {Record<string, (data: any) => void>} */
const heard = {
  worker: (worker) => {
    together.flush();
    if (status.meet(worker)) history.restart();
  },
  stats: (stats) => {
    history.size(stats.num_blocks);
    status.note(stats);
    board.note(stats);
  },
  steps: (steps) => together.addSteps(steps),
  ended: (ended) => together.addEnded(ended),
  requests: (ended) => {
    for (const one of ended) history.noteHttp(one);
  },
};

const feed = new Feed(
  session,
  (name, data) => heard[name]?.(data),
  (phase) => {
    if (phase.name === "lost") history.breakOff();
    status.show(phase);
  },
);

element("idle-samples").addEventListener("click", () => playground.startSamples());
void playground.loadModels();
void feed.run();
