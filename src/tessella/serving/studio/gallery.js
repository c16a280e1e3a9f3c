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

/**
 * @param {HTMLElement} element to draw in.
 * @param app what views share.
 * @returns {{add: (picture) => Promise}} `add` ends when the picture is kept.
 */
export function mountGallery(element, app) {
  const state = { pictures: [], problem: "" };

  const draw = () => render(drawWall(state, { open, clear }), element);

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
    render(drawPicture(picture, app, () => forget(picture)), dialog);
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
    drop(state.pictures);
    app.say("The gallery is empty.");
    await store.forgetAll();
  }

  rove(element, ".piece");
  draw();
  const show = (change) => {
    Object.assign(state, change);
    draw();
  };
  store.listPictures().then(
    (pictures) => show({ pictures: [...state.pictures, ...pictures] }),
    () => show({ problem: KEPT_NOT }),
  );
  return { add };
}

function drawPicture(picture, app, forget) {
  const facts = [`seed ${picture.seed}`, ...listSettings(picture), picture.how, picture.model];
  if (picture.examples?.length) facts.push(`looked at ${picture.examples.map(nameOf).join("; ")}`);
  return html`
    <form method="dialog" class="close"><button class="quiet">Close</button></form>
    <div class="shown halves">
      ${drawBed(urlOf(picture.blob), describe(picture))}
      <div class="stack">
        <h2 id="picture-title">${describe(picture)}</h2>
        <p class="hint">${facts.join(" · ")}<br />${new Date(picture.created).toLocaleString()}</p>
        <div class="row">
          ${actionsOf(picture, app)}
          <button type="button" class="act" @click=${forget}>Remove</button>
        </div>
      </div>
    </div>
  `;
}

function drawWall({ pictures, problem }, { open, clear }) {
  const { length } = pictures;
  return html`
    <div class="row head">
      <h2 id="gallery-title">Gallery</h2>
      <span class="hint">
        ${length ? `${length} of at most ${store.MOST_PICTURES}, in this browser` : ""}
      </span>
      ${length
        ? html`<button type="button" class="quiet" id="clear-gallery" @click=${clear}>
            Clear the gallery
          </button>`
        : ""}
    </div>
    ${drawProblem(problem)}
    ${length
      ? ""
      : html`<p class="hint">What you paint is remembered here, in this browser only.</p>`}
    <ul class="wall" aria-labelledby="gallery-title">
      ${repeat(
        pictures,
        (picture) => picture,
        (picture, index) => html`<li>
          <button
            type="button"
            class="piece"
            tabindex=${index ? -1 : 0}
            aria-label=${`${describe(picture)}, seed ${picture.seed}`}
            @click=${() => open(picture)}
          >
            <img class="pixels" src=${urlOf(picture.blob)} alt="" loading="lazy" />
          </button>
        </li>`,
      )}
    </ul>
  `;
}
