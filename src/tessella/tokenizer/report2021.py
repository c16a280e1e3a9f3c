"""The founding report's network (December 2021): a 7×7 stem, six blocks of four 3×3 convolutions.

Every convolution of a block is followed by batch normalization and ReLU (the last by batch
normalization alone, then the skip, then ReLU: "in between"). Blocks 1, 3 and 5 halve height and
width with their first convolution; 128×128 pixels give `nhid` × 16×16. The report gives the
width at the end only: it halves with every doubling of resolution. The decoder is the mirror image,
with transposed convolutions; "more upsampling layers", which the report names as future work, are
further pairs of blocks.
"""

import torch
from torch import Tensor, nn

from tessella.batch import average_in_graph, count_processes
from tessella.tokenizer.body import Network

NUM_BLOCKS = 6
CONVOLUTIONS_PER_BLOCK = 4
DOWNSAMPLING = 8


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalization by the whole batch, where several processes share it.

    `nn.SyncBatchNorm` does the same on GPUs alone.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalizes (B, C, H, W); in training it also follows the batch's mean and variance."""
        if not self.training or count_processes() == 1:
            normalized: Tensor = super().forward(hidden)
            return normalized
        values = hidden.float()
        mean = average_in_graph(values.mean((0, 2, 3)))
        centered = values - mean[:, None, None]
        variance = average_in_graph(centered.square().mean((0, 2, 3)))
        with torch.no_grad():
            count = hidden.numel() // hidden.shape[1] * count_processes()
            momentum = self.momentum or 0.0
            if self.running_mean is not None and self.running_var is not None:
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * count / (count - 1), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(hidden.dtype)


class ReportBlock(nn.Module):
    """Four 3×3 convolutions with batch normalization and ReLU in between, around a skip."""

    def __init__(self, width_in: int, width_out: int, stride: int, transposed: bool) -> None:
        """Creates a block; a stride of 2 halves the resolution, or doubles it if transposed."""
        super().__init__()
        # Encoding resizes in the first convolution, decoding, its mirror image, in the last.
        resizing = CONVOLUTIONS_PER_BLOCK - 1 if transposed else 0
        layers: list[nn.Module] = []
        width = width_in
        for index in range(CONVOLUTIONS_PER_BLOCK):
            next_width = width_out if index >= resizing else width_in
            convolution_stride = stride if index == resizing else 1
            layers += [
                _convolution(width, next_width, 3, convolution_stride, transposed),
                SharedBatchNorm(next_width),
                nn.ReLU(),
            ]
            width = next_width
        self.layers = nn.Sequential(*layers[:-1])
        changes = stride != 1 or width_in != width_out
        self.skip = (
            _convolution(width_in, width_out, 1, stride, transposed) if changes else nn.Identity()
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Adds the four convolutions' result to the input, resized if need be."""
        combined: Tensor = self.layers(hidden) + self.skip(hidden)
        return combined.relu()


class ReportEncoder(Network):
    """image (B, 3, H, W) → latent (B, nhid, H / 8, W / 8)."""

    def __init__(self, nhid: int) -> None:
        """Creates the stem and six blocks; `nhid` is a multiple of 8."""
        first = nn.Conv2d(3, nhid // DOWNSAMPLING, 7, padding=3)
        blocks: list[nn.Module] = []
        width = nhid // DOWNSAMPLING
        for _ in range(NUM_BLOCKS // 2):
            blocks.append(ReportBlock(width, 2 * width, stride=2, transposed=False))
            blocks.append(ReportBlock(2 * width, 2 * width, stride=1, transposed=False))
            width *= 2
        super().__init__(first, blocks, nn.Identity())


class ReportDecoder(Network):
    """quantized (B, nhid, h, w) → image (B, 3, 8h, 8w), times 2 for each further upsampling."""

    def __init__(self, nhid: int, upsampling: int = 0) -> None:
        """Creates the mirror image of the encoder; `nhid` is a multiple of 8 · 2 ** upsampling."""
        blocks: list[nn.Module] = []
        width = nhid
        for _ in range(NUM_BLOCKS // 2 + upsampling):
            blocks.append(ReportBlock(width, width, stride=1, transposed=True))
            blocks.append(ReportBlock(width, width // 2, stride=2, transposed=True))
            width //= 2
        super().__init__(nn.Identity(), blocks, nn.ConvTranspose2d(width, 3, 7, padding=3))


def _convolution(
    width_in: int, width_out: int, size: int, stride: int, transposed: bool
) -> nn.Module:
    padding = size // 2
    if transposed:
        return nn.ConvTranspose2d(
            width_in, width_out, size, stride, padding, output_padding=stride - 1
        )
    return nn.Conv2d(width_in, width_out, size, stride, padding)
