// A model's tiles: a box for each of its codebooks, on one picture that is fetched once, and the
// order of their colours.

import { get, once, toBlob } from "./api.js";

// In a mosaic: a tile's width, the gap after it, and both together in a band.
const LARGE_PX = 64;
const GAP_PX = 4;
const BAND_PX = 13;

const boxes = new Map();

/**
 * Fetches a model's tiles; answers {size, tilePx, columns, sheet, byColour}: `size` of each codebook,
 * and each codebook's codes in the order of their tiles' colours.
 */
export function loadCodebook(model) {
  return once(boxes, model.id, () => fetchCodebook(model));
}

/** Says in words of which codes a model makes a picture. */
export function nameCodes({ grid, codebook_size: size, codes_per_position: many }) {
  const positions = grid.join("×");
  if (many === 1) return `${positions} codes out of ${size}`;
  return `${many} codes at each of ${positions} positions, each out of ${size}`;
}

async function fetchCodebook(model) {
  const answer = await get(`/v1/models/${encodeURIComponent(model.id)}/codebook`);
  const sheet = await createImageBitmap(toBlob(answer.b64_png));
  const { codebook_size: size, codes_per_position: many, tile_px: tilePx, columns } = answer;
  return { size, tilePx, columns, sheet, byColour: sortByColour({ size, many, columns, sheet }) };
}

/** Where tile k begins on the sheet. */
function findTile({ tilePx, columns }, k) {
  return [(k % columns) * tilePx, Math.floor(k / columns) * tilePx];
}

/** Draws the tile of a codebook's code so that it fills a canvas, pixel for pixel. */
export function drawTile(canvas, box, book, code) {
  const size = (canvas.width = canvas.height = box.tilePx);
  const place = findTile(box, book * box.size + code);
  canvas.getContext("2d").drawImage(box.sheet, ...place, size, size, 0, 0, size, size);
}

/** The codes of each codebook, from grays through the hues, dark to light within each. */
function sortByColour({ size, many, columns, sheet }) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [columns, Math.ceil((many * size) / columns)];
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(sheet, 0, 0, canvas.width, canvas.height);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  return Array.from({ length: many }, (_, book) => {
    const key = (code) => sortKey(data.subarray(4 * (book * size + code)));
    const keys = Array.from({ length: size }, (_, code) => key(code));
    return keys.map((_, code) => code).sort((a, b) => keys[a] - keys[b]);
  });
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

/**
 * Fills a canvas with rows of the tiles of a model's first codebook in the order of their colours.
 * Decoration: it waits until nothing else is to be done, and is left out where the tiles cannot be
 * fetched.
 *
 * @param {HTMLCanvasElement} canvas as wide as it is laid out.
 * @param model whose tiles.
 * @param {number} rows of tiles.
 * @param {number} columns of tiles; 0: a band of as many as fit at this width.
 */
export async function showMosaic(canvas, model, rows, columns = 0) {
  canvas.dataset.model = model.id;
  await new Promise((resolve) => (window.requestIdleCallback ?? setTimeout)(resolve));
  const box = await loadCodebook(model).catch(() => null);
  // Another model may have been chosen meanwhile.
  if (!box || canvas.dataset.model !== model.id) return;
  const many = columns || Math.ceil(canvas.clientWidth / BAND_PX);
  const side = columns ? LARGE_PX : 2 * BAND_PX - GAP_PX;
  const pitch = side + GAP_PX;
  [canvas.width, canvas.height] = [many * pitch - GAP_PX, rows * pitch - GAP_PX];
  const context = canvas.getContext("2d");
  for (let place = 0; place < rows * many; place++) {
    const [row, column] = [Math.floor(place / many), place % many];
    // A band runs through the colours along its columns, a square along its rows.
    const part = columns ? place / (rows * many) : (column + row / rows) / many;
    const k = box.byColour[0][Math.floor(part * box.size)];
    // Half a pixel inside: enlarging would mix in the neighbours on the sheet.
    const [x, y, width] = [...findTile(box, k).map((at) => at + 0.5), box.tilePx - 1];
    context.drawImage(box.sheet, x, y, width, width, column * pitch, row * pitch, side, side);
  }
  canvas.classList.add("is-laid");
}
