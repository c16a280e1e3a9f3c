"""image (B, 3, H, W) → logits (B, 1, h, w): how real each patch of the image looks.

Convolutions of 4×4 only: `layers` of them halve height and width, two more widen the view. Each
logit judges one patch; a whole image is judged by the mean over its patches.

The normalisation is over groups of one image's channels, not over the batch as in Taming's code.
With batch normalisation an image's logits depend on its neighbours, a batch of reconstructions
differs from one of real images by its statistics alone, these differ between processes, and running
averages move in the tokenizer's pass too. Without it one pass takes both kinds of images at once.

Source: PatchGAN of pix2pix (arXiv:1611.07004) as used by Taming Transformers (arXiv:2012.09841).
"""

from torch import Tensor, nn

_GROUP_WIDTH = 16
_MAX_WIDENING = 8
_SLOPE = 0.2


def smallest_image_size(layers: int) -> int:
    """Returns the fewest pixels a side that leave one logit."""
    return 3 << layers


class PatchDiscriminator(nn.Module):
    """Tells patches of real images from patches of reconstructions.

    The convolutions of a logit see 70×70 pixels with 3 layers, 34×34 with 2, 16×16 with 1.
    """

    def __init__(self, width: int, layers: int) -> None:
        """Creates an untrained network.

        Args:
            width: channels after the first convolution, a multiple of 16; they double with every
                layer, up to eight times as many.
            layers: convolutions of stride 2, at least 1.
        """
        super().__init__()
        widths = [width * min(2**level, _MAX_WIDENING) for level in range(layers + 1)]
        body: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, padding=1), nn.LeakyReLU(_SLOPE)]
        for level in range(1, layers + 1):
            stride = 2 if level < layers else 1
            body += [
                # The normalisation has the bias.
                nn.Conv2d(widths[level - 1], widths[level], 4, stride, padding=1, bias=False),
                nn.GroupNorm(widths[level] // _GROUP_WIDTH, widths[level]),
                nn.LeakyReLU(_SLOPE),
            ]
        self.body = nn.Sequential(*body)
        self.last = nn.Conv2d(widths[-1], 1, 4, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Judges images (B, 3, H, W) in [-1, 1], H and W at least `smallest_image_size`.

        Returns:
            (B, 1, H / 2^layers - 2, W / 2^layers - 2) logits: high is real.
        """
        logits: Tensor = self.last(self.body(image))
        return logits
