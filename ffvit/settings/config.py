"""What a run is: every setting with its type, range, default and meaning, checked before any work is done.

A setting decides the result, or is declared by `machine` to say only how and where it is computed.
"""

import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from ffvit.system.errors import InputError, suggest
from ffvit.system.files import RUNS

Count = Annotated[int, Field(ge=1, le=10**6)]
NotNegative = Annotated[int, Field(ge=0, le=10**9)]
Amount = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Channels = Annotated[tuple[float, ...], Field(strict=False)]  # a value each; of files, a list, which becomes a tuple
Pair = Annotated[tuple[float, float], Field(strict=False)]
Epochs = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)]
Label = Annotated[str, Field(min_length=1, json_schema_extra={"machine": True})]
# timm's policies of automatic augmentation: AutoAugment, RandAugment, AugMix, 3-Augment.
POLICY = r"|(v0|v0r|original|originalr|3a|rand|augmix)(-(m|mstd|n|p|w|t|d|b|a|inc)[\d.]+)*"

# What a model learns to give: a class for an image; boxes; boxes and masks; a class for every pixel.
Task = Literal["classification", "detection", "instance_segmentation", "semantic_segmentation"]

WEIGHT_FILES = (".safetensors", ".pth")


def machine(default: Any) -> Any:
    """A setting that decides no result: beyond rounding, and which process draws which random number."""
    return Field(default, json_schema_extra={"machine": True})


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class Config:
    """Every setting of one run. Flat on purpose: a name means the same in a file, a notebook and the shell."""

    # What is run
    experiment: str
    task: Task = "classification"
    name: Annotated[str, Field(pattern=r"^[\w.-]*\w$", max_length=100)]  # of the model; run id: <name>-seed<seed>
    label: Label  # of the model in tables and legends
    model: Annotated[str, Field(min_length=1)]  # a name that timm.create_model knows
    seed: NotNegative = 0
    recipe: str = ""

    # The model. Its own arguments go to timm.create_model as they are, which refuses what it does not know
    img_size: Annotated[int, Field(ge=1, le=10_000)] = 224
    in_chans: Literal[1, 3] = 3  # 1: grey
    drop_rate: Share = 0.0
    drop_path_rate: Share | None = 0.0  # None: the model's own
    model_args: dict[str, Any] = Field(default_factory=dict)  # such as patch_size, embed_dim, depth, num_heads

    # What training starts from, resampled to img_size: a .safetensors or .pth file, or a model of the experiment, whose run
    # of the same seed is then trained first. In a comparison, "grid" is the model that it varies. Empty: random weights
    initial_weights: str = ""

    # Images
    dataset: Annotated[str, Field(min_length=1)]  # "digits" or another of data.embedded, a hub id, or a local folder
    train_split: str = "train"
    validation_split: str = ""  # scored after every epoch; empty: hold out validation_fraction of the training images
    validation_fraction: Share = 0.1
    test_split: str = "test"  # scored once, after training, by ffvit score
    test_fraction: Share = 0.0  # of the training images, held out as the test images instead of a test_split; 0: none
    score_train: bool = machine(False)  # score the training images too, not augmented: how much better they are known
    allow_overlap: bool = False  # one split in two roles, such as ImageNet's validation images as test images too
    image_column: str = ""  # empty: found from the dataset's features
    label_column: str = ""
    max_train_images: NotNegative = 0  # 0: all; otherwise a fixed random subset
    max_eval_images: NotNegative = 0
    mean: Channels = (0.485, 0.456, 0.406)
    std: Channels = (0.229, 0.224, 0.225)
    in_memory: bool = False  # decode once and keep: for small images
    augment: Literal["image", "batch"] = "image"  # by timm, one by one; or many at a time, on the device, once decoded
    streaming: bool = False  # read the training images from parquet files as they are needed, on disk or on the hub
    shuffle_buffer: Count = 4096  # streaming: images that are mixed with one another
    ignore_index: Annotated[int, Field(ge=0, le=65535)] = 255  # of semantic maps: a value that is no class
    reduce_zero_label: bool = False  # of semantic maps: classes count from 1, and 0 is ignored, as in ADE20K's
    bad_images: Literal["refuse", "skip"] = "refuse"  # files that are no whole images; skipped ones are recorded

    # Augmentation and regularisation
    crop_scale: Pair = (0.08, 1.0)
    crop_ratio: Pair = (3 / 4, 4 / 3)
    hflip: Probability = 0.5
    auto_augment: Annotated[str, Field(pattern=f"^({POLICY})$")] = ""
    random_erasing: Probability = 0.0
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    crop_pct: Annotated[float, Field(gt=0, le=10)] = (
        0.875  # evaluation resizes to img_size / crop_pct, and crops the centre
    )
    scale_range: Pair = (1.0, 1.0)  # semantic segmentation: how large an image is, before a crop of img_size is taken
    photometric_distortion: bool = (
        False  # SSD's brightness, contrast, saturation and hue, for tasks other than classification
    )
    repeated_augmentation: NotNegative = 0  # DeiT: 3, each image appears three times in a global batch
    mixup: Amount = 0.0
    cutmix: Amount = 0.0
    label_smoothing: Share = 0.0

    # Optimisation
    epochs: Count = 300
    batch_size: Count = 1024  # images per update over all processes
    base_lr: Amount = 5e-4  # for 512 images; the rate used is base_lr * batch_size / 512
    optimizer: str = "adamw"
    weight_decay: Amount = 0.05
    decays: Literal["matrices", "all but norms", "all"] = "matrices"  # which parameters; norms: and tables of positions
    schedule: Literal["cosine", "multistep", "poly"] = "cosine"
    decay_epochs: Epochs = ()  # multistep: after each of them a tenth of the rate
    warmup_epochs: NotNegative = 5
    warmup_updates: NotNegative = 0  # instead of warmup_epochs, for a warm-up shorter than an epoch
    warmup_lr: Amount = 1e-6
    min_lr: Amount = 1e-5
    scale_all_lr: bool = False  # warmup_lr and min_lr, too, are for 512 images, as Swin has it
    offset_lr_ratio: Amount = 1.0  # of deformable mergings: the offset weights' share of the rate
    cooldown_epochs: NotNegative = 0  # at min_lr, after `epochs`
    schedule_per: Literal["epoch", "update", "late update"] = "epoch"  # "epoch" as DeiT steps it, "late update" as Swin
    clip_grad: Amount = 0.0  # global norm; 0: none
    ema_decay: Share = 0.0  # of an averaged copy of the weights, saved beside the raw ones; 0: none
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"

    # Machine
    device: Literal["auto", "cuda", "cpu", "mps"] = machine("auto")  # auto: the best there is
    num_processes: Count = machine(1)
    num_workers: NotNegative = machine(0)  # processes that decode images, per training process
    accumulation_steps: NotNegative = machine(1)  # parts a process's share of a batch is cut into; 0: as few as fit
    grad_checkpointing: bool = machine(False)  # compute activations twice: less memory, a third more time
    compile: bool = machine(False)  # torch.compile
    checkpoint_every: NotNegative = machine(0)  # updates between checkpoints within an epoch; 0: only after an epoch
    checkpoint_seconds: Amount = machine(0.0)  # leave out the checkpoint after an epoch while the last is not so old
    tracker: str = machine("")  # "tensorboard", or another tracker that accelerate knows and that is installed

    @model_validator(mode="wrap")
    @classmethod
    def _refused_by_name(cls, values, handler):
        try:
            return handler(values)
        except ValidationError as error:
            raise InputError("; ".join(map(_in_words, error.errors(include_url=False)[:3]))) from None

    @model_validator(mode="after")
    def _fit_together(self):
        _check(self)
        return self

    @property
    def run_id(self) -> str:
        return f"{self.name}-seed{self.seed}"

    @property
    def run_dir(self) -> Path:
        """Where the run lives unless told otherwise: runs/<experiment>/<run id>."""
        return RUNS / self.experiment / self.run_id

    @property
    def first_run(self) -> str:
        """The run of this experiment that gives the initial weights, by its id; empty: none does."""
        named = self.initial_weights and Path(self.initial_weights).suffix not in WEIGHT_FILES
        return f"{self.initial_weights}-seed{self.seed}" if named else ""

    @property
    def initial_file(self) -> Path | None:
        """Where the initial weights are; None: they are random."""
        if self.first_run:
            return RUNS / self.experiment / self.first_run / "last.safetensors"
        return Path(self.initial_weights).expanduser() if self.initial_weights else None

    @property
    def total_epochs(self) -> int:
        return self.epochs + self.cooldown_epochs

    def micro_batch(self, accumulation_steps: int) -> int:
        """Images that a process takes at a time."""
        return self.batch_size // self.num_processes // accumulation_steps

    def to_dict(self) -> dict:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


SETTINGS = cast(Any, Config).__pydantic_fields__  # name -> type, default, and whether it is the machine's
# Those that decide no result, and may differ when a run goes on.
MACHINE = {name for name, field in SETTINGS.items() if (field.json_schema_extra or {}).get("machine")}


def alone(config: Config) -> Config:
    """What several processes trained, for one to score: all images, in batches of the same size."""
    size = config.micro_batch(config.accumulation_steps or 1)
    return replace(config, num_processes=1, accumulation_steps=1, batch_size=size)


# Where pydantic's own words do not say what to do.
RULES = {
    ("name", "string_pattern_mismatch"): "name a folder: use letters, digits, '_', '-' and '.'",
    ("auto_augment", "string_pattern_mismatch"): "be a policy of timm's, such as rand-m9-mstd0.5-inc1",
    ("crop_scale", "missing"): "be two numbers",
    ("crop_scale", "too_long"): "be two numbers",
    ("crop_ratio", "missing"): "be two numbers",
    ("crop_ratio", "too_long"): "be two numbers",
}


def _in_words(error: Any) -> str:
    """pydantic's finding as "epochs must be greater than or equal to 1, got 0"."""
    name = str(error["loc"][0])
    if error["type"] == "unexpected_keyword_argument":
        return f"'{name}' is no setting of a run{suggest(name, SETTINGS)}"
    if error["type"] == "missing" and len(error["loc"]) == 1:
        return f"a run needs the setting '{name}' too"
    rule = RULES.get((name, error["type"]), error["msg"].removeprefix("Input should "))
    return f"{name} must {rule}, got {short(error['input'])}"


def short(value: object) -> str:
    """A value in an error message."""
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."


# Arguments of models that say how many layers are made one by one: what has more takes minutes before it can be refused.
OF_DEPTH, DEEPEST = re.compile("depth|layer|block|stage"), 300


def _check_model_args(name: str, value: Any) -> None:
    """Raise InputError for what no model takes, or can be made of."""
    if isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            _check_model_args(f"{name}.{key}", part)
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise InputError(f"{name} must be a number, text or truth value, got {value!r}")
    elif "ratio" in name and isinstance(value, int | float) and value <= 0:  # timm's Mlp takes 0 for 1
        raise InputError(f"{name} must be larger than 0, got {value}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{name} must be a finite number, got {value}")
    elif isinstance(value, int):
        most = DEEPEST if OF_DEPTH.search(name) else 10**6
        if not 0 <= value <= most:
            raise InputError(f"{name} must be from 0 to {most:,}, got {value!r:.40}")


def _check(c: Config) -> None:
    """What no setting alone can tell. Raises InputError."""

    def need(condition: object, message: str) -> None:
        if not condition:
            raise InputError(message)

    need(
        c.experiment not in ("", ".", "..") and not re.search(r"[/\0]", c.experiment),
        f"experiment must name a folder, got {c.experiment!r:.80}",
    )
    _check_model_args("model_args", c.model_args)

    need(
        not c.first_run or re.fullmatch(r"[\w.-]*\w", c.initial_weights),
        f"initial_weights must be a file ({' or '.join(WEIGHT_FILES)}) or a model of the experiment, got "
        f"{c.initial_weights!r:.80}",
    )
    need(c.initial_weights != c.name, f"initial_weights: {c.name!r:.80} cannot start from itself")
    need(0 < c.crop_scale[0] <= c.crop_scale[1] <= 1, f"crop_scale must be shares of the area, got {c.crop_scale}")
    need(0 < c.crop_ratio[0] <= c.crop_ratio[1], f"crop_ratio must be (smallest, largest), got {c.crop_ratio}")
    need(
        not (c.auto_augment and c.in_chans == 1), "auto_augment needs colour images: set auto_augment='' or in_chans=3"
    )
    need(len(c.mean) == len(c.std) == c.in_chans, f"mean and std must have in_chans = {c.in_chans} values each")
    need(min(c.std) > 0, "std must be positive")
    need(
        c.warmup_epochs < c.epochs or c.warmup_epochs == 0,
        f"warmup_epochs ({c.warmup_epochs}) must be fewer than epochs ({c.epochs}); set warmup_epochs=0",
    )
    parts = c.num_processes * (c.accumulation_steps or 1)
    need(
        c.batch_size % parts == 0,
        f"batch_size {c.batch_size} is for all processes and must divide by num_processes {c.num_processes}"
        + (f" x accumulation_steps {c.accumulation_steps}" if c.accumulation_steps > 1 else ""),
    )
    if c.mixup or c.cutmix:
        need(
            c.batch_size // parts % 2 == 0,
            f"mixup pairs images: what a process takes at a time must be even, got {c.batch_size // parts}",
        )
    need(
        0 < c.scale_range[0] <= c.scale_range[1] <= 10, f"scale_range must be (smallest, largest), got {c.scale_range}"
    )
    rises = all(a < b for a, b in zip((0, *c.decay_epochs), (*c.decay_epochs, c.epochs)))
    need(
        (c.schedule == "multistep") == bool(c.decay_epochs) and (rises or not c.decay_epochs),
        f"decay_epochs must rise and lie below epochs with schedule='multistep', and be empty without, got {c.decay_epochs}",
    )
    need(
        not c.warmup_updates or c.warmup_epochs == 0 and c.schedule_per != "epoch",
        "warmup_updates replaces warmup_epochs: set warmup_epochs=0 and schedule_per='update'",
    )
    if c.augment == "batch":
        need(
            c.interpolation != "nearest",
            "augment='batch' interpolates: set interpolation='bilinear' or 'bicubic', or augment='image'",
        )
        need(
            not c.in_memory or c.interpolation == "bilinear",
            "augment='batch' crops images that are in memory bilinearly: set interpolation='bilinear', or in_memory=false",
        )
    if c.streaming:
        need(
            c.validation_split and not c.test_fraction,
            "streaming holds nothing out of the training images: give validation_split, test_split and test_fraction=0",
        )
        need(not c.in_memory, "streaming=true and in_memory=true exclude each other")
        need(not c.repeated_augmentation, "streaming repeats no image within a batch: set repeated_augmentation=0")
        need(not c.score_train, "streaming passes training images by and scores none of them: set score_train=false")
        need(not c.max_train_images, "streaming reads all training images: set max_train_images=0")
    need(c.train_split, "train_split is empty: name the split to train on")
    need(c.test_split or c.test_fraction, "give test_split, or a test_fraction of the training images")
    need(
        c.validation_fraction + c.test_fraction < 1,
        f"validation_fraction {c.validation_fraction} and test_fraction {c.test_fraction} leave nothing to train on",
    )
    if not c.validation_split:
        need(c.validation_fraction >= 1e-3, "give validation_split, or a validation_fraction of at least 0.001")
