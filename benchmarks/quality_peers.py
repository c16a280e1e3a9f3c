"""The peers of `quality_per_minute.py`, each by its own rule, scaled down to 64×64 pictures.

Why: what else would you train on the same pictures in the same minutes?

Theory: every peer is a pair of networks, or one that learns pixels. All read the same tokens of
the same captions and embed them themselves: a peer's own text encoder (T5, CLIP) was trained
elsewhere, and would be compared instead. Captions are dropped for guidance in one picture of ten.
Tokenizers have 8×8 positions and learn from pixels alone: LPIPS needs a trained network, and the
published discriminators begin after 20,000 steps and more. Transformers are as wide and deep as
ours. Learning rates are published ones divided by how much narrower a network is here
(arXiv:2203.03466), the dVAE's as it is.

- `llamagen`: arXiv:2406.06525, FoundationVision/LlamaGen `tokenizer/tokenizer_image/vq_model.py`
  (convolutions of VQGAN, attention at the coarsest level, codes of 8 numbers on a sphere, squared
  error, commitment 0.25), `autoregressive/train/train_t2i.py` (AdamW 1e-4, 0.9, 0.95, weight decay
  0.05; loss on codes alone after a prefix of text). The codebook is `VectorQuantize`, whose means
  follow the latents. Painted at guidance 7.5, temperature 1, top-k 1000 (`sample_t2i.py`).
- `maskgit`: arXiv:2202.04200, 2401.01808; diffusers `VQModel`, `UVit2DModel`, `AmusedScheduler`,
  `examples/amused/train_amused.py` (masked by a cosine, loss on masked codes, AdamW 1e-4 in the
  paper). Painted in 12 steps at guidance 10 (`AmusedPipeline`).
- `dalle`: arXiv:2102.12092, lucidrains/DALLE-pytorch `dalle_pytorch.py` (dVAE, Gumbel softmax),
  `train_vae.py` (1e-3), `train_dalle.py` (3e-4, width 512): one vocabulary of words and codes, an
  eighth of the loss on the words. The temperature falls to 1/16, and AdamW decays, as in the paper.
  Painted from the likeliest tenth of the codes (`generate.py`), unguided.
- `diffusion`: diffusers `UNet2DConditionModel` on pixels, v-prediction (arXiv:2202.00512), cosine
  schedule (arXiv:2102.09672, 1e-4 at width 128), DDIM in 25 steps at guidance 7.5.

Output contract: none; `quality_per_minute.py` prints and stores the results.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AmusedScheduler,
    DDIMScheduler,
    DDPMScheduler,
    UNet2DConditionModel,
    UVit2DModel,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from quality_tokenizers import (
    CODEBOOK_SIZE,
    POSITIONS,
    SIDE,
    AmusedTokenizer,
    DiscreteVae,
    LlamaGenTokenizer,
    Tokenizer,
)
from quality_training import MAX_TEXT_TOKENS, Optimizer

WIDTH, DEPTH, HEADS = 192, 4, 6
PAD = 0  # of tessella's text tokens
SIZES = (64.0, 64.0, 0.0, 0.0, 6.0)  # width, height, crop and score, as aMUSEd tells them

Painting = Mapping[str, float]
"""guidance_scale, temperature, top_k and steps, as far as a peer has them."""


class Generator(nn.Module, abc.ABC):
    """Text (B, T) to codes (B, positions), or to pictures (B, 3, H, W) where there are none.

    Args:
        vocabulary_size: of the text.
    """

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary_size, WIDTH)
        nn.init.normal_(self.words.weight, std=0.02)

    @abc.abstractmethod
    def compute_loss(self, text: Tensor, target: Tensor) -> Tensor:
        """Computes the loss of a batch."""

    @abc.abstractmethod
    def paint(self, text: Tensor, painting: Painting) -> Tensor:
        """Samples; the text (2 B, T) has B prompts and as many empty ones."""


class LlamaGenerator(Generator):
    """LlamaGen's: a Llama over a prefix of words and the codes in raster order.

    Its rotary positions have one axis instead of two.
    """

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__(vocabulary_size)
        self.network: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=CODEBOOK_SIZE,
                hidden_size=WIDTH,
                intermediate_size=512,
                num_hidden_layers=DEPTH,
                num_attention_heads=HEADS,
                max_position_embeddings=MAX_TEXT_TOKENS + POSITIONS,
                tie_word_embeddings=False,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
        )

    def compute_loss(self, text: Tensor, target: Tensor) -> Tensor:
        hidden = torch.cat([self.words(text), self._embed(target[:, :-1])], 1)
        logits = self.network(
            inputs_embeds=hidden, attention_mask=_mask(text, POSITIONS - 1), use_cache=False
        ).logits[:, MAX_TEXT_TOKENS - 1 :]
        return functional.cross_entropy(logits.flatten(0, 1).float(), target.flatten())

    def paint(self, text: Tensor, painting: Painting) -> Tensor:
        return paint_in_order(self.network, self.words(text), self._embed, text, painting)

    def _embed(self, codes: Tensor) -> Tensor:
        embedded: Tensor = self.network.get_input_embeddings()(codes)
        return embedded


class DalleGenerator(Generator):
    """DALL-E's: words and codes in one vocabulary, both are predicted.

    Its attention is full, where DALL-E's is sparse for its 1,024 codes.
    """

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__(vocabulary_size)
        self.codes = nn.Embedding(CODEBOOK_SIZE, WIDTH)
        nn.init.normal_(self.codes.weight, std=0.02)
        self.num_words = vocabulary_size
        self.network: Any = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary_size + CODEBOOK_SIZE,
                n_positions=MAX_TEXT_TOKENS + POSITIONS,
                n_embd=WIDTH,
                n_layer=DEPTH,
                n_head=HEADS,
                tie_word_embeddings=False,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        self.network.transformer.wte = nn.Identity()  # the two above stand for it

    def compute_loss(self, text: Tensor, target: Tensor) -> Tensor:
        hidden = torch.cat([self.words(text), self.codes(target[:, :-1])], 1)
        logits = self.network(
            inputs_embeds=hidden, attention_mask=_mask(text, POSITIONS - 1), use_cache=False
        ).logits.float()
        words, codes = logits.tensor_split([MAX_TEXT_TOKENS - 1], dim=1)
        labels = text[:, 1:].masked_fill(text[:, :-1] == PAD, PAD)  # nothing follows from padding
        of_words = functional.cross_entropy(
            words[..., : self.num_words].flatten(0, 1), labels.flatten(), ignore_index=PAD
        )
        of_codes = functional.cross_entropy(
            codes[..., self.num_words :].flatten(0, 1), target.flatten()
        )
        return (of_words + 7 * of_codes) / 8

    def paint(self, text: Tensor, painting: Painting) -> Tensor:
        hidden = self.words(text)
        return paint_in_order(self.network, hidden, self.codes, text, painting, self.num_words)


class MaskGitGenerator(Generator):
    """aMUSEd's: masked codes are predicted at once, the surest are kept."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__(vocabulary_size)
        self.places = nn.Parameter(0.02 * torch.randn(MAX_TEXT_TOKENS, WIDTH))
        inner = WIDTH * 3 // 4
        network: Any = UVit2DModel(  # type: ignore[no-untyped-call]
            hidden_size=WIDTH,
            cond_embed_dim=WIDTH,
            encoder_hidden_size=WIDTH,
            micro_cond_encode_dim=32,
            micro_cond_embed_dim=5 * 32,
            vocab_size=CODEBOOK_SIZE + 1,
            codebook_size=CODEBOOK_SIZE,
            in_channels=inner,
            block_out_channels=inner,
            num_res_blocks=1,
            block_num_heads=inner // 48,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            intermediate_size=WIDTH * 11 // 4,
            sample_size=SIDE,
        )
        self.network = network

    def compute_loss(self, text: Tensor, target: Tensor) -> Tensor:
        share = torch.cos(torch.rand(len(target), 1) * torch.pi / 2)
        masked = torch.rand(target.shape).argsort(1) < (POSITIONS * share).round().clamp(min=1)
        known = target.masked_fill(masked, CODEBOOK_SIZE).view(-1, SIDE, SIDE)
        labels = target.masked_fill(~masked, -100)
        logits = self._predict(text, known).float().flatten(2)
        return functional.cross_entropy(logits, labels, ignore_index=-100)

    def paint(self, text: Tensor, painting: Painting) -> Tensor:
        count = len(text) // 2
        codes = torch.full((count, SIDE, SIDE), CODEBOOK_SIZE)
        scheduler: Any = AmusedScheduler(mask_token_id=CODEBOOK_SIZE)  # type: ignore[no-untyped-call]
        scheduler.set_timesteps(int(painting["steps"]), (2, 0), codes.device)
        for step in scheduler.timesteps:
            guided = guide(self._predict(text, torch.cat([codes] * 2)), painting)
            codes = scheduler.step(guided, step, codes).prev_sample
        return codes.flatten(1)

    def _predict(self, text: Tensor, codes: Tensor) -> Tensor:
        """Predicts codes (B, K, h, w)."""
        words = self.words(text) + self.places
        there = (text != PAD).unsqueeze(2).to(words.dtype)
        logits: Tensor = self.network(
            codes,
            encoder_hidden_states=words * there,
            pooled_text_emb=(words * there).sum(1) / there.sum(1),
            micro_conds=torch.tensor([SIZES]).expand(len(text), -1),
        )
        return logits


class DiffusionGenerator(Generator):
    """A small text-to-image diffusion model on pixels."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__(vocabulary_size)
        self.places = nn.Parameter(0.02 * torch.randn(MAX_TEXT_TOKENS, WIDTH))
        self.network: Any = UNet2DConditionModel(  # type: ignore[no-untyped-call]
            sample_size=64,
            in_channels=3,
            out_channels=3,
            block_out_channels=(16, 32, 64, 96),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * 2 + ("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",) * 2,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        self.scheduler: Any = DDPMScheduler(  # type: ignore[no-untyped-call]
            beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
        )

    def compute_loss(self, text: Tensor, target: Tensor) -> Tensor:
        noise = torch.randn_like(target)
        steps = torch.randint(self.scheduler.config.num_train_timesteps, (len(target),))
        noisy = self.scheduler.add_noise(target, noise, steps)
        velocity = self.scheduler.get_velocity(target, noise, steps)
        return functional.mse_loss(self._predict(text, noisy, steps).float(), velocity)

    def paint(self, text: Tensor, painting: Painting) -> Tensor:
        image = torch.randn(len(text) // 2, 3, 64, 64)
        sampler: Any = DDIMScheduler.from_config(  # type: ignore[no-untyped-call]
            self.scheduler.config, timestep_spacing="trailing"
        )
        sampler.set_timesteps(int(painting["steps"]))
        for step in sampler.timesteps:
            guided = guide(self._predict(text, torch.cat([image] * 2), step), painting)
            image = sampler.step(guided, step, image).prev_sample
        return image

    def _predict(self, text: Tensor, image: Tensor, steps: Tensor) -> Tensor:
        """Predicts velocities (B, 3, H, W)."""
        predicted: Tensor = self.network(
            image,
            steps,
            encoder_hidden_states=self.words(text) + self.places,
            encoder_attention_mask=text != PAD,
        ).sample
        return predicted


def guide(predicted: Tensor, painting: Painting) -> Tensor:
    """Guides predictions (2 B, …), of prompts and then of none, without a classifier: (B, …)."""
    prompted, other = predicted.chunk(2)
    return other + painting["guidance_scale"] * (prompted - other)


def paint_in_order(
    network: Any,
    hidden: Tensor,
    embed: Callable[[Tensor], Tensor],
    text: Tensor,
    painting: Painting,
    first_code: int = 0,
) -> Tensor:
    """Samples codes one after the other, guided, with a cache.

    Args:
        network: a causal language model of transformers.
        hidden: (2 B, T, D) of the text.
        embed: turns codes (2 B, 1) into rows (2 B, 1, D).
        text: (2 B, T), for its padding.
        painting: guidance_scale, temperature, top_k.
        first_code: where codes begin among the logits.
    """
    cache, codes = None, []
    for number in range(POSITIONS):
        out = network(
            inputs_embeds=hidden,
            attention_mask=_mask(text, number),
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        logits = guide(out.logits[:, -1, first_code:], painting) / painting["temperature"]
        lowest = logits.topk(min(int(painting["top_k"]), CODEBOOK_SIZE)).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
        codes.append(torch.multinomial(logits.softmax(-1), 1))
        hidden = embed(torch.cat([codes[-1]] * 2))
    return torch.cat(codes, 1)


def _mask(text: Tensor, num_codes: int) -> Tensor:
    """Hides the padding of text (B, T) from what follows it: (B, T + codes)."""
    return functional.pad((text != PAD).long(), (0, num_codes), value=1)


@dataclass(frozen=True)
class Peer:
    """A way to learn and to paint."""

    generator: Callable[[int], Generator]
    generator_optimizer: Optimizer
    paintings: Mapping[str, Painting]  # as published, and gentler; both are measured
    tokenizer: Callable[[], Tokenizer] | None = None  # None: pixels are learned
    tokenizer_optimizer: Optimizer | None = None


PEERS: Mapping[str, Peer] = {
    "llamagen": Peer(
        LlamaGenerator,
        Optimizer(7e-4, 16, weight_decay=0.05),  # 1e-4 at width 1,280
        {
            "published": {"guidance_scale": 7.5, "temperature": 1.0, "top_k": 1000},
            "gentle": {"guidance_scale": 3.0, "temperature": 0.3, "top_k": 1000},
        },
        LlamaGenTokenizer,
        Optimizer(8e-4, 16),  # 1e-4 at width 128
    ),
    "maskgit": Peer(
        MaskGitGenerator,
        Optimizer(5e-4, 16, beta2=0.999, weight_decay=0.01),  # 1e-4 at width 1,024
        {
            "published": {"guidance_scale": 10.0, "steps": 12},
            "gentle": {"guidance_scale": 3.0, "steps": 12},
        },
        AmusedTokenizer,
        Optimizer(8e-4, 16, beta2=0.99),  # 1e-4 at width 128
    ),
    "dalle": Peer(
        DalleGenerator,
        Optimizer(8e-4, 16, beta2=0.96, weight_decay=0.045),  # 3e-4 at width 512
        {
            "published": {"guidance_scale": 1.0, "temperature": 1.0, "top_k": 102},
            "gentle": {"guidance_scale": 3.0, "temperature": 0.3, "top_k": 102},
        },
        DiscreteVae,
        Optimizer(1e-3, 16, beta2=0.999),
    ),
    "diffusion": Peer(
        DiffusionGenerator,
        Optimizer(4e-4, 16, beta2=0.999),  # 1e-4 at width 128
        {
            "published": {"guidance_scale": 7.5, "steps": 25},
            "gentle": {"guidance_scale": 3.0, "steps": 25},
        },
    ),
}
