"""Photographs made smaller once, so that reading them costs less in every epoch: what `ffvit prepare` makes.

An image's short side becomes short_side pixels, by Pillow's bicubic, and it is encoded anew as JPEG; one that is smaller
keeps its bytes. A shard is a function of the dataset and the options alone, so that it is the same whoever makes it when.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import PIL
import PIL.Image
import pyarrow
import pyarrow.parquet

from ffvit.data.folders import allowed_places, find_folder
from ffvit.data.images import BadImage, content, file_name, read
from ffvit.data.shards import Index, check_split_name
from ffvit.data.sources import open_splits
from ffvit.data.splits import encoded, fingerprint, two_columns
from ffvit.settings.config import Config
from ffvit.system.errors import InputError
from ffvit.system.files import replacing, sha256_of, sync

ROWS_PER_GROUP = 256  # what a stream reads at a time: some 8 MB


@dataclass(frozen=True)
class Preparation:
    """What is to be made of the splits of a dataset."""

    splits: dict[str, datasets.Dataset]  # columns "image", encoded, and "label"
    config: Config  # how the dataset is read
    allowed: tuple[str, ...]
    short_side: int  # pixels
    quality: int  # of JPEG

    def index(self) -> Index:
        """Of no shards yet."""
        names = [getattr(split.features["label"], "names", []) for split in self.splits.values()]
        folder = find_folder(self.config.dataset)
        made_of = {
            "dataset": folder.name if folder else self.config.dataset,  # where it lies is its owner's business
            "fingerprint": fingerprint(self.splits.values(), names[0], self.allowed),
            "short side": self.short_side,
            "quality": self.quality,
            "versions": {"Pillow": PIL.__version__, "pyarrow": pyarrow.__version__},
        }
        return Index(made_of, {name: len(split) for name, split in self.splits.items()})

    def image(self, split: str, row: int) -> dict[str, Any] | BadImage:
        """A row as it is to be stored, {"image": {"bytes", "path"}, "label"}. Raises InputError with bad_images="refuse"."""
        stored = self.splits[split][row]
        name = file_name(stored["image"])
        image = read(stored["image"], row, name, self.config, self.allowed)
        if isinstance(image, BadImage):
            return image
        scale = self.short_side / min(image.size)
        if scale >= 1:
            kept = content(stored["image"], self.allowed)
        else:
            width, height = (round(scale * side) for side in image.size)
            smaller, buffer = image.resize((width, height), PIL.Image.Resampling.BICUBIC), io.BytesIO()
            smaller.save(buffer, "JPEG", quality=self.quality)
            kept, name = buffer.getvalue(), name and f"{Path(name).stem}.jpg"
        return {"image": {"bytes": kept, "path": name or None}, "label": stored["label"]}

    def shard(self, folder: Path, file: str, split: str, rows: range) -> dict[str, Any]:
        """Write a shard. Returns its entry in the index."""
        found = [self.image(split, row) for row in rows]
        features = datasets.Features(image=datasets.Image(), label=self.splits[split].features["label"])
        good = [row for row in found if not isinstance(row, BadImage)]
        table = pyarrow.Table.from_pylist(good, features.arrow_schema)
        with replacing(folder / file) as temporary:
            # JPEG is compressed already. By the checksums a stream notices a damaged page when it reads one.
            pyarrow.parquet.write_table(
                table, temporary, row_group_size=ROWS_PER_GROUP, compression="none", write_page_checksum=True
            )
            sync(temporary)
            entry = {"rows": len(good), "bytes": temporary.stat().st_size, "sha256": sha256_of(temporary)}
        return entry | {"bad": [list(row) for row in found if isinstance(row, BadImage)]}


def preparation(config: Config, wanted: list[str], short_side: int, quality: int) -> Preparation:
    """wanted: the splits, none for all. Raises InputError for a dataset that is not there, and for one without classes."""
    splits = open_splits(wanted, config)
    for name in splits:
        check_split_name(name)
    two = {name: encoded(two_columns(split, config)) for name, split in splits.items()}
    if all(not len(split) for split in two.values()):
        raise InputError(f"dataset '{config.dataset}' has no images")
    return Preparation(two, config, allowed_places(config.dataset), short_side, quality)
