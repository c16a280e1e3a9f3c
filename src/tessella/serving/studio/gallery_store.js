// Remembers pictures in this browser: prompt, seed, settings and pixels. Nothing leaves it.

const NAME = "tessella";
const STORE = "pictures";

/** How many pictures are kept; the oldest goes first. */
export const MOST_PICTURES = 200;

function toPromise(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function openStore(mode) {
  const opening = indexedDB.open(NAME, 1);
  opening.onupgradeneeded = () =>
    opening.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
  const database = await toPromise(opening);
  const transaction = database.transaction(STORE, mode);
  transaction.oncomplete = transaction.onabort = () => database.close();
  return transaction.objectStore(STORE);
}

/** Waits until what was written stays, even if the page is left. */
function finish({ transaction }) {
  return new Promise((resolve, reject) => {
    transaction.addEventListener("complete", resolve);
    transaction.addEventListener("abort", () => reject(transaction.error));
  });
}

/** Lists all pictures, the newest first. */
export async function listPictures() {
  const store = await openStore("readonly");
  return (await toPromise(store.getAll())).reverse();
}

/** Keeps a picture; returns its id. */
export async function keepPicture(picture) {
  const store = await openStore("readwrite");
  const id = await toPromise(store.add(picture));
  const keys = await toPromise(store.getAllKeys());
  for (const old of keys.slice(0, Math.max(0, keys.length - MOST_PICTURES))) store.delete(old);
  await finish(store);
  return id;
}

/** Forgets one picture. */
export async function forgetPicture(id) {
  const store = await openStore("readwrite");
  store.delete(id);
  await finish(store);
}

/** Forgets all pictures. */
export async function forgetAll() {
  const store = await openStore("readwrite");
  store.clear();
  await finish(store);
}
