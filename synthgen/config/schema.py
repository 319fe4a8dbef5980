"""The settings of every job, frozen; an unknown key is an error. Their descriptions are the CLI's help and the docs.

One section a job; `RunConfig` is all of them together, which is what a recipe in `configs/` fills.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from synthgen.config.generators import GeneratorsConfig, LooksConfig
from synthgen.config.section import Count, Section, Share
from synthgen.errors import did_you_mean


def _generator(name: str) -> str:
    """A generator's name, built in or installed; only another than the built-in ones looks for what is installed."""
    if name not in GeneratorsConfig.model_fields:
        from synthgen.config import extensions

        if name not in (known := extensions.known()):
            raise ValueError(f"no such generator{did_you_mean(name, known)}; known: {', '.join(known)}")
    return name


ModelName = Annotated[str, AfterValidator(_generator)]


def _as_text(value: Any) -> Any:
    """A class may be called 7, which YAML reads as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("names a class twice")
    return names


ClassName = Annotated[str, BeforeValidator(_as_text)]
ClassNames = Annotated[tuple[ClassName, ...], Field(min_length=2), AfterValidator(_different)]


class DataConfig(Section):
    """Where the real images come from, and how they are brought to one shape."""

    source: Literal["digits", "folder", "parquet", "npz"] = Field(
        "digits", description="digits (scikit-learn), folder (class/name.png), parquet (Hugging Face image layout), npz"
    )
    path: str | None = Field(
        None,
        description="folder or file of the source; looked for here, then in $SYNTHGEN_DATA, then in ../shared/data",
    )
    name: str | None = Field(None, description="name of the data set; the source's own name if not given")
    classes: ClassNames | None = Field(
        None, description="only these classes, in this order, by the source's own names; all if not given"
    )
    unlabelled: ClassName | None = Field(
        None,
        description="images without a label, for the pool. folder: name of their folder; parquet and npz: the label that means "
        "none, beside which empty ones and -1 do too",
    )
    size_px: PositiveInt | None = Field(None, description="height and width; the images' own if they agree")
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 RGB; 3 if any image has colour, if not given")
    fit: Literal["crop", "pad", "stretch"] = Field(
        "crop", description="how another aspect ratio becomes square: centre crop, pad with `background`, or stretch"
    )
    filter: Literal["lanczos", "bicubic", "box", "nearest"] = Field(
        "lanczos", description="Pillow's resampling filter, antialiased"
    )
    background: Literal["white", "black", "grey"] = Field("white", description="colour under transparent pixels and padding")
    image_column: str = Field("image", description="parquet: column of {bytes, path}, or of encoded bytes")
    label_column: str = Field("label", description="parquet and npz: column or array of the labels")
    group_column: str | None = Field(None, description="parquet and npz: column or array of groups that no split may cut")
    group_pattern: str | None = Field(
        None, description="folder: regular expression on the relative path; its first group names the group"
    )
    max_unreadable: Share = Field(0.01, description="share of unreadable files above which the run stops")
    max_pixels: PositiveInt = Field(64_000_000, description="an image with more pixels is quarantined unread")


class SplitConfig(Section):
    """Who may see which image. A number is a count, a fraction below 1 a share of all; null is what is left over."""

    seed: Count = Field(0, description="another seed, another split")
    train: float | None = Field(None, ge=0, description="labelled images that generator, gate and classifier learn from")
    val: float = Field(0.15, ge=0, description="labelled images that choose checkpoints, generators and arms")
    reference: float = Field(0.2, ge=0, description="images that the gate compares with")
    reference_labelled: bool = Field(True, description="whether the reference images' labels are known to anybody")
    test: float = Field(
        0.3, ge=0, description="locked: opened once, at the end of the gain study; a given test split is used whole"
    )
    pool: float | None = Field(
        0,
        ge=0,
        description="images whose labels are hidden from everybody, beside those of the source that have none (data.unlabelled)",
    )
    keep_near_duplicates_together: bool = Field(True, description="never part near-duplicates across splits")

    @model_validator(mode="after")
    def _check(self) -> SplitConfig:
        if self.train is None and self.pool is None:
            raise ValueError("train and pool can't both be what is left over (null); give one of them a number")
        return self


class AuditConfig(Section):
    """What is looked at before anything is trained."""

    near_duplicate: float = Field(
        0.12, ge=0, le=1, description="largest normalised distance of 16x16 thumbnails that counts as a near duplicate"
    )
    label_folds: int = Field(5, ge=2, description="folds of the cross-validated prediction that label issues come from")
    min_per_class: PositiveInt = Field(2, description="fewest train images a class may have")


class AugmentConfig(Section):
    """What leaves an image's class unchanged; every classifier and the generators' augmentation draw from it."""

    flip: bool = Field(False, description="mirror left-right")
    shift_px: float = Field(1.0, ge=0, description="largest shift, in pixels")
    rotate_deg: float = Field(8.0, ge=0, le=180, description="largest rotation")
    scale: float = Field(0.08, ge=0, lt=0.5, description="largest relative change of size")
    contrast: float = Field(0.1, ge=0, lt=1, description="largest relative change of contrast (classifiers only)")


class ClassifierConfig(Section):
    """The small CNN that measures the gain, judges labels and gives the gate its features."""

    width: PositiveInt = Field(24, description="channels of the first block")
    steps: PositiveInt = Field(300, description="gradient steps; the same in every arm")
    batch_size: PositiveInt = Field(64, description="images a step")
    lr: PositiveFloat = Field(4e-3, description="peak learning rate of AdamW, one-cycle")
    weight_decay: float = Field(0.02, ge=0, description="of AdamW")
    dropout: float = Field(0.1, ge=0, lt=1, description="before the last layer")


class FeaturesConfig(Section):
    """The gate's extractor and label judge, trained on the real train fold alone, and its detector of planted defects."""

    folds: int = Field(4, ge=2, description="networks of the cross-fitted label judge, each blind to one fold of train")
    width: PositiveInt = Field(24, description="channels of the first block")
    steps: PositiveInt = Field(200, description="gradient steps of each network")
    dim: PositiveInt = Field(48, description="dimensions of the domain extractor's features")
    init_from: str | None = Field(
        None,
        description="features/ folder of another run, trained on other classes or another data set: the extractor and the judges "
        "start from its extractor, all but the class layer; width and dim must be those that it has",
    )
    defect_steps: Count = Field(300, description="gradient steps of each network of the defect detector; 0 leaves it out")
    defect_batch_size: PositiveInt = Field(40, description="images a step of the defect detector")
    extractor: Literal["domain", "inception", "dinov2", "torchscript"] = Field(
        "domain", description="domain is trained on train; the others read weights from a local file and download nothing"
    )
    path: str | None = Field(
        None,
        description="weights: a TorchScript file (inception: from a cache if not given), or dinov2's folder or cached name",
    )
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="what the weights' sha256 must be; inception knows its own"
    )
    size_px: PositiveInt | None = Field(
        None, description="height and width that torchscript (if not given: the images' own) or dinov2 (224) sees"
    )
    cache: bool = Field(True, description="keep features in the run folder's features-cache/; never changes a byte")
    devices: PositiveInt = Field(1, description="GPUs, or processes on the CPU, that share an extraction; never changes a byte")

    @model_validator(mode="after")
    def _check(self) -> FeaturesConfig:
        given = [name for name in ("path", "sha256", "size_px") if getattr(self, name) is not None]
        if self.extractor == "domain" and given:
            raise ValueError(f"{given[0]} is for extractor=inception, dinov2 or torchscript; domain is trained in the run")
        if self.extractor == "inception" and self.size_px is not None:
            raise ValueError("size_px is for dinov2 and torchscript; inception's file resizes to 299 px itself")
        if self.extractor in ("dinov2", "torchscript") and not self.path:
            what = "FILE.pt" if self.extractor == "torchscript" else "FOLDER"
            raise ValueError(f"path is not given, and extractor={self.extractor!r} needs it: features.path={what}")
        return self


class GenerateConfig(Section):
    """How many candidates are made, with which labels."""

    num: PositiveInt = Field(1000, description="candidates a generator; under labels=fill the total follows from fill_to instead")
    labels: Literal["match", "balanced", "fill", "weak"] = Field(
        "match",
        description="class mix: as in train (match), the same number of each (balanced), what each class lacks of `fill_to` "
        "(fill), or in proportion to the error on val of the gate's judges, which are trained on real images alone (weak)",
    )
    fill_to: PositiveInt | None = Field(
        None, description="labels=fill: train images and candidates of a class together; as many as the largest class has if null"
    )
    seed: Count = Field(0, description="of sampling; sample i is fixed by (checkpoint, seed, i)")
    chunk: PositiveInt = Field(64, description="micro-batch; part of the recipe, since it can change the last bit of a sample")
    batch: PositiveInt = Field(128, description="images in flight: batch / chunk chunks at a time; never changes a byte")
    precision: Literal["32-true", "bf16-mixed"] = Field(
        "32-true", description="bf16-mixed multiplies in bfloat16, in about half the time; part of the recipe"
    )

    @model_validator(mode="after")
    def _check(self) -> GenerateConfig:
        if self.fill_to is not None and self.labels != "fill":
            raise ValueError(f"fill_to is for labels=fill, and labels={self.labels}; give labels=fill, or leave fill_to out")
        return self


class BoundsConfig(Section):
    """Your own bounds on a metric's value, beside the limits relative to real images; the stricter of both decides."""

    fid: PositiveFloat | None = Field(None, description="largest FID")
    kid: float | None = Field(None, description="largest KID")
    mmd: float | None = Field(None, description="largest squared RBF MMD")
    precision: Share | None = Field(None, description="lowest precision")
    recall: Share | None = Field(None, description="lowest recall")
    density: PositiveFloat | None = Field(None, description="lowest density")
    coverage: Share | None = Field(None, description="lowest coverage")
    vendi: PositiveFloat | None = Field(None, description="lowest Vendi score")


class GateConfig(Section):
    """Per sample: keep, or drop with a reason. Per set: accept or reject, against what real scores on real."""

    false_rejection: float = Field(
        0.05, gt=0, lt=0.5, description="share of held-out real images that the per-sample checks may drop in all"
    )
    splits: int = Field(40, ge=20, description="random halves of the reference from which real-against-real is read")
    max_side: int = Field(5000, ge=100, description="most images a side of a split: what a larger set adds isn't worth its time")
    neighbours: PositiveInt = Field(5, description="k of support, precision, recall, density and coverage")
    search_px: int = Field(2, ge=0, le=4, description="copies are searched under shifts of up to this many pixels")
    search_flip: bool = Field(True, description="... and mirrored")
    duplicate_ratio: float = Field(
        0.66,
        gt=0,
        lt=1,
        description="two samples nearer to each other than this share of what real images have are duplicates, at most",
    )
    max_copy_share: Share = Field(0.1, description="share of copies among the candidates above which the set is rejected")
    max_defect: float = Field(
        0.3, gt=0, le=1, description="largest excess FID: that of a real set of which this share is blurred"
    )
    max_shift: Share = Field(
        0.5,
        description="largest shift of the kept samples in support and defect score (Somers' D): that of a set of which this "
        "share is plainly defective and the rest is real",
    )
    min_recall: Share = Field(0.8, description="lowest recall, as a share of real against real")
    min_coverage: Share = Field(0.8, description="lowest coverage, as a share of real against real")
    min_precision: Share = Field(0.8, description="lowest precision, as a share of real against real")
    min_agreement: Share = Field(0.85, description="lowest label agreement, as a share of that of held-out real images")
    min_keep: Share = Field(0.2, description="share of the candidates that must pass, else the set is rejected")
    min_kept_per_class: PositiveInt = Field(5, description="fewest kept samples of a class, else the set is rejected")
    bounds: BoundsConfig = Field(default_factory=BoundsConfig, description="your own bounds on the metrics' values")
    budget: PositiveInt | None = Field(None, description="keep this many of the valid candidates; all if not given")
    prefer: Literal["random", "entropy", "margin", "herding"] = Field(
        "random",
        description="which of the valid ones a budget takes: at random, those the real-only judges are least sure of (entropy, "
        "or margin of the two likeliest classes), or by kernel herding towards the reference",
    )
    planted: int = Field(
        200, ge=0, description="images of each kind of planted copy and defect that recall is measured on; 0 is off"
    )


class PoolConfig(Section):
    """What is done with unlabelled images beside the labelled ones (split.pool, data.unlabelled)."""

    train: bool = Field(
        False,
        description="the generator is trained on the pool too, with the labels of a committee of real-only classifiers where it "
        "is sure (DPT). Classifiers of the study may use the pool anyway",
    )
    method: Literal["fixmatch", "pseudo"] = Field(
        "fixmatch", description="how the committee uses the pool itself: FixMatch, or pseudo-labels in rounds"
    )
    networks: PositiveInt = Field(5, description="of the committee")
    confidence: Share = Field(0.6, description="lowest mean probability of the committee for an image to be taken")
    rounds: PositiveInt | None = Field(
        None, description="method=pseudo: rounds in which each further committee learns from the one before; 2 if not given"
    )

    @model_validator(mode="after")
    def _check(self) -> PoolConfig:
        if self.rounds is not None and self.method != "pseudo":
            raise ValueError(f"rounds is for method=pseudo, and method={self.method}; leave it out")
        return self


class ExportConfig(Section):
    """What leaves the factory."""

    formats: tuple[Literal["webdataset", "parquet", "folder", "npz", "mds"], ...] = Field(
        ("webdataset", "parquet"), min_length=1, description="formats to write; mds is what mosaicml-streaming reads"
    )
    encoding: Literal["balanced", "fast", "small"] = Field(
        "balanced", description="lossless all: PNG by ISA-L; PNG that isn't compressed; WebP"
    )
    samples: Literal["kept", "all"] = Field("kept", description="all: also what the gate dropped, each with its reasons")
    shard_size: PositiveInt = Field(10_000, description="most samples a shard")
    shard_mb: PositiveInt = Field(256, description="most MiB of image files a shard")
    shuffle: bool = Field(True, description="in an order that the seed fixes, each shard with the class mix of the whole")
    licence: str = Field("", max_length=200, description="of the samples, for their card: an SPDX name such as cc-by-4.0")
    to: str | None = Field(None, description="also there when all is written: s3://bucket/folder, gs://..., file://...")
    threads: Count = Field(0, description="threads that encode; 0 is one a core. Never changes a byte")


class GainConfig(Section):
    """The study: arms x seeds on the same split, with the same number of gradient steps. gain=full is gain.study=full."""

    study: Literal["quick", "full"] = Field(
        "quick", description="quick: the arms that answer the question in minutes; full: every arm that the data at hand allow"
    )
    arms: tuple[str, ...] | None = Field(None, description="arms to run instead of the study's own; `synthgen arms` lists them")
    seeds: int = Field(10, ge=2, description="classifier seeds; differences are paired by seed")
    committee: int = Field(3, ge=2, description="networks of a committee, on the real and the synthetic side alike")
    large_committee: PositiveInt = Field(
        12, description="networks of the larger real-only committee, whose cost is told beside that of generator and gate"
    )
    together: PositiveInt = Field(
        10, description="networks trained side by side in one pass; part of the recipe, since it can change the last bit"
    )
    tune_seeds: Count = Field(2, description="networks that each value of an arm's dial is tried with, on val; 0 tunes nothing")
    select_seeds: PositiveInt = Field(2, description="classifiers a generator is chosen with, on val")
    smallest_gain: float = Field(0.5, ge=0, description="gain in points of accuracy below which nobody would bother")
    curve: bool = Field(True, description="measure real-only accuracy at a quarter, half and all of train, and beyond")
    extrapolate: bool = Field(False, description="tell an exchange rate outside the measured sizes too, marked as such")
    next_images: PositiveInt = Field(100, description="real images whose worth the learning curve is asked for")
    simulate: bool = Field(
        False,
        description="open labels that the source has and the split hides, for what a user couldn't do: the oracle arm, active "
        "learning, a learning curve beyond the labelled images. No arm that the verdict rests on sees them",
    )
    acquire: int = Field(50, ge=2, description="images that an active-learning arm has labelled, in two rounds")
    pretrain_steps: PositiveInt = Field(300, description="steps of self-supervised pre-training (SimCLR)")
    watts: PositiveFloat | None = Field(
        None, description="power that energy is estimated with; if not given 10 W a CPU process, 700 W a GPU (an H200's limit)"
    )
    transfer: str | None = Field(
        None, description="what transfer arms start from: a features/ folder of another run, or a transformers folder on disk"
    )
    trials: PositiveInt = Field(
        16, description="settings that `real_searched` tries: learning rate, decay, dropout, augmentation, width, depth (optuna)"
    )

    @model_validator(mode="after")
    def _check(self) -> GainConfig:
        if self.tune_seeds > self.seeds:
            raise ValueError(f"tune_seeds={self.tune_seeds} is more than seeds={self.seeds}; lower it")
        return self


class RunConfig(Section):
    """All settings of a run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run; its folder is outputs/<name>")
    seed: Count = Field(0, description="of training; the split and sampling have their own")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes the GPU if there is one")
    precision: Literal["32-true", "bf16-mixed"] = Field("32-true", description="Lightning's precision of training")
    workers: Count = Field(0, description="processes on the CPU, each with one thread; 0 is one a core. Never changes a byte")
    tracking: Literal["off", "offline", "online", "tensorboard", "csv"] = Field(
        "off", description="off; offline and online are Weights & Biases; tensorboard and csv write OUT/logs"
    )
    project: str = Field("synthgen", description="Weights & Biases project")
    group: str | None = Field(None, description="Weights & Biases group; the name of the data set if not given")
    models: tuple[ModelName, ...] = Field(
        ("vae", "gan", "diffusion"),
        min_length=1,
        description="generators to train: vae, vqvae, gan, diffusion, or what another distribution brings",
    )
    data: DataConfig = Field(default_factory=DataConfig)
    split: SplitConfig = Field(default_factory=SplitConfig)
    audit: AuditConfig = Field(default_factory=AuditConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    generators: GeneratorsConfig = Field(default_factory=GeneratorsConfig)
    looks: LooksConfig = Field(default_factory=LooksConfig)
    features: FeaturesConfig = Field(default_factory=FeaturesConfig)
    classifier: ClassifierConfig = Field(default_factory=ClassifierConfig)
    pool: PoolConfig = Field(default_factory=PoolConfig)
    generate: GenerateConfig = Field(default_factory=GenerateConfig)
    gate: GateConfig = Field(default_factory=GateConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
    gain: GainConfig = Field(default_factory=GainConfig)

    @model_validator(mode="before")
    @classmethod
    def _settings_of_installed(cls, values: Any) -> Any:
        """An installed generator among `models` has its settings written out, as the built-in ones have."""
        models = values.get("models") if isinstance(values, Mapping) else None
        names = [name for name in models if isinstance(name, str)] if isinstance(models, list | tuple) else []
        others = [name for name in names if name not in GeneratorsConfig.model_fields]
        given = values.get("generators", {}) if others else None
        if not isinstance(given, Mapping | GeneratorsConfig):
            return values
        from synthgen.config import extensions

        added: dict[str, Any] = {name: {} for name in others if name in extensions.installed()}
        return {**values, "generators": {**added, **dict(given)}}

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.data.source != "digits" and self.data.path is None:
            raise ValueError(f"data.path is not given, and data.source={self.data.source!r} needs it: data.path=FOLDER")
        if len(set(self.models)) < len(self.models):
            raise ValueError(f"models names a generator twice: {list(self.models)}")
        if len(set(self.export.formats)) < len(self.export.formats):
            raise ValueError(f"export.formats names a format twice: {list(self.export.formats)}")
        diffusion = self.generators.diffusion
        if diffusion.guidance != 1 and diffusion.label_dropout == 0:
            raise ValueError(
                "generators.diffusion.guidance needs label_dropout above 0, so that it can learn to do without a label"
            )
        return self
