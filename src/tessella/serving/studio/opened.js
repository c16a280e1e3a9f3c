// Pictures of a person's own: read by the server as the model reads them, whatever file they are.

import { postJson, toBlob, toForm } from "./api.js";

/**
 * Reads a picture's file.
 *
 * @param {Blob} file of any kind that the server reads.
 * @param app what views share.
 * @param {{prompt?: string, signal?: AbortSignal}} options the words of a picture that has some.
 * @returns {Promise} the server's answer, with `original` and `reconstruction` as Blobs and
 *     `picture`, the original as a picture's record.
 */
export async function readPicture(file, app, { prompt = "", signal } = {}) {
  const form = toForm({ image: file, model: app.model.id });
  const answer = await postJson("/v1/images/reconstructions", form, signal);
  const [original, reconstruction] = [toBlob(answer.original), toBlob(answer.reconstruction)];
  const picture = { how: "opened", model: "", prompt, name: file.name, seed: 0, blob: original };
  return { ...answer, original, reconstruction, picture };
}

/** Handlers that let an element take a dropped picture; `open(files)` is called with it. */
export function takeDrops(open) {
  return (event) => {
    event.preventDefault();
    event.currentTarget.classList.toggle("is-over", event.type === "dragover");
    if (event.type === "drop") open(event.dataTransfer.files);
  };
}
