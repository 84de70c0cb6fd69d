"""Reproducible companion to "Do You Even Need Attention?" (arXiv:2105.02723).

`import ffvit.models` registers its models with timm: `timm.create_model("ff_tiny_patch16_224")`.
"""
