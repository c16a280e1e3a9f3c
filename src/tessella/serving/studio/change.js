// The two dialogs that begin with a picture: vary a share of it, or paint marked tiles anew.

import { toForm } from "/studio/api.js";
import { MaskField } from "/studio/mask.js";
import { toFields } from "/studio/paint.js";
import { urlOf } from "/studio/picture.js";
import { html, nothing, render } from "/studio/vendor/lit-html.js";

/**
 * Offers `app.open.vary` and `app.open.edit`, each of (picture, was): `was` is a picture that was
 * made this way before, whose words and seed stand in the form.
 *
 * @param app what views share.
 * @param {(job) => Promise} paint sends a job to the easel.
 */
export function mountChanges(app, paint) {
  app.open.vary = (picture, was) => openVary(app, paint, picture, was?.how ? was : null);
  app.open.edit = (picture, was) => openEdit(app, paint, picture, was?.how ? was : null);
}

function openDialog(className, title) {
  const dialog = document.createElement("dialog");
  dialog.className = className;
  dialog.setAttribute("aria-labelledby", `${title}-title`);
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  return dialog;
}

function readAsked(form, app, source, was) {
  const { prompt, count, seed } = form.elements;
  // Settings go on from what is changed, unless another model or none made it.
  const own = [was, source].find((picture) => picture?.model === app.model.id) ?? {};
  const { steps = null, guidanceScale = null, bestOf = null, negativePrompt = "" } = own;
  return {
    count: Number(count.value) || 1,
    seed: seed.value === "" ? null : Number(seed.value),
    made: {
      model: app.model.id,
      prompt: prompt.value.trim(),
      steps,
      guidanceScale,
      bestOf,
      negativePrompt,
      // Without its own source: else each picture would keep all that it goes back to.
      source: { blob: source.blob, prompt: source.prompt, model: source.model },
    },
  };
}

function drawFields(app, prompt, was, isPromptNeeded) {
  const most = app.model.limits.n;
  return html`
    <label class="field">
      <span>Prompt: what the whole picture shows</span>
      <textarea
        name="prompt"
        rows="2"
        ?required=${isPromptNeeded}
        maxlength=${app.model.limits.prompt_characters}
        .value=${prompt}
      ></textarea>
    </label>
    <div class="row">
      <label class="field">
        <span>Pictures</span>
        <input
          name="count"
          type="number"
          min="1"
          max=${most}
          value=${was ? 1 : Math.min(4, most)}
        />
      </label>
      <label class="field">
        <span>Seed</span>
        <input
          name="seed"
          type="number"
          min="0"
          max=${app.studio.max_seed}
          placeholder="drawn"
          value=${was?.seed ?? nothing}
        />
      </label>
    </div>
  `;
}

function drawButtons(dialog, label) {
  return html`
    <div class="row end">
      <button type="button" class="quiet" @click=${() => dialog.close()}>Not now</button>
      <button class="main">${label}</button>
    </div>
  `;
}

/** Sends what a dialog asks, unless the easel is busy. */
function send(app, paint, dialog, job) {
  if (app.busy()) {
    dialog.querySelector("[role=alert]").textContent =
      "Pictures are being laid at this moment. Wait for them, or cancel them.";
    return;
  }
  dialog.close();
  paint(job);
}

function openVary(app, paint, picture, was) {
  const dialog = openDialog("wide", "vary");
  const source = picture;
  const submit = (event) => {
    event.preventDefault();
    const { count, seed, made } = readAsked(event.target, app, source, was);
    const strength = Number(event.target.elements.strength.value) / 100;
    Object.assign(made, { how: "varied", strength });
    const toBody = (fields) =>
      toForm({ ...toFields(made), ...fields, strength, image: source.blob });
    send(app, paint, dialog, { path: "/v1/images/variations", count, seed, toBody, made });
  };
  const draw = (share) =>
    render(
      html`<form class="shown" @submit=${submit}>
        <div class="bed"><img class="pixels" src=${urlOf(source.blob)} alt="To vary" /></div>
        <div class="stack">
          <h2 id="vary-title">Vary the picture</h2>
          <div class="field">
            <label for="strength">
              Share of its tiles that are laid anew: <output>${share} %</output>
            </label>
            <input
              id="strength"
              name="strength"
              type="range"
              min="5"
              max="100"
              step="5"
              .value=${String(share)}
              @input=${(event) => draw(Number(event.target.value))}
            />
          </div>
          ${drawFields(app, (was ?? source).prompt, was, false)}
          <p class="problem" role="alert"></p>
          ${drawButtons(dialog, "Paint variations")}
        </div>
      </form>`,
      dialog,
    );
  draw(Math.round((was?.strength ?? 0.5) * 100));
  dialog.showModal();
}

function openEdit(app, paint, picture, was) {
  const dialog = openDialog("wide", "edit");
  const source = picture;
  let field = null;
  const submit = async (event) => {
    event.preventDefault();
    const form = event.target;
    if (!field.marked.size) {
      dialog.querySelector("[role=alert]").textContent = "Mark the tiles to paint anew first.";
      return;
    }
    const { count, seed, made } = readAsked(form, app, source, was);
    const mask = await field.toBlob(app.model.image_size);
    Object.assign(made, { how: "edited", mask: [...field.marked] });
    const toBody = (fields) => toForm({ ...toFields(made), ...fields, image: source.blob, mask });
    send(app, paint, dialog, { path: "/v1/images/edits", count, seed, toBody, made });
  };
  const brush = (size) => html`<label>
    <input
      type="radio"
      name="brush"
      value=${size}
      ?checked=${size === 1}
      @change=${() => (field.brush = size)}
    />
    <span>${size}</span>
  </label>`;
  render(
    html`<form class="shown" @submit=${submit}>
      <div>
        <div id="mask"></div>
        <div class="row tools">
          <fieldset class="choice"><legend>Brush</legend>${[1, 2, 3].map(brush)}</fieldset>
          <button type="button" class="quiet" id="undo" @click=${() => field.undo()}>Undo</button>
          <button type="button" class="quiet" id="clear-mask" @click=${() => field.clear()}>
            Clear
          </button>
        </div>
      </div>
      <div class="stack">
        <h2 id="edit-title">Paint a part anew</h2>
        <p class="hint">
          Draw over the tiles that shall change. With the keyboard: arrow keys move, the space bar
          marks.
        </p>
        <p class="hint" role="status" id="marked"></p>
        ${drawFields(app, (was ?? source).prompt, was, true)}
        <p class="problem" role="alert"></p>
        ${drawButtons(dialog, "Paint anew")}
      </div>
    </form>`,
    dialog,
  );
  field = new MaskField(dialog.querySelector("#mask"), {
    url: urlOf(source.blob),
    grid: app.model.grid,
    // Another model's cells lie elsewhere.
    cells: was?.model === app.model.id ? was.mask : [],
    onChange: (marked, strokes) => {
      dialog.querySelector("#marked").textContent = `${marked} ${marked === 1 ? "tile" : "tiles"} marked`;
      dialog.querySelector("#undo").disabled = !strokes;
      dialog.querySelector("#clear-mask").disabled = !marked;
      if (marked) dialog.querySelector("[role=alert]").textContent = "";
    },
  });
  dialog.showModal();
}
