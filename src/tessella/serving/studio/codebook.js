// A model's box of tiles: its picture, fetched once, and each tile's mean colour.

import { getJson, toBlob } from "/studio/api.js";

const boxes = new Map();

/** Fetches a model's box; answers {size, tilePx, columns, sheet, byColour}. */
export function loadCodebook(model) {
  if (!boxes.has(model.id)) {
    const loading = fetchCodebook(model);
    boxes.set(model.id, loading);
    loading.catch(() => boxes.delete(model.id));
  }
  return boxes.get(model.id);
}

async function fetchCodebook(model) {
  const answer = await getJson(`/v1/models/${encodeURIComponent(model.id)}/codebook`);
  const sheet = await createImageBitmap(toBlob(answer.b64_png));
  const { codebook_size: size, tile_px: tilePx, columns } = answer;
  return { size, tilePx, columns, sheet, byColour: sortByColour({ size, tilePx, columns, sheet }) };
}

/** How wide a tile is on the enlarged sheet. */
export const LARGE_PX = 32;

/** Draws all tiles enlarged, each by itself; answers the address of that sheet. */
export async function enlargeTiles(box) {
  const canvas = document.createElement("canvas");
  canvas.width = box.columns * LARGE_PX;
  canvas.height = Math.ceil(box.size / box.columns) * LARGE_PX;
  const context = canvas.getContext("2d");
  for (let k = 0; k < box.size; k++) {
    const [x, y] = [k % box.columns, Math.floor(k / box.columns)];
    placeTile(context, box, k, x * LARGE_PX, y * LARGE_PX, LARGE_PX);
  }
  return URL.createObjectURL(await new Promise((resolve) => canvas.toBlob(resolve)));
}

function placeTile(context, { tilePx, columns, sheet }, k, left, top, side) {
  // Half a pixel inside: enlarging would mix in the neighbours on the sheet.
  const [x, y] = [(k % columns) * tilePx + 0.5, Math.floor(k / columns) * tilePx + 0.5];
  context.drawImage(sheet, x, y, tilePx - 1, tilePx - 1, left, top, side, side);
}

/** Draws tile k so that it fills a canvas, pixel for pixel. */
export function drawTile(canvas, { tilePx, columns, sheet }, k) {
  canvas.width = canvas.height = tilePx;
  const [x, y] = [(k % columns) * tilePx, Math.floor(k / columns) * tilePx];
  canvas.getContext("2d").drawImage(sheet, x, y, tilePx, tilePx, 0, 0, tilePx, tilePx);
}

/** The tiles' numbers, from grays through the hues, dark to light within each. */
function sortByColour({ size, tilePx, columns, sheet }) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [columns, Math.ceil(size / columns)];
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(sheet, 0, 0, canvas.width, canvas.height);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const keys = Array.from({ length: size }, (_, k) => sortKey(data.subarray(4 * k, 4 * k + 3)));
  return keys.map((_, k) => k).sort((a, b) => keys[a] - keys[b]);
}

function sortKey([red, green, blue]) {
  const most = Math.max(red, green, blue);
  const least = Math.min(red, green, blue);
  const spread = most - least;
  const light = (most + least) / 510;
  if (spread < 28) return light;
  let hue = (red - green) / spread + 4;
  if (most === red) hue = ((green - blue) / spread + 6) % 6;
  else if (most === green) hue = (blue - red) / spread + 2;
  return 1 + Math.floor(hue * 2) + light;
}

const mosaics = new WeakMap();

// Laid when a canvas is shown, and again with each other size.
const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) if (target.clientWidth) layMosaic(target);
});

/**
 * Keeps a canvas filled with rows of a model's tiles in the order of their colours. Decoration:
 * it waits until nothing else is to be done, and is left out where the tiles cannot be fetched.
 *
 * @param {HTMLCanvasElement} canvas as wide as it is laid out.
 * @param model whose tiles.
 * @param {{rows: number, columns?: number}} shape: as many columns as fit into a band of tiles of
 *     eleven pixels, unless given.
 */
export function showMosaic(canvas, model, { rows, columns = 0 }) {
  mosaics.set(canvas, { model, rows, columns });
  // Observed anew, a canvas is laid soon, whatever its size.
  sizes.unobserve(canvas);
  sizes.observe(canvas);
}

async function layMosaic(canvas) {
  const mosaic = mosaics.get(canvas);
  await new Promise((resolve) => (window.requestIdleCallback ?? setTimeout)(resolve));
  const box = await loadCodebook(mosaic.model).catch(() => null);
  // Another model may have been chosen meanwhile.
  if (box && mosaic === mosaics.get(canvas)) drawMosaic(canvas, box, mosaic);
}

function drawMosaic(canvas, box, { rows, columns }) {
  const scale = window.devicePixelRatio || 1;
  const gap = 2 * scale;
  const width = Math.round(canvas.clientWidth * scale);
  if (!width) return;
  const many = columns || Math.ceil(width / (11 * scale + gap));
  const side = columns ? (width + gap) / columns - gap : 11 * scale;
  canvas.width = width;
  canvas.height = Math.round(rows * (side + gap) - gap);
  const context = canvas.getContext("2d");
  for (let place = 0; place < rows * many; place++) {
    const [row, column] = [Math.floor(place / many), place % many];
    // A band runs through the colours along its columns, a square along its rows.
    const part = columns ? place / (rows * many) : (column + row / rows) / many;
    const k = box.byColour[Math.floor(part * box.size)];
    placeTile(context, box, k, column * (side + gap), row * (side + gap), side);
  }
  canvas.classList.add("is-laid");
}
