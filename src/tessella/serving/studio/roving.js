// One tab stop for a field of many cells: arrow keys move the focus, Home and End go to the ends.

/** How many cells stand in the first row, as the page is laid out now. */
function countColumns(cells) {
  const top = cells[0].offsetTop;
  const next = cells.findIndex((cell) => cell.offsetTop > top);
  return next < 0 ? cells.length : next;
}

/**
 * Lets arrow keys go through the cells of an element.
 *
 * @param {HTMLElement} element holds the cells, at any depth.
 * @param {string} selector of the cells; one of them has tabindex 0, the others -1.
 */
export function rove(element, selector) {
  const list = () => [...element.querySelectorAll(selector)];

  element.addEventListener("focusin", (event) => {
    const cell = event.target.closest(selector);
    if (!cell) return;
    for (const other of element.querySelectorAll(`${selector}[tabindex="0"]`)) other.tabIndex = -1;
    cell.tabIndex = 0;
  });

  element.addEventListener("keydown", (event) => {
    const cells = list();
    const from = cells.indexOf(event.target);
    if (from < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const columns = countColumns(cells);
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    let to = from + (moves[event.key] ?? 0);
    if (event.key === "Home") to = 0;
    else if (event.key === "End") to = cells.length - 1;
    else if (!(event.key in moves)) return;
    event.preventDefault();
    cells[to]?.focus();
  });
}
