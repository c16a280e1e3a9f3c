// The view of a training run that goes on: state, curves, pictures over time, notes.
//
// `GET /v1/run` is asked every two seconds while somebody looks and something changes; what has
// not changed is answered 304 and costs next to nothing.

import { getBlob, getJson } from "/studio/api.js";
import { count, drawCurve } from "/studio/run_curve.js";
import { drawFacts, drawNotes, drawNumbers, drawSkipped, drawTable } from "/studio/run_facts.js";
import { html, nothing, render } from "/studio/vendor/lit-html.js";

const SOONEST_MS = 2_000;
const LATEST_MS = 15_000;
const QUIET_SECONDS = 90; // training writes every ten seconds, but not while it evaluates
const KEPT_PICTURES = 24;

const STATES = {
  preparing: "Preparing",
  tokenizer: "Training",
  transformer: "Training",
  finishing: "Finishing",
  finished: "Finished",
  stopped: "Stopped",
  none: "No run",
};
const FILMS = {
  "tokenizer/samples": {
    title: "Reconstructions",
    hint:
      "Rows of originals, and under each what is left of it after encoding and decoding. No " +
      "picture that the model paints is better than these.",
    alt: "Originals above their reconstructions",
  },
  "tokenizer/codebook": {
    title: "Use of the codebook",
    hint:
      "Above, how often each code stands in the validation’s pictures; below, how many training " +
      "images ago it was last used.",
    alt: "How often each code is used, the most used first, and for how long it has been idle",
  },
  "transformer/samples": {
    title: "Samples over time",
    hint: "The same captions and seeds at every evaluation.",
    alt: "What is painted from the same captions",
  },
};

function sayDuration(seconds) {
  if (seconds < 60) return "a minute";
  const minutes = Math.round(seconds / 60);
  if (minutes < 120) return minutes === 1 ? "1 minute" : `${minutes} minutes`;
  return `${(minutes / 60).toFixed(1)} hours`;
}

function sayMoment(seconds) {
  const moment = new Date(seconds * 1000);
  const isToday = moment.toDateString() === new Date().toDateString();
  const how = isToday ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" };
  return moment.toLocaleString(undefined, how);
}

/** Puts the last stage first that has logged anything. */
function sortStages(run) {
  const isBegun = (stage) => Number(stage.images_seen > 0);
  return run.stages.toReversed().sort((a, b) => isBegun(b) - isBegun(a));
}

/** Keeps the pictures that were looked at last. */
class Pictures {
  #urls = new Map();

  /** Fetches a picture, with the key that pictures need too; answers an address for `<img>`. */
  async load(url) {
    const known = this.#urls.get(url);
    if (known) return known;
    const made = URL.createObjectURL(await getBlob(url));
    this.#urls.set(url, made);
    for (const [old, address] of this.#urls) {
      if (this.#urls.size <= KEPT_PICTURES) break;
      URL.revokeObjectURL(address);
      this.#urls.delete(old);
    }
    return made;
  }
}

/** The view; `mountRun` makes the one. */
class RunView {
  #element;
  #pictures = new Pictures();
  #run = null;
  #problem = "";
  #chosen = {}; // by curve: images seen, whose values are read
  #moments = {}; // by film: which picture was chosen; none: the newest
  #shown = {}; // by picture: {url, address, problem} that it shows
  #delay = SOONEST_MS;
  #timer = null;
  #isAsking = false;

  constructor(element) {
    this.#element = element;
    const wake = () => this.#wake();
    document.addEventListener("visibilitychange", wake);
    new MutationObserver(wake).observe(element, { attributeFilter: ["hidden"] });
  }

  /** Shows the run, and goes on to. */
  async follow() {
    if (this.#isAsking) return;
    this.#isAsking = true;
    let isNew = false;
    try {
      const run = await getJson("/v1/run");
      isNew = run.version !== this.#run?.version || this.#problem !== "";
      this.#run = run;
      this.#problem = "";
    } catch (error) {
      isNew = this.#problem !== error.message;
      this.#problem = error.message;
      this.#delay = LATEST_MS;
      // Asked again, every look would ask for the key again.
      if (error.status === 401) this.#delay = null;
    }
    this.#isAsking = false;
    if (!this.#problem) {
      const isOver = this.#run.is_running === false;
      this.#delay = isOver ? LATEST_MS : isNew ? SOONEST_MS : Math.min(1.5 * this.#delay, LATEST_MS);
    }
    // While somebody waits for news the page says for how long there were none.
    if (isNew || this.#run?.is_running !== false) this.#draw();
    this.#plan();
  }

  #isSeen() {
    return !document.hidden && !this.#element.hidden;
  }

  #plan() {
    clearTimeout(this.#timer);
    if (this.#isSeen() && this.#delay !== null) {
      this.#timer = setTimeout(() => this.follow(), this.#delay);
    }
  }

  #wake() {
    if (this.#isSeen()) {
      this.#delay = SOONEST_MS;
      this.follow();
    } else {
      clearTimeout(this.#timer);
    }
  }

  #draw() {
    render(this.#view(), this.#element);
  }

  #view() {
    const run = this.#run;
    const problem = this.#problem
      ? html`<p class="problem" role="alert">
          ${this.#problem}
          <button type="button" class="quiet" @click=${() => this.#wake()}>Try again</button>
        </p>`
      : nothing;
    if (!run) return html`<h1 tabindex="-1">Training</h1>${problem}`;
    return html`
      <header class="run-head">
        <h1 tabindex="-1">${run.name}</h1>
        <p class="run-state" data-state=${run.state} role="status">
          <b>${STATES[run.state]}</b> ${run.said}
        </p>
        ${this.#news(run)} ${problem}
      </header>
      ${drawNumbers(run)} ${drawNotes(run)} ${this.#model(run)}
      ${sortStages(run).map((stage) => this.#stage(stage, run))} ${this.#nearest(run)}
      ${drawFacts(run)} ${drawSkipped(run)}
    `;
  }

  #news(run) {
    if (!run.last_news) return nothing;
    const age = Date.now() / 1000 - run.last_news;
    if (run.is_running === false || age < QUIET_SECONDS) {
      return html`<p class="hint">The run wrote last: ${sayMoment(run.last_news)}.</p>`;
    }
    const why = run.is_running
      ? "Its process is alive; while it evaluates it writes nothing."
      : "Whether it still runs cannot be found out from here.";
    return html`<p class="hint">
      No news since ${sayMoment(run.last_news)}, for ${sayDuration(age)}. ${why}
    </p>`;
  }

  #stage(stage, run) {
    const curves = Object.entries(stage.curves);
    const draw = ([name, curve]) => {
      const key = `${stage.name}/${name}`;
      const names = { train: "training", validation: run.validation_name };
      return drawCurve(curve, names, this.#chosen[key] ?? null, (images) => {
        if ((this.#chosen[key] ?? null) === images) return;
        this.#chosen[key] = images;
        this.#draw();
      });
    };
    const first = curves.filter(([, curve]) => curve.is_main);
    const more = curves.filter(([, curve]) => !curve.is_main);
    return html`<section class="run-stage" aria-labelledby="run-${stage.name}">
      <h2 id="run-${stage.name}">${stage.title}</h2>
      ${this.#progress(stage)}
      ${first.length
        ? html`<ul class="run-key">
              <li><i></i>training</li>
              <li class="validation"><i></i>${run.validation_name}, averaged weights</li>
              <li>across: images seen</li>
            </ul>
            <div class="run-curves">${first.map(draw)}</div>`
        : nothing}
      ${more.length
        ? html`<details>
            <summary>More curves</summary>
            <div class="run-curves">${more.map(draw)}</div>
          </details>`
        : nothing}
      ${Object.keys(stage.pictures).map((name) => this.#film(`${stage.name}/${name}`, stage, run))}
    </section>`;
  }

  #progress(stage) {
    const isGoing = stage.images_seen > 0 && stage.images_seen < stage.images;
    const said = [
      stage.said,
      stage.seconds_left === null ? "" : `About ${sayDuration(stage.seconds_left)} left`,
      stage.seconds_left === null ? "" : `at ${Math.round(stage.images_per_second)} images/s.`,
    ];
    return html`<p>${said.join(" ")}</p>
      ${isGoing
        ? html`<progress
            value=${stage.images_seen}
            max=${stage.images}
            aria-label="Progress of the ${stage.title.toLowerCase()}"
          ></progress>`
        : nothing}`;
  }

  /** One picture at a time, with a slider over the images seen; the newest until one is chosen. */
  #film(key, stage, run) {
    const frames = stage.pictures[key.split("/")[1]];
    if (!frames.length) return nothing;
    const { title, hint, alt } = FILMS[key];
    const last = frames.length - 1;
    const chosen = frames.findIndex((frame) => frame.images_seen === this.#moments[key]);
    const index = chosen < 0 ? last : chosen;
    const frame = frames[index];
    const choose = (event) => {
      const to = Number(event.target.value);
      this.#moments[key] = to === last ? undefined : frames[to].images_seen;
      this.#draw();
    };
    const words = `${count(frame.images_seen)} images seen`;
    const captions = run.captions.validation?.length ? run.captions.validation : run.captions.train;
    return html`<section class="run-film" data-film=${key}>
      <h3>${title}</h3>
      <p class="hint">${hint}</p>
      ${last > 0
        ? html`<input
            class="run-slider"
            type="range"
            min="0"
            max=${last}
            .value=${String(index)}
            aria-label="${title}: images seen"
            aria-valuetext=${words}
            @input=${choose}
          />`
        : nothing}
      <p class="run-moment">${words}${index === last ? ", the newest" : ""}</p>
      ${this.#picture(key, frame.url, `${alt}, after ${count(frame.images_seen)} images`)}
      ${key === "transformer/samples" && captions?.length
        ? html`<details>
            <summary>The captions as text</summary>
            <ol class="run-captions">
              ${captions.map((caption) => html`<li>${caption}</li>`)}
            </ol>
          </details>`
        : nothing}
    </section>`;
  }

  /** Shows a picture; the one before stays until it has come. */
  #picture(name, url, alt) {
    const shown = (this.#shown[name] ??= { wanted: null, address: null, problem: "" });
    if (shown.wanted !== url) {
      shown.wanted = url;
      this.#pictures.load(url).then(
        (address) => this.#place(name, url, address, ""),
        (error) => this.#place(name, url, null, error.message),
      );
    }
    if (shown.problem) return html`<p class="hint">This picture does not come. ${shown.problem}</p>`;
    if (!shown.address) return html`<p class="run-picture waiting" aria-hidden="true"></p>`;
    const { address } = shown;
    return html`<p class="run-picture"><img src=${address} alt=${alt} /></p>`;
  }

  #place(name, url, address, problem) {
    const shown = this.#shown[name];
    if (shown.wanted !== url) return; // another one was chosen meanwhile
    Object.assign(shown, { address, problem });
    this.#draw();
  }

  #model(run) {
    if (!run.metrics) return nothing;
    return html`<section aria-labelledby="run-model">
      <h2 id="run-model">The finished model</h2>
      ${run.samples
        ? html`${this.#picture("samples", run.samples, "What the finished model paints")}
            <p class="hint">From captions that the data brings, one try each; none were chosen.</p>`
        : nothing}
      ${run.metrics.length
        ? html`${drawTable("Metrics", ["what", "value", "protocol"], run.metrics)}
            <p class="hint">Numbers with different protocols cannot be compared.</p>`
        : html`<p>Nothing was measured.</p>`}
      ${run.report_available
        ? html`<p class="hint">All of it on one page to pass on: report.html in the run’s folder.</p>`
        : nothing}
    </section>`;
  }

  #nearest(run) {
    if (!run.nearest) return nothing;
    const alt = "Painted pictures, each beside the nearest training picture";
    const heads = ["prompt", "nearest training picture", "distance"];
    return html`<section aria-labelledby="run-nearest">
      <h2 id="run-nearest">Nearest training pictures</h2>
      <p class="hint">Does the model paint, or does it repeat?</p>
      ${this.#picture("nearest", run.nearest, alt)}
      ${run.nearest_pairs.length
        ? html`<details>
            <summary>The pairs in numbers</summary>
            ${drawTable("Nearest training pictures", heads, run.nearest_pairs)}
          </details>`
        : nothing}
    </section>`;
  }
}

function loadStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = "/studio/run.css";
  return new Promise((resolve) => {
    link.onload = link.onerror = resolve;
    document.head.append(link);
  });
}

/** Shows the run in an element, for as long as the page lives. */
export async function mountRun(element) {
  element.classList.add("run");
  await loadStyle();
  await new RunView(element).follow();
}
