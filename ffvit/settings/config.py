"""What a run is: every setting with its type, default and meaning, checked before any work is done."""

import math
import re
import tomllib
import typing
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path

from ffvit.system.errors import InputError
from ffvit.system.files import RUNS


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of one run. Flat on purpose: a name means the same in a file, a notebook and the shell."""

    # What is run
    experiment: str
    name: str  # of the model within the experiment; run id: <name>-seed<seed>
    label: str  # of the model in tables and legends
    model: str  # a name that timm.create_model knows, of a model with a fixed img_size
    seed: int = 0
    recipe: str = ""

    # Shape of the model; None: the model's own
    img_size: int = 224
    patch_size: int | None = None
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | tuple[int, ...] | None = None  # of a pyramid, one for each stage
    mlp_ratio: float | None = None
    drop_rate: float = 0.0
    drop_path_rate: float | None = 0.0
    # Shape of a pyramid (LIT), one value for each stage
    embed_dims: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None
    mlp_ratios: tuple[float, ...] | None = None
    attention_stages: tuple[int, ...] | None = None  # those with attention, from 1
    deformable: bool | None = None  # whether mergings choose where to look, or are plain: a convolution and a norm

    # Images
    dataset: str  # "digits", a hub id, or a local folder (parquet, image folder or save_to_disk)
    train_split: str = "train"
    validation_split: str = ""  # scored after every epoch; empty: hold out validation_fraction of the training images
    validation_fraction: float = 0.1
    test_split: str = "test"  # scored once, after training, by ffvit score
    test_fraction: float = 0.0  # of the training images, held out as the test images instead of a test_split; 0: none
    allow_overlap: bool = False  # one split in two roles, such as ImageNet's validation images as test images too
    image_column: str = ""  # empty: found from the dataset's features
    label_column: str = ""
    max_train_images: int = 0  # 0: all; otherwise a fixed random subset
    max_eval_images: int = 0
    in_chans: int = 3  # 1: grey
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    in_memory: bool = False  # decode once and keep: for small images
    augment: str = "image"  # each by itself, in the loader; "batch": many at a time, on the device, with in_memory
    streaming: bool = False  # read the training images from parquet files as they are needed, on disk or on the hub
    shuffle_buffer: int = 4096  # streaming: images that are mixed with one another
    bad_images: str = "refuse"  # or "skip": what to do with a file that is no whole image; skipped ones are recorded

    # Augmentation and regularisation
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    auto_augment: str = ""
    random_erasing: float = 0.0
    interpolation: str = "bicubic"
    crop_pct: float = 0.875  # evaluation resizes to img_size / crop_pct, then crops the centre
    repeated_augmentation: int = 0  # DeiT: 3, each image appears three times in a global batch
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0

    # Optimisation
    epochs: int = 300
    batch_size: int = 1024  # images per update over all processes
    base_lr: float = 5e-4  # for 512 images; the rate used is base_lr * batch_size / 512
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    warmup_epochs: int = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    scale_all_lr: bool = False  # warmup_lr and min_lr, too, are for 512 images, as Swin has it
    offset_lr_ratio: float = 1.0  # of deformable mergings: the offset weights' share of the rate
    cooldown_epochs: int = 0  # at min_lr, after `epochs`
    schedule_per: str = (
        "epoch"  # as DeiT steps it, see ffvit.settings.recipes.deit; "update", or "late update", as Swin
    )
    clip_grad: float = 0.0  # global norm; 0: none
    ema_decay: float = 0.0  # of an averaged copy of the weights, saved beside the raw ones; 0: none

    # Machine
    device: str = "auto"  # "cuda", "cpu", "mps"; auto: the best there is
    num_processes: int = 1
    mixed_precision: str = "no"  # "bf16", "fp16"
    num_workers: int = 0  # processes that decode images, per training process
    accumulation_steps: int = 1  # parts a process's share of a batch is cut into; 0: as few as memory allows
    grad_checkpointing: bool = False  # compute activations twice: less memory, a third more time
    compile: bool = False  # torch.compile
    checkpoint_every: int = 0  # updates between checkpoints within an epoch; 0: none but those after an epoch
    checkpoint_seconds: float = 0.0  # leave out the checkpoint after an epoch while the last one is not so old
    tracker: str = ""  # "tensorboard", or another tracker that accelerate knows and that is installed

    def __post_init__(self):
        for f in fields(self):
            object.__setattr__(self, f.name, _typed(f.name, getattr(self, f.name), f.type))
        _check(self)

    @property
    def run_id(self) -> str:
        return f"{self.name}-seed{self.seed}"

    @property
    def run_dir(self) -> Path:
        """Where the run lives unless told otherwise: runs/<experiment>/<run id>."""
        return RUNS / self.experiment / self.run_id

    @property
    def lr(self) -> float:
        """Peak learning rate: linear in the global batch (DeiT's rule, arXiv:2012.12877, section 6)."""
        return self.base_lr * self.batch_size / 512

    @property
    def lowest_lr(self) -> tuple[float, float]:
        """Learning rates at the start of the warm-up and at the end of the cosine."""
        scale = self.batch_size / 512 if self.scale_all_lr else 1
        return self.warmup_lr * scale, self.min_lr * scale

    @property
    def total_epochs(self) -> int:
        return self.epochs + self.cooldown_epochs

    def micro_batch(self, accumulation_steps: int) -> int:
        """Images that a process takes at a time."""
        return self.batch_size // self.num_processes // accumulation_steps

    def to_dict(self) -> dict:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


REMOVED = {"parallel": "ddp"}  # settings that files still hold, with the only value that means what runs do today


def config_from_dict(values: dict) -> Config:
    """The inverse of Config.to_dict, for a config.json of a run, also of one that holds settings removed since."""
    values = _without_removed(values)
    needed = {f.name for f in fields(Config) if f.default is MISSING}
    if unknown := set(values) - {f.name for f in fields(Config)}:
        raise InputError(f"{sorted(unknown)}: no settings of a run; was this config written by another version?")
    if missing := needed - set(values):
        raise InputError(f"a run needs the settings {sorted(missing)} too")
    return Config(**values)


def with_defaults(values: dict) -> dict:
    """Settings that were written down, those younger than the file with their default, without those removed since."""
    values = _without_removed(values)
    defaults = {f.name: f.default for f in fields(Config) if f.default is not MISSING}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in {**defaults, **values}.items()}


def _without_removed(values: dict) -> dict:
    return {name: value for name, value in values.items() if (name, value) not in REMOVED.items()}


def parse_setting(text: str) -> tuple[str, object]:
    """'epochs=3' -> ('epochs', 3). Values are TOML; a bare word is a string."""
    key, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"'{text}': write settings as name=value, such as epochs=3")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def _typed(name: str, value, hint):
    """value as the annotated type, or InputError. Only int -> float and list -> tuple are converted."""
    allowed = typing.get_args(hint) if typing.get_origin(hint) is not tuple and typing.get_args(hint) else (hint,)
    for kind in allowed:
        if kind is type(None) and value is None:
            return None
        if typing.get_origin(kind) is tuple and isinstance(value, (list, tuple)):
            items = typing.get_args(kind)
            if items[-1] is Ellipsis or len(items) == len(value):
                return tuple(_typed(name, v, items[0]) for v in value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
    expected = " or ".join(getattr(k, "__name__", str(k)) for k in allowed)
    raise InputError(f"{name} must be {expected}, got {value!r} ({type(value).__name__})")


def _check(c: Config) -> None:
    def need(condition: bool, message: str):
        if not condition:
            raise InputError(message)

    need(re.fullmatch(r"[\w.-]*\w", c.name), f"'{c.name}' names a folder: use letters, digits, '_', '-' and '.'")
    need(c.dataset, "dataset is empty: give 'digits', a hub id, or a local folder")
    need(math.isfinite(c.base_lr), f"base_lr must be a number, got {c.base_lr}")
    for name in (
        "img_size",
        "epochs",
        "batch_size",
        "num_processes",
        "patch_size",
        "embed_dim",
        "depth",
        "num_heads",
        "embed_dims",
        "depths",
        "shuffle_buffer",
    ):
        value = getattr(c, name)
        least = min(value, default=0) if isinstance(value, tuple) else value
        need(least is None or least >= 1, f"{name} must be at least 1, got {value}")
    for name in ("mlp_ratio", "crop_pct"):
        value = getattr(c, name)
        need(value is None or value > 0, f"{name} must be positive, got {value}")
    for name in ("hflip", "random_erasing"):
        need(0 <= getattr(c, name) <= 1, f"{name} is a probability, got {getattr(c, name)}")
    need(0 < c.crop_scale[0] <= c.crop_scale[1] <= 1, f"crop_scale must be shares of the area, got {c.crop_scale}")
    need(0 < c.crop_ratio[0] <= c.crop_ratio[1], f"crop_ratio must be (smallest, largest), got {c.crop_ratio}")
    need(
        not (c.auto_augment and c.in_chans == 1), "auto_augment needs colour images: set auto_augment='' or in_chans=3"
    )
    for name in (
        "seed",
        "num_workers",
        "max_train_images",
        "max_eval_images",
        "warmup_epochs",
        "cooldown_epochs",
        "base_lr",
        "weight_decay",
        "warmup_lr",
        "min_lr",
        "offset_lr_ratio",
        "clip_grad",
        "mixup",
        "cutmix",
        "repeated_augmentation",
        "accumulation_steps",
        "checkpoint_every",
        "checkpoint_seconds",
    ):
        need(getattr(c, name) >= 0, f"{name} must not be negative, got {getattr(c, name)}")
    for name in ("drop_rate", "drop_path_rate", "validation_fraction", "test_fraction", "label_smoothing", "ema_decay"):
        need(0 <= (getattr(c, name) or 0) < 1, f"{name} must be in [0, 1), got {getattr(c, name)}")
    for name, choices in {
        "in_chans": (1, 3),
        "schedule_per": ("epoch", "update", "late update"),
        "mixed_precision": ("no", "bf16", "fp16"),
        "device": ("auto", "cuda", "cpu", "mps"),
        "interpolation": ("bicubic", "bilinear", "nearest"),
        "bad_images": ("refuse", "skip"),
        "augment": ("image", "batch"),
    }.items():
        need(getattr(c, name) in choices, f"{name} must be one of {choices}, got {getattr(c, name)!r}")
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
    if c.augment == "batch":
        need(c.in_memory, "augment='batch' takes images that are in memory: set in_memory=true, or augment='image'")
        need(not c.random_erasing, "augment='batch' erases nothing: set random_erasing=0, or augment='image'")
        need(c.interpolation == "bilinear", "augment='batch' interpolates bilinearly: set interpolation='bilinear'")
    need(c.train_split, "train_split is empty: name the split to train on")
    need(c.test_split or c.test_fraction, "give test_split, or a test_fraction of the training images")
    if c.streaming:
        need(c.validation_split, "streaming holds nothing out of the training images: give validation_split")
        need(
            not c.test_fraction, "streaming holds nothing out of the training images: give test_split, test_fraction=0"
        )
        need(not c.in_memory, "streaming=true and in_memory=true exclude each other")
        need(not c.repeated_augmentation, "streaming repeats no image within a batch: set repeated_augmentation=0")
        need(not c.max_train_images, "streaming reads all training images: set max_train_images=0")
    if not c.validation_split:
        need(c.validation_fraction > 0, "give validation_split, or a validation_fraction of the training images")
        need(
            c.validation_fraction + c.test_fraction < 1,
            f"validation_fraction {c.validation_fraction} and test_fraction {c.test_fraction} leave nothing to train on",
        )
    if c.patch_size:
        need(
            c.img_size % c.patch_size == 0,
            f"img_size {c.img_size} is not divisible by patch_size {c.patch_size}: "
            f"use {c.img_size // c.patch_size * c.patch_size or c.patch_size}",
        )


# May differ when a run goes on: beyond rounding, which process draws which random number, and of how many images LIT's
# batch norms take their statistics, they change no result.
FREE_SETTINGS = {
    "device",
    "num_workers",
    "num_processes",
    "accumulation_steps",
    "grad_checkpointing",
    "compile",
    "checkpoint_every",
    "checkpoint_seconds",
    "tracker",
    "label",
}


def alone(config: Config) -> Config:
    """What several processes trained, for one to score: all images, in batches of the same size."""
    size = config.micro_batch(config.accumulation_steps or 1)
    return replace(config, num_processes=1, accumulation_steps=1, batch_size=size)
