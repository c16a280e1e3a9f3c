// The view of the model: its numbers with their protocol, samples, and the card.

import { get } from "/studio/api.js";
import { drawProblem } from "/studio/forms.js";
import { toTemplates } from "/studio/markdown.js";
import { urlOf } from "/studio/picture.js";
import { html, render } from "/studio/vendor/lit-html.js";

/** Shows the view. */
export function mount(element, app) {
  async function load() {
    const { model } = app;
    render(drawView(model, null), element);
    try {
      const card = await get(`/v1/models/${encodeURIComponent(model.id)}/card`);
      const samples = await get(card.samples, "blob").catch(() => null);
      if (model === app.model) render(drawView(model, { ...card, samples }), element);
    } catch (error) {
      if (model === app.model) render(drawView(model, null, error.message), element);
    }
  }
  app.events.addEventListener("model", load);
  load();
}

/** A card repeats its numbers as a section, which stand in the table here. */
function withoutNumbers(markdown) {
  return markdown.replace(/^## Measured\n[^]*?(?=^## |(?![^]))/m, "");
}

function drawMetrics(metrics) {
  const entries = Object.entries(metrics ?? {});
  if (!entries.length) return html`<p class="hint">No numbers came with this model.</p>`;
  return html`<table>
    <caption class="hidden">Numbers and how they were measured</caption>
    <thead>
      <tr><th scope="col">What</th><th scope="col">Value</th></tr>
    </thead>
    <tbody>
      ${entries.map(
        ([name, { value, protocol }]) => html`<tr>
          <th scope="row">
            ${name.replaceAll("_", " ")}
            <small class="hint">${protocol}</small>
          </th>
          <td class="number">${round(value)}</td>
        </tr>`,
      )}
    </tbody>
  </table>`;
}

/** Four digits that count; whole numbers as they are. */
function round(value) {
  return typeof value === "number" && !Number.isInteger(value) ? +value.toPrecision(4) : value;
}

function drawView(model, card, problem = "") {
  return html`
    <h1 tabindex="-1">Model ${model.id}</h1>
    <p class="lead">
      Paints ${model.image_size}×${model.image_size} pixels: ${model.grid.join("×")} codes out of
      ${model.codebook_size}, laid by <code>${model.objective}</code>.
    </p>
    ${drawProblem(problem)}
    ${card
      ? html`<div class="bench halves">
          <article class="card stack">${toTemplates(withoutNumbers(card.markdown))}</article>
          <aside class="stack" aria-label="Samples and numbers">
            ${card.samples
              ? html`<img src=${urlOf(card.samples)} alt="Samples of the model" />`
              : ""}
            <h2>Measured</h2>
            ${drawMetrics(card.metrics)}
          </aside>
        </div>`
      : problem
        ? ""
        : html`<p class="hint" role="status">Fetching the card…</p>`}
  `;
}
