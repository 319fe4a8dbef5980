"""The settings of each generator, and of what is looked at while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, create_model, model_validator

from synthgen.config.section import Count, Section, Share


def _several(value: Any) -> Any:
    """One number as a list of one."""
    return (value,) if isinstance(value, int | float) else value


Decay = Annotated[float, Field(ge=0, lt=1)]
Decays = Annotated[tuple[Decay, ...], BeforeValidator(_several), Field(min_length=1, max_length=8)]
PerClass = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], BeforeValidator(_several), Field(min_length=1)]


class GeneratorConfig(Section):
    """What all generators have in common."""

    width: PositiveInt = Field(32, description="channels at full resolution")
    steps: PositiveInt = Field(400, description="training steps")
    batch_size: PositiveInt = Field(64, description="training images a step")
    lr: PositiveFloat = Field(2e-3, description="peak learning rate of Adam, warmed up and cosine-decayed")
    ema: Decays = Field(
        (0.995,),
        description="decays of moving averages of the weights that samples are drawn with; the looks (`looks.times`) choose one",
    )
    init_from: str | None = Field(
        None, description="checkpoint to start from: a generator.safetensors, or (diffusion) a diffusers folder; fresh if null"
    )


class VAEConfig(GeneratorConfig):
    """Conditional VAE with a calibrated decoder (Rybkin 2021): the noise level, hence beta, is learned."""

    kind: Literal["vae"] = Field("vae", description="always vae: what its checkpoint calls it")
    latent_dim: PositiveInt = Field(16, description="dimensions of the latent")
    beta: Literal["learned"] | PositiveFloat = Field(
        "learned", description="learned, or the weight of KL at unit decoder variance"
    )
    warmup: Share = Field(0.2, description="share of the steps over which KL is annealed in from 0")
    free_bits: float = Field(0.0, ge=0, description="nats of each latent dimension that cost nothing (Kingma 2016)")


class VQVAEConfig(GeneratorConfig):
    """VQ-VAE (van den Oord 2017): discrete codes, and a class-conditional transformer that learns which codes go together."""

    kind: Literal["vqvae"] = Field("vqvae", description="always vqvae: what its checkpoint calls it")
    batch_size: PositiveInt = Field(32, description="training images a step")
    lr: PositiveFloat = Field(
        8e-3, description="peak learning rate of Adam, warmed up and cosine-decayed in each of its two phases"
    )
    codes: int = Field(32, ge=2, le=65536, description="entries of the codebook")
    code_dim: PositiveInt = Field(16, description="dimensions of an entry")
    halvings: int = Field(1, ge=0, le=8, description="times that the image is halved on the way to its codes")
    commitment: PositiveFloat = Field(0.25, description="weight of the commitment loss")
    codebook_decay: float = Field(0.95, gt=0, lt=1, description="decay of the codebook's moving averages")
    prior_share: float = Field(0.5, gt=0, lt=1, description="share of the steps, the last ones, that train the prior")
    prior_width: PositiveInt = Field(64, description="channels of the prior")
    prior_layers: PositiveInt = Field(2, description="layers of the prior")
    prior_heads: PositiveInt = Field(4, description="attention heads of the prior")
    prior_dropout: float = Field(0.1, ge=0, lt=1, description="dropout in the prior")
    temperature: PositiveFloat = Field(1.0, description="of sampling codes; below 1 trades recall for precision")

    @model_validator(mode="after")
    def _check(self) -> VQVAEConfig:
        if self.prior_width % self.prior_heads:
            raise ValueError(f"prior_width must be a multiple of prior_heads={self.prior_heads}")
        return self


class GANConfig(GeneratorConfig):
    """Class-conditional GAN for little data: relativistic with R1 and R2 (Huang 2024), adaptive DiffAugment (Zhao 2020), EMA."""

    kind: Literal["gan"] = Field("gan", description="always gan: what its checkpoint calls it")
    loss: Literal["relativistic", "hinge"] = Field(
        "relativistic",
        description="relativistic with R1 and R2 (R3GAN, Huang 2024), or hinge with spectral norm and projection (Miyato 2018)",
    )
    gamma: float = Field(
        2.0,
        ge=0,
        description="weight of the gradient penalties R1 and R2 of loss=relativistic; 2 suits 8x8 images, 0.05 suits 32x32",
    )
    batch_size: PositiveInt = Field(32, description="training images a step")
    lr: PositiveFloat = Field(1e-3, description="learning rate of the generator")
    lr_discriminator: PositiveFloat = Field(1e-3, description="learning rate of the discriminator")
    latent_dim: PositiveInt = Field(32, description="dimensions of the latent")
    diffaugment: tuple[Literal["brightness", "translation", "cutout"], ...] = Field(
        ("brightness", "translation", "cutout"), description="what DiffAugment does to real and fake alike"
    )
    adaptive: Share | None = Field(
        0.6,
        description="aim of adaptive augmentation (Karras 2020): how sure the discriminator is to be of real images, 0 for "
        "guessing and 1 for always right, held by applying DiffAugment with a probability that follows; null applies it always",
    )
    truncation: PerClass = Field(
        (1.0,), description="latents are drawn towards their class's mean by this factor; one number, or one a class"
    )


class DiffusionConfig(GeneratorConfig):
    """Denoising on a diffusers UNet2DModel: EDM (Karras 2022) or flow matching; class-conditional, augmentation told."""

    kind: Literal["diffusion"] = Field("diffusion", description="always diffusion: what its checkpoint calls it")
    objective: Literal["edm", "flow"] = Field(
        "edm",
        description="what the network predicts: EDM's mix of image and noise, or flow matching's velocity (Lipman 2023); "
        "a diffusers folder in `init_from` brings its own",
    )
    channel_mults: tuple[PositiveInt, ...] = Field((1, 2), min_length=1, description="channels of each resolution, in widths")
    layers: PositiveInt = Field(1, description="residual blocks a resolution")
    attention: bool = Field(False, description="self-attention at the lowest resolution")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout in the residual blocks")
    p_mean: float = Field(-0.8, description="mean of ln sigma in training (flow: of logit t, which is the same)")
    p_std: PositiveFloat = Field(1.2, description="standard deviation of ln sigma in training")
    sigma_data: PositiveFloat = Field(0.5, description="standard deviation of the pixels in [-1, 1]")
    sigma_min: PositiveFloat = Field(0.002, description="lowest noise level of sampling")
    sigma_max: PositiveFloat = Field(80.0, description="highest noise level of sampling")
    augment: Share = Field(0.3, description="probability of each augmentation; the network is told, so samples don't show it")
    label_dropout: Share = Field(0.1, description="share of labels hidden in training, for guidance")
    lora_rank: Count = Field(
        0, description="above 0: only low-rank changes (Hu 2021) of the attention layers of `init_from` are trained"
    )
    compile: bool = Field(
        False, description="torch.compile the U-Net: for long runs on a GPU, after a minute or more at the start; other last bits"
    )
    sampler: Literal[
        "dpmpp_2m", "heun", "euler", "ddim", "diffusers_ddim", "diffusers_dpmpp", "diffusers_unipc", "diffusers_euler"
    ] = Field(
        "dpmpp_2m",
        description="DPM-Solver++(2M), Heun (2 network calls a step), Euler, DDIM (the same as Euler), or a diffusers scheduler",
    )
    spacing: Literal["karras", "angle", "flow"] = Field(
        "karras", description="how noise levels are spaced: Karras 2022, even in arctan(sigma), or even in flow matching's time"
    )
    sampling_steps: int = Field(12, ge=2, le=1000, description="steps of the sampler")
    guidance: float = Field(
        1.0, ge=0, description="classifier-free guidance scale; 1 is none and needs one network call instead of two"
    )
    guidance_interval: tuple[float, float] | None = Field(
        None, description="guide only while sigma lies between these two (Kynkäänniemi 2024); null guides always"
    )

    @model_validator(mode="after")
    def _check(self) -> DiffusionConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max={self.sigma_max:g}")
        if self.guidance_interval and not 0 <= self.guidance_interval[0] < self.guidance_interval[1]:
            raise ValueError("guidance_interval must be two noise levels, the lower one first: [0.2, 5]")
        own = {name: type(self).model_fields[name].default for name in ("spacing", "sigma_min", "sigma_max")}
        changed = [name for name, value in own.items() if getattr(self, name) != value]
        if self.sampler.startswith("diffusers_") and changed:
            raise ValueError(
                f"{changed[0]} has no effect on sampler={self.sampler}, which has its own noise levels: leave it out"
            )
        if self.lora_rank and not self.init_from:
            raise ValueError("lora_rank changes a trained network: give init_from too")
        return self


class GeneratorsConfig(Section):
    """The settings of each generator: the built-in ones, and those that an installed distribution brings."""

    model_config = ConfigDict(extra="allow")  # an installed generator's section; `_check_installed` refuses the rest

    vae: VAEConfig = Field(default_factory=VAEConfig, description="conditional VAE")
    vqvae: VQVAEConfig = Field(default_factory=VQVAEConfig, description="VQ-VAE with a learned prior")
    gan: GANConfig = Field(default_factory=GANConfig, description="GAN")
    diffusion: DiffusionConfig = Field(default_factory=DiffusionConfig, description="diffusion or flow matching")

    def of(self, kind: str) -> GeneratorConfig:
        """The settings of one generator, built in or installed; its defaults where none are given.

        Raises:
            ConfigError: no such generator, or its distribution is at fault.
        """
        given = getattr(self, kind) if kind in type(self).model_fields else (self.model_extra or {}).get(kind)
        if given is None:
            from synthgen.config import extensions

            given = extensions.config_of(kind)()
        found: GeneratorConfig = given
        return found

    @model_validator(mode="before")
    @classmethod
    def _check_installed(cls, values: Any) -> Any:
        """Sections that aren't built in become the settings of the installed generators that they name."""
        extra = {k: v for k, v in values.items() if k not in cls.model_fields} if isinstance(values, Mapping) else {}
        if not extra:
            return values
        from synthgen.config import extensions  # reads the metadata of all distributions: for unknown names alone

        names = set(extensions.installed())
        sections: Any = {name: (extensions.config_of(name), ...) for name in extra if name in names}
        installed: Any = create_model("Installed", __base__=Section, **sections)
        # what it raises holds every fault with its key, and pydantic takes that over
        return {**values, **dict(installed.model_validate(extra))}


class LooksConfig(Section):
    """What is looked at while a generator trains: which step's weights are kept, and when training stops."""

    times: Count = Field(8, description="looks, evenly spread; 0 keeps the last step unseen")
    num: int = Field(256, ge=50, description="samples a look, always from the same noise")
    max_copy_share: Share = Field(
        0.05, description="training stops at a look in which a larger share of the samples are copies of training images"
    )
    tolerance: float = Field(
        2.0,
        ge=0,
        description="a step whose held-out loss is worse than the best by more than this many standard errors isn't kept",
    )
