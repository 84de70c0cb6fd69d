"""An experiment whose texts mean something to HTML, Markdown, TeX, matplotlib, Snakemake and the shell."""

TITLE = r'{seed} {wildcards} $\frac | <img src=x onerror=alert(1)> "q" `b` *c* % & \ $(touch x)'
SCOPE = "{x}|$y$<b>"
LABELS = (r"{model} $\frac{a}$ | <img onerror=x> _x_", r"_{output} \ $ [a](b) ~c~ #", "<script>&amp;%_^")
TEXT = rf"""
title = '{TITLE}'
scope = '{SCOPE}'
about = '{{about}}'
seeds = [0, 1]
[models.ff]
label = '{LABELS[0]}'
model = "ff_tiny_patch16_224"
[models.vit]
label = '{LABELS[1]}'
model = "vit_tiny_patch16_224"
[compare.few]
title = '{{few}} | $x$'
vary.n = [{{ name = "few", label = '{LABELS[2]}', set = {{ max_train_images = 200 }} }}]
[settings]
recipe = "small_images"
dataset = "digits"
img_size = 8
in_chans = 1
mean = [0.3]
std = [0.4]
model_args = {{ patch_size = 2, embed_dim = 16, depth = 1, num_heads = 2 }}
[tuning]
base_lr = [0.032]
"""
