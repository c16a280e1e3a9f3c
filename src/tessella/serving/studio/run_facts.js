// What a run says in words and numbers: no pictures, nothing that moves.

import { count } from "/studio/run_curve.js";
import { html, nothing } from "/studio/vendor/lit-html.js";

/** The numbers to look at first. */
export function drawNumbers(run) {
  if (!run.numbers.length) return nothing;
  return html`<dl class="run-numbers">
    ${run.numbers.map(
      ([name, value, of]) =>
        html`<div>
          <dt>${name}</dt>
          <dd class="number">${value}</dd>
          <dd class="of">${of}</dd>
        </div>`,
    )}
  </dl>`;
}

/** What training said, and what of its logs cannot be read. */
export function drawNotes(run) {
  if (!run.notes.length && !run.unreadable_lines) return nothing;
  const titles = Object.fromEntries(run.stages.map((stage) => [stage.name, stage.title]));
  return html`<section aria-labelledby="run-notes">
    <h2 id="run-notes">Notes</h2>
    <ul class="run-notes">
      ${run.notes.map(
        (note) =>
          html`<li>
            <b>${titles[note.stage]}, ${count(note.images_seen)} images:</b> ${note.text}
          </li>`,
      )}
      ${run.unreadable_lines
        ? html`<li>Unreadable lines in the logs, left out: ${count(run.unreadable_lines)}.</li>`
        : nothing}
    </ul>
  </section>`;
}

/** What is trained, on what, how. */
export function drawFacts(run) {
  if (!run.facts.length) return nothing;
  return html`<section aria-labelledby="run-facts">
    <h2 id="run-facts">What is trained</h2>
    <dl class="run-facts">
      ${run.facts.map(
        ([name, value]) =>
          html`<dt>${name}</dt>
            <dd>${value}</dd>`,
      )}
    </dl>
  </section>`;
}

/** The files that the data left out, by reason. */
export function drawSkipped(run) {
  if (!run.skipped?.length) return nothing;
  const rows = run.skipped.map(({ kind, count: files, examples }) => [
    kind,
    count(files),
    examples.map(([name, reason]) => `${name}: ${reason}`).join(" "),
  ]);
  return html`<section aria-labelledby="run-skipped">
    <h2 id="run-skipped">Skipped files</h2>
    ${drawTable("Skipped files", ["reason", "files", "for example"], rows)}
  </section>`;
}

/** A table that scrolls sideways where it is too wide; a row's first cell names it. */
export function drawTable(label, heads, rows) {
  return html`<div class="run-scroll" role="region" tabindex="0" aria-label=${label}>
    <table>
      <thead>
        <tr>
          ${heads.map((head) => html`<th scope="col">${head}</th>`)}
        </tr>
      </thead>
      <tbody>
        ${rows.map(
          ([first, ...others]) =>
            html`<tr>
              <th scope="row">${first}</th>
              ${others.map((cell) => html`<td>${cell}</td>`)}
            </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}
