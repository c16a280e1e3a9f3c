// The view where a business gets posts: text, hashtags, a picture, and its alternative text.

import { postJson, toBlob } from "/studio/api.js";
import { urlOf } from "/studio/picture.js";
import { html, render } from "/studio/vendor/lit-html.js";

const PLATFORMS = [
  "instagram",
  "facebook",
  "x",
  "linkedin",
  "threads",
  "bluesky",
  "mastodon",
  "pinterest",
  "tiktok",
];

/** What a template can write in; a language model takes any tone. */
const OFFLINE_TONES = ["warm", "playful", "professional", "bold"];

/** Shows the view. */
export function mount(element, app) {
  const state = { running: null, answer: null, problem: "" };
  const draw = () => render(drawView(state, app, { submit, cancel }), element);

  function cancel() {
    state.running?.abort();
  }

  async function submit(event) {
    event.preventDefault();
    if (state.running) return;
    const fields = Object.fromEntries(new FormData(event.target));
    const body = { ...fields, count: Number(fields.count), model: app.model.id };
    Object.assign(state, { running: new AbortController(), problem: "", answer: null });
    app.say("Writing posts.");
    draw();
    try {
      state.answer = await postJson("/v1/posts", body, state.running.signal);
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

async function copy(event, post) {
  const button = event.currentTarget;
  const words = button.closest("article").querySelector(".post-text");
  try {
    await navigator.clipboard.writeText(toText(post));
    button.textContent = "Copied";
  } catch {
    // Only pages from this machine or over HTTPS may write to the clipboard.
    getSelection().selectAllChildren(words);
    button.textContent = "Selected: copy it with your keyboard";
  }
}

function drawPost(post, index) {
  const picture = toBlob(post.picture.b64_json);
  const url = urlOf(picture);
  return html`
    <article class="post panel" aria-label=${`Post ${index + 1}`}>
      <div class="bed"><img class="pixels" src=${url} alt=${post.alt_text} /></div>
      <div class="stack">
        <div class="post-text">
          <p>${post.text}</p>
          <p class="tags">${toTags(post)}</p>
        </div>
        <dl class="hint">
          <dt>Alternative text</dt>
          <dd>${post.alt_text}</dd>
          <dt>Painted from</dt>
          <dd>${post.label}, seed ${post.picture.seed}</dd>
        </dl>
        <div class="acts">
          <button type="button" class="act" @click=${(event) => copy(event, post)}>
            Copy the text
          </button>
          <a class="act" href=${url} download=${`post-${index + 1}.png`}>Download the picture</a>
        </div>
      </div>
    </article>
  `;
}

function drawForm({ running }, isOffline, { submit, cancel }) {
  return html`
    <form class="stack panel" aria-label="What the posts are about" @submit=${submit}>
      <h1 tabindex="-1">Posts with pictures</h1>
      <label class="field">
        <span>Business</span>
        <input name="business" maxlength="200" required placeholder="Corner Bakery" />
      </label>
      <label class="field">
        <span>About it</span>
        <textarea name="about" rows="4" maxlength="2000" required
          placeholder="Sourdough and rolls, baked at night, sold from seven."></textarea>
      </label>
      <div class="row">
        <label class="field">
          <span>Posts</span>
          <input name="count" type="number" min="1" max="10" value="3" required />
        </label>
        <label class="field">
          <span>Platform</span>
          <select name="platform">
            ${PLATFORMS.map((name) => html`<option>${name}</option>`)}
          </select>
        </label>
        <label class="field">
          <span>Tone</span>
          ${isOffline
            ? html`<select name="tone">
                ${OFFLINE_TONES.map((name) => html`<option>${name}</option>`)}
              </select>`
            : html`<input name="tone" maxlength="60" value="warm" required />`}
        </label>
      </div>
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
  const offline = app.studio.posts === "offline";
  return html`
    <div class="bench">
      ${drawForm(state, offline, actions)}
      <section class="stack" aria-label="Posts" aria-busy=${running !== null}>
        ${offline && !answer
          ? html`<p class="hint">
              No language model is set up: a template writes the words, from what you say about the
              business.
            </p>`
          : ""}
        ${problem ? html`<p class="problem" role="alert">${problem}</p>` : ""}
        ${answer?.notes.map((note) => html`<p class="hint">${note}</p>`) ?? ""}
        ${answer?.posts.map(drawPost) ?? ""}
        ${!answer && !problem && !running
          ? html`<div class="nothing">
              <p>Posts appear here: words, hashtags and a picture each.</p>
            </div>`
          : ""}
      </section>
    </div>
  `;
}
