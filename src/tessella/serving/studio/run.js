// The view of a training run: the page that `tessella report` writes, kept up to date.
//
// The server lays it out (`runs/report.py`). `/v1/run/page` is asked every two seconds while
// somebody looks and something changes; what has not changed is answered 304 and costs next to
// nothing. News go into the page that is there: place, selection and opened details stay.

import { get } from "./api.js";
import { drawProblem } from "./forms.js";
import { morph } from "./morph.js";
import { render } from "./vendor/lit-html.js";

const SOONEST_MS = 2_000;
const LATEST_MS = 15_000;
const NEAR = 3; // of a drawing's units: values are read together
const NUMBER = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const COUNT = new Intl.NumberFormat("en");

/** Shows the run in an element, for as long as the page lives. */
export async function mount(element) {
  const page = document.createElement("div");
  const alert = document.createElement("div");
  element.classList.add("run");
  element.append(alert, page);
  const readings = readCurves(page);
  let shown = "";
  let problem = "";
  let delay = SOONEST_MS;
  let timer = null;
  let isAsking = false;

  /** Shows the run as it is now, and looks again later. */
  async function follow() {
    if (isAsking) return;
    isAsking = true;
    try {
      const text = await get("/v1/run/page", "text");
      delay = text === shown ? Math.min(1.5 * delay, LATEST_MS) : SOONEST_MS;
      if (text !== shown) {
        update(page, text);
        readings.restore();
      }
      [shown, problem] = [text, ""];
    } catch (error) {
      problem = error.message;
      // Asked again, every look would ask for the key again.
      delay = error.status === 401 ? null : LATEST_MS;
    }
    isAsking = false;
    render(drawProblem(problem, wake), alert);
    plan();
  }

  const isSeen = () => !document.hidden && !element.hidden;

  function plan() {
    clearTimeout(timer);
    if (isSeen() && delay !== null) timer = setTimeout(follow, delay);
  }

  function wake() {
    delay = SOONEST_MS;
    if (isSeen()) follow();
    else clearTimeout(timer);
  }

  document.addEventListener("visibilitychange", wake);
  new MutationObserver(wake).observe(element, { attributeFilter: ["hidden"] });
  await follow();
}

/** Puts the news into the page; a moment that was chosen stays, else the newest one is shown. */
function update(page, text) {
  const chosen = [...page.querySelectorAll("input:checked")].filter((box) => !box.defaultChecked);
  morph(page, new DOMParser().parseFromString(text, "text/html").body);
  for (const box of chosen) box.checked = box.isConnected;
}

/** The values of a curve's lines, with their places on the drawing. */
function listValues(plot) {
  return [...plot.querySelectorAll("polyline")].flatMap((line) =>
    line.dataset.values.split(" ").map((pair, index) => {
      const [images, value] = pair.split(":").map(Number);
      const { x, y } = line.points[index];
      return { kind: line.getAttribute("class"), name: line.dataset.name, images, value, x, y };
    }),
  );
}

function findNearest(values, x) {
  const far = (value) => Math.abs(value.x - x);
  return values.reduce((best, value) => (far(value) < far(best) ? value : best));
}

/** Marks the values near x and says them; null: marks none. */
function showReading(plot, x) {
  const values = listValues(plot);
  const at = x === null ? null : findNearest(values, x);
  const words = [];
  for (const dot of plot.querySelectorAll("circle.reading")) {
    const value = at && findNearest(values.filter(({ kind }) => dot.matches(`.${kind}`)), at.x);
    const isNear = value && Math.abs(value.x - at.x) <= NEAR;
    dot.toggleAttribute("hidden", !isNear);
    if (!isNear) continue;
    dot.setAttribute("cx", value.x);
    dot.setAttribute("cy", value.y);
    words.push(`${value.name} ${NUMBER.format(value.value)}`);
  }
  const line = plot.querySelector("path.reading");
  line.toggleAttribute("hidden", !at);
  if (at) line.setAttribute("transform", `translate(${at.x})`);
  const said = at ? `${COUNT.format(at.images)} images: ${words.join(", ")}` : "";
  plot.nextElementSibling.textContent = said || "\u00a0";
  plot.setAttribute("aria-valuetext", said || "Arrow keys read the values.");
}

/** Lets values be read from curves, with the pointer or the arrow keys. */
function readCurves(page) {
  const chosen = new Map(); // plot → where its values are read

  function choose(plot, x) {
    if (x === null) chosen.delete(plot);
    else chosen.set(plot, x);
    showReading(plot, x);
  }

  function point(event) {
    const plot = event.target.closest(".plot");
    if (!plot) return;
    const box = plot.getBoundingClientRect();
    const { width } = plot.querySelector("svg").viewBox.baseVal;
    choose(plot, findNearest(listValues(plot), ((event.clientX - box.left) / box.width) * width).x);
  }

  function leave({ target, relatedTarget }) {
    const plot = target.closest(".plot");
    if (plot && !plot.contains(relatedTarget) && chosen.has(plot)) choose(plot, null);
  }

  function press(event) {
    const plot = event.target.closest(".plot");
    if (!plot) return;
    if (event.key === "Escape") choose(plot, null);
    const places = [...new Set(listValues(plot).map(({ x }) => x))].sort((a, b) => a - b);
    const last = places.length - 1;
    const from = chosen.has(plot) ? places.indexOf(chosen.get(plot)) : last;
    const page = Math.max(1, Math.round(places.length / 10));
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 };
    Object.assign(steps, { PageDown: -page, PageUp: page, Home: -last, End: last });
    if (!(event.key in steps)) return;
    event.preventDefault();
    choose(plot, places[Math.min(last, Math.max(0, from + steps[event.key]))]);
  }

  page.addEventListener("pointermove", point);
  page.addEventListener("pointerdown", point);
  page.addEventListener("pointerout", leave);
  page.addEventListener("focusout", leave);
  page.addEventListener("keydown", press);
  return {
    /** Says what was read again, after the curves have been replaced. */
    restore() {
      for (const [plot, x] of chosen) {
        if (plot.isConnected) choose(plot, findNearest(listValues(plot), x).x);
        else chosen.delete(plot);
      }
    },
  };
}
