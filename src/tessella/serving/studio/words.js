// What the server says, in the words that stand on the page: the API names fields as programs do.

/** What the page calls a field of the API. */
const FIELDS = {
  n: "Pictures",
  count: "Posts",
  best_of: "Best of",
  guidance_scale: "Guidance",
  negative_prompt: "Negative prompt",
  partial_images: "Pictures in between",
  image: "The picture",
  mask: "The marked tiles",
  references: "References",
  strength: "Part to repaint",
  about: "About it",
};

/** Limits as the server words them; `$1` is what holds. */
const LIMITS = [
  [/^Input should be less than or equal to (\S+)$/, "At most $1"],
  [/^Input should be greater than or equal to (\S+)$/, "At least $1"],
  [/^Input should be a valid integer.*$/, "It takes a whole number"],
  [/^Input should be a valid number.*$/, "It takes a number"],
  [/^Input should be a finite number$/, "It takes a number"],
  [/^String should have at most (\d+) characters?$/, "At most $1 characters"],
  [/^Input should be (.*)$/, "It should be $1"],
];

/** What a message names first, where that is a field rather than a person's own word. */
const ABOUT_FIELDS = /^(?:No effect|A part is missing|A parameter is missing|Unknown parameter): /;
const SETTING = /^[a-z]+\.[a-z_]+$/;
const SNAKE = /\b[a-z]+(?:_[a-z]+)+\b/g;

/** A field's or a setting's name as the page says it. */
function toName(word) {
  if (Object.hasOwn(FIELDS, word)) return FIELDS[word];
  return word.replace(/^[a-z]+\./, "").replaceAll("_", " ");
}

function toSentence(words) {
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** Turns a message of the API into one for a person: no backticks, no names of fields. */
export function inWords(message) {
  const wrong = /^`(\w+)(?:\[\])?` is wrong: `(.*)`\. (.*)\.$/s.exec(message);
  if (wrong) {
    const [, name, value, expected] = wrong;
    const [like, words] = LIMITS.find(([pattern]) => pattern.test(expected)) ?? [];
    const got = value.replace(/^'(.*)'$/s, "$1");
    const limit = inWords(like ? expected.replace(like, words) : expected);
    return `${toSentence(toName(name))}: “${got}” does not fit. ${limit}.`;
  }
  const [, field, rest] = /^`(\w+)(?:\[\d*\])?`: (.*)$/s.exec(message) ?? [];
  if (field) return `${toSentence(toName(field))}: ${inWords(rest)}`;
  const isAboutFields = ABOUT_FIELDS.test(message);
  // Between backticks stands every second part.
  const said = message.split("`").map((part, place) => {
    if (place % 2 === 0) return part.replace(SNAKE, toName);
    return isAboutFields || SETTING.test(part) ? toName(part) : `“${part}”`;
  });
  return toSentence(said.join(""));
}
