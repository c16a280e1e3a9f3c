// Looks up the examples of a prompt, as tessella/retrieval/index.py does: each next example for
// what of the prompt those before it leave out.

const COVERED = Math.fround(0.2);
const MOST_CANDIDATES = 2000;
const NOTHING = 1e-30;
// Languages that are written without spaces: their pairs of letters stand for words.
const UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u3040-\u30fa\u30fc-\u30ff\u3400-\u9fff";
const WORD = new RegExp(`[${UNSPACED}]+|(?:(?![${UNSPACED}_])[\\p{L}\\p{N}]\\p{M}*)+`, "gu");

const TYPES = { U8: Uint8Array, U16: Uint16Array, I32: Int32Array, I64: BigInt64Array, F32: Float32Array };

export class ExampleMemory {
  /**
   * @param {ArrayBuffer} arrays examples.safetensors
   * @param {string} lines examples.jsonl
   * @param {Record<string, string>} stems of the forms of words that are looked up
   */
  constructor(arrays, lines, stems) {
    const { codes, example_of, words, word_offsets, posting_captions, posting_scores } =
      readArrays(arrays);
    this.codes = codes;
    this.exampleOf = example_of.values;
    this.rows = lines.trimEnd().split("\n").map((line) => JSON.parse(line));
    this.stems = new Map(Object.entries(stems));
    const names = new TextDecoder().decode(words.values).split("\n");
    this.numberOf = new Map(names.map((word, number) => [word, number]));
    this.offsets = Array.from(word_offsets.values, Number);
    this.captions = posting_captions.values;
    this.scores = posting_scores.values;
  }

  /** Finds at most `count` examples: [{codes: (M, h, w) flat, caption, name}]. */
  find(prompt, count) {
    const { candidates, scores } = this.#findCandidates(prompt);
    const weights = new Float32Array(scores.length).fill(1);
    const taken = new Set(), found = [];
    while (found.length < count) {
      let best = -1, most = 0;
      for (let i = 0; i < candidates.length; i++) {
        if (taken.has(this.exampleOf[candidates[i]])) continue;
        let worth = 0;
        for (let w = 0; w < scores.length; w++) {
          worth = Math.fround(worth + Math.fround(weights[w] * scores[w][i]));
        }
        if (worth >= NOTHING && worth > most) [best, most] = [i, worth];
      }
      if (best < 0) break;
      const caption = candidates[best];
      taken.add(this.exampleOf[caption]);
      found.push(this.#read(caption));
      scores.forEach((row, w) => {
        if (row[best] > 0) weights[w] *= COVERED;
      });
    }
    return found;
  }

  #findCandidates(prompt) {
    const numbers = new Set(this.#split(prompt).map((stem) => this.numberOf.get(stem)));
    numbers.delete(undefined);
    const spans = [...numbers].sort((a, b) => a - b)
      .map((number) => [this.offsets[number], this.offsets[number + 1]])
      .sort((a, b) => a[1] - a[0] - (b[1] - b[0]));
    const found = new Set();
    let left = MOST_CANDIDATES;
    for (const [start, end] of spans) {
      if (left <= 0) break;
      const stride = Math.ceil((end - start) / left);
      for (let i = start; i < end; i += stride, left--) found.add(this.captions[i]);
    }
    const candidates = Int32Array.from(found).sort();
    const at = new Map(Array.from(candidates, (caption, i) => [caption, i]));
    const scores = spans.map(([start, end]) => {
      const row = new Float32Array(candidates.length);
      for (let i = start; i < end; i++) {
        const place = at.get(this.captions[i]);
        if (place !== undefined) row[place] = this.scores[i];
      }
      return row;
    });
    return { candidates, scores };
  }

  #split(text) {
    // Without case, as Python's casefold.
    const folded = text.normalize("NFKC").toLowerCase().replaceAll("ß", "ss").replaceAll("ς", "σ");
    const words = folded.match(WORD) ?? [];
    return words.flatMap((word) => {
      if (!new RegExp(`^[${UNSPACED}]`).test(word)) return this.stems.get(word) ?? [];
      const pairs = Array.from({ length: word.length - 1 }, (_, i) => word.slice(i, i + 2));
      const parts = [...pairs, ...(word.match(/[\u3400-\u9fff]/g) ?? [])];
      return parts.length ? parts : [word];
    });
  }

  #read(caption) {
    const example = this.exampleOf[caption];
    const first = this.exampleOf.indexOf(example);
    const { name, captions } = this.rows[example];
    const size = this.codes.values.length / this.codes.shape[0];
    const codes = this.codes.values.subarray(example * size, (example + 1) * size);
    return { codes, name, caption: captions[caption - first] };
  }
}

/** Reads the arrays of a safetensors file: {name: {shape, values}}. */
function readArrays(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  delete header.__metadata__;
  return Object.fromEntries(
    Object.entries(header).map(([name, { dtype, shape, data_offsets: [start, end] }]) => {
      const bytes = buffer.slice(8 + length + start, 8 + length + end);
      return [name, { shape, values: new TYPES[dtype](bytes) }];
    }),
  );
}
