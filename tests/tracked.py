"""What is the project's own: what a person adds to experiments/ is theirs, and no test's."""

import subprocess

from ffvit.system.files import ROOT


def tracked(pattern: str) -> list[str]:
    """Names without ending of the files that git tracks, such as "experiments/*.toml"; all there are without git."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", pattern], capture_output=True, text=True)
    paths = [ROOT / line for line in listed.stdout.splitlines()] or list(ROOT.glob(pattern))
    return sorted(path.stem for path in paths)
