"""Data that come with a dependency, so that nothing is downloaded: handwritten digits, and text laid out as images."""

import importlib.metadata
import io
from collections.abc import Callable, Iterable

import datasets
import numpy as np
import PIL.Image

# First and last number of a kind of thing in WordNet 3.0, whose nouns are numbered kind by kind.
KINDS = {
    "animal": (1_314_388, 2_666_195),
    "artifact": (2_666_196, 4_620_000),
    "food": (7_550_000, 7_940_000),
    "person": (9_600_000, 10_810_000),
    "plant": (11_530_000, 13_250_000),
}
OF_A_KIND = 1600  # definitions; food has few more
SYMBOLS = " abcdefghijklmnopqrstuvwxyz0123456789;-(),'.:`%/\"+"  # all that the definitions have, in lower case
LENGTH = 64  # symbols of a definition, the later ones are left out; and rows of its image


def digits() -> datasets.Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8, 17 grey levels."""
    pixels, labels = digit_table()
    return _dataset(pixels, labels.tolist(), [str(d) for d in range(10)])


def digit_table() -> tuple[np.ndarray, np.ndarray]:
    """Their pixels, (1797, 8, 8) uint8, and what they are, (1797,) int64."""
    # Its file, read without importing scikit-learn: that takes a second in every process of a pipeline of small runs.
    table = np.loadtxt(_file("scikit-learn", "sklearn/datasets/data/digits.csv.gz"), delimiter=",")
    pixels = np.round(table[:, :64].reshape(-1, 8, 8) / 16 * 255).astype(np.uint8)  # from 0 to 16, then the digit
    return pixels, table[:, 64].astype(np.int64)


def definitions() -> datasets.Dataset:
    """WordNet's definitions of 8,000 nouns, as timm has them for ImageNet's classes: is it an animal, an artifact, ...?

    A text is an image with a column for each of its first 64 symbols, in which one row is white, the symbol's: so a patch
    as high as the image takes a piece of text, and its embedding is a table of what symbols mean. No text is there twice.
    """
    text = _file("timm", "timm/data/_info/imagenet_synset_to_definition.txt")
    with open(text, encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines]  # n00004475, and what it is
    first = {definition.lower()[:LENGTH]: int(number[1:]) for number, definition in reversed(rows)}
    texts: list[str] = []
    for low, high in KINDS.values():
        mine = sorted(said for said, number in first.items() if low <= number <= high)
        texts += np.random.default_rng(0).permutation(mine)[:OF_A_KIND].tolist()
    labels = np.repeat(range(len(KINDS)), OF_A_KIND).tolist()
    return _dataset(map(text_image, texts), labels, list(KINDS))


def text_image(text: str) -> np.ndarray:
    """A text in lower case as an image, (LENGTH, LENGTH) uint8: rows are symbols, columns places; white, 255, where one stands."""
    image = np.zeros((LENGTH, LENGTH), np.uint8)
    for place, symbol in enumerate(text[:LENGTH]):
        image[SYMBOLS.index(symbol), place] = 255
    return image


def digits_scenes() -> datasets.DatasetDict:
    """The same digits on canvases, with boxes and masks: see ffvit.data.dense.scenes."""
    from ffvit.data.dense.scenes import make_scenes  # which is made of the digits above

    return make_scenes()


# By the name that the setting `dataset` gives; those without splits of their own are cut by ffvit.data.sources.
EMBEDDED: dict[str, Callable[[], datasets.Dataset | datasets.DatasetDict]] = {
    "digits": digits,
    "definitions": definitions,
    "digits-scenes": digits_scenes,
}


def _file(package: str, path: str) -> str:
    return str(importlib.metadata.distribution(package).locate_file(path))


def _dataset(images: Iterable[np.ndarray], labels: list[int], classes: list[str]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    files = []
    for image in images:
        encoded = io.BytesIO()  # as BMP: png bytes, and with them the fingerprint, differ between versions of zlib
        PIL.Image.fromarray(image).save(encoded, "BMP")
        files.append({"bytes": encoded.getvalue(), "path": None})
    return datasets.Dataset.from_dict({"image": files, "label": labels}, features)
