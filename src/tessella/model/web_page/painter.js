// Paints with a folder of `tessella export --onnx` by onnxruntime-web, as examples/paint_by_onnx.py
// does in Python: the same seed, the same codes.

/** Draws what `torch.Generator().manual_seed(seed)` draws on a CPU: the Mersenne twister. */
export class TorchGenerator {
  #state = new Uint32Array(624);
  #at = 624;

  /** @param {bigint | number} seed of which the last 32 bits count */
  constructor(seed) {
    const state = this.#state;
    state[0] = Number(BigInt.asUintN(32, BigInt(seed)));
    for (let i = 1; i < 624; i++) {
      const before = state[i - 1] ^ (state[i - 1] >>> 30);
      state[i] = Math.imul(before, 1812433253) + i;
    }
  }

  /** Draws 32 bits. */
  next() {
    if (this.#at === 624) this.#twist();
    let bits = this.#state[this.#at++];
    bits ^= bits >>> 11;
    bits ^= (bits << 7) & 0x9d2c5680;
    bits ^= (bits << 15) & 0xefc60000;
    return (bits ^ (bits >>> 18)) >>> 0;
  }

  /** Draws `torch.rand(count)`: the last 24 bits of each number. */
  rand(count) {
    return Float32Array.from({ length: count }, () => (this.next() & 0xffffff) / 2 ** 24);
  }

  /** Draws `torch.randperm(count)`: swaps each number with one behind it, or itself. */
  randperm(count) {
    const order = Array.from({ length: count }, (_, i) => i);
    for (let i = 0; i < count - 1; i++) {
      const other = i + (this.next() % (count - i));
      [order[i], order[other]] = [order[other], order[i]];
    }
    return order;
  }

  #twist() {
    const state = this.#state;
    for (let i = 0; i < 624; i++) {
      const bits = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (bits >>> 1) ^ (bits & 1 ? 0x9908b0df : 0);
    }
    this.#at = 0;
  }
}

/** Turns texts into tokens by the byte-level BPE of a `text_tokenizer.json`. */
export class TextTokenizer {
  #vocabulary;
  #ranks;
  #template;
  #lowercase;
  #letterOf = listByteLetters();

  constructor(file) {
    this.#vocabulary = new Map(Object.entries(file.model.vocab));
    this.#ranks = new Map(file.model.merges.map((pair, rank) => [pair.join(" "), rank]));
    this.#lowercase = file.normalizer.normalizers.some((one) => one.type === "Lowercase");
    this.#template = file.post_processor.special_tokens;
  }

  /** @returns {number[]} begin, the text's tokens, end */
  encode(text) {
    let normal = text.toWellFormed().normalize("NFKC");
    if (this.#lowercase) normal = normal.toLowerCase();
    normal = normal.replace(/\s+/gu, " ").trim();
    const pieces = normal && !normal.startsWith(" ") ? ` ${normal}` : normal;
    const pattern = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;
    const words = pieces.match(pattern) ?? [];
    const [begin, end] = ["<begin>", "<end>"].map((name) => this.#template[name].ids[0]);
    return [begin, ...words.flatMap((word) => this.#merge(word)), end];
  }

  #merge(word) {
    const parts = [...new TextEncoder().encode(word)].map((byte) => this.#letterOf[byte]);
    for (;;) {
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.#ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) return parts.map((part) => this.#vocabulary.get(part));
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }
}

/** Lists the letter that stands for each byte: GPT-2's alphabet. */
function listByteLetters() {
  const isPlain = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let spare = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(isPlain(b) ? b : spare++));
}

export class Painter {
  /**
   * @param ort onnxruntime-web
   * @param sizes what `onnx.json` says
   * @param tokenizer a TextTokenizer
   * @param sessions of the text encoder, the decoding step and the image decoder
   */
  constructor(ort, sizes, tokenizer, [encoder, step, decoder]) {
    Object.assign(this, { ort, sizes, tokenizer, encoder, step, decoder });
  }

  /** Paints one picture. @param examples [{codes: (M, h, w) flat, caption}] */
  async paint(prompt, seed, examples = []) {
    const { ort, sizes } = this;
    const { codes_per_position: M, codebook_size: K, grid: [h, w] } = sizes;
    const N = h * w;
    const draws = new TorchGenerator(seed);
    const order = sizes.order ?? draws.randperm(N);
    const context = await this.encoder.run(this.#encode(prompt, examples));
    const inputs = {};
    for (const name of this.step.inputNames) if (name in context) inputs[name] = context[name];
    const codes = new Array(M * N).fill(0);
    let start = 0;
    for (const [number, size] of sizes.step_sizes.entries()) {
      const positions = order.slice(start, start + size);
      inputs.positions = this.#int64(positions, [1, size]);
      if (sizes.takes_noise) {
        inputs.noise = new ort.Tensor("float32", draws.rand(M * size * K), [1, M, size, K]);
      }
      if (sizes.guidance_scales) {
        inputs.guidance_scale = new ort.Tensor("float32", [sizes.guidance_scales[number]], []);
      }
      const outputs = await this.step.run(inputs);
      outputs.sampled_codes.data.forEach((code, i) => {
        codes[(i % M) * N + positions[Math.floor(i / M)]] = Number(code);
      });
      for (const [name, value] of Object.entries(outputs)) {
        if (name.startsWith("new_")) inputs[name.slice(4)] = value;
      }
      start += size;
    }
    return { codes, ...(await this.decode(codes)) };
  }

  /** Decodes codes (M, h, w) into pixels (size, size, 3). */
  async decode(codes) {
    const { codes_per_position: M, grid } = this.sizes;
    const { pixels } = await this.decoder.run({ codes: this.#int64(codes, [1, M, ...grid]) });
    return { pixels: pixels.data, size: pixels.dims[1] };
  }

  #int64(values, dims) {
    return new this.ort.Tensor("int64", BigInt64Array.from(values, (v) => BigInt(v)), dims);
  }

  #encode(prompt, examples) {
    const { sizes } = this;
    const { num_examples: k, codes_per_position: M, grid: [h, w], max_text_tokens: T } = sizes;
    const prompts = sizes.guidance_scales ? [prompt, ""] : [prompt];
    const pad = (rows) => {
      const length = Math.max(...rows.map((row) => row.length));
      return [rows.flatMap((r) => [...r, ...Array(length - r.length).fill(sizes.pad_id)]), length];
    };
    const [tokens, length] = pad(prompts.map((text) => this.tokenizer.encode(text)));
    if (length > T) throw new RangeError(`The prompt has ${length} tokens, at most ${T}.`);
    const inputs = { text: this.#int64(tokens, [prompts.length, length]) };
    if (k) {
      const N = h * w, R = prompts.length;
      const codes = new Array(R * k * N * M).fill(-1);
      const captions = Array(R * k).fill("");
      examples.slice(0, k).forEach((one, place) => {
        captions[place] = one.caption;
        for (let n = 0; n < N; n++)
          for (let m = 0; m < M; m++) codes[(place * N + n) * M + m] = one.codes[m * N + n];
      });
      const rows = captions.map((text) => this.tokenizer.encode(text))
        .map((row) => (row.length <= T ? row : [...row.slice(0, T - 1), row.at(-1)]));
      const [text, longest] = pad(rows);
      inputs.example_codes = this.#int64(codes, [R, k, N, M]);
      inputs.example_text = this.#int64(text, [R, k, longest]);
    }
    return inputs;
  }
}
