// Shows Markdown as elements: headings, lists, tables, code, paragraphs. Never as HTML text, so a
// model card can hold anything. Links and pictures become words: a card can send nobody anywhere.

import { html } from "./vendor/lit-html.js";

const INLINE = /(`[^`]+`|\*\*[^*]+\*\*|!?\[[^\]]*\]\([^)\s]*\))/;

function toInline(text) {
  return text.split(INLINE).map((part) => {
    if (/^`[^`]+`$/.test(part)) return html`<code>${part.slice(1, -1)}</code>`;
    if (/^\*\*[^*]+\*\*$/.test(part)) return html`<strong>${part.slice(2, -2)}</strong>`;
    const link = /^!?\[([^\]]*)\]\(([^)\s]*)\)$/.exec(part);
    if (!link) return part;
    const [whole, words, target] = link;
    return whole.startsWith("!") || !/^https?:/.test(target) ? words : `${words} (${target})`;
  });
}

function toCells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

function toTable(lines) {
  const [head, , ...rows] = lines.map(toCells);
  const cells = (row) => row.map((cell) => html`<td>${toInline(cell)}</td>`);
  return html`<div class="scroll"><table>
    <thead><tr>${head.map((cell) => html`<th scope="col">${toInline(cell)}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr>${cells(row)}</tr>`)}</tbody>
  </table></div>`;
}

function toHeading(line) {
  const [, marks, words] = /^(#+)\s+(.*)$/.exec(line);
  if (marks.length === 1) return html`<h2>${toInline(words)}</h2>`;
  return html`<h3>${toInline(words)}</h3>`;
}

/** Whether a line begins something else than more of a paragraph. */
const BEGINS = [/^#+\s/, /^```/, /^\s*[-*]\s/, /^\|/];

/** Takes lines off the front while they fit. */
function take(lines, fits) {
  const end = lines.findIndex((line) => !fits(line));
  return lines.splice(0, end < 0 ? lines.length : end);
}

function toBlock(lines) {
  const [line] = lines;
  if (BEGINS[0].test(line)) return toHeading(lines.shift());
  if (BEGINS[1].test(line)) {
    lines.shift();
    const code = take(lines, (other) => !other.startsWith("```"));
    lines.shift();
    return html`<pre><code>${code.join("\n")}</code></pre>`;
  }
  if (BEGINS[2].test(line)) {
    const items = take(lines, (other) => BEGINS[2].test(other));
    const words = items.map((item) => toInline(item.replace(BEGINS[2], "")));
    return html`<ul>${words.map((item) => html`<li>${item}</li>`)}</ul>`;
  }
  if (BEGINS[3].test(line)) return toTable(take(lines, (other) => BEGINS[3].test(other)));
  const first = lines.shift();
  const rest = take(lines, (other) => other.trim() && !BEGINS.some((begin) => begin.test(other)));
  return html`<p>${toInline([first, ...rest].join(" "))}</p>`;
}

/** Turns Markdown into templates, block after block. */
export function toTemplates(markdown) {
  const lines = markdown.split(/\r?\n/);
  const blocks = [];
  while (lines.length) {
    if (lines[0].trim()) blocks.push(toBlock(lines));
    else lines.shift();
  }
  return blocks;
}
