// The view of the model: its numbers with their protocol, samples, and the card.

import { get } from "./api.js";
import { nameCodes } from "./codebook.js";
import { drawProblem } from "./forms.js";
import { toTemplates } from "./markdown.js";
import { describeProtocol, nameMetric, writeValue } from "./metrics.js";
import { urlOf } from "./picture.js";
import { html, render } from "./vendor/lit-html.js";

/** Shows the view. */
export function mount(element, app) {
  async function load() {
    const { model } = app;
    const draw = (card, problem) => render(drawView(model, card, problem, load), element);
    draw(null);
    try {
      const card = await get(`/v1/models/${encodeURIComponent(model.id)}/card`);
      const samples = await get(card.samples, "blob").catch(() => null);
      if (model === app.model) draw({ ...card, samples });
    } catch (error) {
      if (model === app.model) draw(null, error.message);
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
        ([name, metric]) => html`<tr>
          <th scope="row">
            ${nameMetric(name)}
            <small class="hint">${describeProtocol(metric.protocol)}</small>
          </th>
          <td class="number">${writeValue(name, metric)}</td>
        </tr>`,
      )}
    </tbody>
  </table>`;
}

/** How codes come about, for each objective. */
const OBJECTIVES = {
  any_order: "filled in any order, several at a time",
  masked: "filled in any order, several at a time, each seen from all sides",
  autoregressive: "one after the other",
  parallel: "all at once",
  latent_mse: "all at once, as their mean",
  shared_latent: "all at once, nearest to what the text means",
};

function drawView(model, card, problem, retry) {
  return html`
    <h1 tabindex="-1">Model ${model.id}</h1>
    <p class="lead">
      Paints ${model.image_size}×${model.image_size} pixels: ${nameCodes(model)},
      ${OBJECTIVES[model.objective] ?? model.objective}.
    </p>
    ${drawProblem(problem, retry)}
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
