"""Whether ONNX graphs paint what PyTorch paints, and how fast.

Why: `tessella export --onnx` promises the same codes for the same seed, wherever onnxruntime runs.
Both round differently, and of two codes that are nearly as likely rounding could choose another.

Theory: two codes are told apart by the sum of a logit over the temperature and of Gumbel noise.
PyTorch and onnxruntime add up in another order: logits differ by about 1e-6 of their size, with
guidance at a low temperature some ten times as much. Of the 65,536 codes of 256 pictures with four
codes a position, one may be as close a choice as that, and then the codes after it differ too. So
PyTorch is also compared with itself, alone and sixteen pictures together, which round differently
for the same reason. The arithmetic is the same; a difference in time is that of the kernels, and
of what is done between them.

Output contract: the last line of stdout is the record, one JSON object. For each model `pictures`,
`same_codes` (of how many every code is equal, painted sixteen together), `same_codes_of_pytorch`
(PyTorch's own, painted together and one by one), `largest_pixel_difference` (of 255, where the
codes are equal), `seconds_onnx` and `seconds_pytorch` of one picture, timed in turn on as many
threads, `pytorch_over_onnx`, the ratio of the two, and `bytes` of the graphs.

    python benchmarks/onnx_painting.py
"""

import argparse
import functools
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from harness import (
    RESULTS,
    environment,
    find_missing_package,
    measure_ratio,
    print_record,
    print_skipped,
    write_result,
)
from tessella.data.scenes import canonical_caption
from tessella.evaluation.scenes import sample_prompts
from tessella.model.find import find_model
from tessella.model.onnx_export import export_onnx
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
BATCH = 16


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["scenes", "stickers"])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="of both")
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    missing = find_missing_package("onnx", "onnxruntime", extra="onnx")
    if missing:
        return print_skipped("onnx-painting", missing, is_quick=options.quick)
    if options.quick:
        options.prompts, options.seeds, options.repeats = 4, 1, 2
    torch.set_num_threads(options.threads)
    results = {name: measure_model(name, options) for name in options.models}
    config = {name: getattr(options, name) for name in ("prompts", "seeds", "repeats", "threads")}
    where = environment("cpu")
    folder = None if options.quick else RESULTS
    print_record(write_result("onnx-painting", results, config=config, where=where, folder=folder))


def measure_model(name: str, options: argparse.Namespace) -> dict[str, object]:
    """Compares the codes and the seconds of one model."""
    sys.path.insert(0, str(EXAMPLES))
    from paint_by_onnx import OnnxPainter, Painted

    source = find_model(name)
    model = TextToImage.load(source, "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        export_onnx(source, folder)
        num_bytes = sum(path.stat().st_size for path in folder.glob("*.onnx"))
        painter = OnnxPainter(folder, options.threads)

    def paint(requests: list[ImageRequest]) -> Painted:
        examples = [[(e.codes, e.caption) for e in one.examples or ()] for one in requests]
        return painter.paint(
            [one.prompt for one in requests], [one.seed for one in requests], examples
        )

    prompts = list_prompts(model, options.prompts)
    asked = [ImageRequest(prompt, seed) for prompt in prompts for seed in range(options.seeds)]
    requests = model.examples.complete(asked, model.config.generation.neighbors)
    same, same_alone, difference = 0, 0, 0
    for start in range(0, len(requests), BATCH):
        part = requests[start : start + BATCH]
        ours, theirs = paint(part), model.generate_images(part)
        assert theirs.codes is not None
        alone = [model.generate_images([one]).codes for one in part]
        same_alone += sum(
            one is not None and torch.equal(one[0], codes)
            for one, codes in zip(alone, theirs.codes, strict=True)
        )
        equal = (ours.codes == theirs.codes.numpy()).all((1, 2, 3))
        same += int(equal.sum())
        gap = np.abs(ours.pixels[equal].astype(int) - theirs.pixels[equal].astype(int))
        difference = max(difference, int(gap.max(initial=0)))
    one = requests[:1]
    seconds = measure_ratio(
        functools.partial(paint, one),
        functools.partial(model.generate_images, one),
        repeats=options.repeats,
    )
    print(f"{name}: {same} of {len(requests)} pictures have the same codes")
    return {
        "pictures": len(requests),
        "same_codes": same,
        "same_codes_of_pytorch": same_alone,
        "largest_pixel_difference": difference,
        "seconds_onnx": seconds.ours,
        "seconds_pytorch": seconds.theirs,
        "pytorch_over_onnx": seconds.ratio,
        "bytes": num_bytes,
    }


def list_prompts(model: TextToImage, count: int) -> list[str]:
    """Lists captions of scenes, or of the model's own examples."""
    if model.memory is None:
        return [canonical_caption(scene) for scene in sample_prompts(count, seed=1)]
    rows = np.linspace(0, len(model.memory) - 1, count).astype(int).tolist()
    return [model.memory.rows[row].captions[0] for row in rows]


if __name__ == "__main__":
    main()
