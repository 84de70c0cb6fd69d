"""Where images come from: the embedded digits, the hub, or a folder of one's own."""

import contextlib
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import PIL.Image

from ffvit.settings.config import Config
from ffvit.system.errors import InputError
from ffvit.system.files import ROOT

SPLIT_SEED = 0  # of held-out parts and subsets: the same images in every run, whatever its seed


def open_dataset(dataset: str) -> datasets.DatasetDict:
    if dataset == "digits":
        return _digits()
    with opening(dataset):
        path = _path(dataset)
        if (Path(path) / "dataset_dict.json").exists() or (Path(path) / "state.json").exists():
            source = datasets.load_from_disk(path)
        else:
            source = datasets.load_dataset(path)
    return source if isinstance(source, dict) else datasets.DatasetDict(train=source)


def parquet_files(dataset: str) -> tuple[dict[str, list[str]], datasets.DatasetInfo]:
    """Paths or addresses by split, none of them opened, and what a dataset card tells of them."""
    with opening(dataset):
        builder = datasets.load_dataset_builder(_path(dataset)) if dataset != "digits" else None
    files = {str(split): list(paths) for split, paths in (builder and builder.config.data_files or {}).items()}
    if not files or not all(path.endswith(".parquet") for paths in files.values() for path in paths):
        raise InputError(
            f"dataset '{dataset}' is not made of parquet files, which streaming reads: save it with "
            "dataset.to_parquet('<folder>/train-00000-of-00001.parquet'), or set streaming=false"
        )
    return files, builder.info


def choose_split(source: datasets.DatasetDict, name: str, dataset: str) -> datasets.Dataset:
    if name not in source:
        raise InputError(
            f"dataset '{dataset}' has no split '{name}', it has {sorted(source)}; set train_split, "
            "validation_split and test_split"
        )
    if not len(source[name]):
        raise InputError(f"dataset '{dataset}': split '{name}' is empty")
    return source[name]


def find_columns(features: datasets.Features, config: Config) -> tuple[str, str]:
    """The names of the columns with the images and with the class numbers."""

    def find(wanted: str, kind: str, fits) -> str:
        if wanted and wanted not in features:
            raise InputError(f"dataset '{config.dataset}' has no column '{wanted}', it has {sorted(features)}")
        found = [wanted] if wanted else [name for name, feature in features.items() if fits(name, feature)]
        if len(found) != 1:
            raise InputError(
                f"dataset '{config.dataset}': {'no' if not found else 'more than one'} {kind} column among "
                f"{ {k: type(v).__name__ for k, v in features.items()} }; name it with {kind}_column"
            )
        return found[0]

    image = find(config.image_column, "image", lambda name, feature: isinstance(feature, datasets.Image))
    label = find(
        config.label_column, "label", lambda name, feature: isinstance(feature, datasets.ClassLabel) or name == "label"
    )
    if not isinstance(features[image], datasets.Image):
        raise InputError(f"dataset '{config.dataset}': column '{image}' holds no images")
    kind = features[label]
    if not isinstance(kind, datasets.ClassLabel) and "int" not in getattr(kind, "dtype", ""):
        raise InputError(
            f"dataset '{config.dataset}': column '{label}' holds {getattr(kind, 'dtype', kind)}, not class numbers; "
            f"save it as a ClassLabel (dataset.class_encode_column('{label}'))"
        )
    return image, label


@contextlib.contextmanager
def opening(dataset: str) -> Iterator[None]:
    """Says of what fails in opening or reading files what it means."""
    try:
        yield
    except InputError:
        raise
    except IndexError:  # what load_from_disk makes of a split without rows
        raise InputError(f"dataset '{dataset}': a split is empty") from None
    except Exception as error:  # a reader fails with whatever its parser stumbled on
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"dataset '{dataset}' cannot be opened: {reason}. Give 'digits', a hub id (with network, and `hf auth login` "
            "for gated sets such as ILSVRC/imagenet-1k), or a local folder"
        ) from None


def _path(dataset: str) -> str:
    """A folder, or a hub id as it is."""
    folder = Path(dataset).expanduser()
    if not folder.is_dir() and (ROOT / folder).is_dir():
        folder = ROOT / folder  # an experiment file's path means the same in a notebook, which runs in notebooks/
    if folder.is_dir():
        return str(folder)
    if dataset.startswith((".", "/", "~")):
        raise InputError(f"dataset '{dataset}': there is no such folder")
    return dataset


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
