// The numbers of a model in words: what was counted, as a share where it is one, and what luck gives.

const PERCENT = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });
const NUMBER = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

const toShare = (value) => PERCENT.format(value).replace("%", "\u00a0%");
const toNumber = (value) => NUMBER.format(value);
const toDecibels = (value) => `${value.toFixed(1)}\u00a0dB`;

/** What a name means, and how its value is written; a part in brackets of the name is `$1`. */
const METRICS = [
  [/^reconstruction_psnr$/, "Pixels kept through its codes", toDecibels],
  [/^reconstruction_ssim$/, "Structure kept through its codes (1: all)", toNumber],
  [/^reconstruction_perceptual_distance$/, "What eyes see lost through its codes", toNumber],
  [/^reconstruction_all_correct$/, "Scenes that stay right through its codes", toShare],
  [/^codes_used$/, "Codes in use", toNumber],
  [/^code_perplexity$/, "Codes in use, rare ones counted less", toNumber],
  [/^all_correct_seen_pairs$/, "Paints all of a prompt right", toShare],
  [/^all_correct_held_out_pairs$/, "The same where two words never met in training", toShare],
  [/^right_(.+)_seen_pairs$/, "Paints this of a prompt right: $1", toShare],
  [/^right_(.+)_held_out_pairs$/, "The same where two words never met in training: $1", toShare],
  [/^retrieval_by_features$/, "Matches its prompt, seen by a network", toShare],
  [/^retrieval_by_clip$/, "Matches its prompt, seen by CLIP", toShare],
  [/^retrieval_by_pmi$/, "Matches its prompt, by the model itself", toShare],
  [/^painted_fid_(.+)$/, "Distance from real pictures (FID, $1)", toNumber],
  [/^painted_kid_(.+)$/, "Distance from real pictures (KID, $1)", toNumber],
  [/^painted_precision_(.+)$/, "Painted pictures that look real ($1)", toShare],
  [/^painted_recall_(.+)$/, "Real pictures that it could have painted ($1)", toShare],
  [/^copy_rate$/, "Near copies of training pictures", toShare],
  [/^images_in_memory$/, "Measured pictures among its examples", toNumber],
  [/^neighbor_distance$/, "Distance from the nearest example", toNumber],
  [/^neighbor_distance_real$/, "The same for real pictures", toNumber],
  [/^neighbor_copy_rate$/, "Copies of an example", toShare],
  [/^neighbor_copy_rate_real$/, "The same for real pictures", toShare],
  [/^neighbor_copy_excess$/, "More copies than among real pictures", toShare],
  [/^neighbor_same_codes_rate$/, "Nearly all codes of an example", toShare],
  [/^neighbor_same_codes_rate_real$/, "The same for real pictures", toShare],
  [/^loss_train$/, "Loss on pictures of its training", toNumber],
  [/^loss_held_out$/, "Loss on pictures it has not seen", toNumber],
  [/^loss_gap$/, "The gap between the two", toNumber],
];

const PLAIN = "without_examples_";

function findMetric(name) {
  const own = name.startsWith(PLAIN) ? name.slice(PLAIN.length) : name;
  const [pattern, words, write] = METRICS.find(([like]) => like.test(own)) ?? [];
  if (!pattern) return { words: own.replaceAll("_", " "), write: toNumber, own };
  return { words: own.replace(pattern, words), write, own };
}

/** A metric's name in words, as a row's heading. */
export function nameMetric(name) {
  const { words, own } = findMetric(name);
  const all = words.charAt(0).toUpperCase() + words.slice(1);
  return own === name ? all : `${all}, without examples`;
}

/** How something was measured; names of other metrics in it become words too. */
export function describeProtocol(protocol) {
  return protocol.replace(/\b[a-z]+(?:_[a-z]+)+\b/g, (name) => `“${findMetric(name).words}”`);
}

/** A metric's value, with the whole or with what luck gives where its protocol says it. */
export function writeValue(name, { value, protocol }) {
  if (typeof value !== "number") return value;
  const written = findMetric(name).write(value);
  const [, whole] = /^of ([\d,×]+),/.exec(protocol) ?? [];
  if (name === "codes_used" && whole) return `${written} of ${whole}`;
  const [, chance] = /\bchance ([\d.e-]+)/.exec(protocol) ?? [];
  return chance ? `${written}, luck ${toShare(Number(chance))}` : written;
}
