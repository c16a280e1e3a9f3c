// Loads the model that lies beside this page, and paints.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { ExampleMemory } from "./examples.js";
import { Painter, TextTokenizer } from "./painter.js";

const [form, status, section] = ["form", "[role=status]", "section"].map((name) =>
  document.querySelector(name));
const [prompt, seed, picture, list, about] =
  ["prompt", "seed", "picture", "examples", "about"].map((id) => document.getElementById(id));

async function read(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`The file ${name} is missing (${response.status}).`);
  return response;
}

/** Loads onnxruntime's program, which is kept compressed. */
async function loadRuntime() {
  const { body } = await read("ort-wasm-simd-threaded.wasm.gzip");
  const bytes = new Response(body.pipeThrough(new DecompressionStream("gzip")));
  ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
  ort.env.wasm.wasmBinary = await bytes.arrayBuffer();
}

async function load() {
  const graphs = ["text_encoder", "decoding_step", "image_decoder"].map((name) =>
    read(`${name}.onnx`).then((response) => response.arrayBuffer()));
  const [sizes, tokenizer] = await Promise.all(
    ["onnx.json", "text_tokenizer.json"].map((name) => read(name).then((one) => one.json())));
  await loadRuntime();
  const sessions = [];
  for (const graph of await Promise.all(graphs)) {
    sessions.push(await ort.InferenceSession.create(new Uint8Array(await graph)));
  }
  const painter = new Painter(ort, sizes, new TextTokenizer(tokenizer), sessions);
  const page = await read("page.json").then((response) => response.json());
  if (!page.has_examples) return { page, painter };
  const [arrays, lines, stems] = await Promise.all([
    read("examples.safetensors").then((response) => response.arrayBuffer()),
    read("examples.jsonl").then((response) => response.text()),
    read("stems.json").then((response) => response.json()),
  ]);
  return { page, painter, memory: new ExampleMemory(arrays, lines, stems) };
}

function draw(canvas, pixels, size) {
  canvas.width = canvas.height = size;
  const image = new ImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    image.data.set([pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2], 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

async function showExamples(painter, examples) {
  const items = [];
  for (const { codes, caption } of examples) {
    const { pixels, size } = await painter.decode(codes);
    const item = document.createElement("li"), canvas = document.createElement("canvas");
    draw(canvas, pixels, size);
    item.append(canvas, caption);
    items.push(item);
  }
  list.replaceChildren(...items);
  section.hidden = !items.length;
}

async function paint({ painter, memory }) {
  status.textContent = "Painting…";
  await new Promise((resolve) => setTimeout(resolve, 20)); // until that is shown: the page then rests
  const started = performance.now();
  const text = prompt.value;
  const examples = memory?.find(text, painter.sizes.num_examples) ?? [];
  const painted = await painter.paint(text, BigInt(seed.value), examples);
  const seconds = (performance.now() - started) / 1000;
  draw(picture, painted.pixels, painted.size);
  picture.setAttribute("aria-label", text || "A picture of no prompt");
  await showExamples(painter, examples);
  status.textContent = `Painted in ${seconds.toFixed(1)} s.`;
  return { codes: painted.codes, examples: examples.map((one) => one.name), seconds };
}

const loaded = load();
loaded.then(({ page }) => {
  document.title = document.querySelector("h1").textContent = page.title;
  prompt.value = page.prompt;
  about.hidden = !page.has_card;
  form.querySelector("button").disabled = false;
  form.requestSubmit();
}).catch((error) => {
  status.textContent = error.message;
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  const detail = await loaded.then(paint).catch((error) => ({ error: error.message }));
  if (detail.error) status.textContent = detail.error;
  button.disabled = false;
  dispatchEvent(new CustomEvent("painted", { detail }));
});
