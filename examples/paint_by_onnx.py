"""Paints from a folder that `tessella export MODEL --onnx --out FOLDER` wrote.

    python examples/paint_by_onnx.py FOLDER "a large red star on a navy background" --seed 3

It needs numpy, onnxruntime, tokenizers and Pillow, and neither torch nor tessella: take it as the
pattern for another program or language. The same seed gives the same codes as in tessella, since
it draws the same numbers: PyTorch's generator on a CPU is the Mersenne twister (MT19937), as in
NumPy, C++ and many others. Only to find the examples of a prompt, in a model that looks things up,
it asks tessella; without it the model paints from its weights alone.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime import OrtValue
from PIL import Image
from tokenizers import Tokenizer

Codes = npt.NDArray[np.int64]
Example = tuple[npt.NDArray[np.unsignedinteger], str]
"""Codes (M, h, w) and caption of a picture that the model looks at."""

_FORMAT = 1


class TorchGenerator:
    """Draws what `torch.Generator().manual_seed(seed)` draws on a CPU."""

    def __init__(self, seed: int) -> None:
        # Of a seed both take the last 32 bits.
        state: Any = np.random.RandomState(seed & 0xFFFFFFFF).get_state(legacy=False)
        self._bits = np.random.MT19937()
        self._bits.state = state

    def rand(self, count: int) -> npt.NDArray[np.float32]:
        """Draws `torch.rand(count)`: the last 24 bits of each number."""
        bits = self._bits.random_raw(count) & 0xFFFFFF
        return bits.astype(np.float32) / np.float32(2**24)

    def randperm(self, count: int) -> Codes:
        """Draws `torch.randperm(count)`: swaps each number with one behind it, or itself."""
        order = np.arange(count)
        for place, bits in enumerate(self._bits.random_raw(max(0, count - 1)).tolist()):
            other = place + bits % (count - place)
            order[[place, other]] = order[[other, place]]
        return order


@dataclass(frozen=True)
class Painted:
    """Pictures, and the codes that they were decoded from."""

    pixels: npt.NDArray[np.uint8]  # (B, H, W, 3)
    codes: Codes  # (B, M, h, w)


class OnnxPainter:
    """Runs the graphs of a folder.

    Args:
        folder: with the graphs and their `onnx.json`.
        threads: of onnxruntime; 0 is one a core.
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self.sizes = json.loads((folder / "onnx.json").read_text(encoding="utf-8"))
        if self.sizes["format"] != _FORMAT:
            raise ValueError(f"The graphs have another format: `{self.sizes['format']}`.")
        self._tokenizer = Tokenizer.from_file(str(folder / "text_tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # `<end>` in a prompt is text like any other
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._text_encoder, self._step, self._image_decoder = (
            onnxruntime.InferenceSession(folder / f"{name}.onnx", options)
            for name in ("text_encoder", "decoding_step", "image_decoder")
        )

    def paint(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        examples: Sequence[Sequence[Example]] | None = None,
    ) -> Painted:
        """Paints a picture (B) for each prompt with its seed, beside its examples."""
        sizes, looked_at = self.sizes, examples or [()] * len(prompts)
        (height, width), num_codes = sizes["grid"], sizes["codes_per_position"]
        num_positions = height * width
        draws = [TorchGenerator(seed) for seed in seeds]
        orders = np.array(
            [sizes["order"] or one.randperm(num_positions) for one in draws], np.int64
        )
        context = self._encode(prompts, looked_at)
        outputs = [output.name for output in self._step.get_outputs()]
        wanted = {one.name for one in self._step.get_inputs()}
        inputs = {name: value for name, value in context.items() if name in wanted}
        codes, start = np.zeros((len(prompts), num_positions, num_codes), np.int64), 0
        for number, size in enumerate(sizes["step_sizes"]):
            positions = np.ascontiguousarray(orders[:, start : start + size])
            inputs["positions"] = OrtValue.ortvalue_from_numpy(positions)
            if sizes["takes_noise"]:
                shape = (num_codes, size, sizes["codebook_size"])
                noise = np.stack([one.rand(np.prod(shape)).reshape(shape) for one in draws])
                inputs["noise"] = OrtValue.ortvalue_from_numpy(noise)
            if sizes["guidance_scales"] is not None:
                scale = np.array(sizes["guidance_scales"][number], np.float32)
                inputs["guidance_scale"] = OrtValue.ortvalue_from_numpy(scale)
            sampled, *cache = self._step.run_with_ort_values(outputs, inputs)
            np.put_along_axis(codes, positions[..., None], sampled.numpy(), axis=1)
            inputs |= dict(zip([n.removeprefix("new_") for n in outputs[1:]], cache, strict=True))
            start += size
        grids = np.ascontiguousarray(codes.swapaxes(1, 2)).reshape(-1, num_codes, height, width)
        return Painted(self._image_decoder.run(None, {"codes": grids})[0], grids)

    def tokenize(self, texts: Sequence[str], *, cut: bool = False) -> Codes:
        """Turns texts into tokens (B, T), padded to the longest.

        Args:
            texts: prompts or captions.
            cut: long ones lose their last words, as captions do; a prompt is refused.
        """
        longest, rows = self.sizes["max_text_tokens"], []
        for text in texts:
            row = self._tokenizer.encode(text).ids
            if len(row) > longest and not cut:
                raise ValueError(f"The prompt has {len(row)} tokens, at most {longest}: `{text}`.")
            rows.append(row if len(row) <= longest else row[: longest - 1] + row[-1:])
        length, pad = max(map(len, rows)), self.sizes["pad_id"]
        return np.array([row + [pad] * (length - len(row)) for row in rows], np.int64)

    def _encode(
        self, prompts: Sequence[str], looked_at: Sequence[Sequence[Example]]
    ) -> dict[str, OrtValue]:
        """Encodes prompts and examples; with guidance also as many empty ones behind them."""
        sizes = self.sizes
        if sizes["guidance_scales"] is not None:
            prompts = [*prompts, *[""] * len(prompts)]
        inputs = {"text": self.tokenize(prompts)}
        if (count := sizes["num_examples"]) > 0:
            num_positions = sizes["grid"][0] * sizes["grid"][1]
            shape = (len(prompts), count, num_positions, sizes["codes_per_position"])
            inputs["example_codes"] = np.full(shape, -1, np.int64)
            captions = [""] * len(prompts) * count
            for row, examples in enumerate(looked_at):
                for place, (codes, caption) in enumerate(examples[:count]):
                    flat = codes.reshape(len(codes), -1).T
                    inputs["example_codes"][row, place] = flat
                    captions[row * count + place] = caption
            text = self.tokenize(captions, cut=True)
            inputs["example_text"] = text.reshape(len(prompts), count, -1)
        names = [output.name for output in self._text_encoder.get_outputs()]
        values = {name: OrtValue.ortvalue_from_numpy(one) for name, one in inputs.items()}
        encoded = self._text_encoder.run_with_ort_values(names, values)
        return dict(zip(names, encoded, strict=True))


def find_examples(folder: Path, prompt: str, count: int) -> list[Example]:
    """Looks up the examples of a prompt, if the folder has some and tessella is installed."""
    try:
        from tessella.retrieval import ExampleMemory
    except ImportError:
        return []
    memory = ExampleMemory.open(folder)
    return (
        [] if memory is None else [(one.codes, one.caption) for one in memory.find(prompt, count)]
    )


def main() -> None:
    """Paints one picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("picture.png"))
    options = parser.parse_args()
    painter = OnnxPainter(options.folder)
    examples = find_examples(options.folder, options.prompt, painter.sizes["num_examples"])
    painted = painter.paint([options.prompt], [options.seed], [examples])
    Image.fromarray(painted.pixels[0]).save(options.out)
    print(f"Painted {options.out}.")


if __name__ == "__main__":
    main()
