"""What params.yaml may hold: one frozen dataclass a section, read strictly.

An unknown, missing or wrongly typed key is refused by its dotted name. No field has a default: what affects a result
stands in params.yaml. A change of this file retrains nothing (see tests/test_architecture.py), so it computes nothing.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

Section = TypeVar("Section")

PARAMS_PATH = Path("params.yaml")

# Ways to compute a training step faster, each the same function (see pipeline/gan/trainer.py).
Speedup = Literal[
    "transposed_upsampling",
    "winograd",
    "channels_last",
    "fused_adam",
    "shared_features",
    "frozen_discriminator",
    "cuda_graph",
]


def load_params(section: str, cls: type[Section], path: Path = PARAMS_PATH) -> Section:
    """Read one section of params.yaml into its dataclass, and check the others: a slip in a late one costs no training.

    Raises:
        ValueError: the file, section or a key is missing, unknown, of another type or out of range, or two sections do
            not go together.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: run from the repository's root")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict) or section not in document:
        raise ValueError(f"{path}: section {section!r} is missing or holds no keys")
    asked = _read(path, section, document[section], cls)
    if unknown := [str(name) for name in document if name not in SECTIONS]:
        raise ValueError(f"{path}: unknown section {', '.join(unknown)}; it may hold {', '.join(SECTIONS)}")
    sections = {name: _read(path, name, values, SECTIONS[name]) for name, values in document.items()}
    for name, key, other_name, other_key in AT_MOST:
        if name in sections and other_name in sections:
            value, most = getattr(sections[name], key), getattr(sections[other_name], other_key)
            if value > most:
                raise ValueError(
                    f"{path}: {name}.{key} is {value}; it must be at most {other_name}.{other_key}, which is {most}"
                )
    return asked


def _read(path: Path, section: str, values: object, cls: type[Section]) -> Section:
    if not isinstance(values, dict):
        raise ValueError(f"{path}: section {section!r} is missing or holds no keys")
    fields = get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise ValueError(f"{path}: unknown key {section}.{key}; it may hold {', '.join(fields)}")
    for key in fields:
        if key not in values:
            raise ValueError(f"{path}: key {section}.{key} is missing; conf/ holds its usual value")
    try:
        typed = {key: _typed(key, values[key], kind) for key, kind in fields.items()}
        _require(typed.get("seed", 0) >= 0, "seed", typed.get("seed"), "0 or more")
        return cls(**typed)
    except ValueError as error:
        raise ValueError(f"{path}: {section}.{error}") from None


def _typed(key: str, value: object, kind: Any) -> Any:
    """Return `value` if it is of the annotated kind (an int passes as a float, a list as a tuple), else raise."""
    if get_origin(kind) is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in get_args(kind)):
            raise ValueError(f"{key} is {value!r}; it must be one of {', '.join(map(str, get_args(kind)))}")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{key} is {value!r}; it must be a list")
        return tuple(_typed(f"{key}[{index}]", item, get_args(kind)[0]) for index, item in enumerate(value))
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{key} is {value!r}; it must be a mapping, {{}} for none")
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        _require(abs(value) <= sys.float_info.max, key, value, "a finite float")
        return float(value)
    if kind is not float and type(value) is kind:
        return value
    hint = "; write it with a dot, such as 2.0e-4" if kind is float and isinstance(value, str) else ""
    raise ValueError(f"{key} is {value!r} ({type(value).__name__}); it must be {kind.__name__}{hint}")


def _require(holds: bool, key: str, value: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"{key} is {value!r}; it must be {remedy}")


def _require_positive(params: Any, *keys: str) -> None:
    for key in keys:
        _require(getattr(params, key) > 0, key, getattr(params, key), "above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetParams:
    """Section `dataset`."""

    name: str  # folder under data/raw

    def __post_init__(self) -> None:
        """Check the name: it becomes part of a path."""
        plain = self.name.replace("_", "").replace("-", "").isalnum()
        _require(plain, "name", self.name, "letters, digits, - and _ (a folder of data/raw)")


@dataclass(frozen=True, kw_only=True, slots=True)
class HardwareParams:
    """Section `hardware`: where the work runs. No DVC stage depends on it."""

    num_workers: int  # Ray workers of a training and of a map over shards
    min_workers: int  # a training goes on with so few where there are no more; 0: it waits for num_workers
    use_gpu: bool  # one GPU a training worker
    precision: Literal["auto", "float32", "bfloat16"]  # auto: bfloat16 on a GPU or an AMX unit that has it
    max_failures: int  # restarts of a training after a worker died
    device_data_mb: int  # a worker keeps the pictures on its device if they take no more, else reads them step by step
    speedups: tuple[Speedup, ...]  # of a training step

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require_positive(self, "num_workers")
        between = f"0 to num_workers, {self.num_workers}"
        _require(0 <= self.min_workers <= self.num_workers, "min_workers", self.min_workers, between)
        for key in ("max_failures", "device_data_mb"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")

    @property
    def fewest_workers(self) -> int:
        """Return the smallest number of workers that a training goes on with."""
        return self.min_workers or self.num_workers

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """Return torch's name of the device."""
        return "cuda" if self.use_gpu else "cpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class MakeDemoDatasetParams:
    """Section `make_demo_dataset`: the procedural birds."""

    num_train_classes: int
    num_test_classes: int
    images_per_class: int
    captions_per_image: int
    seed: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        keys = ("num_train_classes", "num_test_classes", "images_per_class", "captions_per_image")
        _require_positive(self, *keys)


@dataclass(frozen=True, kw_only=True, slots=True)
class CropImagesParams:
    """Section `crop_images`."""

    source: Literal["cub", "oxford", "coco", "own"]  # layout of data/raw/<dataset.name>, see pipeline/data/sources.py
    split: Literal["zero_shot", "testclasses", "official"]  # CUB's 150 + 50 classes, testclasses.txt, or the data's own
    captions_per_image: int
    on_bad_image: Literal["fail", "skip"]  # skipped pictures are counted and listed in the report
    rule: Literal["area", "published", "none"]
    min_object_area: float  # least share of the crop's area that the object fills, for rule: area
    images_per_shard: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require_positive(self, "captions_per_image", "images_per_shard")
        share = self.min_object_area
        _require(0 < share <= 1, "min_object_area", share, "above 0 and at most 1 (the paper: 0.75)")


@dataclass(frozen=True, kw_only=True, slots=True)
class FitTextEncoderParams:
    """Section `fit_text_encoder`: a text encoder and the image encoder trained beside it."""

    encoder: Literal["char_cnn_rnn", "pretrained"]  # the paper's, trained here, or one that is taken as it is
    pretrained_model: str  # for encoder: pretrained: a folder or a hub's name; empty otherwise
    image_features: Literal["data/crops/train", "models/classifier"]  # trained on these, or that, frozen
    rnn: Literal["gru", "relu"]  # the published CUB form or the Oxford-102 form
    conv_dims: tuple[int, ...]
    embedding_dim: int
    num_steps: int
    batch_size: int  # as many classes are drawn, one picture and caption each
    learning_rate: float
    lr_decay: float  # factor after every `number of train classes` steps
    seed: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require_positive(self, "embedding_dim", "num_steps", "learning_rate", "lr_decay")
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more")
        _require(len(self.conv_dims) == 3, "conv_dims", self.conv_dims, "three widths")
        _require(min(self.conv_dims) > 0, "conv_dims", self.conv_dims, "above 0")
        named = bool(self.pretrained_model)
        remedy = "the folder or the hub's name of a model for encoder: pretrained, and empty otherwise"
        _require(named == (self.encoder == "pretrained"), "pretrained_model", self.pretrained_model, remedy)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedCaptionsParams:
    """Section `embed_captions`."""

    source: str  # models/text_encoder, or a folder released_embeddings that `stackgan import-embeddings` wrote
    batch_size: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require_positive(self, "batch_size")
        known = self.source == "models/text_encoder" or self.source.endswith("/released_embeddings")
        _require(known, "source", self.source, "models/text_encoder or data/raw/<dataset>/released_embeddings")


@dataclass(frozen=True, kw_only=True, slots=True)
class GanParams:
    """Section `gan`: both stages' networks (see pipeline/gan/architecture.py) and how they are trained.

    conf/gan/ holds the paper's values and those of both published codes.
    """

    # The networks.
    stage1_size: Literal[64, 128, 256]  # side of Stage-I's pictures; 256: directly, the paper's "256 Stage-I"
    stage2_size: Literal["none", 128, 256]  # side of Stage-II's; none: Stage-I is all there is
    generator_dim: int  # gf_dim of the published code
    discriminator_dim: int  # df_dim
    z_dim: int
    condition_dim: int  # length of the conditioning code c and of D's compressed embedding
    conditioning_augmentation: bool
    condition_spread: Literal["log_variance", "log_sigma"]  # what the second half of its layer means
    condition_activation: Literal["none", "leaky_relu", "relu"]  # on both halves
    truncated_noise: bool  # eps of conditioning augmentation is cut at two standard deviations
    text_twice: bool  # Stage-II's generator gets the text again
    num_residual_blocks: int  # of the Stage-II generator; the paper: 2 for 128, 4 for 256
    bottleneck_residuals: bool  # in Stage-I's generator and both discriminators
    upsampling: Literal["nearest", "deconvolution"]  # of Stage-I's generator; the latter: GAN-INT-CLS and GAWWN
    sketch_layer: bool  # one more layer before Stage-I's picture
    joint_kernel: Literal[1, 3]  # of D's joint convolution, and of those that reduce Stage-II's features before it
    third_activation: bool  # after the third convolution of Stage-I's D, where the TensorFlow release forgot it
    # D compresses the text itself, normalises that too (GAN-INT-CLS), or sees the mean of G's code.
    discriminator_text: Literal["own", "own_normalised", "mu"]
    unconditional_head: bool  # Stage-II's D also judges pictures without their text
    logit_bias: bool
    truncated_weights: bool  # convolutions begin from a normal distribution cut at two standard deviations
    spectral_normalisation: bool  # of D; not in the paper
    box_conditioned: bool  # GAWWN's networks in Stage-I's place: told the object's box beside the text

    # Their training.
    captions_averaged: int  # embeddings of so many random captions are averaged for a training pair
    wrong_pairs: Literal["other_text", "other_image", "next_text"]  # what is exchanged, and for whose
    adversarial_loss: Literal["bce", "hinge"]
    kl_form: Literal["mean", "sum"]  # over the dimensions of the conditioning code
    kl_weight: float
    interpolation_weight: float  # of G's loss on texts half-way between two of its batch (GAN-INT-CLS); 0: none
    redraw_noise: bool  # G's update paints anew with fresh noise
    stage1_batch_statistics: bool  # the frozen Stage-I normalises by its batch while Stage-II is trained
    gradient_penalty: Literal["none", "r1", "matching_aware"]  # not in the paper
    gradient_penalty_weight: float
    ema_decay: float  # of a moving average of the generator that pictures are painted with; 0: none; not in the paper

    def __post_init__(self) -> None:
        """Check the ranges."""
        keys = (
            "generator_dim",
            "discriminator_dim",
            "z_dim",
            "condition_dim",
            "num_residual_blocks",
            "captions_averaged",
        )
        _require_positive(self, *keys)
        for key in ("kl_weight", "interpolation_weight", "gradient_penalty_weight"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        penalised = self.gradient_penalty != "none"
        remedy = "above 0 with a gradient_penalty (10.0 for r1, 2.0 for matching_aware), and 0.0 without"
        weight = self.gradient_penalty_weight
        _require(penalised == (weight > 0), "gradient_penalty_weight", weight, remedy)
        _require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "0 for none, or below 1, such as 0.999")
        halved = self.generator_dim % 8 == 0
        _require(halved, "generator_dim", self.generator_dim, "a multiple of 8 (its layers halve it)")
        refined = self.stage2_size == "none" or self.stage1_size == 64
        _require(refined, "stage1_size", self.stage1_size, "64 where a Stage-II refines it, or set stage2_size to none")
        own = self.text_twice or self.discriminator_text != "mu"
        _require(own, "discriminator_text", self.discriminator_text, "own or own_normalised where text_twice is false")
        if self.box_conditioned:
            own_text = "own or own_normalised where box_conditioned is true"
            _require(self.stage2_size == "none", "stage2_size", self.stage2_size, "none where box_conditioned is true")
            _require(self.discriminator_text != "mu", "discriminator_text", self.discriminator_text, own_text)
            remedy = "other_text or next_text where box_conditioned is true (a box belongs to its picture)"
            _require(self.wrong_pairs != "other_image", "wrong_pairs", self.wrong_pairs, remedy)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainParams:
    """Sections `train_stage1` and `train_stage2`."""

    num_epochs: int
    batch_size: int  # global: shared out among the workers
    accumulation: int  # a worker computes its share in so many parts, one after the other, to save memory
    synchronised_batchnorm: bool  # BatchNorm sees the batch of all workers instead of its own share
    learning_rate: float  # Adam, of G and D
    lr_halving_epochs: int
    checkpoint_every_epochs: int
    sample_every_epochs: int  # grids of fixed captions and noise
    differentiable_augmentation: bool  # of what D sees; not in the paper, for data sets of a few hundred pictures
    transform: dict[str, Any]  # of each picture: a pipeline as albumentations.to_dict gives it, {} for none
    seed: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        keys = (
            "num_epochs",
            "accumulation",
            "learning_rate",
            "lr_halving_epochs",
            "checkpoint_every_epochs",
            "sample_every_epochs",
        )
        _require_positive(self, *keys)
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more (BatchNorm)")


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateSamplesParams:
    """Section `generate_samples`: the frozen pictures that are scored and shown."""

    captions_per_image: int  # the first captions of every test picture
    num_varied_captions: int  # so many of these captions, of as many classes as there are, are painted several times
    variations_per_caption: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        keys = ("captions_per_image", "num_varied_captions", "variations_per_caption", "batch_size")
        _require_positive(self, *keys)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainClassifierParams:
    """Section `train_classifier`: the network behind the Inception score."""

    network: Literal["inception_v3", "resnet18"]  # resnet18: a small network for the demo, at 64x64
    weights: str  # none, imagenet (torchvision's download), or the path of a safetensors file
    # The published score's classifier knows the test classes; on COCO it is ImageNet's as it is.
    classes: Literal["train", "test", "all", "imagenet"]
    held_out_share: float  # of each class's pictures, to measure the accuracy with
    num_epochs: int
    batch_size: int
    learning_rate: float
    seed: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require_positive(self, "num_epochs", "batch_size", "learning_rate")
        share = self.held_out_share
        _require(0 < share < 1, "held_out_share", share, "between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateInceptionParams:
    """Section `evaluate_inception`."""

    num_splits: int  # the published score: 10
    num_wrong_captions: int  # captions of other classes that the true one competes with in the R-precision
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require_positive(self, "num_splits", "num_wrong_captions", "batch_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportParams:
    """Section `report`."""

    num_captions: int  # rows of pictures on the page
    seed: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require_positive(self, "num_captions")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareHumanStudyParams:
    """Section `prepare_human_study`: what raters are shown."""

    methods: tuple[str, ...]  # that are compared: of samples/, real_test, or folders of human_study/systems
    controls: tuple[str, ...]  # shown in every ballot beside them, and left out when ranks are counted
    methods_per_ballot: int  # 0: all; fewer for many methods, in balanced incomplete blocks
    num_captions: int
    pictures_per_caption: int  # of each method
    num_raters: int
    num_real_checks: int  # prompts of each rater with a real picture among the others
    num_shuffled_checks: int  # prompts with a real picture and one of another caption
    num_repeats: int  # ballots that each rater is asked for twice
    picture_size: int  # side in pixels that all pictures are brought to
    seed: int

    def __post_init__(self) -> None:
        """Check the names, which become parts of paths, and the ranges."""
        names = (*self.methods, *self.controls)
        _require(len(self.methods) >= 2, "methods", self.methods, "two names or more")
        _require(len(set(names)) == len(names), "methods", names, "different names, controls included")
        for name in names:
            plain = name.replace("_", "").replace("-", "").isalnum()
            _require(plain, "methods", name, "letters, digits, - and _")
        most = len(self.methods)
        _require(
            self.methods_per_ballot == 0 or 2 <= self.methods_per_ballot <= most,
            "methods_per_ballot", self.methods_per_ballot, f"0 for all, or 2 to {most}",
        )  # fmt: skip
        _require_positive(self, "num_captions", "pictures_per_caption", "num_raters")
        for key in ("num_real_checks", "num_shuffled_checks", "num_repeats"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        _require(64 <= self.picture_size <= 1024, "picture_size", self.picture_size, "64 to 1024")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateHumanRankParams:
    """Section `evaluate_human_rank`: whose ballots count, fixed before there are any, and how they are counted."""

    max_failed_checks: int  # a rater who fails more of the real and shuffled checks is left out
    max_reversed_share: float  # of the pairs of repeated ballots: who puts more of them the other way round is left out
    min_median_sec: float  # a rater whose median ballot took less time is left out
    min_answered_share: float  # of the planned ballots: a rater who gave fewer is left out
    confidence: float  # of intervals; 1 less this is the level of tests
    num_resamples: int  # of the bootstrap and of the permutation test
    seed: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require(self.max_failed_checks >= 0, "max_failed_checks", self.max_failed_checks, "0 or more")
        for key in ("max_reversed_share", "min_answered_share"):
            _require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "0 to 1")
        _require(self.min_median_sec >= 0, "min_median_sec", self.min_median_sec, "0 or more")
        _require(0.5 <= self.confidence < 1, "confidence", self.confidence, "0.5 or more and below 1, such as 0.95")
        _require(self.num_resamples >= 100, "num_resamples", self.num_resamples, "100 or more")


SECTIONS: dict[str, type[Any]] = {
    "dataset": DatasetParams,
    "hardware": HardwareParams,
    "make_demo_dataset": MakeDemoDatasetParams,
    "crop_images": CropImagesParams,
    "fit_text_encoder": FitTextEncoderParams,
    "embed_captions": EmbedCaptionsParams,
    "gan": GanParams,
    "train_stage1": TrainParams,
    "train_stage2": TrainParams,
    "generate_samples": GenerateSamplesParams,
    "train_classifier": TrainClassifierParams,
    "evaluate_inception": EvaluateInceptionParams,
    "prepare_human_study": PrepareHumanStudyParams,
    "evaluate_human_rank": EvaluateHumanRankParams,
    "report": ReportParams,
}
# What may not be more than what an earlier stage makes.
AT_MOST = (
    ("gan", "captions_averaged", "crop_images", "captions_per_image"),
    ("generate_samples", "captions_per_image", "crop_images", "captions_per_image"),
    ("prepare_human_study", "pictures_per_caption", "generate_samples", "variations_per_caption"),
)
