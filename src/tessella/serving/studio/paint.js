// The view where a prompt becomes pictures: the form, the results, the gallery.

import { openEdit, openVary } from "./change.js";
import { drawCountAndSeed, drawField, drawNumber, drawProblem, readNumber } from "./forms.js";
import { mountGallery } from "./gallery.js";
import { readPicture, takeDrops } from "./opened.js";
import { toFields } from "./picture.js";
import { makeReferences } from "./references.js";
import { mountResults } from "./results.js";
import { html, render } from "./vendor/lit-html.js";

const EXAMPLES_AT_ONCE = 5;

/** Sizes to choose from beside the model's own: those that OpenAI's API has. */
const SIZES = ["256x256", "512x512", "1024x1024", "1536x1024", "1024x1536", "1792x1024", "1024x1792"];

function readForm(form, app) {
  const { can } = app.model;
  return {
    how: "painted",
    model: app.model.id,
    prompt: form.elements.prompt.value.trim(),
    negativePrompt: can.guidance ? form.elements.negative_prompt.value.trim() : "",
    steps: readNumber(form, "steps"),
    guidanceScale: can.guidance ? readNumber(form, "guidance_scale") : null,
    bestOf: can.best_of ? readNumber(form, "best_of") : null,
    size: form.elements.size.value || null,
    canvas: form.elements.canvas.checked ? "wide" : null,
  };
}

/** Shows the view. */
export function mount(element, app) {
  const state = { firstExample: 0, waiting: "", problem: "" };

  const draw = () => render(drawView(app, actions, state, references), element);
  const references = makeReferences(app, () => draw());
  const form = () => element.querySelector("form");

  function submit(event) {
    event.preventDefault();
    if (results.busy()) {
      app.say("A picture is being painted already. Wait for it, or cancel it.");
      return;
    }
    const made = { ...readForm(form(), app), references: references.state.urls };
    generate(made, readNumber(form(), "count") ?? 1, readNumber(form(), "seed"));
  }

  function generate(made, count, seed) {
    const own = made.references?.length ? { references: made.references } : {};
    const toBody = (fields) => ({ ...toFields(made), ...own, ...fields });
    results.paint({ path: "/v1/images/generations", count, seed, toBody, made });
  }

  /** Paints a picture again with another choice of what it looks at. */
  function lookAgain(picture, change) {
    if (results.busy()) return app.say("A picture is being painted already.");
    const { id, blob, examples, created, seed, ...made } = { ...picture, ...change };
    // A changed picture's dialog has its source and mask.
    return made.how === "painted" ? generate(made, 1, seed) : again({ ...made, seed });
  }

  function onKey(event) {
    // A prompt is one caption: Enter sends it, Shift and Enter breaks the line.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form().requestSubmit();
  }

  function showOthers() {
    const { length } = app.model.examples;
    const next = state.firstExample + EXAMPLES_AT_ONCE;
    state.firstExample = next < length ? next : 0;
    draw();
    element.querySelector(".examples").scrollLeft = 0;
  }

  /** Opens a picture of the person's own, to be varied, edited or looked into. */
  async function open([file]) {
    if (!file) return;
    Object.assign(state, { waiting: "Reading the picture…", problem: "" });
    draw();
    try {
      app.open.picture((await readPicture(file, app)).picture);
    } catch (error) {
      state.problem = error.message;
    }
    state.waiting = "";
    draw();
  }

  function take(prompt) {
    form().elements.prompt.value = prompt;
    form().elements.prompt.focus();
  }

  /** Puts a picture's prompt, seed and settings back into the form. */
  function again(picture) {
    if (picture.how === "varied") return app.open.vary(picture.source, picture);
    if (picture.how === "edited") return app.open.edit(picture.source, picture);
    app.go("paint");
    const { elements } = form();
    const values = {
      prompt: picture.prompt,
      seed: picture.seed,
      steps: picture.steps ?? "",
      guidance_scale: picture.guidanceScale ?? "",
      best_of: picture.bestOf ?? "",
      negative_prompt: picture.negativePrompt,
      size: picture.size ?? "",
    };
    for (const [name, value] of Object.entries(values)) {
      if (elements[name]) elements[name].value = value;
    }
    elements.canvas.checked = picture.canvas === "wide";
    elements.count.value = 1;
    references.set(picture.references ?? []);
    form().scrollIntoView({ block: "nearest" });
    elements.prompt.focus();
    app.say(`Prompt and seed ${picture.seed} are in the form.`);
    return undefined;
  }

  const actions = {
    ...{ submit, showOthers, take, onKey, drop: takeDrops(open) },
    choose({ target }) {
      open([...target.files]);
      target.value = ""; // so that the same file can be chosen again
    },
  };

  draw();
  const gallery = mountGallery(element.querySelector("#gallery"), app);
  const results = mountResults(element.querySelector("#results"), app, gallery.add);
  app.open.again = again;
  app.open.picture = gallery.open;
  app.lookAgain = lookAgain;
  app.open.tiles = (picture) => {
    app.lookAt = picture;
    app.go("tiles");
    app.events.dispatchEvent(new Event("look"));
  };
  app.open.vary = (picture, was) => openVary(app, picture, was);
  app.open.edit = (picture, was) => openEdit(app, picture, was);
  app.paint = (job) => {
    app.go("paint");
    return results.paint(job);
  };
  app.events.addEventListener("model", () => {
    state.firstExample = 0;
    references.set(references.state.urls); // as many as this model looks at
  });
  app.events.addEventListener("busy", () => {
    element.querySelector("#paint").setAttribute("aria-disabled", results.busy());
  });
  app.busy = results.busy;
}

function drawExamples(examples, first, { take, showOthers }) {
  if (!examples.length) return "";
  return html`
    <div class="row examples" role="group" aria-label="Captions that the model learned from">
      ${examples.slice(first, first + EXAMPLES_AT_ONCE).map(
        (caption) => html`<button type="button" class="act" @click=${() => take(caption)}>
          ${caption}
        </button>`,
      )}
      ${examples.length > EXAMPLES_AT_ONCE
        ? html`<button type="button" class="act more" @click=${showOthers}>Other captions</button>`
        : ""}
    </div>
  `;
}

/** The size of the picture, and whether to paint more than the model's own square for it. */
function drawSize({ image_size, limits, can }) {
  const own = `The model's own, ${image_size}×${image_size}`;
  const sizes = SIZES.filter((size) => Math.max(...size.split("x")) <= limits.side_px);
  return html`<div class="stack">
    ${drawField(
      "Size",
      html`<select name="size" aria-label="Size">
        <option value="">${own}</option>
        ${sizes.map((size) => html`<option value=${size}>${size.replace("x", "×")}</option>`)}
      </select>`,
    )}
    <label class="row">
      <input type="checkbox" name="canvas" ?disabled=${!can.edit} />
      <span class="hint">
        Paint a canvas of this shape: for scenery; one object becomes several
      </span>
    </label>
  </div>`;
}

function drawView(app, actions, { firstExample, waiting, problem }, references) {
  const { can, generation, limits, examples } = app.model;
  return html`
    <div class="bench halves form-first">
      <form class="stack panel" aria-label="What to paint" @submit=${actions.submit}>
        <h1 tabindex="-1">Paint a picture</h1>
        ${drawField(
          "Prompt",
          html`<textarea
            name="prompt"
            rows="3"
            required
            maxlength=${limits.prompt_characters}
            placeholder=${examples[0] ?? ""}
            @keydown=${actions.onKey}
          ></textarea>`,
        )}
        ${drawExamples(examples, firstExample, actions)} ${references.draw()}
        ${drawCountAndSeed(app)}
        <details>
          <summary>More</summary>
          <div class="stack">
            <div class="row">
              ${drawNumber("steps", "Steps", {
                min: 1,
                max: limits.steps,
                blank: generation.steps ?? "",
              })}
              ${can.best_of
                ? drawNumber("best_of", "Best of", { min: 1, max: limits.best_of, blank: 1 })
                : ""}
              ${can.guidance
                ? drawNumber("guidance_scale", "Guidance", {
                    max: 100,
                    step: 0.1,
                    blank: generation.guidance_scale,
                  })
                : ""}
            </div>
            ${drawSize(app.model)}
            ${can.guidance
              ? html`<label class="field">
                  <span class="hint">Negative prompt</span>
                  <input name="negative_prompt" maxlength=${limits.prompt_characters} />
                  <small class="hint">Works at a guidance above 1.</small>
                </label>`
              : ""}
          </div>
        </details>
        <div class="row sends">
          <button class="main" id="paint">Paint</button>
          <label class="act" title="To vary it, edit it or see its codes">
            Open a picture
            <input class="hidden" type="file" accept="image/*" @change=${actions.choose} />
          </label>
        </div>
        <p class="hint" role="status">${waiting}</p>
        ${drawProblem(problem)}
      </form>
      <section
        class="stack"
        id="results"
        aria-label="Results"
        @drop=${actions.drop}
        @dragover=${actions.drop}
        @dragleave=${actions.drop}
      ></section>
    </div>
    <section class="gallery" id="gallery" aria-labelledby="gallery-title"></section>
  `;
}
