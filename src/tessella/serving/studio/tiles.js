// The view of codes: what the model keeps of a picture, the grid of its codes, the box of tiles.
//
// Pointing at a place of the grid shows its tile and lights up the other places of that code;
// pointing at a tile in the box shows where it lies in the picture.

import { postJson, toBlob, toForm } from "/studio/api.js";
import { LARGE_PX, drawTile, enlargeTiles, loadCodebook } from "/studio/codebook.js";
import { urlOf } from "/studio/picture.js";
import { rove } from "/studio/roving.js";
import { html, render } from "/studio/vendor/lit-html.js";

/** Shows the view. */
export function mount(element, app) {
  const state = { box: null, seen: null, order: "colour", problem: "", waiting: "", code: null };
  let reading = null;

  const open = ([file]) => file && read(file);

  const actions = {
    choose: (event) => open(event.target.files),
    drop(event) {
      event.preventDefault();
      element.querySelector(".drop").classList.remove("is-over");
      open(event.dataTransfer.files);
    },
    over(event) {
      event.preventDefault();
      element.querySelector(".drop").classList.add("is-over");
    },
    leave: () => element.querySelector(".drop").classList.remove("is-over"),
    sort(order) {
      state.order = order;
      draw();
    },
    point: showCode,
    follow,
    change: (name) => app.open[name](state.seen.picture),
  };

  function draw() {
    render(drawView(state, app, actions), element);
    if (state.box) placeSheet(element.querySelector(".tiles"), state.box);
    element.style.setProperty("--rows", (state.seen ?? app.model).grid[0]);
    element.style.setProperty("--columns", (state.seen ?? app.model).grid[1]);
    showCode(state.code);
  }

  /**
   * Marks a code wherever it is on the page, and shows it enlarged, alone and at a place of the
   * picture: the first one that has it unless given. null marks none.
   */
  function showCode(code, place = state.seen?.codes.flat().indexOf(code) ?? -1) {
    state.code = code;
    for (const cell of element.querySelectorAll(".is-pointed")) cell.classList.remove("is-pointed");
    element.querySelector(".lens").hidden = code === null;
    if (code === null) return;
    for (const cell of element.querySelectorAll(`[data-cell="${code}"]`)) {
      cell.classList.add("is-pointed");
    }
    const [alone, placed] = element.querySelectorAll(".lens canvas");
    if (state.box) drawTile(alone, state.box, code);
    placed.parentElement.hidden = place < 0;
    if (place >= 0) drawPlace(placed, element.querySelector("#painted"), state.seen.grid, place);
    element.querySelector(".lens strong").textContent = `Tile ${code}`;
    element.querySelector(".lens span").textContent = countPlaces(state.seen, code);
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
    let found;
    try {
      const form = toForm({ image: blob, model: app.model.id });
      const answer = await postJson("/v1/images/reconstructions", form, signal);
      const original = toBlob(answer.original);
      const picture = { how: "opened", model: "", prompt, seed: 0, blob: original };
      const reconstruction = toBlob(answer.reconstruction);
      found = { seen: { ...answer, picture, original, reconstruction }, code: null };
    } catch (error) {
      found = { problem: error.message };
    }
    if (signal.aborted) return;
    Object.assign(state, found, { waiting: "" });
    if (found.seen) {
      const [rows, columns] = found.seen.grid;
      app.say(`Read as ${rows} rows of ${columns} codes.`);
    }
    draw();
  }

  async function loadBox() {
    const { model } = app;
    state.box = null;
    draw();
    let found;
    try {
      const box = await loadCodebook(model);
      box.url ??= await enlargeTiles(box);
      found = { box };
    } catch (error) {
      found = { problem: error.message };
    }
    if (model !== app.model) return;
    Object.assign(state, found);
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
    Object.assign(state, { seen: null, code: null, problem: "", waiting: "" });
    loadBox();
  });
  look();
  loadBox();
}

/**
 * Puts the sheet behind each button, moved so that its own tile is seen, but for a pixel at each
 * edge: scaling mixes in the neighbours there.
 */
function placeSheet(field, { columns, size, url }) {
  const rows = Math.ceil(size / columns);
  const seen = LARGE_PX - 2;
  const stretch = (many) => `${(100 * many * LARGE_PX) / seen}%`;
  // A share of what the sheet is longer than the button.
  const shift = (at, many) => `${(100 * (at * LARGE_PX + 1)) / (many * LARGE_PX - seen)}%`;
  field.style.setProperty("--sheet", `url(${url})`);
  field.style.setProperty("--sheet-size", `${stretch(columns)} ${stretch(rows)}`);
  for (const { dataset, style } of field.querySelectorAll(".tile")) {
    const [x, y] = [dataset.cell % columns, Math.floor(dataset.cell / columns)];
    style.backgroundPosition = `${shift(x, columns)} ${shift(y, rows)}`;
  }
}

/** Draws one place of a picture so that it fills a canvas. */
function drawPlace(canvas, image, [rows, columns], place) {
  const [width, height] = [image.naturalWidth / columns, image.naturalHeight / rows];
  const [x, y] = [(place % columns) * width, Math.floor(place / columns) * height];
  [canvas.width, canvas.height] = [width, height];
  if (width) canvas.getContext("2d").drawImage(image, x, y, width, height, 0, 0, width, height);
}

function countPlaces(seen, code) {
  if (!seen) return "";
  const many = seen.codes.flat().filter((other) => other === code).length;
  if (!many) return "not in this picture";
  return many === 1 ? "at 1 place of this picture" : `at ${many} places of this picture`;
}

function drawCells(codes, { point }) {
  const cell = (code, y, x) => html`<button
    type="button"
    role="gridcell"
    class="cell"
    data-cell=${code}
    tabindex=${x + y ? -1 : 0}
    aria-label=${`Row ${y + 1}, column ${x + 1}: tile ${code}`}
    @pointerenter=${() => point(code, y * codes[0].length + x)}
    @focus=${() => point(code, y * codes[0].length + x)}
  ></button>`;
  return codes.map(
    (row, y) => html`<div role="row">${row.map((code, x) => cell(code, y, x))}</div>`,
  );
}

function drawSeen(seen, actions) {
  return html`
    <div class="pair">
      <figure>
        <div class="bed">
          <img class="pixels" src=${urlOf(seen.original)} alt="The picture as the model reads it" />
        </div>
        <figcaption>Original</figcaption>
      </figure>
      <figure>
        <div class="bed">
          <img
            class="pixels"
            id="painted"
            src=${urlOf(seen.reconstruction)}
            alt="Painted from its codes"
          />
          <div class="cells" role="grid" aria-label="Codes of the picture: arrow keys move">
            ${drawCells(seen.codes, actions)}
          </div>
        </div>
        <figcaption>
          From its ${seen.codes.flat().length} codes, ${new Set(seen.codes.flat()).size} different
        </figcaption>
      </figure>
    </div>
  `;
}

function drawBox(box, order, { point, sort }) {
  const codes = order === "colour" ? box.byColour : [...box.byColour].sort((a, b) => a - b);
  const choice = (value) => html`<label>
    <input
      type="radio"
      name="order"
      ?checked=${order === value}
      @change=${() => sort(value)}
    />
    <span>${value}</span>
  </label>`;
  return html`
    <div class="wall-head">
      <h2 id="box-title">The box of ${box.size} tiles</h2>
      <fieldset class="choice">
        <legend>Sorted by</legend>
        ${["colour", "number"].map(choice)}
      </fieldset>
    </div>
    <p class="hint">
      Each as the decoder paints it when all others are the same. In a picture its neighbours, and
      the picture as a whole, change it.
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
        ></button>`,
      )}
    </div>
  `;
}

function drawView(state, app, actions) {
  const { box, seen, order, problem, waiting } = state;
  return html`
    <h1 tabindex="-1">Tiles</h1>
    <p class="lead">
      A picture is ${app.model.grid.join("×")} codes out of ${app.model.codebook_size}. Open one of
      your own, and see what the model keeps of it.
    </p>
    <div class="bench tiles-bench" @pointermove=${actions.follow}>
      <div class="stack">
        <div class="drop" @drop=${actions.drop} @dragover=${actions.over}
          @dragleave=${actions.leave}>
          <label for="picture-file">
            ${seen ? "Another picture" : "Drop a picture, or choose one"}
          </label>
          <input id="picture-file" type="file" accept="image/*" @change=${actions.choose} />
        </div>
        <p class="hint" role="status">${waiting}</p>
        ${problem ? html`<p class="problem" role="alert">${problem}</p>` : ""}
        <div class="codes-of-picture">${seen ? drawSeen(seen, actions) : ""}</div>
        <div class="lens" aria-live="polite" hidden>
          <figure aria-hidden="true">
            <canvas class="pixels" width="8" height="8"></canvas>
            <figcaption>alone</figcaption>
          </figure>
          <figure aria-hidden="true">
            <canvas class="pixels" width="8" height="8"></canvas>
            <figcaption>here</figcaption>
          </figure>
          <p><strong></strong><br /><span></span></p>
        </div>
        ${seen && app.model.can.edit
          ? html`<div class="acts">
              <button type="button" class="act" @click=${() => actions.change("vary")}>
                Vary the picture
              </button>
              <button type="button" class="act" @click=${() => actions.change("edit")}>
                Edit the picture
              </button>
            </div>`
          : ""}
      </div>
      <section class="box" aria-label="Codebook">
        ${box ? drawBox(box, order, actions) : html`<p class="hint">Fetching the tiles…</p>`}
      </section>
    </div>
  `;
}
