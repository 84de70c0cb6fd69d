"""Notebook 14: the formulas are those of the code, powers are found where they are, and memory is what tensors take."""

import pytest
import torch

from ffvit.models import cost
from ffvit.studies import block_costs
from ffvit.studies import sequence_length as study
from ffvit.system.errors import InputError

SHAPE = block_costs.Shape(embed_dim=48, num_heads=3)
KINDS = block_costs.kinds(40)


@pytest.fixture(scope="module")
def measured():
    return [block_costs.measure(kind, n, SHAPE) for kind in KINDS for n in (196, 256, 320, 400)]


@pytest.mark.parametrize("num_tokens", [5, 64, 100])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.label)
def test_multiply_adds_are_those_of_the_formula(kind, num_tokens):
    block = block_costs._block(kind, num_tokens, SHAPE)
    assert block_costs.macs(kind, num_tokens, SHAPE) == cost.count_macs(block, (num_tokens, SHAPE.embed_dim))


def test_memory_is_that_of_the_formula_and_the_peak_is_above_it(measured):
    for m in measured:
        assert m.kept_mb == pytest.approx(block_costs.kept_mb(m.kind, m.num_tokens, SHAPE), rel=0.02), m
        assert m.peak_mb > m.kept_mb


def test_memory_counts_what_is_freed_and_what_is_held():
    def run():
        held, freed = torch.empty(1_000_000), torch.empty(3_000_000)
        del freed
        return held

    assert block_costs._watched_on_cpu(run) == (4.0, 16.0)


def test_attention_in_one_kernel_keeps_no_weights_of_all_pairs(measured):
    kept = {m.kind.label: m.kept_mb for m in measured if m.num_tokens == 400}
    pairs_mb = SHAPE.num_heads * 400**2 * 4 / 1e6
    assert kept["attention, step by step"] - kept["attention, one kernel"] > pairs_mb


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_a_power_is_found(power):
    tokens = [49, 196, 392, 784, 1568]
    found, low, high = study.exponent(tokens, [7 * n**power for n in tokens])
    assert found == pytest.approx(power) and low <= found <= high


def test_short_sequences_decide_no_power():
    tokens = [10, 49, 196, 392, 784]
    assert study.exponent(tokens, [1e6, 1e6, *(n**1.5 for n in tokens[2:])])[0] == pytest.approx(1.5)
    with pytest.raises(InputError, match="a power takes 3 lengths of 196 tokens or more"):
        study.exponent([49, 98, 196, 392], [1.0, 2.0, 3.0, 4.0])


def test_what_was_found_goes_by_the_interval(measured):
    table = study.powers(measured, SHAPE)
    assert set(table["Grows"]) == {"multiply-adds", "time, as multiply-adds", "memory kept"}
    exact = table[table["Grows"] != "time, as multiply-adds"]
    assert set(exact["Found"]) == {"as predicted"}
    slower = [m._replace(macs=m.macs * m.num_tokens) for m in measured]
    found = study.powers(slower, SHAPE)
    assert set(found[found["Grows"] == "multiply-adds"]["Found"]) == {"higher than predicted"}


def test_the_summary_compares_with_the_fixed_width(measured):
    told = study.summary(measured).splitlines()
    assert told[0] == "At 400 tokens, beside feed-forward, width 40:" and len(told) == 4
    last = {m.kind.label: m for m in measured if m.num_tokens == 400}
    ratio = last["feed-forward, width 4 N"].macs / last["feed-forward, width 40"].macs
    assert f"feed-forward, width 4 N: {ratio:.1f} times the multiply-adds" in told[3]


def test_a_device_that_does_not_tell_its_memory_is_refused():
    with pytest.raises(InputError, match="device 'mps': memory is measured on cpu and cuda only"):
        block_costs.measure(KINDS[0], 4, SHAPE, "mps")
