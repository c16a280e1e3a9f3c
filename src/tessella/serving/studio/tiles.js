// The view of codes: what the model keeps of a picture, the grid of its codes, the box of tiles.
//
// Pointing at a place of the grid shows its tile and lights up the other places of that code;
// pointing at a tile in the box shows where it lies in the picture. Where a position has several
// codes, the grid and the box show one of them, with the tiles of its codebook.

import { drawTile, loadCodebook, nameCodes } from "./codebook.js";
import { drawChoice, drawProblem, drawSelect } from "./forms.js";
import { readPicture, takeDrops } from "./opened.js";
import { drawBed, urlOf } from "./picture.js";
import { drawCells, rove } from "./roving.js";
import { html, render } from "./vendor/lit-html.js";

const ORDINALS = ["first", "second", "third", "fourth"];

/** Shows the view. */
export function mount(element, app) {
  const state = {
    ...{ box: null, seen: null, book: 0, order: "colour" },
    ...{ problem: "", boxProblem: "", waiting: "", code: null },
  };
  let reading = null;

  const open = ([file]) => file && read(file);

  const actions = {
    choose: (event) => open(event.target.files),
    drop: takeDrops(open),
    sort(order) {
      state.order = order;
      draw();
    },
    /** Shows another code of each position. */
    turn(book) {
      Object.assign(state, { book: Number(book), code: null });
      draw();
    },
    point: showCode,
    follow,
    loadBox,
  };

  function draw() {
    render(drawView(state, app, actions), element);
    for (const canvas of element.querySelectorAll(".tile canvas")) {
      drawTile(canvas, state.box, state.book, Number(canvas.parentElement.dataset.cell));
    }
    showCode(state.code);
  }

  /**
   * Marks a code wherever it is on the page, and shows it enlarged, alone and at a place of the
   * picture: the first one that has it unless given. null marks none.
   */
  function showCode(code, place = listCodes(state).indexOf(code)) {
    state.code = code;
    for (const cell of element.querySelectorAll(".is-pointed")) cell.classList.remove("is-pointed");
    element.querySelector(".lens").hidden = code === null;
    if (code === null) return;
    for (const cell of element.querySelectorAll(`[data-cell="${code}"]`)) {
      cell.classList.add("is-pointed");
    }
    const [alone, placed] = element.querySelectorAll(".lens canvas");
    if (state.box) drawTile(alone, state.box, state.book, code);
    placed.parentElement.hidden = place < 0;
    const image = element.querySelector("#painted img");
    if (place >= 0) drawPlace(placed, image, state.seen.grid, place);
    element.querySelector(".lens strong").textContent = `Tile ${code}`;
    element.querySelector(".lens span").textContent = countPlaces(state, code);
  }

  /** Points at what lies under a finger that slides: the browser tells only where it began. */
  function follow({ pointerType, clientX, clientY }) {
    if (pointerType === "mouse") return;
    const under = document.elementFromPoint(clientX, clientY)?.closest("[data-cell]");
    if (element.contains(under)) under.focus({ preventScroll: true });
  }

  /** Sends a picture to be read as codes, in place of one that is being read. */
  async function read(blob, prompt = "") {
    reading?.abort();
    const { signal } = (reading = new AbortController());
    Object.assign(state, { problem: "", waiting: "Reading the picture…" });
    draw();
    const change = await readPicture(blob, app, { prompt, signal }).then(
      (seen) => ({ seen, code: null }),
      (error) => ({ problem: error.message }),
    );
    if (signal.aborted) return;
    Object.assign(state, change, { waiting: "" });
    if (change.seen) app.say(sayRead(change.seen));
    draw();
  }

  async function loadBox() {
    const { model } = app;
    Object.assign(state, { box: null, boxProblem: "" });
    draw();
    const change = await loadCodebook(model).then(
      (box) => ({ box }),
      (error) => ({ boxProblem: error.message }),
    );
    if (model !== app.model) return;
    Object.assign(state, change);
    draw();
  }

  function look() {
    if (app.lookAt) read(app.lookAt.blob, app.lookAt.prompt);
    app.lookAt = null;
  }

  draw();
  rove(element.querySelector(".codes-of-picture"), ".cell");
  rove(element.querySelector(".box"), ".tile");
  app.events.addEventListener("look", look);
  app.events.addEventListener("model", () => {
    reading?.abort();
    Object.assign(state, { seen: null, book: 0, code: null, problem: "", waiting: "" });
    loadBox();
  });
  look();
  loadBox();
}

/** Draws one place of a picture so that it fills a canvas. */
function drawPlace(canvas, image, [rows, columns], place) {
  const [width, height] = [image.naturalWidth / columns, image.naturalHeight / rows];
  const [x, y] = [(place % columns) * width, Math.floor(place / columns) * height];
  [canvas.width, canvas.height] = [width, height];
  if (width) canvas.getContext("2d").drawImage(image, x, y, width, height, 0, 0, width, height);
}

/** The codes of the picture that are shown, row after row. */
function listCodes({ seen, book }) {
  return seen?.codes[book].flat() ?? [];
}

function sayRead({ grid, codes_per_position: many }) {
  const what = many > 1 ? `positions with ${many} codes each` : "codes";
  return `Read as ${grid.join(" rows of ")} ${what}.`;
}

function nameBook(book) {
  return `the ${ORDINALS[book] ?? `${book + 1}th`}`;
}

function countPlaces(state, code) {
  if (!state.seen) return "";
  const many = listCodes(state).filter((other) => other === code).length;
  if (!many) return "not in this picture";
  return many === 1 ? "at 1 place of this picture" : `at ${many} places of this picture`;
}

function drawSeen({ seen, book }, { point }) {
  const different = seen.codes.reduce((sum, grid) => sum + new Set(grid.flat()).size, 0);
  const cells = drawCells(seen.grid, "Codes of the picture: arrow keys move", {
    codes: seen.codes[book],
    point,
  });
  return html`
    <div class="pair halves">
      <figure>
        ${drawBed(urlOf(seen.original), "The picture as the model reads it")}
        <figcaption class="hint">Original</figcaption>
      </figure>
      <figure id="painted">
        ${drawBed(urlOf(seen.reconstruction), "Painted from its codes", cells)}
        <figcaption class="hint">
          From its ${seen.codes.flat(2).length} codes, ${different} different
        </figcaption>
      </figure>
    </div>
  `;
}

/** Says how many codes a position has, where it has several, and chooses which are shown. */
function drawBooks({ grid: [rows, columns], codes_per_position: many }, book, turn) {
  if (many === 1) return "";
  const books = Array.from({ length: many }, (_, other) => [other, nameBook(other)]);
  return html`<p class="row">
    ${many} codes at each of ${rows * columns} positions; shown:
    ${drawSelect("Which code of each position", books, book, turn)}
  </p>`;
}

function drawBox({ box, order, book }, { point, sort }) {
  const many = box.byColour.length;
  const byColour = box.byColour[book];
  const codes = order === "colour" ? byColour : [...byColour].sort((a, b) => a - b);
  return html`
    <div class="row head">
      <h2 id="box-title">
        The box of ${box.size} tiles${many > 1 ? `, ${nameBook(book)} of ${many}` : ""}
      </h2>
      ${drawChoice("Sorted by", "order", ["colour", "number"], order, sort)}
    </div>
    <p class="hint">
      Each as the decoder paints it among copies of
      itself${many > 1 ? ", with the other codes at their mean" : ""}. In a picture its neighbours,
      and the picture as a whole, change it.
    </p>
    <div class="tiles" role="group" aria-labelledby="box-title">
      ${codes.map(
        (code, place) => html`<button
          type="button"
          class="tile"
          data-cell=${code}
          tabindex=${place ? -1 : 0}
          aria-label=${`Tile ${code}`}
          @pointerenter=${() => point(code)}
          @focus=${() => point(code)}
        >
          <canvas class="pixels"></canvas>
        </button>`,
      )}
    </div>
  `;
}

function drawView(state, app, actions) {
  const { box, seen, book, problem, waiting } = state;
  const change = (name) => html`<button
    type="button"
    class="act"
    @click=${() => app.open[name.toLowerCase()](seen.picture)}
  >
    ${name} the picture
  </button>`;
  return html`
    <h1 tabindex="-1">Tiles</h1>
    <p class="lead">
      A picture is ${nameCodes(app.model)}. Open one of your own, and see what the model keeps of
      it.
    </p>
    ${drawBooks(app.model, book, actions.turn)}
    <div class="bench halves" @pointermove=${actions.follow}>
      <div class="stack">
        <div
          class="row drop"
          @drop=${actions.drop}
          @dragover=${actions.drop}
          @dragleave=${actions.drop}
        >
          <label for="picture-file">
            ${seen ? "Another picture" : "Drop a picture, or choose one"}
          </label>
          <input id="picture-file" type="file" accept="image/*" @change=${actions.choose} />
        </div>
        <p class="hint" role="status">${waiting}</p>
        ${drawProblem(problem)}
        <div class="codes-of-picture">${seen ? drawSeen(state, actions) : ""}</div>
        <div class="row lens" aria-live="polite" hidden>
          ${["alone", "here"].map(
            (words) => html`<figure aria-hidden="true">
              <canvas class="pixels" width="8" height="8"></canvas>
              <figcaption class="hint">${words}</figcaption>
            </figure>`,
          )}
          <p><strong></strong><br /><span class="hint"></span></p>
        </div>
        ${seen && app.model.can.edit
          ? html`<div class="row">${["Vary", "Edit"].map(change)}</div>`
          : ""}
      </div>
      <section class="box" aria-label="Codebook">
        ${drawProblem(state.boxProblem, actions.loadBox)}
        ${box ? drawBox(state, actions) : ""}
        ${box || state.boxProblem ? "" : html`<p class="hint">Fetching the tiles…</p>`}
      </section>
    </div>
  `;
}
