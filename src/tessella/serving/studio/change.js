// The two dialogs that begin with a picture: vary a part of its tiles, or paint marked ones anew.

import { toForm } from "./api.js";
import { drawChoice, drawCountAndSeed, makeDialog, readNumber } from "./forms.js";
import { MaskField } from "./mask.js";
import { drawBed, toFields, urlOf } from "./picture.js";
import { html, render } from "./vendor/lit-html.js";

/** What is remembered of the pictures that a form asks for. */
function readMade(form, app, source, was) {
  // Settings go on from what is changed, unless another model or none made it.
  const before = [was, source].find((picture) => picture?.model === app.model.id) ?? {};
  const { steps = null, guidanceScale = null, bestOf = null, negativePrompt = "" } = before;
  // What a picture looked at is chosen for it alone.
  const { pinned = [], excluded = [] } = was?.model === app.model.id ? was : {};
  return {
    model: app.model.id,
    prompt: form.elements.prompt.value.trim(),
    steps,
    guidanceScale,
    bestOf,
    negativePrompt,
    pinned,
    excluded,
    // Without its own source: else each picture would keep all that it goes back to.
    source: { blob: source.blob, prompt: source.prompt, model: source.model },
  };
}

/**
 * Opens a dialog that changes a picture; answers it.
 *
 * @param {{path, title, button, isPromptNeeded, picture, more, read}} change: where it is sent,
 *     words, what stands at the left and above the fields; `read(form)` answers what else is
 *     remembered and what else is sent, or in words what is missing.
 */
function openChange(app, source, was, change) {
  const dialog = makeDialog("change-title", "wide");
  const submit = async (event) => {
    event.preventDefault();
    const form = event.target;
    const { problem, made, fields } = app.busy()
      ? { problem: "Pictures are being painted now. Wait for them, or cancel them." }
      : await change.read(form);
    form.querySelector("[role=alert]").textContent = problem ?? "";
    if (problem) return;
    const all = { ...readMade(form, app, source, was), ...made };
    const toBody = (more) => toForm({ ...toFields(all), ...more, image: source.blob, ...fields });
    const count = readNumber(form, "count") ?? 1;
    app.paint({ path: change.path, count, seed: readNumber(form, "seed"), toBody, made: all });
    dialog.close();
  };
  render(
    html`<form class="shown halves" @submit=${submit}>
      <div>${change.picture}</div>
      <div class="stack">
        <h2 id="change-title">${change.title}</h2>
        ${change.more}
        <label class="field">
          <span class="hint">Prompt: what the whole picture shows</span>
          <textarea
            name="prompt"
            rows="2"
            ?required=${change.isPromptNeeded}
            maxlength=${app.model.limits.prompt_characters}
            .value=${(was ?? source).prompt}
          ></textarea>
        </label>
        ${drawCountAndSeed(app, was)}
        <p class="problem" role="alert"></p>
        <div class="row end">
          <button type="button" class="quiet" @click=${() => dialog.close()}>Not now</button>
          <button class="main">${change.button}</button>
        </div>
      </div>
    </form>`,
    dialog,
  );
  return dialog;
}

/** Varies a picture; `was` was made so before: its words and seed stand in the form. */
export function openVary(app, source, was = null) {
  const percent = Math.round((was?.strength ?? 0.5) * 100);
  const show = ({ target }) => {
    target.form.querySelector("output").value = `${target.value} %`;
  };
  const dialog = openChange(app, source, was, {
    path: "/v1/images/variations",
    title: "Vary the picture",
    button: "Paint variations",
    isPromptNeeded: false,
    picture: drawBed(urlOf(source.blob), "To vary"),
    more: html`<div class="field">
      <label for="strength" class="hint">
        Part of its tiles to repaint: <output>${percent} %</output>
      </label>
      <input
        id="strength"
        name="strength"
        type="range"
        min="5"
        max="100"
        step="5"
        value=${percent}
        @input=${show}
      />
    </div>`,
    read(form) {
      const strength = Number(form.elements.strength.value) / 100;
      return { made: { how: "varied", strength }, fields: { strength } };
    },
  });
  dialog.showModal();
}

/** Paints a part of a picture anew; `was` as in `openVary`. */
export function openEdit(app, source, was = null) {
  let field = null;
  const dialog = openChange(app, source, was, {
    path: "/v1/images/edits",
    title: "Paint a part anew",
    button: "Paint anew",
    isPromptNeeded: true,
    picture: html`<div id="mask"></div>
      <div class="row tools">
        ${drawChoice("Brush", "brush", [1, 2, 3], 1, (size) => (field.brush = size))}
        <button type="button" class="quiet" id="undo" @click=${() => field.undo()}>Undo</button>
        <button type="button" class="quiet" id="clear" @click=${() => field.clear()}>Clear</button>
      </div>`,
    more: html`<p class="hint">
        Draw over the tiles to change.
        <span class="keys">With the keyboard: arrow keys move, the space bar marks.</span>
      </p>
      <p class="hint">
        Whole tiles are painted anew, so a seam can show where new ones meet old ones. It shows less
        if you mark some of the plain ground around a thing too, rather than cut through it.
      </p>
      <p class="hint" role="status"></p>`,
    async read() {
      if (!field.marked.size) return { problem: "Mark the tiles to paint anew first." };
      const mask = await field.toBlob(app.model.image_size);
      return { made: { how: "edited", mask: [...field.marked] }, fields: { mask } };
    },
  });
  field = new MaskField(dialog.querySelector("#mask"), {
    url: urlOf(source.blob),
    grid: app.model.grid,
    // Another model's cells lie elsewhere.
    cells: was?.model === app.model.id ? was.mask : [],
    onChange: (marked, strokes) => {
      const words = marked === 1 ? "1 tile marked" : `${marked} tiles marked`;
      dialog.querySelector("[role=status]").textContent = words;
      dialog.querySelector("#undo").disabled = !strokes;
      dialog.querySelector("#clear").disabled = !marked;
      if (marked) dialog.querySelector("[role=alert]").textContent = "";
    },
  });
  dialog.showModal();
}
