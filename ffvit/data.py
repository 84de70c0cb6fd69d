"""Images, one way for all: a name, a hub id or a local folder becomes Hugging Face splits, then timm's transforms."""

import hashlib
import importlib.util
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import torch
from timm.data import create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader, DistributedSampler, Subset

from ffvit.config import ROOT, Config, InputError

SPLIT_SEED = 0  # of held-out parts and subsets: the same images in every run, whatever its seed


@dataclass(frozen=True)
class Splits:
    """Images and labels of a run, as datasets with the two columns "image" and "label"."""

    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    classes: list[str]
    fingerprint: str  # of the content, the same on every machine

    @property
    def sizes(self) -> dict[str, int]:
        return {name: len(getattr(self, name)) for name in ("train", "validation", "test")}


class Images(torch.utils.data.Dataset):
    """(transformed image (C, H, W), class index) of every row of a split."""

    def __init__(self, split: datasets.Dataset, transform, in_chans: int, in_memory: bool = False):
        self.split = split
        self.transform = transform
        self.mode = "L" if in_chans == 1 else "RGB"
        self.decoded = [self._decode(i) for i in range(len(split))] if in_memory else None

    def __len__(self) -> int:
        return len(self.split)

    def _decode(self, index: int):
        row = self.split[index]
        return row["image"].convert(self.mode), row["label"]  # grey, palette and CMYK images among the RGB ones

    def __getitem__(self, index: int):
        image, label = self.decoded[index] if self.decoded else self._decode(index)
        return self.transform(image), label


def load_splits(config: Config) -> Splits:
    """Open the dataset of a run and cut it into train, validation and test.

    Raises InputError for a dataset, split or column that is not there, a label outside the classes, an empty split.
    """
    datasets.disable_caching()  # or the splits' indices are written into the user's own folder
    source = _open(config.dataset)
    train = _two_columns(_split(source, config.train_split, config.dataset), config)
    names = {"test": config.test_split, "validation": config.validation_split}
    others = {k: _two_columns(_split(source, v, config.dataset), config) for k, v in names.items() if v}
    classes = _class_names(train, config)
    for name, split in {"train": train, **others}.items():
        _check_labels(split, classes, f"{config.dataset}, {name} split")
    if "validation" not in others:
        train, others["validation"] = _hold_out(train, config, len(classes))
    train = _subset(train, config.max_train_images)
    validation, test = (_subset(others[name], config.max_eval_images) for name in ("validation", "test"))
    return Splits(train, validation, test, classes, _fingerprint(train, validation, test, classes))


def train_loader(splits: Splits, config: Config, rank: int = 0) -> tuple[DataLoader, DistributedSampler]:
    """Shuffled, augmented batches of this process, whole ones only, and the sampler, whose set_epoch starts each epoch.

    The order depends on seed and epoch alone (with repeated augmentation on the epoch, DeiT's rule); process r takes
    the rows r, r + num_processes, ..., so a global batch holds the same images whatever the number of processes.
    """
    images = Images(splits.train, train_transform(config), config.in_chans, config.in_memory)
    if config.repeated_augmentation:
        sampler = RepeatAugSampler(images, config.num_processes, rank, num_repeats=config.repeated_augmentation)
    else:
        sampler = DistributedSampler(images, config.num_processes, rank, seed=config.seed, drop_last=True)
    loader = _loader(images, config, sampler=sampler, drop_last=True)
    if not len(loader):
        raise InputError(
            f"{len(images)} training images do not fill one batch of {config.batch_size}: lower batch_size"
        )
    return loader, sampler


def eval_loader(split: datasets.Dataset, config: Config, rank: int = 0) -> DataLoader:
    """Every image of a split exactly once over all processes: no padding, no dropping."""
    images = Images(split, eval_transform(config), config.in_chans)
    return _loader(Subset(images, range(rank, len(images), config.num_processes)), config)


def train_transform(config: Config):
    return create_transform(
        input_size=(config.in_chans, config.img_size, config.img_size),
        is_training=True,
        scale=config.crop_scale,
        ratio=config.crop_ratio,
        hflip=config.hflip,
        color_jitter=None,
        auto_augment=config.auto_augment or None,
        interpolation=config.interpolation,
        re_prob=config.random_erasing,
        re_mode="pixel",
        mean=config.mean,
        std=config.std,
    )


def eval_transform(config: Config):
    return create_transform(
        input_size=(config.in_chans, config.img_size, config.img_size),
        is_training=False,
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
        mean=config.mean,
        std=config.std,
    )


def _loader(images, config: Config, **options) -> DataLoader:
    return DataLoader(
        images,
        batch_size=config.batch_size // config.num_processes,
        num_workers=config.num_workers,
        pin_memory=torch.cuda.is_available() and config.device != "cpu",
        **options,
    )


def _open(dataset: str) -> datasets.DatasetDict:
    if dataset == "digits":
        return _digits()
    folder = Path(dataset).expanduser()
    if not folder.is_dir() and (ROOT / folder).is_dir():
        folder = ROOT / folder  # an experiment file's path means the same in a notebook, which runs in notebooks/
    try:
        if folder.is_dir():
            if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
                source = datasets.load_from_disk(str(folder))
            else:
                source = datasets.load_dataset(str(folder))
        elif dataset.startswith((".", "/", "~")):
            raise InputError(f"dataset '{dataset}': there is no such folder")
        else:
            source = datasets.load_dataset(dataset)
    except InputError:
        raise
    except IndexError:  # what load_from_disk makes of a split without rows
        raise InputError(f"dataset '{dataset}': a split is empty") from None
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"dataset '{dataset}' cannot be opened: {str(error).splitlines()[0]}. Give 'digits', a hub id "
            "(with network, and `hf auth login` for gated sets such as ILSVRC/imagenet-1k), or a local folder"
        ) from None
    return source if isinstance(source, dict) else datasets.DatasetDict(train=source)


def _digits() -> datasets.DatasetDict:
    """scikit-learn's 1,797 handwritten digits, 8x8, 17 grey levels; a stratified fifth is the test split."""
    # Its file, read without importing scikit-learn: that takes a second in every process of a pipeline of small runs.
    file = Path(importlib.util.find_spec("sklearn").origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")  # 64 pixels from 0 to 16, then the digit
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(d) for d in range(10)])}
    )
    images = []
    for pixels in table[:, :64].reshape(-1, 8, 8):
        encoded = io.BytesIO()  # as BMP: png bytes, and with them the fingerprint, differ between versions of zlib
        PIL.Image.fromarray(np.round(pixels / 16 * 255).astype(np.uint8)).save(encoded, "BMP")
        images.append({"bytes": encoded.getvalue(), "path": None})
    whole = datasets.Dataset.from_dict({"image": images, "label": table[:, 64].astype(int).tolist()}, features)
    return whole.train_test_split(0.2, seed=SPLIT_SEED, stratify_by_column="label")


def _split(source: datasets.DatasetDict, name: str, dataset: str) -> datasets.Dataset:
    if name not in source:
        raise InputError(
            f"dataset '{dataset}' has no split '{name}', it has {sorted(source)}; set train_split, "
            "validation_split and test_split"
        )
    if not len(source[name]):
        raise InputError(f"dataset '{dataset}': split '{name}' is empty")
    return source[name]


def _two_columns(split: datasets.Dataset, config: Config) -> datasets.Dataset:
    def find(wanted: str, kind: str, fits) -> str:
        if wanted and wanted not in split.features:
            raise InputError(f"dataset '{config.dataset}' has no column '{wanted}', it has {sorted(split.features)}")
        found = [wanted] if wanted else [name for name, feature in split.features.items() if fits(name, feature)]
        if len(found) != 1:
            raise InputError(
                f"dataset '{config.dataset}': {'no' if not found else 'more than one'} {kind} column among "
                f"{ {k: type(v).__name__ for k, v in split.features.items()} }; name it with {kind}_column"
            )
        return found[0]

    image = find(config.image_column, "image", lambda name, feature: isinstance(feature, datasets.Image))
    label = find(
        config.label_column, "label", lambda name, feature: isinstance(feature, datasets.ClassLabel) or name == "label"
    )
    if not isinstance(split.features[image], datasets.Image):
        raise InputError(f"dataset '{config.dataset}': column '{image}' holds no images")
    kind = split.features[label]
    if not isinstance(kind, datasets.ClassLabel) and "int" not in getattr(kind, "dtype", ""):
        raise InputError(
            f"dataset '{config.dataset}': column '{label}' holds {getattr(kind, 'dtype', kind)}, not class numbers; "
            f"save it as a ClassLabel (dataset.class_encode_column('{label}'))"
        )
    return split.select_columns([image, label]).rename_columns(
        {k: v for k, v in {image: "image", label: "label"}.items() if k != v}
    )


def _labels(split: datasets.Dataset) -> np.ndarray:
    return np.asarray(split.with_format("numpy")["label"][:], dtype=np.int64)


def _class_names(train: datasets.Dataset, config: Config) -> list[str]:
    label = train.features["label"]
    if isinstance(label, datasets.ClassLabel):
        return list(label.names)
    return [str(c) for c in range(int(_labels(train).max()) + 1)]


def _check_labels(split: datasets.Dataset, classes: list[str], where: str) -> None:
    label, num_classes = split.features["label"], len(classes)
    if isinstance(label, datasets.ClassLabel) and list(label.names) != classes:
        raise InputError(
            f"{where}: its classes {label.names[:5]} are not those of the training images, {classes[:5]}: "
            "the same classes in the same order are needed"
        )
    labels = _labels(split)
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise InputError(
            f"{where}: {len(wrong)} labels outside the {num_classes} classes, the first {labels[wrong[0]]} at index "
            f"{wrong[0]}; a split whose labels are all -1 is unlabelled, choose another"
        )


def _hold_out(train: datasets.Dataset, config: Config, num_classes: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Train and validation images; each class keeps its share in both where there are enough images for it."""
    counts = np.bincount(_labels(train), minlength=num_classes)
    held_out = math.ceil(len(train) * config.validation_fraction)
    enough = counts[counts > 0].min() >= 2 and min(held_out, len(train) - held_out) >= (counts > 0).sum()
    stratify = "label" if enough and isinstance(train.features["label"], datasets.ClassLabel) else None
    try:
        parts = train.train_test_split(config.validation_fraction, seed=SPLIT_SEED, stratify_by_column=stratify)
    except ValueError as error:
        raise InputError(f"validation_fraction {config.validation_fraction} of {len(train)} images: {error}") from None
    return parts["train"], parts["test"]


def _subset(split: datasets.Dataset, size: int) -> datasets.Dataset:
    if not 0 < size < len(split):
        return split
    return split.shuffle(seed=SPLIT_SEED).select(range(size))


def _fingerprint(train, validation, test, classes: list[str]) -> str:
    """sha256 over classes, sizes, all labels and the encoded bytes of up to 64 images of each split."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split in (train, validation, test):
        digest.update(_labels(split).tobytes())
        encoded = split.cast_column("image", datasets.Image(decode=False))
        for index in np.linspace(0, len(split) - 1, num=min(64, len(split)), dtype=int):
            image = encoded[int(index)]["image"]
            digest.update(image["bytes"] or Path(image["path"]).read_bytes())
    return digest.hexdigest()[:16]
