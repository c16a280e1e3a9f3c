// A picture whose tiles are marked, to be repainted: with a pointer, a finger or the keyboard.

import { drawBed } from "./picture.js";
import { drawCells, rove } from "./roving.js";
import { render } from "./vendor/lit-html.js";

const LABEL = "Tiles of the picture: arrow keys move, the space bar marks";

/** The field of cells over a picture. */
export class MaskField {
  /**
   * @param {HTMLElement} element to draw in.
   * @param {{url: string, grid: [number, number], cells?: number[], onChange}} options: the
   *     picture, rows and columns of its codes, the cells marked at first.
   */
  constructor(element, { url, grid, cells = [], onChange }) {
    [this.rows, this.columns] = grid;
    this.onChange = onChange;
    this.brush = 1;
    this.marked = new Set(cells);
    this.before = [];
    const field = drawCells(grid, LABEL, { className: "mask" });
    render(drawBed(url, "The picture to change", field), element);
    this.cells = [...element.querySelectorAll(".cell")];
    rove(element, ".cell");
    this.#listen(element.querySelector(".cells"));
    this.#show();
  }

  /** Marks nothing. */
  clear() {
    this.before.push(new Set(this.marked));
    this.marked.clear();
    this.#show();
  }

  /** Takes the last stroke back. */
  undo() {
    this.marked = this.before.pop() ?? this.marked;
    this.#show();
  }

  /** The mask as OpenAI has it: transparent where the picture is repainted. */
  async toBlob(size) {
    const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
    const context = canvas.getContext("2d");
    context.fillRect(0, 0, size, size);
    const [width, height] = [size / this.columns, size / this.rows];
    for (const cell of this.marked) {
      const [row, column] = this.#place(cell);
      context.clearRect(column * width, row * height, width, height);
    }
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  #place(cell) {
    return [Math.floor(cell / this.columns), cell % this.columns];
  }

  /** The brush on a cell: a square of cells, cut at the picture's edge. */
  #paint(cell, mark) {
    const [row, column] = this.#place(cell);
    const back = Math.floor((this.brush - 1) / 2);
    for (let y = row - back; y < row - back + this.brush; y++) {
      for (let x = column - back; x < column - back + this.brush; x++) {
        if (y < 0 || x < 0 || y >= this.rows || x >= this.columns) continue;
        this.marked[mark ? "add" : "delete"](y * this.columns + x);
      }
    }
    this.#show();
  }

  #show() {
    this.cells.forEach((cell, index) => (cell.ariaSelected = this.marked.has(index)));
    this.onChange(this.marked.size, this.before.length);
  }

  #listen(field) {
    field.ariaMultiSelectable = true;
    let mark = null; // whether the stroke under way marks or clears; null between strokes
    const begin = (cell) => {
      this.before.push(new Set(this.marked));
      mark = !this.marked.has(cell);
      this.#paint(cell, mark);
    };
    const end = () => (mark = null);
    const find = ({ clientX, clientY }) =>
      this.cells.indexOf(document.elementFromPoint(clientX, clientY));
    field.addEventListener("pointerdown", (event) => {
      const cell = find(event);
      if (event.button !== 0 || cell < 0) return;
      field.setPointerCapture(event.pointerId);
      begin(cell);
    });
    field.addEventListener("pointermove", (event) => {
      const cell = mark === null ? -1 : find(event);
      if (cell >= 0) this.#paint(cell, mark);
    });
    field.addEventListener("pointerup", end);
    field.addEventListener("pointercancel", end);
    field.addEventListener("click", (event) => {
      // A click that no pointer made: the space bar, Enter, or assistive technology.
      const cell = this.cells.indexOf(event.target);
      if (event.detail || cell < 0) return;
      begin(cell);
      end();
    });
  }
}
