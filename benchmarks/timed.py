"""Cases of speed.py: models made, run and timed in turns, on images of noise that are on the device already."""

import contextlib
import functools
import gc
import statistics
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

import timm
import torch
from ideas import (
    by_a_product_an_image,
    with_padded_tokens,
    with_products_kept,
    with_tokens_first,
    with_transposes,
    without_dropout,
)
from published import as_published
from torch import nn
from torch.nn import functional as F

import ffvit.models  # noqa: F401, makes the report's models known to timm

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
FORMS: dict[str, Callable] = {
    "ours": lambda model: model,
    "timm": lambda model: model,
    "published": as_published,
    "transposed": with_transposes,
    "tokens first": with_tokens_first,
    "padded to 8": functools.partial(with_padded_tokens, multiple=8),
    "padded to 16": functools.partial(with_padded_tokens, multiple=16),
    "a product an image": by_a_product_an_image,
    "without dropout": without_dropout,
    "products kept": with_products_kept,
}
RUNS = ("eager", "compiled by block", "compiled", "CUDA graphs")
TASKS = ("training", "inference")
ROUNDS = {"cuda": 5, "cpu": 11}
# What stands for all rounds. What else a machine has to do only adds to a round's time: mostly a CPU is shared, and a GPU not.
OF_ROUNDS: dict[str, Callable] = {"cuda": statistics.median, "cpu": min}
# Steps before those that count, and seconds of those that do. Graphs are recorded in the second step and the third.
WARM_UP, SECONDS = {"cuda": 5, "cpu": 1}, {"cuda": 1.5, "cpu": 0.0}
PRODUCT = {"cuda": 8192, "cpu": 2048}  # side of the matrices whose product is the limit
PRODUCTS_S = 0.25  # of products after each round on a CPU


@dataclass(frozen=True)
class Case:
    """What is timed. model: timm's name; form: of FORMS; run: of RUNS."""

    model: str
    form: str = "ours"
    run: str = "eager"
    batch: int = 256
    task: str = "training"
    precision: str = "bf16"
    fused: bool = True  # AdamW's one kernel for all weights, not some for each kind of operation

    @property
    def name(self) -> str:
        """All of it in words: no two cases have the same."""
        loop = "" if self.fused else ", AdamW not fused"
        return f"{self.model} {self.task}, {self.form}, {self.run}, {self.precision}, {self.batch} images{loop}"


def measure(cases: list[Case], device: torch.device, img_size: int = 224, rounds: int = 0) -> list[dict]:
    """Of each case {"ms", "lowest_ms", "highest_ms" of a step, "images_per_s", "first_step_s", "peak_memory_gb", "took_s"}.

    All are made first, and then take turns, a round each (rounds: ROUNDS, if not said): what else a machine has to do slows
    all of them. On a CPU a large product follows each round, and "matrix_rate" is that of all these.
    first_step_s has compilation in it; peak_memory_gb is what PyTorch held at most of a GPU during timed steps, or what this
    process ever held of a CPU's; took_s is an equal share of the time that all took.
    Of a case that fails {"failed": why, "took_s"}, and the others go on; the next call finds the device empty.
    """
    began = time.monotonic()
    found = _in_turns([_timed(case, device, img_size, rounds or ROUNDS[device.type]) for case in cases])
    # The models and their errors are gone by now, and what they held can be given back; not by a device that an error ended.
    with contextlib.suppress(RuntimeError):
        if any(case.run != "eager" for case in cases):
            torch.compiler.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    products = [seconds for measured in found for seconds in measured.pop("products", [])]
    same = {
        "matrix_rate": _rate(products, device) if products else None,
        "took_s": (time.monotonic() - began) / len(cases),
    }
    return [measured | same for measured in found]


def _in_turns(going: list[Generator[None, None, dict]]) -> list[dict]:
    """What each of them returns in the end, or how it failed."""
    found: list[dict] = [{} for _ in going]
    while not all(found):
        for number, one in enumerate(going):
            if found[number]:
                continue
            try:
                next(one)
            except StopIteration as end:
                found[number] = end.value
            except Exception as error:  # of any library, at any depth: it is this case's result
                found[number] = {"failed": _in_short(error)}
    return found


def matrix_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large product of random matrices: what a model's own products can reach here, at the very most."""
    product = _product(device, precision)
    for _ in range(WARM_UP[device.type]):
        product()
    times = _times(product, device, SECONDS[device.type] / ROUNDS[device.type])
    return _rate([_seconds(product, device, times) for _ in range(ROUNDS[device.type])], device)


def _product(device: torch.device, precision: str) -> Callable[[], torch.Tensor]:
    size = PRODUCT[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def _rate(seconds: list[float], device: torch.device) -> float:
    return 2 * PRODUCT[device.type] ** 3 / OF_ROUNDS[device.type](seconds)


def why_nothing_compiles(device: torch.device) -> str | None:
    """None where the compiler works here. Its workers are then started, which no case has to pay for."""
    try:
        torch.compile(lambda x: (2 * x + 1).relu())(torch.zeros(4096, device=device))
    except Exception as error:
        return _in_short(error)
    finally:
        torch.compiler.reset()
    return None


def is_lost(device: torch.device) -> bool:
    """Whether an error left the device so that nothing more runs on it in this process."""
    try:
        return torch.ones(1, device=device).sum().item() != 1
    except Exception:
        return True


def compile_as(model: nn.Module, run: str) -> None:
    """Have a model compiled at its first step, in place, one of RUNS."""
    if run == "compiled by block":
        for block in model.blocks:
            if any(True for _ in block.parameters()):  # blocks are alike, so that all but the first are free
                block.compile()
    elif run != "eager":
        model.compile(mode="reduce-overhead" if run == "CUDA graphs" else None)


def _timed(case: Case, device: torch.device, img_size: int, rounds: int) -> Generator[None, None, dict]:
    """Made and warmed up when it first yields, and then a round on."""
    torch.manual_seed(0)
    with torch.device(device):
        model = FORMS[case.form](timm.create_model(case.model, img_size=img_size))
        images = torch.randn(case.batch, 3, img_size, img_size)
        target = torch.randint(1000, (case.batch,))
    compile_as(model, case.run)
    step = _inference(model, images, case) if case.task == "inference" else training_step(model, images, target, case)
    beside = _product(device, case.precision) if device.type == "cpu" else None
    first = _seconds(step, device)
    for _ in range(WARM_UP[device.type] - 1):
        step()
    times = _times(step, device, SECONDS[device.type] / rounds)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    products = _times(beside, device, PRODUCTS_S) if beside else 0
    took, took_beside = [], []
    for _ in range(rounds):
        yield
        took.append(_seconds(step, device, times))
        if beside:
            took_beside.append(_seconds(beside, device, products))
    peak = _peak_memory_gb(device)
    if not step().isfinite().all():
        raise ValueError("its output is not finite")
    seconds = OF_ROUNDS[device.type](took)
    return {
        "ms": 1000 * seconds,
        "lowest_ms": 1000 * min(took),
        "highest_ms": 1000 * max(took),
        "images_per_s": case.batch / seconds,
        "first_step_s": first,
        "peak_memory_gb": peak,
        "products": took_beside,
    }


def training_step(
    model: nn.Module, images: torch.Tensor, target: torch.Tensor, case: Case
) -> Callable[[], torch.Tensor]:
    """Forward pass, loss, backward pass, AdamW; gives the loss."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=case.fused, foreach=not case.fused)

    def step() -> torch.Tensor:
        if case.run == "CUDA graphs":
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=case.precision == "bf16"):
            loss = F.cross_entropy(model(images), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def _inference(model: nn.Module, images: torch.Tensor, case: Case) -> Callable[[], torch.Tensor]:
    model.eval()

    @torch.inference_mode()
    def step() -> torch.Tensor:
        if case.run == "CUDA graphs":
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=case.precision == "bf16"):
            return model(images)

    return step


def _seconds(work: Callable, device: torch.device, times: int = 1) -> float:
    """Of one, when done so many times."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    _wait(device)
    return (time.perf_counter() - began) / times


def _times(work: Callable, device: torch.device, seconds: float) -> int:
    """How often it is to be done to take that long, at least once."""
    return max(1, round(seconds / _seconds(work, device)))


def _peak_memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    from ffvit.training.progress import peak_memory_mb  # here: a GPU needs nothing of what it imports

    return peak_memory_mb(device) * 2**20 / 1e9


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _in_short(error: Exception) -> str:
    text = str(error).strip()
    if "out of memory" in text or "can't allocate memory" in text:
        return "out of memory"
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no more said'}"[:200]
