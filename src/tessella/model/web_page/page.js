// Loads the model that lies beside this page, and paints.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { ExampleMemory } from "./examples.js";
import { Painter, TextTokenizer } from "./painter.js";

const [form, status, section] = ["form", "[role=status]", "section"].map((name) =>
  document.querySelector(name));
const [prompt, seed, picture, list, about, loading, bar] =
  ["prompt", "seed", "picture", "examples", "about", "loading", "bar"].map((id) =>
    document.getElementById(id));

/** Reads a file; `count` is told of its bytes as they come. */
async function read(name, count = () => {}) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`The file ${name} is missing (${response.status}).`);
  return new Response(response.body.pipeThrough(new TransformStream({
    transform(bytes, controller) {
      count(bytes.byteLength);
      controller.enqueue(bytes);
    },
  })));
}

/** Shows how many of so many bytes have been loaded; returns what counts them. */
function showLoading(total) {
  const inMegabytes = (bytes) => (bytes / 1e6).toFixed(1);
  let loaded = 0;
  const count = (bytes) => {
    loaded = Math.min(loaded + bytes, total); // a server may have stored a file otherwise
    bar.value = loaded;
    bar.nextElementSibling.textContent = `${inMegabytes(loaded)} of ${inMegabytes(total)} MB`;
    if (loaded === total) status.textContent = "Preparing the model…";
  };
  bar.max = total;
  loading.hidden = false;
  count(0);
  return count;
}

/** Loads onnxruntime's program, which is kept compressed. */
async function loadRuntime(load) {
  const { body } = await load("ort-wasm-simd-threaded.wasm.gzip");
  const bytes = new Response(body.pipeThrough(new DecompressionStream("gzip")));
  ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
  ort.env.wasm.wasmBinary = await bytes.arrayBuffer();
}

async function load() {
  const page = await read("page.json").then((response) => response.json());
  const count = showLoading(page.bytes);
  const begin = (name) => read(name, count);
  // All at once: what is waited for later is loaded meanwhile.
  const runtime = loadRuntime(begin);
  const graphs = ["text_encoder", "decoding_step", "image_decoder"].map((name) =>
    begin(`${name}.onnx`).then((response) => response.arrayBuffer()));
  const texts = ["onnx.json", "text_tokenizer.json"].map((name) =>
    begin(name).then((response) => response.json()));
  const memory = page.has_examples ? loadExamples(begin) : undefined;
  const [sizes, tokenizer, examples] = await Promise.all([...texts, memory, ...graphs, runtime]);
  const sessions = [];
  for (const graph of graphs) {
    sessions.push(await ort.InferenceSession.create(new Uint8Array(await graph)));
  }
  const painter = new Painter(ort, sizes, new TextTokenizer(tokenizer), sessions);
  return { page, painter, memory: examples };
}

async function loadExamples(load) {
  const [arrays, lines, stems] = await Promise.all([
    load("examples.safetensors").then((response) => response.arrayBuffer()),
    load("examples.jsonl").then((response) => response.text()),
    load("stems.json").then((response) => response.json()),
  ]);
  return new ExampleMemory(arrays, lines, stems);
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
}).finally(() => {
  loading.hidden = true;
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
