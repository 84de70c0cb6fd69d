"""Whether the site shows what is there. Needs nothing but the standard library, so that the pipeline knows at once."""

from ffvit.system.files import ROOT

SITE = ROOT / "site"
STAMP = SITE / ".made"  # touched when a build has ended well
# What pages are made of.
SHOWN = (
    *("website/*", "website/static/*", "docs/*.md", "benchmarks/*", "README.md", "CHANGELOG.md", "notebooks/*.ipynb"),
    *("ffvit/**/*.py", "experiments/*.toml", "results/**/*.json", "figures/*/*"),
    *("runs/*/*.ipynb", "runs/*/*/*.ipynb", "runs/*/*/record.json", "runs/*/*/*.safetensors"),
)


def is_current() -> bool:
    if not STAMP.exists():
        return False
    made = STAMP.stat().st_mtime_ns
    return not any(file.stat().st_mtime_ns > made for pattern in SHOWN for file in ROOT.glob(pattern))
