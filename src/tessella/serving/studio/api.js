// Talks to the server: keys, errors in words, server-sent events. Knows nothing of the page.

import { inWords } from "./words.js";

const KEY = "tessella.key";
// Where the server's addresses begin: below the path of a proxy, if there is one.
const BASE = new URL("..", import.meta.url);

const SILENT = "The server does not answer. Is it still running, and is this device connected to it?";
const CUT_OFF = "The connection to the server was lost.";

/** What went wrong, in words for a person. */
export class ApiError extends Error {
  /**
   * @param {string} message what the server said.
   * @param {number} status of HTTP; 0 when there was no answer, or not all of it.
   */
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }

  /** Whether the same request may be answered later. */
  get isPassing() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

let key = sessionStorage.getItem(KEY);
let askForKey = async () => null;
let isKeyNeeded = false;
let asking = null;

/**
 * Names who asks a person for the API key.
 *
 * @param {(problem: string) => Promise<string|null>} ask is told what was wrong with the last key.
 * @param {boolean} isNeeded whether the server answers nothing without one.
 */
export function onKeyNeeded(ask, isNeeded) {
  askForKey = ask;
  isKeyNeeded = isNeeded;
}

/** Asks for a key, once for all requests that wait for it; throws when none is given. */
async function replaceKey(problem) {
  asking ??= askForKey(problem).finally(() => (asking = null));
  const given = await asking;
  if (!given) throw new ApiError(problem || "This server needs an API key.", 401);
  key = given;
}

async function readProblem(response) {
  let problem = {};
  try {
    problem = (await response.json()).error ?? {};
  } catch {
    // A proxy in between answers with a page of its own; the status has to do.
  }
  const wait = Number(response.headers.get("Retry-After"));
  const said = problem.message ?? `The server answered with status ${response.status}.`;
  const later = wait && !said.includes("Try again") ? ` Try again in ${wait} s.` : "";
  return new ApiError(inWords(said) + later, response.status);
}

/** Reads what comes; a browser's own word for a connection that ends becomes ours. */
async function read(reading) {
  try {
    return await reading;
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(CUT_OFF);
  }
}

/** Sends a request until it is answered with something else than "which key?". */
async function send(path, options = {}) {
  for (;;) {
    if (isKeyNeeded && !key) await replaceKey("");
    const sent = key;
    const headers = new Headers(options.headers);
    if (sent) headers.set("Authorization", `Bearer ${sent}`);
    let response;
    try {
      response = await fetch(new URL(path.slice(1), BASE), { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(SILENT);
    }
    // Kept for this tab only once the server knows it.
    if (sent && response.status !== 401) sessionStorage.setItem(KEY, sent);
    if (response.ok) return response;
    const problem = await readProblem(response);
    if (problem.status !== 401) throw problem;
    // Another request may have asked meanwhile.
    if (key === sent) await replaceKey(sent ? "This server does not know this key." : "");
  }
}

/** Fetches a path as "json", "blob" or "text". */
export async function get(path, kind = "json") {
  return read((await send(path))[kind]());
}

function toRequest(body, signal) {
  if (body instanceof FormData) return { method: "POST", body, signal };
  const headers = { "Content-Type": "application/json" };
  return { method: "POST", body: JSON.stringify(body), headers, signal };
}

/** Posts an object or a FormData; answers JSON. */
export async function postJson(path, body, signal) {
  return read((await send(path, toRequest(body, signal))).json());
}

/** Posts, and yields the data of each server-sent event as it comes. */
export async function* postForEvents(path, body, signal) {
  const response = await send(path, toRequest(body, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await read(reader.read());
    if (done) return;
    text += value.replaceAll("\r", "");
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const lines = event.split("\n").filter((line) => line.startsWith("data:"));
      if (!lines.length) continue;
      const data = JSON.parse(lines.map((line) => line.slice(5)).join("\n"));
      if (data.error) throw new ApiError(inWords(data.error.message));
      yield data;
    }
  }
}

/** Answers the promise of a key, which `load` makes unless there is one that has not failed. */
export function once(promises, key, load) {
  if (!promises.has(key)) promises.set(key, load());
  promises.get(key).catch(() => promises.delete(key));
  return promises.get(key);
}

/** Turns base64 into a picture's Blob. */
export function toBlob(base64, type = "image/png") {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type });
}

/** Turns an object into a form; what is undefined or null stays out. */
export function toForm(fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value === undefined || value === null) continue;
    if (value instanceof Blob) form.append(name, value, value.name ?? `${name}.png`);
    else form.append(name, Array.isArray(value) ? JSON.stringify(value) : String(value));
  }
  return form;
}
