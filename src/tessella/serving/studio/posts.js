// The view where a business gets posts: text, hashtags, a picture, and its alternative text.

import { postJson, toBlob } from "./api.js";
import { drawField, drawNumber, drawProblem } from "./forms.js";
import { drawBed, dropUrl, urlOf } from "./picture.js";
import { html, render } from "./vendor/lit-html.js";
import { inWords } from "./words.js";

/** How long a button says what it did. */
const SAID_MS = 2500;

/** How platforms write their own names, where that is not a capital at the front. */
const PLATFORMS = { linkedin: "LinkedIn", tiktok: "TikTok" };

/** Shows the view. */
export function mount(element, app) {
  const isOffline = app.studio.posts === "offline";
  const state = { running: null, answer: null, problem: "", isOffline };
  const draw = () => render(drawView(state, app, { submit, cancel, choose }), element);

  function choose(event) {
    state.isOffline = event.target.checked;
    draw();
  }

  const cancel = () => state.running?.abort();

  async function submit(event) {
    event.preventDefault();
    if (state.running) return;
    const fields = Object.fromEntries(new FormData(event.target));
    const { isOffline: offline } = state;
    const body = { ...fields, offline, count: Number(fields.count), model: app.model.id };
    for (const { blob } of state.answer?.posts ?? []) dropUrl(blob);
    Object.assign(state, { running: new AbortController(), problem: "", answer: null });
    app.say("Writing posts.");
    draw();
    try {
      const answer = await postJson("/v1/posts", body, state.running.signal);
      for (const post of answer.posts) post.blob = toBlob(post.picture.b64_json);
      state.answer = answer;
      app.say(`${state.answer.posts.length} posts are ready.`);
    } catch (error) {
      state.problem = error.name === "AbortError" ? "" : error.message;
    }
    state.running = null;
    draw();
  }

  draw();
  app.events.addEventListener("model", draw);
}

function toTags({ hashtags }) {
  return hashtags.map((tag) => (tag.startsWith("#") ? tag : `#${tag}`)).join(" ");
}

/** What is pasted elsewhere: text and hashtags. */
function toText(post) {
  return `${post.text}\n\n${toTags(post)}`.trim();
}

/** A button that copies words, which stand in the post at `where`. */
function drawCopy(label, words, where) {
  const copy = async ({ currentTarget: button }) => {
    try {
      await navigator.clipboard.writeText(words);
      button.textContent = "Copied";
    } catch {
      // Only pages from this machine or over HTTPS may write to the clipboard.
      getSelection().selectAllChildren(button.closest("article").querySelector(where));
      button.textContent = "Selected: copy it with your keyboard";
    }
    setTimeout(() => (button.textContent = label), SAID_MS);
  };
  return html`<button type="button" class="act" @click=${copy} .textContent=${label}></button>`;
}

function drawPost(post, index) {
  const url = urlOf(post.blob);
  return html`
    <article class="post panel halves" aria-label=${`Post ${index + 1}`}>
      ${drawBed(url, post.alt_text)}
      <div class="stack">
        <div class="post-text">
          <p>${post.text}</p>
          <p class="tags">${toTags(post)}</p>
        </div>
        <dl class="hint">
          <dt>Alternative text</dt>
          <dd class="alt-text">${post.alt_text}</dd>
          <dt>Painted from</dt>
          <dd>${post.label}, seed ${post.picture.seed}</dd>
        </dl>
        <div class="row">
          ${drawCopy("Copy the text", toText(post), ".post-text")}
          ${drawCopy("Copy the alternative text", post.alt_text, ".alt-text")}
          <a class="act" href=${url} download=${`post-${index + 1}.png`}>Download the picture</a>
        </div>
      </div>
    </article>
  `;
}

function drawForm({ running, isOffline }, { studio, model }, { submit, cancel, choose }) {
  const most = model.limits.n;
  const toName = (value) => PLATFORMS[value] ?? value.charAt(0).toUpperCase() + value.slice(1);
  const select = (name, values) => html`<select name=${name}>
    ${values.map((value) => html`<option value=${value}>${toName(value)}</option>`)}
  </select>`;
  return html`
    <form class="stack panel" aria-label="What the posts are about" @submit=${submit}>
      <h1 tabindex="-1">Posts with pictures</h1>
      ${drawField(
        "Business",
        html`<input name="business" maxlength="200" required placeholder="Corner Bakery" />`,
      )}
      ${drawField(
        "About it",
        html`<textarea name="about" rows="4" maxlength="2000" required
          placeholder="Sourdough and rolls, baked at night, sold from seven."></textarea>`,
      )}
      <div class="row short-first">
        ${drawNumber("count", "Posts", {
          min: 1,
          max: most,
          value: Math.min(3, most),
          required: true,
        })}
        ${drawField("Platform", select("platform", studio.post_platforms))}
        ${drawField(
          "Tone",
          isOffline
            ? select("tone", studio.post_tones)
            : html`<input name="tone" maxlength="60" value=${studio.post_tones[0]} required />`,
        )}
      </div>
      ${studio.posts === "llm"
        ? html`<label class="row">
            <input type="checkbox" @change=${choose} />
            <span>Offline: templates write instead of a language model</span>
          </label>`
        : ""}
      <div class="row">
        <button class="main" aria-disabled=${running !== null}>
          ${running ? "Writing…" : "Write posts"}
        </button>
        ${running
          ? html`<button type="button" class="quiet" @click=${cancel}>Cancel</button>`
          : ""}
      </div>
    </form>
  `;
}

function drawView(state, app, actions) {
  const { answer, problem, running } = state;
  return html`
    <div class="bench halves form-first">
      ${drawForm(state, app, actions)}
      <section class="stack" aria-label="Posts" aria-busy=${running !== null}>
        ${app.studio.posts === "offline" && !answer
          ? html`<p class="hint">
              There is no language model here: a template writes the words from what you say about
              the business.
            </p>`
          : ""}
        ${drawProblem(problem)}
        ${answer?.notes.map((note) => html`<p class="hint">${inWords(note)}</p>`) ?? ""}
        ${answer?.posts.map(drawPost) ?? ""}
        ${!answer && !problem && !running
          ? html`<p class="hint">Posts appear here: words, hashtags and a picture each.</p>`
          : ""}
      </section>
    </div>
  `;
}
