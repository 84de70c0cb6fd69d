"""Say what a model sees in images of your own: `ffvit predict cat.jpg --model runs/cifar10-small/ff-seed0`.

--model is the folder of a run, a folder that ffvit export wrote, or a name of timm's that has weights. Images are prepared as an
evaluation prepares them. A classification model says the likeliest classes, a detector boxes and scores, a semantic model
how much of the image is of which class; --to writes its maps. A folder, or --csv, gives a table, a line for each of these.
A file that is no whole image is named, and the others go on.

Exit codes: 0 all were read, 1 some were not, 2 an error that is named.
"""

import csv
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ffvit.commands.arguments import Parser, path
from ffvit.system.errors import InputError
from ffvit.system.files import replacing, write_atomically

if TYPE_CHECKING:
    from ffvit.studies.own_images import Said

TOP, LEAST = 5, 0.5


def main(arguments: list[str]) -> int:
    parser = Parser("ffvit predict", __doc__)
    parser.add_argument("images", nargs="+", type=path, metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--model", required=True, help="the folder of a run, of an exported model, or a name of timm's")
    parser.add_argument("--top", type=int, default=TOP, help=f"classes of an image; default: {TOP}")
    parser.add_argument("--score", type=float, default=LEAST, help=f"the least of an object; default: {LEAST}")
    parser.add_argument(
        "--csv", type=path, metavar="FILE", help="write the table there; of folders, else on the screen"
    )
    parser.add_argument("--to", type=path, metavar="FOLDER", help="of semantic models: write the maps there, as PNG")
    options = parser.parse_args(arguments)
    if options.top < 1:
        parser.error("--top must be 1 or more")
    if not 0 <= options.score <= 1:
        parser.error("--score must be from 0 to 1")

    from ffvit.evidence.opened import open_model  # with torch, which takes seconds
    from ffvit.studies import own_images

    pictures = own_images.pictures([image.expanduser() for image in options.images])
    opened = open_model(options.model)
    task = opened.config.task
    if options.to:
        _check_maps(task, options.model, [picture.place for picture in pictures])
    as_table = bool(options.csv) or any(image.expanduser().is_dir() for image in options.images)
    rows: list[dict] = []
    bad = 0
    for file, place in pictures:
        try:
            said = own_images.say(opened, file, options.top, options.score)
        except OSError as error:
            bad += 1
            print(f"{_shown(file)}: {error.strerror or error}", file=sys.stderr)
            continue
        rows += [{"file": str(file), **row} for row in said.rows]
        if options.to and said.classes_of_pixels is not None:
            with replacing(options.to / f"{place}.png") as temporary:
                own_images.map_picture(said.classes_of_pixels, opened.classes).save(temporary, "PNG")
        if not as_table:
            print(_in_words(file, said))
    if as_table:
        table = _as_csv(["file", *own_images.COLUMNS[task]], rows)
        if options.csv:
            write_atomically(options.csv, table)
            print(f"table: {options.csv}, of {len(pictures) - bad} images")
        else:
            print(table, end="")
    if bad:
        print(f"{bad} of {len(pictures)} files could not be read", file=sys.stderr)
    return 1 if bad else 0


def _check_maps(task: str, model: str, places: list[str]) -> None:
    if task != "semantic_segmentation":
        raise InputError(f"--to writes the maps of semantic models, and {model} is for {task}: leave it out")
    if twice := [place for place in dict.fromkeys(places) if places.count(place) > 1]:
        raise InputError(f"two images would have their maps at {twice[0]}.png: look at them one after the other")


def _as_csv(columns: list[str], rows: list[dict]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()})
    return text.getvalue()


def _in_words(file: Path, said: "Said") -> str:
    lines = [f"{_shown(file)}:" if said.rows else f"{_shown(file)}: nothing is sure enough; a lower --score shows more"]
    for row in said.rows:
        percent = 100 * next(row[key] for key in ("probability", "score", "share") if key in row)
        where = f"  x {row['x1']:.1f} to {row['x2']:.1f}, y {row['y1']:.1f} to {row['y2']:.1f}" if "x1" in row else ""
        lines.append(f"  {percent:6.2f} %  {_shown(row['class'])}{where}")
    return "\n".join(lines)


def _shown(text: str | Path) -> str:
    """On a screen, which takes some characters for commands."""
    return str(text) if str(text).isprintable() else ascii(str(text))[1:-1]
