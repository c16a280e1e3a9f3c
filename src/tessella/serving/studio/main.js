// The page's frame: which view is shown, which model paints, light or dark, the key.
//
// A view is a module with `mount(element, app)`, loaded when it is first shown. `app` is what
// views share: the models, the chosen one, and a word for people who listen instead of look.

import { ApiError, get, onKeyNeeded, once } from "./api.js";
import { showMosaic } from "./codebook.js";
import { drawProblem, drawSelect, makeDialog } from "./forms.js";
import { html, render } from "./vendor/lit-html.js";

const VIEWS = [
  ["paint", "Paint", () => import("./paint.js")],
  ["tiles", "Tiles", () => import("./tiles.js")],
  ["posts", "Posts", () => import("./posts.js")],
  ["run", "Training", () => import("./run.js")],
  ["model", "Model", () => import("./card.js")],
];

const THEMES = ["", "light", "dark"].map((name) => [name, `◐ ${name || "system"}`]);

const app = {
  studio: null, // what the server has: {run, posts, post_platforms, post_tones, max_seed, …}
  models: [],
  model: null, // the chosen one of `models`
  events: new EventTarget(), // "model" when another one is chosen
  open: {}, // what views offer each other, by name
  say(text) {
    document.querySelector("#said").textContent = text;
  },
  go(view) {
    location.hash = view;
  },
};

const mounted = new Map(); // a view's name → the promise of its element

/** The views that this server has something for; a run may be shown before it has a model. */
function listViews() {
  const { run, posts } = app.studio;
  const views = VIEWS.filter(([name]) => name !== "posts" || posts !== "off");
  return views.filter(([name]) => (name === "run" ? run : app.model));
}

function recall(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // A browser that keeps nothing still shows the choice until the page is left.
  }
}

/** Shows the view that the address names; called with an event when the address has changed. */
async function show(event) {
  const views = listViews();
  const wanted = location.hash.slice(1);
  const find = (name) => views.find((view) => view[0] === name);
  // A link within the page, as the one past its head.
  const isWithin = document.getElementById(wanted)?.checkVisibility() && !find(wanted);
  if (isWithin && document.querySelector(".view:not([hidden])")) return;
  const [name, title, load] = find(wanted) ?? find("run") ?? views[0];
  document.title = `${title} · tessella`;
  for (const link of document.querySelectorAll("#views a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const shown = await mountView(name, load).catch((error) =>
    drawFailure(`${title} cannot be shown`, error, error.retry ?? show),
  );
  // Another view may have been asked for meanwhile.
  if (wanted !== location.hash.slice(1)) return;
  for (const element of document.querySelectorAll(".view")) element.hidden = element !== shown;
  window.scrollTo(0, 0);
  if (event) shown.querySelector("h1")?.focus();
}

function addView(name) {
  const element = document.createElement("section");
  element.className = `view view-${name}`;
  element.hidden = true;
  document.querySelector("#main").append(element);
  return element;
}

/** Fetches a view's module; where it does not come, says in words whether the server is gone. */
async function fetchModule(load) {
  try {
    return await load();
  } catch (error) {
    console.error(error);
    await get("/v1/studio");
    const problem = new ApiError("A part of this page did not arrive.");
    // A browser may remember that a module failed, until the page is loaded anew.
    throw Object.assign(problem, { retry: () => location.reload() });
  }
}

/** Mounts a view once, or again after it failed; answers its element. */
function mountView(name, load) {
  return once(mounted, name, async () => {
    const module = await fetchModule(load);
    const element = addView(name);
    try {
      await module.mount(element, app);
    } catch (error) {
      element.remove();
      throw error;
    }
    return element;
  });
}

/** Draws what went wrong in a view of its own; answers its element. */
function drawFailure(title, error, retry) {
  if (!(error instanceof ApiError)) console.error(error);
  const element = document.querySelector(".view-problem") ?? addView("problem");
  render(
    html`<div class="stack">
      <h1 tabindex="-1">${title}</h1>
      ${drawProblem(error.message, () => retry())}
    </div>`,
    element,
  );
  return element;
}

function chooseModel(name) {
  app.model = app.models.find((model) => model.id === name) ?? app.models[0];
  const [rows, columns] = app.model.grid;
  document.documentElement.style.setProperty("--rows", rows);
  document.documentElement.style.setProperty("--columns", columns);
  remember("tessella.model", app.model.id);
  app.events.dispatchEvent(new Event("model"));
}

const drawFrieze = () => showMosaic(document.querySelector("#frieze"), app.model, 2);

function setTheme(name, value) {
  if (value) document.documentElement.dataset[name] = value;
  else delete document.documentElement.dataset[name];
  remember(`tessella.${name}`, value);
  drawTop();
}

function drawTop() {
  const { theme = "", pixels = "" } = document.documentElement.dataset;
  const links = listViews().map(([name, title]) => html`<a href="#${name}">${title}</a>`);
  render(links, document.querySelector("#views"));
  const models = app.models.map(({ id }) => [id, id]);
  render(
    html`
      ${app.models.length > 1
        ? html`<label class="row model">
            <span class="hint">Model</span>
            ${drawSelect("Model", models, app.model.id, chooseModel)}
          </label>`
        : html`<span class="hint model">${app.model?.id}</span>`}
      <label class="row switch">
        <input
          type="checkbox"
          role="switch"
          .checked=${pixels === "sharp"}
          @change=${(event) => setTheme("pixels", event.target.checked ? "sharp" : "")}
        />
        Sharp pixels
      </label>
      ${drawSelect("Light or dark", THEMES, theme, (value) => setTheme("theme", value), "quiet")}
    `,
    document.querySelector("#top-tools"),
  );
}

/** Asks for the API key in a dialog; null when it is not given. */
function askKey(problem) {
  const dialog = makeDialog("key-title");
  render(
    html`<form method="dialog" class="stack" id="key-form">
      <h2 id="key-title">This server asks for a key</h2>
      ${drawProblem(problem)}
      <label class="field">
        <span class="hint">API key</span>
        <input
          name="key"
          type="password"
          autocomplete="off"
          required
          pattern="\\s*[!-~]+\\s*"
          title="Letters, digits and signs of ASCII, without blanks"
        />
      </label>
      <p class="hint">Kept until this tab is closed.</p>
      <div class="row">
        <button class="main" value="give">Continue</button>
        <button class="quiet" value="" formnovalidate>Without a key</button>
      </div>
    </form>`,
    dialog,
  );
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const key = dialog.querySelector("input").value.trim();
      resolve(dialog.returnValue === "give" && key ? key : null);
    });
  });
}

async function start() {
  const [[, , loadPaint]] = VIEWS;
  loadPaint().catch(() => null); // it is on its way while the server tells what it has
  try {
    app.studio = await get("/v1/studio");
    onKeyNeeded(askKey, app.studio.key_required);
    app.models = (await get("/v1/models")).data;
    if (!app.models.length && !app.studio.run) throw new Error("This server has no model.");
    if (app.models.length) chooseModel(recall("tessella.model"));
    // The results and the dialogs are there, and all views send pictures to them.
    if (app.model) await mountView("paint", loadPaint);
  } catch (error) {
    drawFailure("Nothing to show", error, error.retry ?? start).hidden = false;
    return;
  } finally {
    delete document.documentElement.dataset.loading;
  }
  drawTop();
  window.addEventListener("hashchange", show);
  await show();
  document.documentElement.dataset.ready = "true";
  if (!app.model) return;
  drawFrieze();
  app.events.addEventListener("model", drawFrieze);
}

start();
