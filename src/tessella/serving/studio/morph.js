// Turns a part of the page into another one, and touches only what differs: what stays keeps its
// scroll position, focus, selection, and what its reader has opened or chosen.

/** Makes an element's attributes and children those of another one, which is used up. */
export function morph(element, fresh) {
  let at = element.firstChild;
  for (const child of [...fresh.childNodes]) {
    const match = findMatch(at, child);
    if (!match) {
      element.insertBefore(child, at);
      continue;
    }
    while (at !== match) at = removeAndGoOn(at);
    if (!match.isEqualNode(child)) change(match, child);
    at = match.nextSibling;
  }
  while (at) at = removeAndGoOn(at);
}

/** Finds the node that becomes `child`: the next one of its id, or the one in its place. */
function findMatch(at, child) {
  const fits = (node) => node.nodeName === child.nodeName && (node.id ?? "") === (child.id ?? "");
  for (let node = at; child.id && node; node = node.nextSibling) if (fits(node)) return node;
  return at && fits(at) ? at : null;
}

function removeAndGoOn(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

function change(node, fresh) {
  if (node.nodeType !== Node.ELEMENT_NODE) {
    node.data = fresh.data;
    return;
  }
  for (const { name } of [...node.attributes]) {
    // Opened by the reader.
    if (!fresh.hasAttribute(name) && name !== "open") node.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  morph(node, fresh);
}
