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

/** Works on the pictures; ends once what was written stays, even if the page is left. */
async function inStore(mode, work) {
  const opening = indexedDB.open(NAME, 1);
  opening.onupgradeneeded = () =>
    opening.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
  const database = await toPromise(opening);
  const transaction = database.transaction(STORE, mode);
  const ended = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error);
  });
  try {
    const [result] = await Promise.all([work(transaction.objectStore(STORE)), ended]);
    return result;
  } finally {
    database.close();
  }
}

/** Lists all pictures, the newest first. */
export function listPictures() {
  return inStore("readonly", async (store) => (await toPromise(store.getAll())).reverse());
}

/** Keeps a picture; returns its id. */
export function keepPicture(picture) {
  return inStore("readwrite", async (store) => {
    const id = await toPromise(store.add(picture));
    const keys = await toPromise(store.getAllKeys());
    for (const old of keys.slice(0, Math.max(0, keys.length - MOST_PICTURES))) store.delete(old);
    return id;
  });
}

/** Forgets one picture. */
export function forgetPicture(id) {
  return inStore("readwrite", (store) => toPromise(store.delete(id)));
}

/** Forgets all pictures. */
export function forgetAll() {
  return inStore("readwrite", (store) => toPromise(store.clear()));
}
