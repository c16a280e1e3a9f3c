// The wall of pictures that this browser remembers; one of them opens in a dialog.

import * as store from "./gallery_store.js";
import { drawProblem, makeDialog } from "./forms.js";
import { nameOf } from "./looked.js";
import { actionsOf, describe, drawBed, dropUrl, listSettings, urlOf } from "./picture.js";
import { rove } from "./roving.js";
import { repeat } from "./vendor/directives/repeat.js";
import { html, render } from "./vendor/lit-html.js";

const KEPT_NOT =
  "This browser does not keep pictures (a private window?): they are gone after a reload.";

const DATE = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/**
 * @param {HTMLElement} element to draw in.
 * @param app what views share.
 * @returns {{add: (picture) => Promise, open: (picture) => void}} `add` ends when the picture is
 *     kept; `open` shows any picture in a dialog.
 */
export function mountGallery(element, app) {
  const state = { pictures: [], wanted: "", problem: "", isLoading: true };

  function draw() {
    render(drawWall(state, { open, clear, search }), element);
    settle();
  }

  function search({ target }) {
    state.wanted = target.value;
    draw();
  }

  async function add(picture) {
    state.pictures.unshift(picture);
    drop(state.pictures.slice(store.MOST_PICTURES));
    try {
      picture.id = await store.keepPicture(picture);
    } catch {
      state.problem = KEPT_NOT;
      draw();
    }
  }

  function open(picture) {
    const dialog = makeDialog("picture-title", "wide");
    // What an action opens takes the dialog's place: close before the action runs.
    const makeRoom = (event) => event.target.closest("button.act") && dialog.close();
    dialog.addEventListener("click", makeRoom, { capture: true });
    const isKept = state.pictures.includes(picture);
    render(drawPicture(picture, app, isKept ? () => forget(picture) : null), dialog);
    dialog.showModal();
  }

  function drop(pictures) {
    state.pictures = state.pictures.filter((picture) => !pictures.includes(picture));
    draw();
    for (const { blob } of pictures) dropUrl(blob);
    // The results may show one of them still.
    app.events.dispatchEvent(new Event("drop"));
  }

  async function forget(picture) {
    drop([picture]);
    element.querySelector(".piece")?.focus();
    app.say("Removed from the gallery.");
    if (picture.id) await store.forgetPicture(picture.id);
  }

  async function clear() {
    const many = state.pictures.length;
    if (!window.confirm(`Remove all ${many} pictures from this browser? This cannot be undone.`))
      return;
    state.wanted = "";
    drop(state.pictures);
    app.say("The gallery is empty.");
    await store.forgetAll();
  }

  const settle = rove(element, ".piece");
  draw();
  const show = (change) => {
    Object.assign(state, change, { isLoading: false });
    draw();
  };
  store.listPictures().then(
    (pictures) => show({ pictures: [...state.pictures, ...pictures] }),
    () => show({ problem: KEPT_NOT }),
  );
  return { add, open };
}

/** The words by which a picture is found: what it shows, its model, its seed, its day. */
function toIndex(picture) {
  const { prompt, negativePrompt, model, seed, how, created } = picture;
  const words = [prompt, negativePrompt, model, seed, how, DATE.format(created)];
  return words.filter(Boolean).join(" ").toLowerCase();
}

/** The pictures in which all of the wanted words occur. */
function findPictures(pictures, wanted) {
  const words = wanted.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return pictures;
  return pictures.filter((picture) => words.every((word) => toIndex(picture).includes(word)));
}

function listFacts(picture, { image_size: size }) {
  if (picture.how === "opened") {
    return [`The middle square of what you opened, ${size}×${size} pixels, as the model reads it`];
  }
  const facts = [`seed ${picture.seed}`, ...listSettings(picture), picture.how, picture.model];
  if (picture.examples?.length) facts.push(`looked at ${picture.examples.map(nameOf).join("; ")}`);
  return facts;
}

function drawPicture(picture, app, forget) {
  return html`
    <form method="dialog" class="close"><button class="quiet">Close</button></form>
    <div class="shown halves">
      ${drawBed(urlOf(picture.blob), describe(picture))}
      <div class="stack">
        <h2 id="picture-title">${describe(picture)}</h2>
        <p class="hint">
          ${listFacts(picture, app.model).join(" · ")}
          ${picture.created ? html`<br />${DATE.format(picture.created)}` : ""}
        </p>
        <div class="row">
          ${actionsOf(picture, app)}
          ${forget
            ? html`<button type="button" class="act" @click=${forget}>Remove</button>`
            : ""}
        </div>
      </div>
    </div>
  `;
}

function drawPiece(picture, open) {
  const words = describe(picture);
  return html`<li class="kept">
    <button
      type="button"
      class="piece"
      tabindex="-1"
      aria-label=${`${words}, seed ${picture.seed}`}
      @click=${() => open(picture)}
    >
      <img class="pixels" src=${urlOf(picture.blob)} alt="" loading="lazy" decoding="async" />
    </button>
    <div>
      <p class="caption">${words}</p>
      <p class="hint">${DATE.format(picture.created)}<br />${picture.model}</p>
    </div>
  </li>`;
}

function drawHead({ pictures, wanted }, found, { clear, search }) {
  const { length } = pictures;
  const all = `${length} of at most ${store.MOST_PICTURES}, in this browser`;
  return html`<div class="row head">
    <h2 id="gallery-title">Gallery</h2>
    <span class="hint" role="status">
      ${wanted.trim() ? `${found.length} of ${length} found` : length ? all : ""}
    </span>
    ${length
      ? html`<input
            type="search"
            aria-label="Search the gallery"
            placeholder="Words, model, day, seed"
            .value=${wanted}
            @input=${search}
          />
          <button type="button" class="quiet" id="clear-gallery" @click=${clear}>
            Clear the gallery
          </button>`
      : ""}
  </div>`;
}

function drawWall(state, actions) {
  const { pictures, wanted, problem, isLoading } = state;
  const found = findPictures(pictures, wanted);
  let empty = "";
  if (!pictures.length && !isLoading) {
    empty = "What you paint is remembered here, in this browser only.";
  } else if (pictures.length && !found.length) {
    empty = "No picture here has all of these words.";
  }
  return html`
    ${drawHead(state, found, actions)} ${drawProblem(problem)}
    ${empty ? html`<p class="hint">${empty}</p>` : ""}
    <ul class="wall" aria-labelledby="gallery-title">
      ${repeat(
        found,
        (picture) => picture,
        (picture) => drawPiece(picture, actions.open),
      )}
    </ul>
  `;
}
