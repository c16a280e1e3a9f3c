// Sets light or dark and how pixels look before the first paint, so that nothing flashes; and says
// which view is loading, so that its place is held.
"use strict";
for (const [name, key] of [["theme", "tessella.theme"], ["pixels", "tessella.pixels"]]) {
  try {
    const chosen = localStorage.getItem(key);
    if (chosen) document.documentElement.dataset[name] = chosen;
  } catch {
    // A browser that keeps nothing shows its own choice.
  }
}
document.documentElement.dataset.loading = location.hash.slice(1) || "paint";
