// One metric over images seen, drawn as SVG; values are read with the pointer or the arrow keys.
//
// The server chooses axes, ticks and words; here they only get a place on the drawing.

import { html, nothing, svg } from "/studio/vendor/lit-html.js";

const WIDTH = 360;
const HEIGHT = 205;
const [LEFT, RIGHT, TOP, BOTTOM] = [50, 348, 10, 175];
const NUMBER = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const COUNT = new Intl.NumberFormat("en");

/** Writes a number of images. */
export const count = (number) => COUNT.format(number);

function createPlacing(curve) {
  const scale = curve.is_log ? Math.log10 : Number;
  const [low, high] = curve.limits.map(scale);
  return {
    across: (images) => LEFT + ((RIGHT - LEFT) * images) / curve.furthest,
    up: (value) => BOTTOM - ((BOTTOM - TOP) * (scale(value) - low)) / (high - low),
  };
}

/** Lists the moments that have a value, in order. */
function listMoments(curve) {
  const moments = [...curve.train, ...curve.validation].map(([images]) => images);
  return [...new Set(moments)].sort((a, b) => a - b);
}

function nearest(moments, images) {
  const far = (moment) => Math.abs(moment - images);
  return moments.reduce((best, moment) => (far(moment) < far(best) ? moment : best));
}

/** Says the values at a moment: of each line the nearest one, if it is near. */
function readValues(curve, names, images) {
  const found = [];
  for (const kind of ["train", "validation"]) {
    if (!curve[kind].length) continue;
    const at = nearest(curve[kind].map(([moment]) => moment), images);
    if (Math.abs(at - images) > curve.furthest / 100) continue;
    const [, value] = curve[kind].find(([moment]) => moment === at);
    found.push({ kind, at, value, said: `${names[kind]} ${NUMBER.format(value)}` });
  }
  return found;
}

function drawAxes(curve, { across, up }) {
  return svg`
    ${curve.y_ticks.map(
      ([value, label]) => svg`
        <line class="grid" x1=${LEFT} x2=${RIGHT} y1=${up(value)} y2=${up(value)} />
        <text x=${LEFT - 7} y=${up(value) + 4} text-anchor="end">${label}</text>`,
    )}
    ${curve.x_ticks.map(
      ([value, label]) =>
        svg`<text x=${across(value)} y=${BOTTOM + 20} text-anchor="middle">${label}</text>`,
    )}`;
}

function drawReading(found, { across, up }) {
  if (!found.length) return nothing;
  const x = across(found[found.length - 1].at);
  return svg`
    <line class="reading" x1=${x} x2=${x} y1=${TOP} y2=${BOTTOM} />
    ${found.map(
      ({ kind, at, value }) =>
        svg`<circle class="reading ${kind}" cx=${across(at)} cy=${up(value)} r="4.5" />`,
    )}`;
}

/**
 * Draws a curve.
 *
 * @param {object} curve of `GET /v1/run`.
 * @param {object} names what the lines `train` and `validation` are called.
 * @param {number|null} chosen images seen, whose values are read; null: none.
 * @param {(images: number|null) => void} choose called when another moment is pointed at.
 */
export function drawCurve(curve, names, chosen, choose) {
  const placing = createPlacing(curve);
  const moments = listMoments(curve);
  const at = chosen === null ? null : nearest(moments, chosen);
  const index = at === null ? moments.length - 1 : moments.indexOf(at);
  const found = at === null ? [] : readValues(curve, names, at);
  const reading = found.length
    ? `${count(at)} images: ${found.map(({ said }) => said).join(", ")}`
    : "";

  const onMove = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH;
    choose(nearest(moments, ((x - LEFT) / (RIGHT - LEFT)) * curve.furthest));
  };
  const onKey = (event) => {
    const last = moments.length - 1;
    const page = Math.max(1, Math.round(moments.length / 10));
    const to = {
      ArrowLeft: index - 1,
      ArrowDown: index - 1,
      ArrowRight: index + 1,
      ArrowUp: index + 1,
      PageDown: index - page,
      PageUp: index + page,
      Home: 0,
      End: last,
    }[event.key];
    if (event.key === "Escape") choose(null);
    if (to === undefined) return;
    event.preventDefault();
    choose(moments[Math.min(last, Math.max(0, to))]);
  };
  const line = (kind) =>
    curve[kind].map(([x, y]) => `${placing.across(x).toFixed(1)},${placing.up(y).toFixed(1)}`);

  return html`
    <figure class="run-curve">
      <figcaption>
        <b>${curve.title}</b>
        <span>${curve.hint}${curve.is_log ? " (log scale)" : ""}</span>
      </figcaption>
      <div
        class="run-plot"
        role="slider"
        tabindex="0"
        aria-label="${curve.title}. ${curve.description}"
        aria-valuemin="0"
        aria-valuemax=${moments.length - 1}
        aria-valuenow=${index}
        aria-valuetext=${reading || "Arrow keys read the values."}
        @pointermove=${onMove}
        @pointerdown=${onMove}
        @pointerleave=${() => choose(null)}
        @blur=${() => choose(null)}
        @keydown=${onKey}
      >
        <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" aria-hidden="true">
          ${drawAxes(curve, placing)}
          <polyline class="train" points=${line("train").join(" ")}></polyline>
          <polyline class="validation" points=${line("validation").join(" ")}></polyline>
          ${curve.validation.map(
            ([x, y]) =>
              svg`<circle class="validation" cx=${placing.across(x)} cy=${placing.up(y)} r="3.2" />`,
          )}
          ${curve.train.length === 1
            ? svg`<circle class="train" r="3" cx=${placing.across(curve.train[0][0])} cy=${placing.up(curve.train[0][1])} />`
            : nothing}
          ${drawReading(found, placing)}
        </svg>
      </div>
      <p class="run-reading" aria-hidden="true">${reading || "\u00a0"}</p>
    </figure>
  `;
}
