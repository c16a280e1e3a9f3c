// What a picture was painted beside: small pictures under it, each to be left out or to be kept.

import { get } from "./api.js";
import { dropUrl, urlOf } from "./picture.js";
import { html, nothing } from "./vendor/lit-html.js";

const thumbs = new WeakMap(); // an example of a picture → its Blob, once it has come

/** Fetches what a picture looked at; calls `draw` as each comes. */
export async function fetchLooked({ model, examples = [] }, draw) {
  for (const example of examples.filter(({ index }) => index !== undefined)) {
    const path = `/v1/models/${encodeURIComponent(model)}/examples/${example.index}.png`;
    // Without it the caption still says what it is.
    const blob = await get(path, "blob").catch(() => null);
    if (blob) thumbs.set(example, blob);
    draw();
  }
}

/** Gives the memory behind the small pictures back. */
export function dropLooked({ examples = [] } = {}) {
  for (const example of examples) if (thumbs.has(example)) dropUrl(thumbs.get(example));
}

/** The caption of an example, or what else it is called. */
export function nameOf({ caption, name }) {
  return caption || name;
}

/**
 * Draws what a picture looked at.
 *
 * @param picture with `examples`, as the server says; references of the request come first.
 * @param {(change) => void} lookAgain paints it again, with another choice of examples.
 */
export function drawLooked(picture, lookAgain) {
  const { examples = [], references = [], pinned = [], excluded = [] } = picture;
  if (!examples.length && !excluded.length) return "";
  const without = (list, member) => list.filter((other) => other !== member);
  const draw = (example, place) => {
    const { index } = example;
    const isPinned = pinned.includes(index);
    const blob = thumbs.get(example);
    const left =
      index === undefined
        ? { references: references.filter((_, other) => other !== place) }
        : { pinned: without(pinned, index), excluded: [...excluded, index] };
    const kept = { pinned: isPinned ? without(pinned, index) : [...pinned, index] };
    return drawExample(example, {
      url: index === undefined ? references[place] : blob && urlOf(blob),
      isPinned,
      leave: () => lookAgain(left),
      keep: index === undefined ? null : () => lookAgain(kept),
    });
  };
  return html`<div class="row looked" role="group" aria-label="Looked at">
    <span class="hint">Looked at:</span>
    ${examples.length ? examples.map(draw) : html`<span class="hint">nothing</span>`}
    ${excluded.length
      ? html`<button type="button" class="act" @click=${() => lookAgain({ excluded: [] })}>
          Undo removals
        </button>`
      : ""}
  </div>`;
}

function drawExample(example, { url, isPinned, leave, keep }) {
  const words = nameOf(example);
  const close = (event) => {
    event.currentTarget.closest("details").open = false;
  };
  const onKey = (event) => {
    if (event.key !== "Escape") return;
    close(event);
    event.currentTarget.querySelector("summary").focus();
  };
  const act = (label, title, run) => html`<button
    type="button"
    class="act"
    aria-label=${`${title}: ${words}`}
    title=${title}
    @click=${(event) => {
      close(event);
      run();
    }}
  >
    ${label}
  </button>`;
  const pin = isPinned ? "Unpin" : "Pin";
  return html`<details class="look ${isPinned ? "is-pinned" : ""}" name="looked" @keydown=${onKey}>
    <summary title=${words}>
      <img class="pixels" src=${url ?? nothing} alt=${isPinned ? `${words}, pinned` : words} />
    </summary>
    <div class="row">
      ${act("Remove", "Paint again without", leave)}
      ${keep ? act(pin, isPinned ? "Paint again without pinning" : "Paint again with", keep) : ""}
    </div>
  </details>`;
}
