// A painted picture: what is remembered of it, how it is named, what can be done with it.
//
// {how: "painted"|"varied"|"edited"|"opened", model, prompt, seed, blob, created,
//  negativePrompt, steps, guidanceScale, bestOf, size, canvas: null where the model's own,
//  source: {blob, prompt, model}, strength, mask: what it was varied or edited from,
//  name: of the file that was opened, references: data URLs, pinned, excluded: indices of examples, examples: what it looked at}

import { html } from "./vendor/lit-html.js";

const urls = new WeakMap();

/** An address for a Blob's pixels, made once. */
export function urlOf(blob) {
  if (!urls.has(blob)) urls.set(blob, URL.createObjectURL(blob));
  return urls.get(blob);
}

/** Gives the memory behind an address back. */
export function dropUrl(blob) {
  if (urls.has(blob)) URL.revokeObjectURL(urls.get(blob));
  urls.delete(blob);
}

/** A picture as it is always shown, with what lies over it. */
export function drawBed(url, alt, over = "") {
  return html`<div class="bed"><img class="pixels" src=${url} alt=${alt} />${over}</div>`;
}

/** The fields of a request that a picture's record has in other words. */
export function toFields(made) {
  return {
    model: made.model,
    prompt: made.prompt || undefined,
    negative_prompt: made.negativePrompt || undefined,
    steps: made.steps ?? undefined,
    guidance_scale: made.guidanceScale ?? undefined,
    best_of: made.bestOf ?? undefined,
    size: made.size || undefined,
    canvas: made.canvas || undefined,
    pinned: made.pinned?.length ? made.pinned : undefined,
    excluded: made.excluded?.length ? made.excluded : undefined,
  };
}

/** A seed that people can read out: up to six digits. */
export function drawSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;
}

/** What a picture shows, for people who do not see it. */
export function describe(picture) {
  return picture.prompt || (picture.how === "opened" && picture.name) || "a picture without a prompt";
}

function fileName(picture) {
  const words = picture.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  return `${words.slice(0, 10).join("-").slice(0, 60)}-${picture.seed}.png`;
}

/** The settings that differ from the model's own, in words. */
export function listSettings(picture) {
  const words = {
    steps: picture.steps,
    guidance: picture.guidanceScale,
    "best of": picture.bestOf,
    strength: picture.strength,
    size: picture.size,
    canvas: picture.canvas,
    without: picture.negativePrompt,
  };
  return Object.entries(words)
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => `${name} ${value}`);
}

/** The buttons under a picture. */
export function actionsOf(picture, app) {
  const { edit } = app.model.can;
  const isOpened = picture.how === "opened"; // no prompt and no seed made it
  const what = `: ${describe(picture)}${isOpened ? "" : `, seed ${picture.seed}`}`;
  const act = (name, label, title, more = "") => html`
    <button
      type="button"
      class="act"
      title=${title}
      aria-label=${label + more + what}
      @click=${() => app.open[name](picture)}
    >
      ${label}
    </button>
  `;
  return html`
    <a
      class="act"
      href=${urlOf(picture.blob)}
      download=${fileName(picture)}
      aria-label=${`Download${what}`}
      title="Save the picture as a file"
      >Download</a
    >
    ${isOpened
      ? ""
      : act("again", "Again", "Its prompt, seed and settings back into the form", " with this seed")}
    ${edit ? act("vary", "Vary", "Paint a part of its tiles anew") : ""}
    ${edit ? act("edit", "Edit", "Paint a part of it anew") : ""}
    ${act("tiles", "Tiles", "See its codes")}
  `;
}
