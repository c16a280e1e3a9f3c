// OpenAI's client for JavaScript: all that it can say about pictures, in the version that is
// installed in the folder that the second argument names. Pictures are checked by their first bytes.

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const [, , baseURL, folder, picture, mask] = process.argv;
const require = createRequire(join(folder, "index.js"));
const openai = require("openai");
const OpenAI = openai.default ?? openai;
const { toFile } = openai;
const streams = Number(OpenAI.VERSION?.split(".")[0] ?? readVersion().split(".")[0]) >= 5;
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });

const PROMPT = "a large red circle on a white background";
const STARTS = { png: "89504e47", jpeg: "ffd8ff", webp: "52494646" };

function readVersion() {
  return JSON.parse(readFileSync(join(folder, "node_modules/openai/package.json"))).version;
}

async function attempt(name, call) {
  const line = { call: name, works: true };
  try {
    await call();
  } catch (error) {
    Object.assign(line, { works: false, why: String(error).slice(0, 300) });
  }
  console.log(JSON.stringify(line));
}

function expect(isSo, what) {
  if (!isSo) throw new Error(`unexpected: ${what}`);
}

async function look(one, { by, kind = "png" } = {}) {
  expect(Boolean(one.b64_json) !== Boolean(one.url), "both b64_json and url, or neither");
  if (by) expect((by === "url") === Boolean(one.url), `not by ${by}`);
  const content = one.url
    ? Buffer.from(await (await fetch(one.url)).arrayBuffer())
    : Buffer.from(one.b64_json, "base64");
  expect(content.toString("hex").startsWith(STARTS[kind]), `no ${kind}`);
}

async function lookAtAll(asked, count, expected) {
  const answer = await asked;
  expect(answer.data.length === count, answer.data.length);
  for (const one of answer.data) await look(one, expected);
}

async function lookAtStream(asked, kind) {
  const types = [];
  for await (const event of await asked) {
    types.push(event.type);
    await look(event);
  }
  expect(types.join() === [`${kind}.partial_image`, `${kind}.completed`].join(), types);
}

const file = async (path = picture) => toFile(readFileSync(path), "a.png", { type: "image/png" });
const show = (said) => JSON.stringify(said).slice(1, -1).replaceAll('"', "");

await attempt("models.list", async () => {
  const names = [];
  for await (const one of client.models.list()) names.push(one.id);
  expect(names.join() === "scenes", names);
});
await attempt("models.retrieve", () => client.models.retrieve("scenes"));

const sizes = "256x256 512x512 1024x1024 1536x1024 1024x1536 1792x1024 1024x1792 auto".split(" ");
const cases = [
  [{}, {}],
  [{ n: 2 }, {}],
  ...sizes.map((size) => [{ size }, {}]),
  ...["gpt-image-1", "gpt-image-2"].map((model) => [{ model }, { by: "b64_json" }]),
  ...["dall-e-2", "dall-e-3"].map((model) => [{ model }, { by: "url" }]),
  ...["b64_json", "url"].map((by) => [{ response_format: by }, { by }]),
  ...["png", "jpeg", "webp"].map((kind) => [{ output_format: kind }, { kind }]),
  [{ output_format: "jpeg", output_compression: 50 }, { kind: "jpeg" }],
  ...["auto", "standard", "hd", "low", "medium", "high"].map((quality) => [{ quality }, {}]),
  ...["vivid", "natural"].map((style) => [{ style }, {}]),
  [{ background: "opaque", moderation: "low", user: "someone" }, {}],
];
for (const [said, expected] of cases) {
  await attempt(`generate(${show(said)})`, () =>
    lookAtAll(client.images.generate({ prompt: PROMPT, ...said }), said.n ?? 1, expected),
  );
}
for (const [said, expected] of [
  [{}, {}],
  [{ n: 2 }, {}],
  [{ size: "512x512" }, {}],
  [{ model: "dall-e-2" }, { by: "url" }],
  [{ model: "gpt-image-1", quality: "high" }, { by: "b64_json" }],
]) {
  await attempt(`edit(${show(said)})`, async () =>
    lookAtAll(
      client.images.edit({ prompt: PROMPT, image: await file(), ...said }),
      said.n ?? 1,
      expected,
    ),
  );
  await attempt(`createVariation(${show(said)})`, async () => {
    const { quality, ...known } = said;
    await lookAtAll(
      client.images.createVariation({ image: await file(), ...known }),
      said.n ?? 1,
      expected,
    );
  });
}
await attempt("edit(mask)", async () =>
  lookAtAll(
    client.images.edit({ prompt: PROMPT, image: await file(), mask: await file(mask) }),
    1,
    {},
  ),
);
await attempt("edit(several)", async () =>
  lookAtAll(
    client.images.edit({ prompt: PROMPT, image: [await file(), await file(mask)] }),
    1,
    {},
  ),
);
if (streams) {
  const asked = { prompt: PROMPT, stream: true, partial_images: 1 };
  await attempt("generate, stream", () =>
    lookAtStream(client.images.generate(asked), "image_generation"),
  );
  await attempt("edit, stream", async () =>
    lookAtStream(client.images.edit({ ...asked, image: await file() }), "image_edit"),
  );
}
await attempt("error: size", async () => {
  let refused = null;
  await client.images.generate({ prompt: PROMPT, size: "1x1" }).catch((error) => {
    refused = error;
  });
  expect(refused?.status === 400 && refused.param === "size", refused);
});
