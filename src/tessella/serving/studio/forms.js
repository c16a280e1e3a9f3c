// Parts of forms and dialogs that several views have.

import { html } from "./vendor/lit-html.js";

/** A labelled part of a form. */
export function drawField(label, control) {
  return html`<label class="field"><span class="hint">${label}</span>${control}</label>`;
}

/** A field for a number; `blank` says what holds where none is given. */
export function drawNumber(name, label, options) {
  const { min = 0, max, step = 1, blank = "", value = "", required = false } = options;
  const control = html`<input
    name=${name}
    type="number"
    inputmode=${step === 1 ? "numeric" : "decimal"}
    min=${min}
    max=${max}
    step=${step}
    placeholder=${blank}
    value=${value}
    ?required=${required}
  />`;
  return drawField(label, control);
}

/** A number out of a form, null where it was left blank. */
export function readNumber(form, name) {
  const text = form.elements[name]?.value.trim() ?? "";
  return text === "" ? null : Number(text);
}

/** How many pictures, and the seed of the first: as `was` had it, if it is one made before. */
export function drawCountAndSeed({ model, studio }, was = null) {
  const { n: max } = model.limits;
  const count = { min: 1, max, value: was ? 1 : Math.min(4, max) };
  const seed = { max: studio.max_seed, blank: "random", value: was?.seed };
  return html`<div class="row">
    ${drawNumber("count", "Pictures", count)} ${drawNumber("seed", "Seed", seed)}
  </div>`;
}

/** A list of [value, words], one of which is chosen. */
export function drawSelect(label, options, value, choose, className = "") {
  return html`<select
    class=${className}
    aria-label=${label}
    .value=${value}
    @change=${(event) => choose(event.target.value)}
  >
    ${options.map(
      ([name, words]) => html`<option value=${name} ?selected=${name === value}>${words}</option>`,
    )}
  </select>`;
}

/** A set of values, one of which is chosen. */
export function drawChoice(legend, name, values, chosen, choose) {
  const option = (value) => html`<label class="row">
    <input
      type="radio"
      name=${name}
      ?checked=${value === chosen}
      @change=${() => choose(value)}
    />
    ${value}
  </label>`;
  return html`<fieldset class="row">
    <legend class="hint">${legend}</legend>
    ${values.map(option)}
  </fieldset>`;
}

/** What went wrong, where something did, and a button to try it again. */
export function drawProblem(problem, retry = null) {
  const button = html`<button type="button" class="quiet" @click=${retry}>Try again</button>`;
  return problem
    ? html`<p class="problem" role="alert">${problem} ${retry ? button : ""}</p>`
    : "";
}

/** Makes a dialog whose heading has an id; it is gone once it is closed. */
export function makeDialog(heading, className = "") {
  const dialog = Object.assign(document.createElement("dialog"), { className });
  dialog.setAttribute("aria-labelledby", heading);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  return dialog;
}
