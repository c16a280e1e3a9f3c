// A field of many cells with one tab stop: arrow keys move the focus, Home and End go to the ends.

import { html, nothing } from "./vendor/lit-html.js";

/**
 * Draws a cell for each code of a picture, to lie over it.
 *
 * @param {[number, number]} grid rows and columns.
 * @param {string} label of the field.
 * @param {{codes?: number[][], point?: (code, place) => void, className?: string}} options: the
 *     code of each cell, called with those of the cell that is pointed at.
 */
export function drawCells([rows, columns], label, { codes, point, className = "" }) {
  const list = (length, draw) => Array.from({ length }, (_, index) => draw(index));
  const cell = (y, x) => {
    const code = codes?.[y][x];
    const pointHere = () => point?.(code, y * columns + x);
    const name = `Row ${y + 1}, column ${x + 1}${codes ? `: tile ${code}` : ""}`;
    return html`<button
      type="button"
      role="gridcell"
      class="cell"
      data-cell=${code ?? nothing}
      tabindex=${x + y ? -1 : 0}
      aria-label=${name}
      @pointerenter=${pointHere}
      @focus=${pointHere}
    ></button>`;
  };
  const row = (y) => html`<div role="row">${list(columns, (x) => cell(y, x))}</div>`;
  return html`<div class="cells ${className}" role="grid" aria-label=${label}>
    ${list(rows, row)}
  </div>`;
}

/** How many cells stand in the first row, as the page is laid out now. */
function countColumns(cells) {
  // Not offsetTop: a cell may lie in an element that has a position of its own.
  const [first, ...rest] = cells.map((cell) => cell.getBoundingClientRect().top);
  const next = 1 + rest.findIndex((top) => top > first + 1);
  return next || cells.length;
}

/**
 * Lets arrow keys go through the cells of an element.
 *
 * @param {HTMLElement} element holds the cells, at any depth.
 * @param {string} selector of the cells; one of them has tabindex 0, the others -1.
 * @returns {() => void} to be called when cells have come or gone: sees to it that one has the stop.
 */
export function rove(element, selector) {
  element.addEventListener("focusin", (event) => {
    const cell = event.target.closest(selector);
    if (!cell) return;
    for (const other of element.querySelectorAll(`${selector}[tabindex="0"]`)) other.tabIndex = -1;
    cell.tabIndex = 0;
  });

  element.addEventListener("keydown", (event) => {
    const cells = [...element.querySelectorAll(selector)];
    const from = cells.indexOf(event.target);
    if (from < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const columns = countColumns(cells);
    const to = {
      ArrowLeft: from - 1,
      ArrowRight: from + 1,
      ArrowUp: from - columns,
      ArrowDown: from + columns,
      Home: 0,
      End: cells.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    cells[to]?.focus();
  });
  return () => {
    const cells = [...element.querySelectorAll(selector)];
    const stop = cells.find((cell) => cell.tabIndex === 0) ?? cells[0];
    for (const cell of cells) cell.tabIndex = cell === stop ? 0 : -1;
  };
}
