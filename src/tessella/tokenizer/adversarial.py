"""image and its reconstruction → a loss for the tokenizer, from a discriminator trained beside it.

`AdversarialLoss` owns the discriminator and its optimizer. In each step it adds its loss to the
tokenizer's, then the discriminator takes a step of its own; neither leaves a gradient in the other.

Source: Taming Transformers (arXiv:2012.09841), equations 5 to 7, with the hinge loss of its code,
without its factor 1/2; LeCam regularisation (arXiv:2104.03310).
"""

import math
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tessella.batch import average_over_batch
from tessella.config import Settings
from tessella.errors import ConfigError
from tessella.tokenizer.augment import augment
from tessella.tokenizer.discriminator import PatchDiscriminator, smallest_image_size

_BETAS = (0.5, 0.9)  # Taming's: a discriminator's aim moves, so it remembers little
_MAX_GRADIENT_NORM = 1.0
_ADAPTIVE_EPSILON = 1e-4
_LECAM_DECAY = 0.99
_MIN_SCALE = 1 / 64


class AdversarialSettings(Settings):
    """The discriminator, and its weight in the tokenizer's loss."""

    weight: float = Field(0.0, ge=0.0)
    """Weight of the adversarial loss, on top of the adaptive weight that makes it as strong as the
    reconstruction loss; 0 trains without a discriminator. Taming Transformers uses 0.8."""
    start_images: int = Field(100_000, ge=0)
    """Images seen before the discriminator starts to learn. Reconstructions should be good by
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
    """Limit of the adaptive weight. A discriminator whose gradient is less than a tenth of the
    reconstruction's has little to say, and more weight would amplify noise. Taming's 10⁴ is never
    reached by reconstruction gradients under 1."""
    lecam_weight: float = Field(0.0, ge=0.0)
    """Weight of the LeCam regularisation, which keeps a discriminator with few images from becoming
    too confident; 0 turns it off."""
    augment: bool = False
    """Shows the discriminator all images recoloured, shifted and with a hole (DiffAugment), which
    helps when there are few."""
    error_tolerance: float = Field(0.05, ge=0.0)
    """Rise of the validation's reconstruction error over its best, as a fraction of it, that halves
    the adversarial loss. 0.05 of a squared error is 0.2 dB."""

    @property
    def counts_from_images(self) -> int:
        """Images seen from which the discriminator counts in the tokenizer's loss."""
        return self.start_images + self.warmup_images


def compute_hinge_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Returns the discriminator's loss (): 2 if it knows nothing, 0 if it is sure and right."""
    return functional.relu(1 - logits_real).mean() + functional.relu(1 + logits_fake).mean()


def compute_lecam_loss(logits_real: Tensor, logits_fake: Tensor, anchors: Tensor) -> Tensor:
    """Returns the LeCam regularisation () of the discriminator.

    Args:
        logits_real: of real images, any shape.
        logits_fake: of reconstructions, any shape.
        anchors: (2,) moving averages of both, real first; neither may run ahead of the other's.

    Source:
        arXiv:2104.03310; only what is beyond the other's anchor is squared, as in its code.
    """
    real, fake = anchors
    excess = functional.relu(logits_real - fake).square().mean()
    return excess + functional.relu(real - logits_fake).square().mean()


class AdversarialLoss:
    """A discriminator, its optimizer, and when and how strongly it counts.

    In each step of training: `before_step`, then `judge` in the tokenizer's forward pass, then
    `after_step`. It is not a module, so that no network that holds it trains, averages or saves
    the discriminator as a part of its own. With `augment`, the whole batch draws
    (`tessella.batch`).
    """

    def __init__(
        self, settings: AdversarialSettings, image_size: int, device: torch.device, seed: int = 0
    ) -> None:
        """Creates an untrained discriminator; all processes must pass the same seed.

        Raises:
            ConfigError: the pictures are too small for the number of layers.
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
        self.optimizer = torch.optim.Adam(
            self.network.named_parameters(), lr=settings.learning_rate, betas=_BETAS
        )
        self.scale = 1.0  # of the loss, beside its weight; falls when reconstructions get worse
        self._steps = 0
        self._anchors = torch.zeros(2, device=device)
        self._has_counted = False
        self._best_error = math.inf
        self._images_seen = 0
        self._batch: tuple[Tensor, Tensor] | None = None
        self._in_bf16 = False

    def before_step(self, images_seen: int) -> None:
        """Takes the progress of training."""
        self._images_seen = images_seen

    def judge(
        self, reconstruction: Tensor, image: Tensor, reconstruction_loss: Tensor, last_layer: Tensor
    ) -> Mapping[str, Tensor]:
        """Computes the tokenizer's part of a step, and keeps the batch for the discriminator's.

        The loss is the negative mean of the logits × adaptive weight × weight × scale; the
        adaptive weight is |∇ reconstruction loss| / (|∇ adversarial loss| + 1e-4) in the last
        layer. Back-propagates through the discriminator once, here: the returned loss carries
        the gradient of the reconstruction and reaches no parameter of the discriminator. Under
        the autocast in which the tokenizer trains; the discriminator's own step follows in the
        same precision.

        Args:
            reconstruction: (B, 3, H, W) unclamped, with its graph.
            image: (B, 3, H, W) in [-1, 1].
            reconstruction_loss: (); the adversarial loss is made as strong as this.
            last_layer: weight of the decoder's last layer.

        Returns:
            adversarial_loss, to add, all weights applied, and adaptive_weight, () each; nothing
            while the discriminator does not count.

        Source:
            Equation 7 of arXiv:2012.09841.
        """
        self._in_bf16 = torch.is_autocast_enabled(self._device.type)
        if self._images_seen >= self.settings.start_images:  # the same in all processes
            self._batch = reconstruction.detach(), image
        if self._images_seen < self.settings.counts_from_images or self.scale == 0:
            return {}
        self._has_counted = True
        detached = reconstruction.detach().float().requires_grad_()
        adversarial = -self._compute_logits(detached).mean()
        (image_grad,) = torch.autograd.grad(adversarial, detached)  # (B, 3, H, W)
        (reconstruction_grad,) = torch.autograd.grad(
            reconstruction_loss, last_layer, retain_graph=True
        )
        (adversarial_grad,) = torch.autograd.grad(
            reconstruction, last_layer, image_grad.to(reconstruction.dtype), retain_graph=True
        )
        adversarial_norm = average_over_batch(adversarial_grad.float()).norm()
        reconstruction_norm = average_over_batch(reconstruction_grad.float()).norm()
        ratio = reconstruction_norm / (adversarial_norm + _ADAPTIVE_EPSILON)
        adaptive_weight = ratio.clamp(max=self.settings.max_adaptive_weight)
        carrier = (reconstruction.float() * image_grad).sum()
        loss = adversarial.detach() + (carrier - carrier.detach())
        return {
            "adversarial_loss": adaptive_weight * self.settings.weight * self.scale * loss,
            "adaptive_weight": adaptive_weight,
        }

    def after_step(self) -> Mapping[str, Tensor]:
        """Trains the discriminator on the batch that it judged, if any; returns its metrics."""
        if self._batch is None:
            return {}
        batch, self._batch = self._batch, None
        return self.step(*batch)

    def step(self, reconstruction: Tensor, image: Tensor) -> Mapping[str, Tensor]:
        """Trains the discriminator on one batch; every process must call it.

        Args:
            reconstruction: (B, 3, H, W); its graph is not used.
            image: (B, 3, H, W) in [-1, 1], the original.

        Returns:
            discriminator_loss, logits_real and logits_fake, () each; nothing once the scale is 0,
            when training the discriminator is of no use any more.
        """
        if self.scale == 0:
            return {}
        images = image.float(), reconstruction.detach().float()
        real, fake = self._compute_logits(*images).chunk(2)
        loss = compute_hinge_loss(real, fake)
        self._steps += 1
        if self.settings.lecam_weight:
            self._update_anchors(torch.stack([real.mean(), fake.mean()]).detach())
            loss = loss + self.settings.lecam_weight * compute_lecam_loss(real, fake, self._anchors)
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                average_over_batch(parameter.grad)
        nn.utils.clip_grad_norm_(self.network.parameters(), _MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "discriminator_loss": loss.detach(),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
        }

    def note_validation(self, reconstruction_error: float) -> float | None:
        """Halves the scale if reconstructions got worse since the discriminator counts.

        Call it after every validation: the error is compared with the best so far, including
        those from before the discriminator counted. Every process of a distributed run must pass
        the same error.

        Returns:
            The new scale if it was lowered, for the log: 0 once it would fall under 1/64.
        """
        limit = self._best_error * (1 + self.settings.error_tolerance)
        is_worse = self._has_counted and reconstruction_error > limit
        self._best_error = min(self._best_error, reconstruction_error)
        if not is_worse or self.scale == 0:
            return None
        self.scale = self.scale / 2 if self.scale > _MIN_SCALE else 0.0
        return self.scale

    def state_dict(self) -> dict[str, Tensor]:
        """Returns all that changes in training but the optimizer's state; tensors are shared."""
        return {
            **{f"network.{name}": t for name, t in self.network.state_dict().items()},
            "anchors": self._anchors,
            "steps": torch.tensor(self._steps),
            "has_counted": torch.tensor(self._has_counted),
            "best_error": torch.tensor(self._best_error, dtype=torch.float64),
            "scale": torch.tensor(self.scale, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned; copies the tensors, which may be on any device."""
        self.network.load_state_dict(
            {n.removeprefix("network."): t for n, t in state.items() if n.startswith("network.")}
        )
        self._anchors.copy_(state["anchors"])
        self._steps = int(state["steps"])
        self._has_counted = bool(state["has_counted"])
        self._best_error = float(state["best_error"])
        self.scale = float(state["scale"])

    def _compute_logits(self, *batches: Tensor) -> Tensor:
        """Computes the logits of images (B, 3, H, W) each, in the precision of the tokenizer."""
        if self.settings.augment:
            with torch.autocast(self._device.type, enabled=False):
                batches = tuple(map(augment, batches))
        image = torch.cat(batches) if len(batches) > 1 else batches[0]
        # No cache: inside another autocast it would outlive the step.
        with torch.autocast(
            self._device.type,
            dtype=torch.bfloat16,
            enabled=self._in_bf16,
            cache_enabled=False,
        ):
            logits: Tensor = self.network(image)
        return logits.float()

    def _update_anchors(self, means: Tensor) -> None:
        """Moves the anchors (2,) towards the means of this step's logits, over all processes."""
        average_over_batch(means)
        # The weight of a moving average without the bias towards its start at 0.
        self._anchors.lerp_(means, (1 - _LECAM_DECAY) / (1 - _LECAM_DECAY**self._steps))
