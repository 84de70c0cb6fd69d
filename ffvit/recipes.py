"""Named recipes: settings that belong together, with what to expect of them. An experiment names one and overrides it."""


def deit() -> dict:
    """DeiT's training setup, which the report uses unchanged (Touvron et al. 2021, arXiv:2012.12877, Table 9 and the
    defaults of the deit repository's main.py).

    Command:  make reproduce EXPERIMENT=imagenet, or for one model on a node of 8 GPUs
              python -m ffvit.launch --experiment imagenet --model ff_base num_processes=8
    Hardware: 8 GPUs x 128 images, as in both papers; fewer GPUs take accumulation_steps for the same batch of 1024.
    Time:     DeiT-B, the costliest of DeiT's own models: 53 hours on 8 V100 (deit repository). Not run here.
    Expected: ImageNet top-1 of the report's Table 1: FF-only tiny 61.4 %, base 74.9 %, large 71.4 %; DeiT tiny 72.2 %,
              base 81.8 %. The raw weights, not their average.

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
    # fmt: on


def small_images() -> dict:
    """For images of a few pixels on a laptop: minutes, not days. No flips, since a mirrored digit is another sign.

    Command:  make reproduce
    Hardware: 2 CPU cores.
    Time:     about 15 s a run, 4 minutes for the four models and three seeds of experiments/digits.toml.
    Expected: top-1 on the 360 test digits as recorded in figures/digits/attention_only.md, 3 seeds: FF-only about 98.8 %.
              No evidence for the report's claims.
    """
    # fmt: off
    return dict(
        epochs=18, batch_size=64, base_lr=0.032, weight_decay=0.05, optimizer="adamw",
        warmup_epochs=2, warmup_lr=1e-6, min_lr=1e-5, schedule_per="update",
        label_smoothing=0.1, crop_scale=(0.85, 1.0), hflip=0.0, crop_pct=1.0, in_memory=True,
    )
    # fmt: on


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
    # fmt: on


RECIPES = {recipe.__name__: recipe for recipe in (deit, small_images, small_photographs)}
