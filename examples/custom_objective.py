"""An objective of your own: each row of codes at once, given the text and the rows above.

    python examples/custom_objective.py

An objective is one class with a rule to learn and the rule to generate that belongs to it. This one
takes the bundled model's transformer, which learned any order, through some steps of the new rule,
about a minute on one core, and paints with it. `src/tessella/objectives/` has those that
`tessella fit` knows.
"""

import argparse

import numpy as np
import torch
from torch import Tensor

import tessella
from tessella.data.scenes import canonical_caption, draw_scene, sample_scene
from tessella.model.sampler import Sampler
from tessella.objectives import Generated, GenerationBatch, Objective, ObjectiveLoss, OnStep
from tessella.objectives.decoding import DecodingState
from tessella.transformer import Examples, flatten_codes


class RowByRow(Objective):
    """Predicts the codes of a row from the text and the rows above it."""

    name = "row_by_row"
    has_likelihood = False

    def forward(
        self, text: Tensor, codes: Tensor, examples: Examples | None = None
    ) -> ObjectiveLoss:
        """Cross-entropy of every code (B, M, h, w), all rows of a picture in one pass."""
        flat = flatten_codes(codes)  # (B, N, M)
        num_positions, width = flat.shape[1], codes.shape[-1]
        positions = torch.arange(num_positions).expand(len(flat), -1)
        cache = self.transformer.encode_context(text, examples)
        self.transformer.append_codes(cache, flat[:, :-1], positions[:, :-1])
        num_above = torch.arange(num_positions) // width * width  # codes that a position may see
        hidden = self.transformer.predict(cache, positions, num_above)
        return ObjectiveLoss.of_logits(self.transformer.compute_logits(hidden, flat), flat)

    @torch.inference_mode()
    def generate(self, batch: GenerationBatch, on_step: OnStep | None = None) -> Generated:
        """Samples row after row, from the top."""
        height, width = self.transformer.shape.grid
        state = DecodingState(self.transformer, batch, height, on_step)
        state.encode_prompts(capacity=height * width)
        state.decode_in_order(state.open_positions().split(width, dim=1))
        return self.look_up(state.codes.mT)


def main() -> None:
    """Trains and paints."""
    parser = argparse.ArgumentParser(description="Trains an objective of your own.")
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    model = tessella.load("scenes", "cpu", "fp32")
    objective = RowByRow(model.transformer.requires_grad_(True), model.tokenizer.codebook)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-4)
    rng = np.random.default_rng(0)
    for step in range(steps):
        scenes = [sample_scene(rng) for _ in range(32)]
        codes = model.encode_images(np.stack([draw_scene(scene) for scene in scenes])).clone()
        captions = [canonical_caption(scene) for scene in scenes]
        result = objective(model.text_tokenizer.encode_training(captions).text_tokens, codes)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        if step % 20 == 0 or step + 1 == steps:
            print(f"step {step:>4}  loss {result.loss:.3f}  accuracy {result.accuracy:.3f}")
    model.objective = objective.eval()
    model.sampler = Sampler(model.text_tokenizer, objective)
    [picture] = model.generate("a large red star on a navy background", seed=1)
    picture.save("row-by-row.png")
    print("Painted row by row: row-by-row.png")


if __name__ == "__main__":
    main()
