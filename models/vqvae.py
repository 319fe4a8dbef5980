"""VQ-VAE with a learned prior: images as a grid of discrete codes, and a transformer that says which codes go together.

van den Oord, Vinyals and Kavukcuoglu 2017, "Neural discrete representation learning": straight-through gradients and the
commitment loss (equation 3), the codebook by moving averages (appendix A.1). The prior is a class-conditional causal
transformer over the codes in raster order instead of their PixelCNN. Codes that nobody uses are drawn again from the
batch (Dhariwal et al. 2020, "Jukebox", section 3.1).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthgen.config.generators import VQVAEConfig
from synthgen.config.schema import AugmentConfig
from synthgen.errors import ConfigError
from synthgen.models.augmentation import NUM_PARAMETERS, non_leaking
from synthgen.models.base import Generator, Noise, warm_cosine
from synthgen.models.blocks import ConditionalBlock, group_norm, sum_per_image, widths
from synthgen.models.ema import EMA
from synthgen.models.vae import gaussian_nll
from synthgen.shapes import Float, Int64
from synthgen.types import DatasetSpec

DEAD = 0.3
"""A code is dead when it stands for fewer vectors of a batch than this share of what it would if all were used alike.
With 0.1, 40 steps at a high learning rate left 3 of 24 codes in use, with 0.3 they left 21."""

AUGMENT_IMAGES, AUGMENT_CODES = 0.25, 0.5
"""Probability of each change of `non_leaking`. The autoencoder isn't told: it returns what it is given. The prior is told,
and samples as if nothing was done. Untold, samples of 50 digits had FID 68 instead of 49; without changes of the images
they lay half as far from the training images (0.11) as real digits do (0.21)."""

EMBEDDING_STD = 0.3
"""Of the prior's embeddings at the start. With 0.02 (GPT-2) the label is learnt too slowly: FID 24 instead of 10 on digits."""

MOST_DRAWS = 2**20
"""Random numbers of one sample: 4 MB, or 256 MB for a chunk of 64."""


class Codebook(nn.Module):
    """Vectors that encodings are rounded to, learned by moving averages (van den Oord 2017, appendix A.1)."""

    entries: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("entries", torch.randn(codes, dim))
        self.register_buffer("counts", torch.zeros(codes))  # all dead: the first batch seeds them
        self.register_buffer("sums", torch.zeros(codes, dim))

    def nearest(self, z: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """The code of each vector: the nearest entry, the first one of several."""
        with torch.autocast(z.device.type, enabled=False):
            return (self.entries.square().sum(1) - 2 * z @ self.entries.T).argmin(1)

    def reseed(self, z: Float[Tensor, "n d"], draws: np.random.Generator) -> None:
        """Puts dead codes at random vectors of the batch, counted as used like any other."""
        n, k = len(z), len(self.entries)
        rows = torch.from_numpy(draws.choice(n, k, replace=k > n)).to(z.device)
        dead = self.counts < DEAD * n / k
        self.entries.copy_(torch.where(dead[:, None], z[rows], self.entries))
        self.counts.copy_(torch.where(dead, n / k, self.counts))
        self.sums.copy_(self.entries * self.counts[:, None])

    def follow(self, z: Float[Tensor, "n d"], codes: Int64[Tensor, " n"], decay: float) -> None:
        """N <- g N + (1 - g) n, m <- g m + (1 - g) sum of z, e <- m / N."""
        ones = F.one_hot(codes, len(self.entries)).to(z.dtype)
        self.counts.lerp_(ones.sum(0), 1 - decay)
        with torch.autocast(z.device.type, enabled=False):
            self.sums.lerp_(ones.T @ z, 1 - decay)
        self.entries.copy_(self.sums / self.counts[:, None])


class Autoencoder(nn.Module):
    """Image -> a vector at each place of a grid, and back.

    It isn't told the label: on 50 digits FID was 6.2 without and 5.1 with it, recall in pixels .54 and .43 (one seed).
    """

    def __init__(self, config: VQVAEConfig, spec: DatasetSpec) -> None:
        super().__init__()
        channels, ladder = spec.image_shape[0], widths(config.width, config.halvings + 1)
        top = ladder[-1]

        # encoder; the blocks have no condition, so that FiLM is a learned scale and shift
        self.stem = nn.Conv2d(channels, ladder[0], 3, padding=1)
        self.down = nn.ModuleList(ConditionalBlock(a, b, 1, "down") for a, b in itertools.pairwise(ladder))
        self.down.append(ConditionalBlock(top, top, 1))
        self.to_code = nn.Sequential(group_norm(top), nn.SiLU(), nn.Conv2d(top, config.code_dim, 1))

        # decoder
        self.from_code = nn.Conv2d(config.code_dim, top, 3, padding=1)
        self.up = nn.ModuleList([ConditionalBlock(top, top, 1)])
        self.up.extend(ConditionalBlock(b, a, 1, "up") for a, b in reversed(list(itertools.pairwise(ladder))))
        self.head = nn.Sequential(group_norm(ladder[0]), nn.SiLU(), nn.Conv2d(ladder[0], channels, 3, padding=1))

    def encode(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d r s"]:
        """A vector for each place of the grid of r x s."""
        x, nothing = self.stem(x), x.new_zeros(len(x), 1)
        for block in self.down:
            x = block(x, nothing)
        return self.to_code(x)

    def decode(self, z: Float[Tensor, "b d r s"]) -> Float[Tensor, "b c h w"]:
        """The image of a grid of vectors, in [-1, 1] but for what it overshoots."""
        x, nothing = self.from_code(z), z.new_zeros(len(z), 1)
        for block in self.up:
            x = block(x, nothing)
        return self.head(x)


class Cache:
    """Keys and values of the places seen so far, for each layer of the prior."""

    def __init__(self) -> None:
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, k: Float[Tensor, "b a 1 e"], v: Float[Tensor, "b a 1 e"]) -> tuple[Tensor, Tensor]:
        """Takes in those of the next place; returns those of all places, (b, heads, places, dimensions of a head)."""
        if layer in self.pairs:
            before = self.pairs[layer]
            k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
        self.pairs[layer] = k, v
        return k, v


class Layer(nn.Module):
    """Causal self-attention, then an MLP, each after a LayerNorm and added to what came in (GPT-2; Radford et al. 2019)."""

    def __init__(self, number: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.number, self.heads = number, heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b t e"], cache: Cache | None = None) -> Float[Tensor, "b t e"]:
        """All places at once, or with a cache the next one (t = 1), which sees those that the cache holds."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.extend(self.number, k, v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        x = x + self.dropout(self.out(y.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Prior(nn.Module):
    """p(code | codes before it in raster order, label, augmentation).

    The token of a place is the codebook's vector for the code before it, a learned vector for the place, and the condition.
    """

    def __init__(self, config: VQVAEConfig, spec: DatasetSpec, places: int) -> None:
        super().__init__()
        width, dropout = config.prior_width, config.prior_dropout
        self.start, self.place = nn.Parameter(torch.empty(1, width)), nn.Parameter(torch.empty(places, width))
        self.code = nn.Linear(config.code_dim, width)
        self.label = nn.Embedding(spec.num_classes, width)
        self.augmentation = nn.Linear(NUM_PARAMETERS, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(i, width, config.prior_heads, dropout) for i in range(config.prior_layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, config.codes)
        for embedding in (self.start, self.place, self.label.weight):
            nn.init.normal_(embedding, std=EMBEDDING_STD)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, before: Float[Tensor, "b m d"], labels: Int64[Tensor, " b"], parameters: Float[Tensor, "b p"]
    ) -> Float[Tensor, "b t k"]:
        """Logits of the code at each of the t = m + 1 places that follow the vectors of the m codes `before`."""
        start = self.start.expand(len(before), 1, -1)
        x = torch.cat([start, self.code(before)], dim=1) + self.place[: before.shape[1] + 1]
        x = self.dropout(x + self.condition(labels, parameters))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))

    def following(
        self, last: Float[Tensor, "b d"] | None, condition: Float[Tensor, "b 1 e"], place: int, cache: Cache
    ) -> Float[Tensor, "b k"]:
        """Logits of the code at `place`, given the vector of the code before it (None at the first) and the cache."""
        x = self.start.expand(len(condition), -1) if last is None else self.code(last)
        x = (x + self.place[place])[:, None] + condition
        for layer in self.layers:
            x = layer(x, cache)
        return self.head(self.norm(x))[:, 0]

    def condition(self, labels: Int64[Tensor, " b"], parameters: Float[Tensor, "b p"]) -> Float[Tensor, "b 1 e"]:
        """What is added to every token."""
        return (self.label(labels) + self.augmentation(parameters))[:, None]


class VQVAENetwork(nn.Module):
    """Autoencoder, codebook and prior.

    Raises:
        ConfigError: the images can't be halved so often, or a sample would take more random numbers than fit.
    """

    def __init__(self, config: VQVAEConfig, spec: DatasetSpec) -> None:
        super().__init__()
        _, height, width = spec.image_shape
        if height % 2**config.halvings or width % 2**config.halvings:
            raise ConfigError(
                f"generators.vqvae.halvings: {height} x {width} px can't be halved {config.halvings} times; give fewer"
            )
        self.grid = (height >> config.halvings, width >> config.halvings)
        if self.grid[0] * self.grid[1] * config.codes > MOST_DRAWS:
            raise ConfigError(
                f"generators.vqvae.codes: {self.grid[0]} x {self.grid[1]} places of {config.codes} codes take a random number "
                f"each for every sample, at most {MOST_DRAWS:,} in all; give fewer codes, or more halvings"
            )
        self.autoencoder = Autoencoder(config, spec)
        self.codebook = Codebook(config.codes, config.code_dim)
        self.prior = Prior(config, spec, self.grid[0] * self.grid[1])

    def encode(self, x: Float[Tensor, "b c h w"]) -> Int64[Tensor, "b t"]:
        """Codes in raster order."""
        return self.codebook.nearest(vectors(self.autoencoder.encode(x))).view(len(x), -1)

    def decode(self, codes: Int64[Tensor, "b t"]) -> Float[Tensor, "b c h w"]:
        """The image of codes in raster order, in [-1, 1] but for what it overshoots."""
        return self.autoencoder.decode(self.codebook.entries[codes].mT.unflatten(2, self.grid))

    def logits(
        self, codes: Int64[Tensor, "b t"], labels: Int64[Tensor, " b"], parameters: Float[Tensor, "b p"]
    ) -> Float[Tensor, "b t k"]:
        """The prior's logits of each code given those before it."""
        return self.prior(self.codebook.entries[codes[:, :-1]], labels, parameters)

    def draw(self, labels: Int64[Tensor, " b"], noise: Float[Tensor, "b t k"], temperature: float) -> Int64[Tensor, "b t"]:
        """Codes drawn from the prior, one place after the other: argmax of logits / temperature + Gumbel numbers."""
        condition = self.prior.condition(labels, noise.new_zeros(len(labels), NUM_PARAMETERS))
        cache, last, codes = Cache(), None, []
        for place in range(noise.shape[1]):
            logits = self.prior.following(last, condition, place, cache).double()
            codes.append((logits / temperature + gumbel(noise[:, place])).argmax(1))
            last = self.codebook.entries[codes[-1]]
        return torch.stack(codes, dim=1)


class VQVAE(Generator):
    """Trains the autoencoder for the first steps and the prior on its codes for the others; samples decode drawn codes."""

    kind: ClassVar[str] = "vqvae"
    Config = VQVAEConfig
    sampling_settings: ClassVar[tuple[str, ...]] = ("temperature",)

    def __init__(
        self,
        config: VQVAEConfig,
        spec: DatasetSpec,
        augment: AugmentConfig,
        seed: int = 0,
        structure: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(config, spec, augment, seed, structure)
        self.config: VQVAEConfig = config
        self.network: Any = VQVAENetwork(config, spec)
        self.ema = EMA(self.network, config.ema)

    @property
    def sampler(self) -> str:
        return f"ancestral temperature={self.config.temperature:g}"

    @property
    def first_prior_step(self) -> int:
        """The step from which on the prior is trained and the autoencoder no longer; at least 1."""
        return max(1, self.config.steps - round(self.config.prior_share * self.config.steps))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """First squared error and commitment, then the prior's cross entropy in nats a code: the loss jumps in between."""
        images, labels = batch
        if self.step < self.first_prior_step:
            return self._reconstruction_loss(images)
        if self.step == self.first_prior_step:
            self._freeze_autoencoder()
        x, parameters = non_leaking(images, self.draws("augment"), self.augment, AUGMENT_CODES)
        with torch.no_grad():
            codes = self.network.encode(x)
        return F.cross_entropy(self.network.logits(codes, labels, parameters).flatten(0, 1), codes.flatten())

    def _reconstruction_loss(self, images: Float[Tensor, "b c h w"]) -> Tensor:
        """Equation 3 of van den Oord 2017, per pixel and per code dimension; the codebook follows without gradients."""
        autoencoder, codebook = self.network.autoencoder, self.network.codebook
        x, _ = non_leaking(images, self.draws("augment"), self.augment, AUGMENT_IMAGES)
        z = autoencoder.encode(x)
        with torch.no_grad():
            rows = vectors(z)
            codebook.reseed(rows, self.draws("reseed"))
            codes = codebook.nearest(rows)
            e = codebook.entries[codes].view(len(x), -1, z.shape[1]).mT.reshape_as(z)
            codebook.follow(rows, codes, self.config.codebook_decay)
        error = F.mse_loss(autoencoder.decode(z + (e - z).detach()), x)
        return error + self.config.commitment * F.mse_loss(z, e)

    @torch.no_grad()
    def _freeze_autoencoder(self) -> None:
        """Makes the chosen average the one autoencoder of all, so that codes stay what the prior has learnt."""
        average = cast(VQVAENetwork, self.ema.network).autoencoder.state_dict()
        for network in (self.network, *cast(Any, self.ema.networks)):
            network.autoencoder.load_state_dict(average)
            network.prior.load_state_dict(self.network.prior.state_dict())
        self.ema.steps = 0  # the prior begins here: its random start mustn't stay in the averages

    def configure_optimizers(self) -> Any:
        """Adam; each phase has its own warm-up and decay, and the other's weights get no gradients."""
        first, network = self.first_prior_step, self.network
        groups = [{"params": list(part.parameters())} for part in (network.autoencoder, network.prior)]
        optimizer = torch.optim.Adam(groups, lr=self.config.lr, betas=(0.9, 0.99), fused=True)
        factors = [within(0, first), within(first, self.config.steps)]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @torch.no_grad()
    def sample(self, labels: Int64[Tensor, " b"], noise: Noise) -> Float[Tensor, "b c h w"]:
        """Ancestral sampling of the codes, each with its own row of noise, then one call of the decoder."""
        network = cast(VQVAENetwork, self.ema.network)
        places = network.grid[0] * network.grid[1]
        codes = network.draw(labels, noise("codes", (places, self.config.codes)), self.config.temperature)
        return network.decode(codes).clamp(-1, 1)

    @torch.no_grad()
    def held_out_loss(self, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """-ln p(x, codes of x | label) of each image, in nats per pixel and channel; nothing random in it.

        It is an upper bound of -ln p(x | label), and the sum of two terms: the negative log likelihood of the image's codes
        under the prior (temperature 1, "unchanged"), and `gaussian_nll` of the squared error of their decoding, with one
        variance for all the given images. Images are taken on the [-1, 1] scale, so it may be negative.
        """
        network = cast(VQVAENetwork, self.ema.network)
        pixels = images[0].numel()
        codes = network.encode(images)
        logits = network.logits(codes, labels, images.new_zeros(len(images), NUM_PARAMETERS))
        nats = F.cross_entropy(logits.mT, codes, reduction="none").sum(1)
        error = sum_per_image((network.decode(codes) - images).square()) / pixels
        return nats / pixels + gaussian_nll(error)


def vectors(z: Float[Tensor, "b d r s"]) -> Float[Tensor, "n d"]:
    """The vectors of a grid in raster order, image by image, in float32."""
    return z.permute(0, 2, 3, 1).flatten(0, 2).float()


def gumbel(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Standard normal -> standard Gumbel numbers, -ln(-ln Phi(z)), in float64; exact in both tails."""
    return -torch.log(-torch.special.log_ndtr(z.double()))


def within(start: int, end: int) -> Callable[[int], float]:
    """Factor on the learning rate: `warm_cosine` from step `start` to step `end`, 0 before and after."""
    factor = warm_cosine(end - start)
    return lambda step: factor(step - start) if start <= step < end else 0.0
