// Pictures of your own that the model looks at: chosen or dropped beside the prompt.

import { drawProblem } from "./forms.js";
import { takeDrops } from "./opened.js";
import { html } from "./vendor/lit-html.js";

/** The middle square of a picture as a data URL, no larger than a model of that size needs. */
async function toSmall(file, sizePx) {
  const image = await createImageBitmap(file);
  const side = Math.min(image.width, image.height);
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = Math.min(side, 2 * sizePx);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  const [left, top] = [(image.width - side) / 2, (image.height - side) / 2];
  context.drawImage(image, left, top, side, side, 0, 0, canvas.width, canvas.width);
  return canvas.toDataURL("image/png");
}

/**
 * The references of a form.
 *
 * @param app what views share.
 * @param {() => void} redraw called when they have changed.
 * @returns {{urls: string[], set, draw}} `set(urls)` replaces them; `draw()` answers the template.
 */
export function makeReferences(app, redraw) {
  const state = { urls: [], problem: "" };
  const most = () => app.model.memory?.neighbors ?? 0;

  function set(urls, problem = "") {
    Object.assign(state, { urls: urls.slice(0, most()), problem });
    redraw();
  }

  async function add(files) {
    const read = [...files].map((file) => toSmall(file, app.model.image_size).catch(() => null));
    const found = await Promise.all(read);
    const urls = [...state.urls, ...found.filter(Boolean)];
    let problem = urls.length > most() ? `The model looks at ${most()} at most.` : "";
    if (found.includes(null)) problem = `Not a picture: ${files[found.indexOf(null)].name}`;
    set(urls, problem);
    app.say(`${state.urls.length} of at most ${most()} references.`);
  }

  const drop = takeDrops(add);

  function choose({ target }) {
    add([...target.files]);
    target.value = ""; // so that the same file can be chosen again
  }

  const remove = (place) => set(state.urls.filter((_, other) => other !== place));

  const draw = () => html`<div
    class="drop references"
    @dragover=${drop}
    @dragleave=${drop}
    @drop=${drop}
  >
    <label class="field">
      <span class="hint">References: pictures to look at, at most ${most()}</span>
      <input type="file" accept="image/*" multiple @change=${choose} />
    </label>
    ${drawProblem(state.problem)}
    <div class="row">
      ${state.urls.map(
        (url, place) => html`<button
          type="button"
          class="look"
          title="Remove"
          aria-label=${`Remove reference ${place + 1}`}
          @click=${() => remove(place)}
        >
          <img class="pixels" src=${url} alt="" />
        </button>`,
      )}
    </div>
  </div>`;

  return { state, set, draw: () => (most() ? draw() : "") };
}
