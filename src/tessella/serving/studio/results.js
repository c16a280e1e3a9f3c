// Where pictures appear: sends one request at a time, shows each picture as its codes come.

import { ApiError, postForEvents, toBlob } from "./api.js";
import { showMosaic } from "./codebook.js";
import { drawProblem } from "./forms.js";
import { drawLooked, dropLooked, fetchLooked } from "./looked.js";
import { actionsOf, describe, drawBed, drawSeed, listSettings, urlOf } from "./picture.js";
import { html, render } from "./vendor/lit-html.js";
import { inWords } from "./words.js";

/** Pictures in between that are asked for, each of which the server has to decode. */
const PARTIAL_IMAGES = 8;

/** From so many pictures on the buttons of one are shown when it is pointed at or has the focus. */
const MANY = 5;

const WORDS = { painted: "Painting", varied: "Varying", edited: "Painting anew" };

/**
 * @param {HTMLElement} element to draw in.
 * @param app what views share.
 * @param {(picture) => Promise} onPicture called with each picture that is done.
 * @returns {{paint, cancel, busy}}
 */
export function mountResults(element, app, onPicture) {
  const state = { slots: [], running: null, problem: "", retry: null, note: "", warnings: [] };

  const draw = () => {
    render(drawResults(state, app, cancel), element);
    const canvas = element.querySelector(".mosaic:not(.is-laid)");
    const [rows, columns] = app.model.grid;
    if (canvas) showMosaic(canvas, app.model, rows, columns);
  };

  const cancel = () => state.running?.abort();

  /** Brings the pictures into view where little of them can be seen: on a phone they lie below. */
  function bringIntoView() {
    const { top } = element.getBoundingClientRect();
    if (top >= 0 && top < window.innerHeight / 2) return;
    const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
    // A phone's keyboard would cover them.
    if (matchMedia("(pointer: coarse)").matches) document.activeElement?.blur();
    element.scrollIntoView({ behavior: isStill ? "instant" : "smooth" });
  }

  /** Shows one event of the stream; true when it finished a picture, which is remembered then. */
  async function take(event, slot, made) {
    if (!slot) return false;
    slot.partial = `data:image/png;base64,${event.b64_json}`;
    slot.share = ((event.partial_image_index ?? 0) + 1) / (PARTIAL_IMAGES + 1);
    if (!event.type.endsWith(".completed")) return false;
    state.warnings = [...new Set([...state.warnings, ...(event.warnings ?? []).map(inWords)])];
    const blob = toBlob(event.b64_json);
    const { examples, seed = slot.seed } = event;
    const picture = { ...made, seed, created: Date.now(), blob, examples };
    await onPicture(picture);
    Object.assign(slot, { picture, share: 1 });
    fetchLooked(picture, draw);
    return true;
  }

  /**
   * Paints pictures.
   *
   * @param {{path: string, count: number, seed: number|null, toBody, made}} job: `toBody(fields)`
   *     makes the request's body; `made` is what will be remembered of each picture.
   * @param {object[]} kept what stays on the easel before them.
   * @param {object[]} begun how far each of them came before: shown until more is painted.
   */
  async function paint(job, kept = [], begun = []) {
    const { path, count, seed, toBody, made } = job;
    const running = new AbortController();
    const first = seed ?? drawSeed();
    const apart = made.bestOf ?? 1;
    const started = performance.now();
    Object.assign(state, { running, problem: "", retry: null, note: "", warnings: [] });
    for (const slot of state.slots) if (!kept.includes(slot)) dropLooked(slot.picture);
    const slots = Array.from({ length: count }, (_, index) => ({
      seed: first + index * apart,
      partial: begun[index]?.partial,
    }));
    state.slots = [...kept, ...slots];
    app.say(`${WORDS[made.how]} ${count === 1 ? "a picture" : `${count} pictures`}.`);
    app.events.dispatchEvent(new Event("busy"));
    draw();
    bringIntoView();
    let done = 0;
    try {
      const partials = app.model.can.partial_images ? PARTIAL_IMAGES : 0;
      const body = toBody({ n: count, seed: first, stream: true, partial_images: partials });
      for await (const event of postForEvents(path, body, running.signal)) {
        const isDone = await take(event, slots[event.index], made);
        if (isDone && ++done < count) app.say(`${done} of ${count} pictures done.`);
        draw();
      }
      if (done < count) throw new ApiError("The connection ended before all pictures were done.");
      const seconds = (performance.now() - started) / 1000;
      state.note = `${count === 1 ? "Done" : `${count} pictures`} in ${seconds.toFixed(1)} s`;
    } catch (error) {
      const missing = slots.findIndex((slot) => !slot.picture);
      const rest = { ...job, count: count - missing, seed: first + missing * apart };
      const goOn = () => paint(rest, [...kept, ...slots.slice(0, missing)], slots.slice(missing));
      state.note = error.name === "AbortError" ? "Cancelled" : "";
      state.problem = state.note ? "" : error.message;
      state.retry = error.isPassing && missing >= 0 ? goOn : null;
    }
    state.running = null;
    // What was begun stays; what was not leaves no empty frame.
    state.slots = state.slots.filter((slot) => slot.picture || slot.partial);
    if (state.note) app.say(`${state.note}.`);
    app.events.dispatchEvent(new Event("busy"));
    draw();
    element.querySelector("[role=alert]")?.scrollIntoView({ block: "nearest" });
  }

  app.events.addEventListener("model", () => {
    element.querySelector("canvas")?.classList.remove("is-laid");
    draw();
  });
  app.events.addEventListener("drop", draw);
  draw();
  return { paint, busy: () => state.running !== null };
}

function drawSlot(slot, app, index, isRunning) {
  const { picture, partial, seed } = slot;
  const shown = picture ? urlOf(picture.blob) : partial;
  const words = picture ? describe(picture) : `Picture ${index + 1}, being painted`;
  const facts = [`seed ${seed}`, ...(picture ? listSettings(picture) : [])];
  if (!picture && !isRunning) facts.push("not finished");
  const enlarge = () => html`<button
    type="button"
    class="cover"
    title="Enlarge"
    aria-label=${`Enlarge: ${words}, seed ${seed}`}
    @click=${() => app.open.picture(picture)}
  ></button>`;
  return html`
    <figure class="slot ${picture ? "is-done" : partial ? "is-laying" : "is-waiting"}">
      ${shown
        ? drawBed(shown, words, html`<div class="grout"></div>${picture ? enlarge() : ""}`)
        : html`<div class="bed"><div class="grout"></div></div>`}
      <figcaption class="stack">
        <span class="seed hint">${facts.join(" · ")}</span>
        ${picture ? html`<div class="row acts">${actionsOf(picture, app)}</div>` : ""}
        ${picture ? drawLooked(picture, (change) => app.lookAgain(picture, change)) : ""}
      </figcaption>
    </figure>
  `;
}

function drawResults(state, app, cancel) {
  const { slots, running, problem, retry, note, warnings } = state;
  const many = app.model.codes_per_position;
  const done = slots.filter((slot) => slot.picture).length;
  const share = slots.reduce((sum, slot) => sum + (slot.share ?? 0), 0) / (slots.length || 1);
  return html`
    ${running || note
      ? html`<div class="row bar hint ${running ? "is-running" : ""}">
          ${running
            ? html`<progress max="1" value=${share} aria-label="Painted"></progress>
                <span>${done} of ${slots.length}</span>
                <button type="button" id="cancel" @click=${cancel}>Cancel</button>`
            : html`<span>${note}</span>`}
        </div>`
      : ""}
    ${drawProblem(problem, retry)}
    ${warnings.map((words) => html`<p class="hint" role="status">${words}</p>`)}
    ${slots.length
      ? html`<div
          class="slots count-${slots.length} ${slots.length < MANY ? "" : "is-many"}"
          aria-busy=${running !== null}
        >
          ${slots.map((slot, index) => drawSlot(slot, app, index, running !== null))}
        </div>`
      : html`<div class="bed is-empty">
            <div class="grout"></div>
            <canvas class="mosaic" aria-hidden="true"></canvas>
          </div>
          <p class="hint">
            The tiles of
            ${app.model.id}${many > 1 ? `, those of the first of its ${many} codebooks` : ""}. Ask
            for a picture and watch it come together.
          </p>`}
  `;
}
