"""A run a core, or one on all of them? `make benchmark` trains FF-only on a CPU both ways, in turns.

Processes that share the machine wait for one another when their model is made, and train at the same time.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import time

import timm
import torch
from page import of_other_machines, write
from speed import machine, measured, where
from timed import Case, training_step

import ffvit.models  # noqa: F401, makes the report's models known to timm
from ffvit.system.machine import keep_memory

MODEL = "ff_tiny_patch16_224"
# What is trained: its shape, and images in a batch.
SHAPES: dict[str, tuple[dict, int]] = {
    "FF-only of experiments/digits.toml, 8 px": (dict(img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=3), 64),
    "FF-only tiny, 32 px, patches of 4": (dict(img_size=32, patch_size=4), 64),
    "FF-only tiny, 224 px": (dict(), 16),
}
ROUNDS, SECONDS, WARM_UP = 5, 6.0, 2
NOTE = (
    "Forward pass, loss, backward pass and AdamW in fp32 on images of noise that are there already; medians over 5 rounds in "
    "turns, of 6 seconds each. Images/s of processes that share the machine are those of all of them together."
)


def train(name: str, threads: int) -> None:
    """Says when it is ready, waits for a line, trains, and says how many images it took in a second."""
    keep_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shape, batch = SHAPES[name]
    model = timm.create_model(MODEL, **shape)
    images = torch.randn(batch, shape.get("in_chans", 3), *2 * [shape.get("img_size", 224)])
    target = torch.randint(10, (batch,))
    step = training_step(model, images, target, Case(MODEL, precision="fp32"))
    for _ in range(WARM_UP):
        step()
    print("ready", flush=True)
    sys.stdin.readline()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() < began + SECONDS:
        step()
        steps += 1
    print(batch * steps / (time.perf_counter() - began))


def images_per_s(name: str, processes: int, threads: int) -> float:
    """Of all processes together. Raises RuntimeError where one fails."""
    command = [sys.executable, __file__, "--alone", name, str(threads)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    running = [subprocess.Popen(command, **pipes) for _ in range(processes)]
    for process in running:
        process.stdout.readline()
    for process in running:
        with contextlib.suppress(BrokenPipeError):  # it has ended, by an error
            process.stdin.write("go\n")
            process.stdin.flush()
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"{name}: a process failed; its error is above")
    return sum(map(float, said))


def row_of(name: str, here: dict) -> dict[str, str]:
    cores = here["hardware"]["cpu_cores"]
    rounds = [(images_per_s(name, 1, cores), images_per_s(name, cores, 1)) for _ in range(ROUNDS)]
    print(f"{name}: {rounds}", file=sys.stderr)
    together, alone = (statistics.median(speeds) for speeds in zip(*rounds))
    times = [each / one for one, each in rounds]
    return {
        "machine": where(here),
        "model": name,
        "batch": str(SHAPES[name][1]),
        "one run on all cores (images/s)": f"{together:,.0f}",
        "a run a core (images/s)": f"{alone:,.0f}",
        "times": f"{statistics.median(times):.2f}",
        "lowest to highest": f"{min(times):.2f} to {max(times):.2f}",
        "measured": measured(here),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alone", nargs=2, metavar=("SHAPE", "THREADS"), help="one run, in this process")
    options = parser.parse_args()
    if options.alone:
        train(options.alone[0], int(options.alone[1]))
        return
    here = machine(torch.device("cpu"))
    rows = [row_of(name, here) for name in SHAPES]
    write("cores", "A run a core, or one on all of them?", rows + of_other_machines("cores", rows), NOTE)


if __name__ == "__main__":
    main()
