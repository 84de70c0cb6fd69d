"""Augmenting many images at once gives what timm's transforms give one by one."""

import random
from dataclasses import replace

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from scipy.stats import ks_2samp
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, LEVEL_TO_ARG, NAME_TO_OP
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import functional

from ffvit.data import batch_augmentation
from ffvit.data.images import eval_transform, seed_augmentation, train_transform
from ffvit.data.loader import AugmentedImages, Loader
from ffvit.data.operations import OPERATIONS, Look
from ffvit.settings.experiment import load_experiment
from ffvit.system.errors import InputError

MEAN = (125, 123, 114)  # of CIFAR-10, times 255


def config(**settings):
    return load_experiment("cifar10-small").config("ff", **settings)


def photographs(count: int = 24, size: int = 32) -> torch.Tensor:
    """Smooth random pictures, some dark, some of a single colour."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(count, 3, 6, 6, generator=generator)
    pixels = torch.nn.functional.interpolate(rough, size=size, mode="bicubic").clamp(0, 1)
    scale = torch.linspace(60, 255, count)[:, None, None, None]
    pixels = (pixels * scale).round().to(torch.uint8)
    pixels[-1] = 77
    return pixels


def pillow(pixels: torch.Tensor) -> PIL.Image.Image:
    return PIL.Image.fromarray(pixels.permute(1, 2, 0).numpy())


def tensor(image: PIL.Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def draws(count: int, **chosen) -> batch_augmentation.Draws:
    found = batch_augmentation.Augmentation(config(auto_augment="rand-m9-mstd0.5-inc1")).draw(count, 0)
    return found._replace(**chosen)


def test_the_operations_are_timms_in_timms_order():
    assert list(OPERATIONS) == _RAND_INCREASING_TRANSFORMS


@pytest.mark.parity("timm's augmentation")
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("magnitude", [0.0, 3.0, 9.0, 10.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_an_operation_gives_timms_pixels(name, interpolation, magnitude, sign, monkeypatch):
    monkeypatch.setattr(random, "random", lambda: 0.0 if sign > 0 else 1.0)  # timm negates above a half
    pixels = photographs()
    arguments = LEVEL_TO_ARG[name](magnitude, {}) if LEVEL_TO_ARG[name] else ()
    look = dict(resample=PIL.Image.Resampling[interpolation.upper()], fillcolor=MEAN)
    theirs = torch.stack([tensor(NAME_TO_OP[name](pillow(p), *arguments, **look)) for p in pixels])
    operation, value = OPERATIONS[name]
    values = torch.from_numpy(value(np.full(len(pixels), sign * magnitude / 10)).astype(np.float32))
    own_look = Look(torch.tensor(MEAN).float()[:, None, None], interpolation == "bicubic")
    ours = operation(pixels.float(), values[:, None, None, None], own_look)
    far = (ours - theirs).abs() > 1
    # The border between image and filling may fall to one side or the other.
    assert far.float().mean() <= (0.01 if name[:5] in ("Rotat", "Shear", "Trans") else 0), far.float().mean()


@pytest.mark.parity("timm's augmentation")
def test_a_crop_gives_timms_pixels():
    pixels = photographs(count=200)
    settings = config(crop_scale=[0.2, 1.0], hflip=0.5)
    numbers = draws(len(pixels))
    ours = batch_augmentation.Augmentation(settings).crop_kept(pixels, numbers)
    corners = batch_augmentation.crops(numbers, (32, 32), settings)
    assert 0.4 < (numbers.flip < 0.5).mean() < 0.6
    for image, mine, flip, *crop in zip(pixels, ours, numbers.flip, *corners):
        left, top, width, height = map(int, crop)
        theirs = functional.resized_crop(
            pillow(image), top, left, height, width, [32, 32], functional.InterpolationMode.BILINEAR
        )
        theirs = functional.hflip(theirs) if flip < 0.5 else theirs
        assert (tensor(theirs) - mine).abs().max() <= 1


@pytest.mark.parity("timm's augmentation")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode, size", [("RGB", (500, 375)), ("RGB", (90, 160)), ("L", (300, 300))])
def test_a_decoded_image_is_cropped_to_timms_pixels(mode, size, interpolation):
    grey = dict(in_chans=1, mean=[0.5], std=[0.5], auto_augment="") if mode == "L" else {}
    settings = config(**grey, img_size=64, in_memory=False, interpolation=interpolation, crop_scale=[0.08, 1.0])
    augmentation = batch_augmentation.Augmentation(settings)
    image = pillow(photographs(1, size=400)[0]).resize(size).convert(mode)
    for position in range(20):
        pixels, numbers = augmentation.crop(image, 3, position)
        left, top, width, height = (int(v[0]) for v in batch_augmentation.crops(numbers, size, settings))
        theirs = functional.resized_crop(
            image, top, left, height, width, [64, 64], functional.InterpolationMode(interpolation)
        )
        theirs = functional.hflip(theirs) if numbers.flip[0] < 0.5 else theirs
        away = (functional.pil_to_tensor(theirs).int() - pixels.int()).abs()
        assert pixels.dtype == torch.uint8 and away.max() <= 2
        assert (away > 0).float().mean() < 0.05  # the one rounds between the two directions, the other does not


@pytest.mark.parity("Pillow's resizing")
def test_crops_of_real_photographs_are_pillows_but_for_rounding(shared):
    settings = load_experiment("imagenet").config("ff_tiny", augment="batch")
    augmentation = batch_augmentation.Augmentation(settings)
    images = datasets.load_dataset(str(shared / "data" / "imagenet-sample"), split="validation")["image"]
    away = []
    for position, image in enumerate(image.convert("RGB") for image in images):
        pixels, numbers = augmentation.crop(image, 0, position)
        left, top, width, height = (int(v[0]) for v in batch_augmentation.crops(numbers, image.size, settings))
        bicubic = functional.InterpolationMode.BICUBIC
        theirs = functional.resized_crop(image, top, left, height, width, [224, 224], bicubic)
        theirs = functional.hflip(theirs) if numbers.flip[0] < 0.5 else theirs
        away.append((functional.pil_to_tensor(theirs).int() - pixels.int()).abs())
    assert torch.stack(away).max() <= 2 and (torch.stack(away) > 0).float().mean() < 0.01


def seen(augment: str, image: PIL.Image.Image, count: int) -> torch.Tensor:
    """(count, 3, 16, 16): what training sees of an image, by timm's transforms or by ours."""
    settings = config(
        **dict(augment=augment, in_memory=False, interpolation="bicubic", img_size=16, crop_scale=[0.08, 1.0]),
        **dict(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25),
    )
    view = batch_augmentation.training_view(settings)
    views = [view(image, 0, position) for position in range(count)]
    if augment == "image":
        return torch.stack(views)
    pixels = torch.stack([pixels for pixels, _ in views])
    return batch_augmentation.Augmentation(settings)(pixels, batch_augmentation.joined(draws for _, draws in views))


@pytest.mark.parity("timm's augmentation")
def test_what_training_sees_is_spread_as_with_timm():
    # Brighter to the right, redder below, so that what is mirrored, turned or moved shows.
    across, down = np.meshgrid(np.linspace(20, 220, 60), np.linspace(20, 220, 45))
    image = PIL.Image.fromarray(np.stack([(across + down) / 2, across, across], axis=2).astype(np.uint8))
    theirs, ours = (seen(augment, image, 4000) for augment in ("image", "batch"))
    left, upper = torch.ones(16), torch.ones(16, 1)
    left[8:], upper[8:] = -1, -1
    measures = {
        "brightness": lambda x: x.mean((1, 2, 3)),
        "contrast": lambda x: x.std((1, 2, 3)),
        "colour": lambda x: x.mean((2, 3)).std(1),
        "left against right": lambda x: (x * left).mean((1, 2, 3)),
        "above against below": lambda x: (x * upper).mean((1, 2, 3)),
        "from pixel to pixel": lambda x: x.diff(dim=3).abs().mean((1, 2, 3)),
    }
    for name, measure in measures.items():
        same = ks_2samp(measure(theirs).numpy(), measure(ours).numpy()).pvalue
        assert same > 0.01, (name, same)


# The last two hold few crops.
@pytest.mark.parity("timm's augmentation")
@pytest.mark.parametrize("size", [(32, 32), (500, 375), (375, 500), (900, 60), (60, 900)])
def test_crops_are_spread_as_timms(size):
    settings = config(crop_scale=[0.3, 1.0])
    ours = np.stack(batch_augmentation.crops(draws(20000), size, settings), axis=1)
    image = PIL.Image.new("L", size)
    random.seed(0)
    transform = RandomResizedCropAndInterpolation(32, settings.crop_scale, settings.crop_ratio)
    found = [transform.get_params(image, transform.scale, transform.ratio) for _ in range(20000)]
    theirs = np.array([(left, top, width, height) for top, left, height, width in found])
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= size).all()
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.005 * max(size))
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.005 * max(size))


def erased(count: int, size: int = 24, **settings) -> tuple[torch.Tensor, batch_augmentation.Draws]:
    """Black images of which rectangles are erased, and by which numbers."""
    given = dict(auto_augment="", random_erasing=0.25, in_memory=False, mean=[0.0] * 3, std=[1.0] * 3) | settings
    augmentation = batch_augmentation.Augmentation(config(**given))
    numbers = augmentation.draw(count, 0)
    return augmentation(torch.zeros(count, 3, size, size, dtype=torch.uint8), numbers), numbers


def boxes(images: torch.Tensor) -> np.ndarray:
    """(n, 4) of those that have one: left, top, width, height of all that is not zero, which must fill a rectangle."""
    found = []
    for image in images:
        there = image.ne(0)
        if there.any():
            assert there.all(0).equal(there.any(0))
            rows, columns = (there[0].any(axis).nonzero().flatten().tolist() for axis in (1, 0))
            found.append((columns[0], rows[0], len(columns), len(rows)))
            assert there[0].sum() == len(columns) * len(rows)
    return np.array(found)


@pytest.mark.parity("timm's random erasing")
def test_rectangles_are_erased_as_timms():
    ours, _ = erased(6000)
    random.seed(0), torch.manual_seed(0)
    erase = RandomErasing(0.25, mode="pixel", device="cpu")
    theirs = torch.stack([erase(torch.zeros(3, 24, 24)) for _ in range(6000)])
    mine, timms = boxes(ours), boxes(theirs)
    assert abs(len(mine) / 6000 - 0.25) < 0.02 and abs(len(timms) - len(mine)) < 200
    np.testing.assert_allclose(mine.mean(0), timms.mean(0), atol=0.7)
    np.testing.assert_allclose(mine.std(0), timms.std(0), atol=0.6)
    noise = ours[ours != 0]
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01


def test_nothing_is_erased_where_the_probability_is_zero_and_nearly_all_where_it_is_one():
    assert not erased(50, random_erasing=0.0)[0].any()
    assert len(boxes(erased(50, random_erasing=1.0)[0])) == 50


def test_images_are_erased_by_numbers_of_their_own():
    images, numbers = erased(40, random_erasing=1.0)
    assert len({image.numpy().tobytes() for image in images}) == 40
    settings = config(auto_augment="", random_erasing=1.0, in_memory=False, mean=[0.0] * 3, std=[1.0] * 3)
    torch.manual_seed(5)
    again = batch_augmentation.Augmentation(settings)(torch.zeros(7, 3, 24, 24), numbers.of(slice(11, 18)))
    assert torch.equal(again, images[11:18])


def test_each_image_is_augmented_by_its_own_numbers_whatever_comes_with_it():
    pixels = photographs()
    augmentation = batch_augmentation.Augmentation(config(auto_augment="rand-m9-mstd0.5-inc1"))
    numbers = augmentation.draw(len(pixels), 3)
    together = augmentation(augmentation.crop_kept(pixels, numbers), numbers)
    for rows in (slice(0, 5), slice(5, 24), np.arange(1, 24, 2)):
        own = numbers.of(rows)
        assert torch.equal(augmentation(augmentation.crop_kept(pixels[rows], own), own), together[rows])


def test_numbers_are_those_of_seed_and_epoch():
    first, again, other_seed = (batch_augmentation.Augmentation(config(seed=s)).draw(5, 1) for s in (0, 0, 1))
    other_epoch = batch_augmentation.Augmentation(config()).draw(5, 2)
    assert all(np.array_equal(a, b) for a, b in zip(tuple(first), tuple(again)))
    assert not np.array_equal(first.area, other_seed.area) and not np.array_equal(first.area, other_epoch.area)


def test_operations_magnitudes_and_probability_are_those_of_the_policy():
    numbers = draws(30000)
    chosen = (numbers.operation * len(OPERATIONS)).astype(int)
    share = np.bincount(chosen.ravel()) / chosen.size
    np.testing.assert_allclose(share, 1 / 15, atol=0.004)
    assert abs((numbers.apply < 0.5).mean() - 0.5) < 0.01
    policy = batch_augmentation._policy("rand-m7-mstd0.5-n3-p0.2-inc1")
    assert policy == {"m": 7, "mstd": 0.5, "n": 3, "p": 0.2, "inc": 1}


def test_without_augmentation_an_image_is_as_an_evaluation_sees_it():
    settings = config(crop_scale=[1.0, 1.0], crop_ratio=[1.0, 1.0], hflip=0.0, auto_augment="")
    pixels = photographs()
    augmentation = batch_augmentation.Augmentation(settings)
    numbers = augmentation.draw(len(pixels), 0)
    ours = augmentation(augmentation.crop_kept(pixels, numbers), numbers)
    theirs = torch.stack([eval_transform(settings)(pillow(p)) for p in pixels])
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("erasing", [0.0, 0.25])
def test_images_augmented_one_by_one_are_timms_whatever_is_left_to_the_batch(erasing):
    settings = config(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=erasing, augment="image", in_memory=False)
    rows = [{"image": pillow(p), "label": 0} for p in photographs()]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(2))
    images = AugmentedImages(datasets.Dataset.from_list(rows, features), settings)
    [batch] = Loader(images, replace(settings, batch_size=24), 1, [(3, place, place) for place in range(24)])
    timms = []
    for place, row in enumerate(rows):
        seed_augmentation(settings.seed, 3, place)
        timms.append(train_transform(settings)(row["image"]))
    assert torch.equal(batch.images, torch.stack(timms))


@pytest.mark.parametrize(
    "policy", ["original", "rand-m9-mstd0.5", "rand-m9-tweights-inc1", "augmix-m3", "rand-m9-inc0"]
)
def test_a_policy_that_is_not_there_is_refused(policy):
    with pytest.raises(InputError, match="auto_augment"):
        batch_augmentation.check(config(auto_augment=policy))
