"""Augmenting many images at once gives what timm's transforms give one by one."""

import random

import numpy as np
import PIL.Image
import pytest
import torch
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, LEVEL_TO_ARG, NAME_TO_OP
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import functional

from ffvit.data import batch_augmentation
from ffvit.data.images import eval_transform
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
    found = batch_augmentation.Augmentation(config(auto_augment="rand-m9-mstd0.5-inc1")).draw(0, count)
    return found._replace(**chosen)


def test_the_operations_are_timms_in_timms_order():
    assert list(batch_augmentation.OPERATIONS) == _RAND_INCREASING_TRANSFORMS


@pytest.mark.parity("timm's augmentation")
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("magnitude", [0.0, 3.0, 9.0, 10.0])
@pytest.mark.parametrize("name", list(batch_augmentation.OPERATIONS))
def test_an_operation_gives_timms_pixels(name, magnitude, sign, monkeypatch):
    monkeypatch.setattr(random, "random", lambda: 0.0 if sign > 0 else 1.0)  # timm negates above a half
    pixels = photographs()
    arguments = LEVEL_TO_ARG[name](magnitude, {}) if LEVEL_TO_ARG[name] else ()
    look = dict(resample=PIL.Image.Resampling.BILINEAR, fillcolor=MEAN)
    theirs = torch.stack([tensor(NAME_TO_OP[name](pillow(p), *arguments, **look)) for p in pixels])
    operation, value = batch_augmentation.OPERATIONS[name]
    values = torch.from_numpy(value(np.full(len(pixels), sign * magnitude / 10)).astype(np.float32))
    ours = operation(pixels.float(), values[:, None, None, None], torch.tensor(MEAN).float()[:, None, None])
    far = (ours - theirs).abs() > 1
    # The border between image and filling may fall to one side or the other.
    assert far.float().mean() <= (0.01 if name[:5] in ("Rotat", "Shear", "Trans") else 0), far.float().mean()


@pytest.mark.parity("timm's augmentation")
def test_a_crop_gives_timms_pixels():
    pixels = photographs(count=200)
    settings = config(crop_scale=[0.2, 1.0], hflip=0.5)
    numbers = draws(len(pixels))
    ours = batch_augmentation.Augmentation(settings)._crop_and_flip(pixels.float(), numbers)
    corners = batch_augmentation._crops(numbers, 32, settings.crop_scale, settings.crop_ratio)
    assert 0.4 < (numbers.flip < 0.5).mean() < 0.6
    for image, mine, flip, *crop in zip(pixels, ours, numbers.flip, *corners):
        left, top, width, height = map(int, crop)
        theirs = functional.resized_crop(
            pillow(image), top, left, height, width, [32, 32], functional.InterpolationMode.BILINEAR
        )
        theirs = functional.hflip(theirs) if flip < 0.5 else theirs
        assert (tensor(theirs) - mine).abs().max() <= 1


@pytest.mark.parity("timm's augmentation")
def test_crops_are_spread_as_timms():
    settings = config(crop_scale=[0.3, 1.0])
    ours = np.stack(batch_augmentation._crops(draws(20000), 32, settings.crop_scale, settings.crop_ratio), axis=1)
    image = pillow(photographs(1)[0])
    random.seed(0)
    transform = RandomResizedCropAndInterpolation(32, settings.crop_scale, settings.crop_ratio)
    found = [transform.get_params(image, transform.scale, transform.ratio) for _ in range(20000)]
    theirs = np.array([(left, top, width, height) for top, left, height, width in found])
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= 32).all()
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.15)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.15)


def test_each_image_is_augmented_by_its_own_numbers_whatever_comes_with_it():
    pixels = photographs()
    augmentation = batch_augmentation.Augmentation(config(auto_augment="rand-m9-mstd0.5-inc1"))
    numbers = augmentation.draw(3, len(pixels))
    together = augmentation(pixels, numbers)
    for rows in (slice(0, 5), slice(5, 24), np.arange(1, 24, 2)):
        assert torch.equal(augmentation(pixels[rows], numbers.of(rows)), together[rows])


def test_numbers_are_those_of_seed_and_epoch():
    first, again, other_seed = (batch_augmentation.Augmentation(config(seed=s)).draw(1, 5) for s in (0, 0, 1))
    other_epoch = batch_augmentation.Augmentation(config()).draw(2, 5)
    assert all(np.array_equal(a, b) for a, b in zip(tuple(first), tuple(again)))
    assert not np.array_equal(first.area, other_seed.area) and not np.array_equal(first.area, other_epoch.area)


def test_operations_magnitudes_and_probability_are_those_of_the_policy():
    numbers = draws(30000)
    chosen = (numbers.operation * len(batch_augmentation.OPERATIONS)).astype(int)
    share = np.bincount(chosen.ravel()) / chosen.size
    np.testing.assert_allclose(share, 1 / 15, atol=0.004)
    assert abs((numbers.apply < 0.5).mean() - 0.5) < 0.01
    policy = batch_augmentation._policy("rand-m7-mstd0.5-n3-p0.2-inc1")
    assert policy == {"m": 7, "mstd": 0.5, "n": 3, "p": 0.2, "inc": 1}


def test_without_augmentation_an_image_is_as_an_evaluation_sees_it():
    settings = config(crop_scale=[1.0, 1.0], crop_ratio=[1.0, 1.0], hflip=0.0, auto_augment="")
    pixels = photographs()
    augmentation = batch_augmentation.Augmentation(settings)
    ours = augmentation(pixels, augmentation.draw(0, len(pixels)))
    theirs = torch.stack([eval_transform(settings)(pillow(p)) for p in pixels])
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "policy", ["original", "rand-m9-mstd0.5", "rand-m9-tweights-inc1", "augmix-m3", "rand-m9-inc0"]
)
def test_a_policy_that_is_not_there_is_refused(policy):
    with pytest.raises(InputError, match="auto_augment"):
        batch_augmentation.check(config(auto_augment=policy))
