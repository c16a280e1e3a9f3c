"""image and its reconstruction → a loss for the tokenizer, from a discriminator that learns beside.

`AdversarialLoss` owns the discriminator and its optimizer. The tokenizer asks it for a loss, then
the discriminator takes a step of its own; neither leaves a gradient in the other.

Source: Taming Transformers (arXiv:2012.09841), equations 5 to 7, with the hinge loss of its code,
without its factor 1/2; LeCam regularisation (arXiv:2104.03310).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tessella.config import Settings
from tessella.errors import ConfigError
from tessella.tokenizer.augment import augment
from tessella.tokenizer.discriminator import PatchDiscriminator, smallest_image_size
from tessella.tokenizer.quantizer_base import world_size

_BETAS = (0.5, 0.9)  # Taming's: a discriminator's aim moves, so it remembers little
_MAX_GRADIENT_NORM = 1.0
_ADAPTIVE_EPSILON = 1e-4
_LECAM_DECAY = 0.99
_LEAST_SHARE = 1 / 64


class AdversarialSettings(Settings):
    """The discriminator, and how much it counts in the tokenizer's loss."""

    weight: float = Field(0.0, ge=0.0)
    """Weight of the adversarial loss, beside the adaptive weight that makes it as strong as the
    reconstruction loss; 0 trains without a discriminator. Taming Transformers takes 0.8."""
    start_images: int = Field(100_000, ge=0)
    """Images seen before the discriminator begins to learn. Reconstructions should be good by
    then."""
    warmup_images: int = Field(10_000, ge=0)
    """Images that the discriminator learns from before it counts in the tokenizer's loss."""
    learning_rate: float = Field(2e-4, gt=0.0)
    """The discriminator's own learning rate, the same from first to last."""
    width: int = Field(64, ge=16, multiple_of=16)
    """Channels after the discriminator's first convolution."""
    layers: int = Field(3, ge=1)
    """Convolutions of stride 2 in the discriminator: with 3 it judges patches of 70×70 pixels, with
    2 of 34×34, with 1 of 16×16."""
    max_adaptive_weight: float = Field(10.0, gt=0.0)
    """Limit of the adaptive weight. A discriminator with less than a tenth of the reconstruction's
    gradient has little to say, and more would amplify noise. Taming's 10⁴ is never reached by
    reconstruction gradients under 1."""
    lecam_weight: float = Field(0.0, ge=0.0)
    """Weight of the LeCam regularisation, which keeps a discriminator with few images from being
    too sure; 0 is off."""
    augment: bool = False
    """Shows the discriminator all images in changed colours, moved and with a hole (DiffAugment),
    which helps when there are few."""
    error_tolerance: float = Field(0.05, ge=0.0)
    """Rise of the validation's reconstruction error over its best, as a share of it, from which on
    the adversarial loss is halved. 0.05 of a squared error is 0.2 dB."""


@dataclass(frozen=True)
class GeneratorLoss:
    """What the discriminator gives the tokenizer to learn."""

    loss: Tensor  # () to add to the tokenizer's loss, all weights applied
    adaptive_weight: Tensor  # () the gradients' ratio, limited


def compute_hinge_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Returns the discriminator's loss (): 2 if it knows nothing, 0 if it is sure and right."""
    return functional.relu(1 - logits_real).mean() + functional.relu(1 + logits_fake).mean()


def compute_lecam_loss(logits_real: Tensor, logits_fake: Tensor, anchors: Tensor) -> Tensor:
    """Returns the LeCam regularisation () of the discriminator.

    Args:
        logits_real: of real images, any shape.
        logits_fake: of reconstructions, any shape.
        anchors: (2,) moving averages of both, real first: what each is kept from leaving behind.

    Source:
        arXiv:2104.03310; only what is beyond the other's anchor is squared, as in its code.
    """
    real, fake = anchors
    excess = functional.relu(logits_real - fake).square().mean()
    return excess + functional.relu(real - logits_fake).square().mean()


class AdversarialLoss:
    """A discriminator, its optimizer and what the tokenizer's training asks of them.

    Not a module: whoever holds it has none of it among its parameters or in its state, and a deep
    copy of the holder shares it. With `augment`, draws come from torch's global generator of the
    device.
    """

    def __init__(
        self, settings: AdversarialSettings, image_size: int, device: torch.device, seed: int = 0
    ) -> None:
        """Creates an untrained discriminator; all processes must give the same seed.

        Raises:
            ConfigError: the pictures are too small for so many layers.
        """
        smallest = smallest_image_size(settings.layers)
        if image_size < smallest:
            raise ConfigError(
                f"A discriminator of {settings.layers} layers needs pictures of at least "
                f"{smallest}×{smallest} pixels: `{image_size}`. Lower its `layers`, or set its "
                "`weight` to 0 to train without it."
            )
        self.settings = settings
        self._device = device
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = PatchDiscriminator(settings.width, settings.layers)
        self.network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = torch.optim.Adam(
            self.network.parameters(), lr=settings.learning_rate, betas=_BETAS
        )
        self._steps = 0
        self._anchors = torch.zeros(2, device=device)
        self._has_counted = False
        self._best_error = math.inf
        self.share = 1.0

    def __deepcopy__(self, memo: object) -> "AdversarialLoss":
        """Returns itself: a copy of the tokenizer's training has no discriminator of its own."""
        return self

    def is_learning(self, images_seen: int) -> bool:
        """Whether the discriminator takes a step after so many images.

        By the images alone, so that all processes agree.
        """
        return images_seen >= self.settings.start_images

    def is_counting(self, images_seen: int) -> bool:
        """Whether the discriminator adds to the tokenizer's loss after so many images."""
        start = self.settings.start_images + self.settings.warmup_images
        return images_seen >= start and self.share > 0

    def compute_generator_loss(
        self, reconstruction: Tensor, reconstruction_loss: Tensor, last_layer: Tensor
    ) -> GeneratorLoss:
        """Asks the discriminator how to make reconstructions look real.

        The loss is the negative mean of the logits × adaptive weight × weight × share; the
        adaptive weight is |∇ reconstruction loss| / (|∇ adversarial loss| + 1e-4) in the last
        layer. The way through the discriminator and back is gone here, once: the loss carries the
        reconstruction's gradient, and reaches no parameter of the discriminator.

        Args:
            reconstruction: (B, 3, H, W) unclamped, with its graph.
            reconstruction_loss: () whose strength the adversarial loss is brought to.
            last_layer: weight of the decoder's last layer.

        Source:
            Equation 7 of arXiv:2012.09841.
        """
        self._has_counted = True
        seen = reconstruction.detach().float().requires_grad_()
        adversarial = -self._judge(seen).mean()
        (pull,) = torch.autograd.grad(adversarial, seen)  # (B, 3, H, W)
        (wanted,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
        (given,) = torch.autograd.grad(
            reconstruction, last_layer, pull.to(reconstruction.dtype), retain_graph=True
        )
        ratio = wanted.float().norm() / (given.float().norm() + _ADAPTIVE_EPSILON)
        adaptive_weight = ratio.clamp(max=self.settings.max_adaptive_weight)
        carrier = (reconstruction.float() * pull).sum()
        loss = adversarial.detach() + (carrier - carrier.detach())
        return GeneratorLoss(
            adaptive_weight * self.settings.weight * self.share * loss, adaptive_weight
        )

    def step(self, reconstruction: Tensor, image: Tensor) -> Mapping[str, Tensor]:
        """Lets the discriminator learn from a batch; every process must call it.

        Args:
            reconstruction: (B, 3, H, W); its graph is left alone.
            image: (B, 3, H, W) in [-1, 1], what it should look like.

        Returns:
            discriminator_loss, logits_real and logits_fake, () each; nothing once the share is 0,
            for then it has nothing to learn for.
        """
        if self.share == 0:
            return {}
        images = torch.cat([image.float(), reconstruction.detach().float()])
        real, fake = self._judge(images).chunk(2)
        loss = compute_hinge_loss(real, fake)
        self._steps += 1
        if self.settings.lecam_weight:
            self._follow(torch.stack([real.mean(), fake.mean()]).detach())
            loss = loss + self.settings.lecam_weight * compute_lecam_loss(real, fake, self._anchors)
        self._optimizer.zero_grad()
        loss.backward()
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                _average_over_processes(parameter.grad)
        nn.utils.clip_grad_norm_(self.network.parameters(), _MAX_GRADIENT_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {
            "discriminator_loss": loss.detach(),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
        }

    def note_validation(self, reconstruction_error: float) -> float | None:
        """Halves the share when reconstructions got worse since the discriminator counts.

        Call it with every validation: the best error so far, that before the discriminator
        counted included, is what others are compared with. In a distributed run every
        process must be told the same.

        Returns:
            The new share if it was lowered, for the log: 0 once it would fall under 1/64.
        """
        limit = self._best_error * (1 + self.settings.error_tolerance)
        is_worse = self._has_counted and reconstruction_error > limit
        self._best_error = min(self._best_error, reconstruction_error)
        if not is_worse or self.share == 0:
            return None
        self.share = self.share / 2 if self.share > _LEAST_SHARE else 0.0
        return self.share

    def state_dict(self) -> dict[str, Tensor]:
        """Returns all that changes in training, as flat tensors that are shared, not copied."""
        state = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{name}.{key}"] = value
        state["anchors"] = self._anchors
        state["steps"] = torch.tensor(self._steps)
        state["has_counted"] = torch.tensor(self._has_counted)
        state["best_error"] = torch.tensor(self._best_error, dtype=torch.float64)
        state["share"] = torch.tensor(self.share, dtype=torch.float64)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to a state, of which tensors may be on any device; they are copied."""
        self.network.load_state_dict(
            {n.removeprefix("network."): t for n, t in state.items() if n.startswith("network.")}
        )
        self._optimizer.state.clear()
        for name, parameter in self.network.named_parameters():
            prefix = f"optimizer.{name}."
            saved = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
            if saved:
                self._optimizer.state[parameter] = {
                    # Moments lie as their parameter does; steps are counted on the CPU.
                    key: torch.empty_like(parameter).copy_(value).detach()
                    if value.shape == parameter.shape
                    else value.to("cpu", copy=True)
                    for key, value in saved.items()
                }
        self._anchors.copy_(state["anchors"])
        self._steps = int(state["steps"])
        self._has_counted = bool(state["has_counted"])
        self._best_error = float(state["best_error"])
        self.share = float(state["share"])

    def _judge(self, image: Tensor) -> Tensor:
        """Returns the logits of images (B, 3, H, W): in bf16 on CUDA, as the tokenizer trains."""
        if self.settings.augment:
            with torch.autocast(self._device.type, enabled=False):
                image = augment(image)
        # No cache: inside of another autocast it would outlive a step.
        with torch.autocast(
            self._device.type,
            dtype=torch.bfloat16,
            enabled=self._device.type == "cuda",
            cache_enabled=False,
        ):
            logits: Tensor = self.network(image)
        return logits.float()

    def _follow(self, means: Tensor) -> None:
        """Moves the anchors (2,) towards the means of this step's logits, over all processes."""
        _average_over_processes(means)
        # The weight of a moving average without the bias towards its start at 0.
        self._anchors.lerp_(means, (1 - _LECAM_DECAY) / (1 - _LECAM_DECAY**self._steps))


def _average_over_processes(tensor: Tensor) -> None:
    """Averages a tensor in place over the processes of a distributed run."""
    if world_size() > 1:
        torch.distributed.all_reduce(tensor)
        tensor /= world_size()
