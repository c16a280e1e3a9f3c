"""Goes on from a model with pictures of your own, and shows what it learned.

    python examples/fine_tune.py pictures/ --from stickers --minutes 10 --out runs/mine

The same command resumes a run that was stopped. Writes RUN/before-and-after.png: the first captions
of the new model, painted by both.
"""

import argparse
from pathlib import Path

import numpy as np

import tessella
from tessella.images import save_png
from tessella.sheets import make_sheet


class Watch(tessella.Callback):
    """Prints each evaluation on held-out pictures."""

    def on_evaluate(self, event: tessella.TrainingEvent) -> None:
        """Says how far training is, and how good."""
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in event.metrics.items())
        print(f"{event.stage} {event.images_seen:,}/{event.images:,}  {metrics}")


def main() -> None:
    """Trains, then paints."""
    parser = argparse.ArgumentParser(description="Goes on from a model with your own pictures.")
    parser.add_argument("data", help="captioned pictures: a folder, a table, hf:USER/DATASET")
    parser.add_argument(
        "--from", dest="start_from", default="scenes", help="the model to begin with"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/fine-tuned"), help="the run's folder"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="finish within this time")
    length.add_argument("--images", type=int, help="train each part on this many images instead")
    options = parser.parse_args()
    lengths = {} if options.images is None else {"images": options.images}
    model = tessella.fit(
        options.data,
        options.out,
        start_from=options.start_from,
        minutes=options.minutes,
        settings={"tokenizer_training": lengths, "transformer_training": lengths},
        callbacks=[Watch()],
    )
    prompts = list(model.captions.examples[:4]) if model.captions else ["a picture"]
    rows = [one.generate(prompts) for one in (tessella.load(options.start_from), model)]
    size = (model.config.image_size,) * 2
    pictures = [np.asarray(picture.resize(size)) for row in rows for picture in row]
    path = options.out / "before-and-after.png"
    save_png(path, make_sheet(np.stack(pictures), len(prompts), prompts * 2, scale=2))
    print(f"Above before, below after: {path}")


if __name__ == "__main__":
    main()
