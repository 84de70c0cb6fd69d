"""Named recipes: settings that belong together, with what to expect of them. An experiment names one and overrides it."""


def deit() -> dict:
    """DeiT's training setup, which the report uses unchanged (Touvron et al. 2021, arXiv:2012.12877, Table 9 and the
    defaults of the deit repository's main.py).

    Command:  make reproduce EXPERIMENT=imagenet, or for one model on a node of 8 GPUs
              python -m ffvit train --experiment imagenet --model ff_base num_processes=8
    Hardware: 8 GPUs x 128 images, as in both papers; fewer GPUs take accumulation_steps for the same batch of 1024.
    Time:     DeiT-B, the costliest of DeiT's own models: 53 hours on 8 V100 (deit repository). Not run here.
    Expected: ImageNet top-1 of the report's Table 1: FF-only tiny 61.4 %, base 74.9 %, large 71.4 %; DeiT tiny 72.2 %,
              base 79.9 % (81.8 % in DeiT's own paper). The raw weights, not their average.

    Two habits of DeiT's loop. It steps the schedule with the index of the epoch that has just ended, so the first two
    epochs both have the warm-up's first rate and every rate comes an epoch late: schedule_per="epoch" means exactly
    that. And it asks the schedule for 10 epochs of cooldown but leaves after `epochs`: cooldown_epochs=0 is what its
    main.py does, 10 what its settings say, and what stands here.
    """
    # fmt: off
    return dict(
        epochs=300, batch_size=1024, base_lr=5e-4, weight_decay=0.05, optimizer="adamw",
        warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5, cooldown_epochs=10, schedule_per="epoch",
        drop_path_rate=0.1, label_smoothing=0.1, mixup=0.8, cutmix=1.0,
        crop_scale=(0.08, 1.0), hflip=0.5, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25,
        repeated_augmentation=3, ema_decay=0.99996, crop_pct=0.875, mixed_precision="bf16", num_workers=8,
    )


def lit_ti() -> dict:
    """LIT-Ti's training setup (Pan et al. 2022, arXiv:2105.14217; the official code's configuration of lit_ti): DeiT's,
    with offset weights at a hundredth of the rate.

    Command:  make reproduce EXPERIMENT=imagenet-lit, or for one model on a node of 8 GPUs
              python -m ffvit train --experiment imagenet-lit --model lit_ti
    Hardware: 8 GPUs x 128 images, as in the paper. Batch norms see what a process takes at a time: with fewer GPUs,
              accumulation_steps keeps that at 128, and other numbers are another training.
    Time:     not measured.
    Expected: ImageNet top-1 81.1 % (the README of the official code). Not run here.

    At 1024 images the offsets' rate rises to 1e-5 in the warm-up and stays there: min_lr is of all groups alike. Offset
    biases have the whole rate and no decay. There is no cooldown, no average, and no warm-up of drop path. The official
    code trains in fp16; bf16 needs no scaler.
    """
    return deit() | dict(cooldown_epochs=0, drop_path_rate=None, ema_decay=0.0, offset_lr_ratio=0.01)


def lit() -> dict:
    """The training setup of LIT-S, M and B (Pan et al. 2022, arXiv:2105.14217; the official code's configurations), which
    is Swin's: a longer warm-up, a schedule by updates, clipped gradients, no repeated augmentation.

    Command:  python -m ffvit train --experiment imagenet-lit --model lit_s
    Hardware: 8 GPUs x 128 images, as in the paper; LIT-B with grad_checkpointing=true. See lit_ti on batch norms.
    Time:     not measured.
    Expected: ImageNet top-1 of LIT-S 81.5 %, M 83.0 %, B 83.4 % (the README of the official code). Not run here.

    warmup_lr and min_lr are for 512 images, as base_lr is: at 1024 they are 1e-6 and 1e-5, as lit_ti has them. Swin's loop
    steps the schedule after an update with its index, so the first two both have the warm-up's first rate: a late update.
    """
    return lit_ti() | dict(
        warmup_epochs=20, warmup_lr=5e-7, min_lr=5e-6, scale_all_lr=True, schedule_per="late update",
        clip_grad=5.0, repeated_augmentation=0,
    )  # fmt: skip


def small_images() -> dict:
    """For images of a few pixels on a laptop: minutes, not days. No flips, since a mirrored digit is another sign.

    Command:  make reproduce
    Hardware: 2 CPU cores.
    Time:     13 to 40 s a run, by what runs beside it, and three minutes for the four models and three seeds of experiments/digits.toml, notebooks included.
    Expected: top-1 on the 360 test digits as recorded in figures/digits/attention_only.md, 3 seeds: FF-only about 98.8 %.
              No evidence for the report's claims.
    """
    # fmt: off
    return dict(
        epochs=18, batch_size=64, base_lr=0.032, weight_decay=0.05, optimizer="adamw",
        warmup_epochs=2, warmup_lr=1e-6, min_lr=1e-5, schedule_per="update",
        label_smoothing=0.1, crop_scale=(0.85, 1.0), hflip=0.0, crop_pct=1.0, in_memory=True,
    )


def small_photographs() -> dict:
    """For photographs of some 32 pixels on a GPU: DeiT's augmentation and regularisation, without erasing, in 100 epochs.

    Command:  make reproduce EXPERIMENT=cifar10
    Hardware: one CUDA GPU; the images stay in its memory and are augmented there.
    Time:     not measured yet.
    Expected: not run yet; `make status EXPERIMENT=cifar10` lists what is missing.
    """
    # fmt: off
    return dict(
        epochs=100, batch_size=512, base_lr=1e-3, weight_decay=0.05, optimizer="adamw",
        warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5, schedule_per="update",
        drop_path_rate=0.1, label_smoothing=0.1, mixup=0.8, cutmix=1.0,
        crop_scale=(0.4, 1.0), hflip=0.5, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bilinear", crop_pct=1.0,
        in_memory=True, augment="batch", mixed_precision="bf16", compile=True, checkpoint_seconds=20,
    )


def coco_1x() -> dict:
    """LIT's training on COCO (Pan et al. 2022, arXiv:2105.14217; the official code's configurations of RetinaNet on LIT-Ti),
    mmdetection's "1x": 12 epochs, a tenth of the rate after 8 and again after 11, a warm-up of 500 updates from a thousandth.

    Command:  make reproduce EXPERIMENT=coco-lit, or for one model on a node of 8 GPUs
              python -m ffvit train --experiment coco-lit --model retinanet_lit_ti num_processes=8
    Hardware: 8 GPUs x 2 images, as in the official code: its batch norms see the two images of a GPU.
    Time:     not measured.
    Expected: box AP 41.6 % (the README of the official code). Not run here.

    base_lr is for 512 images: 3.2e-3 x 16 / 512 = 1e-4. Every parameter decays. Images have a short side of 800 pixels and
    a long one of 1333 at most; several sizes, of which each image gets one, are model_args.min_size = [480, ..., 800].
    timm lowers the rate with the last update of an epoch, mmdetection with the first of the next. The official code ends
    with the last weights, as here.
    """
    return dict(
        img_size=800, epochs=12, batch_size=16, base_lr=3.2e-3, weight_decay=1e-4, decays="all", optimizer="adamw",
        schedule="multistep", decay_epochs=(8, 11), warmup_epochs=0, warmup_updates=500, warmup_lr=1e-7,
        schedule_per="update", drop_path_rate=None, hflip=0.5, num_workers=2,
    )  # fmt: skip


def ade20k() -> dict:
    """LIT's training on ADE20K (the official code's configuration of Semantic FPN on LIT-Ti), mmsegmentation's 80,000 updates
    of 16 images, the rate falling with a power of 0.9 to 1e-6.

    Command:  make reproduce EXPERIMENT=ade20k-lit
    Hardware: 8 GPUs x 2 images, as the official code's README says.
    Time:     not measured.
    Expected: mIoU 41.3 % (the README of the official code). Not run here.

    An epoch of ADE20K's 20,210 training images has 1,263 updates: 64 epochs are 80,832. base_lr is for 512 images:
    3.2e-3 x 16 / 512 = 1e-4. Crops of 512 pixels are taken from images resized to half to twice a short side of 512.
    """
    return dict(
        img_size=512, epochs=64, batch_size=16, base_lr=3.2e-3, weight_decay=1e-4, decays="all", optimizer="adamw",
        schedule="poly", min_lr=1e-6, warmup_epochs=0, schedule_per="update", drop_path_rate=None, drop_rate=0.1,
        scale_range=(0.5, 2.0), photometric_distortion=True, hflip=0.5, interpolation="bilinear", num_workers=2,
    )  # fmt: skip


def small_scenes() -> dict:
    """For detection and segmentation of small images on a laptop, from random weights: minutes, not days.

    Command:  make reproduce EXPERIMENT=digits-scenes
    Hardware: 2 CPU cores.
    Time:     3 (Mask R-CNN) to 9 minutes (Semantic FPN) of a core for each of the six runs of experiments/digits-scenes.toml.
    Expected: on the 300 test scenes as recorded in figures/digits-scenes/dense.md, 2 seeds: box AP50 about 76 %, mask AP50
              about 78 %, mIoU about 62 %. No evidence for the paper's claims.
    """
    return dict(
        epochs=8, batch_size=8, base_lr=0.064, weight_decay=0.05, optimizer="adamw",
        warmup_epochs=1, warmup_lr=1e-6, min_lr=1e-5, schedule_per="update", hflip=0.0, clip_grad=1.0,
    )  # fmt: skip


RECIPES = {
    recipe.__name__: recipe
    for recipe in (deit, lit_ti, lit, small_images, small_photographs, coco_1x, ade20k, small_scenes)
}
