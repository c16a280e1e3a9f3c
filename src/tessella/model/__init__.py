"""A trained model: find its folder, load its parts, plan canvases, sample pictures."""
