"""benchmarks/images.py, same_recipe.py and cost.py: every way gives images, measuring goes on, nothing unmeasured has a number."""

import csv
import json

import pytest
import torch

from ffvit.data.batch_augmentation import Cropped
from ffvit.system.files import ROOT

FOLDER = ROOT / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture(scope="module")
def sets():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        import images

        patch.setattr(images, "NEAR", ROOT / "nowhere")
        return [images.few(photographs, 2) for photographs in images.photographs("")]


def test_every_way_gives_images_of_the_recipe(sets):
    import images

    assert [(name, taken_from) for name, _, taken_from in sets] == [
        ("as they are", images.SAMPLES),
        ("prepared", images.SAMPLES),
    ]
    assert sum(map(len, sets[1].files)) < sum(map(len, sets[0].files)) / 2
    for _, files, _ in sets:
        made = {name: way(files[0], 3) for name, way in images.ways().items()}
        for name in (images.TIMM, images.TORCHVISION, images.OURS):
            assert made[name].shape == (3, 224, 224) and made[name].dtype == torch.float32, name
            assert -10 < made[name].min() < made[name].max() < 10 and made[name].std() > 0.1
        cropped = made[images.CROPPED]
        assert isinstance(cropped, Cropped) and cropped.pixels.dtype == torch.uint8
    [batch] = images._batches([cropped] * 3, 3, CPU)
    assert batch.pixels.shape == (3, 3, 224, 224) and images.device_rate([batch], CPU) > 0


def test_measuring_goes_on_with_the_next_round_and_not_with_other_photographs(sets, tmp_path, monkeypatch):
    import images

    made = []
    monkeypatch.setattr(
        images, "measure_round", lambda sets, device, number: made.append(number) or {"any": {"x": 1.0}}
    )
    keep = tmp_path / "kept.json"
    images.measure_all(sets, CPU, keep, 2)
    monkeypatch.setattr("speed.provenance.git_state", lambda: {"commit": "b" * 40})  # committed in between
    images.measure_all(sets, CPU, keep, 3)
    rounds = json.loads(keep.read_text())["rounds"]
    assert made == [0, 0, 1, 2] and len(rounds) == 3  # the first is not kept
    assert ["commit bbbbbbbbbb" in of_round["measured"] for of_round in rounds] == [False, False, True]
    others = [images.few(photographs, 1) for photographs in sets]
    with pytest.raises(ValueError, match="other photographs: give another --keep"):
        images.measure_all(others, CPU, keep, 4)


def kept(images, gpu=None, taken_from="150 of a dataset"):
    rates = {images.TIMM: 200.0, images.OURS: 190.0, images.CROPPED: 500.0}
    found = {"as they are": rates, "prepared": {way: 2 * rate for way, rate in rates.items()}}
    if gpu:
        found = {name: {images.ON_GPU: 4000.0} for name in found}
    found["any"] = {images.DEVICE: 9000.0}
    rounds = [
        {
            "rates": {name: {way: rate * factor for way, rate in rates.items()} for name, rates in found.items()},
            "measured": f"2000-01-01, commit {factor}",
        }
        for factor in (1.0, 0.5, 1.5)
    ]
    where = {"hardware": {"cpu": "Test CPU", "cpu_cores": 4, "gpu": gpu}, "versions": {"torch": "1"}}
    sizes = {"as they are": 100_000, "prepared": 30_000}
    return {"machine": where, "small": False, "bytes": sizes, "taken from": taken_from, "rounds": rounds}


def test_rows_are_medians_beside_timms_and_small_ones_are_none(sets):
    import images

    rows = {(row["photographs"], row["way"]): row for row in images.rows(kept(images))}
    assert rows["as they are", images.CROPPED]["times timm"] == "2.50"
    prepared = rows["prepared", images.CROPPED]
    assert (prepared["images/s"], prepared["times timm"]) == ("1,000", "2.50")
    assert prepared["times timm, photographs as they are"] == "5.00" and prepared["KB an image"] == "30"
    assert prepared["lowest to highest"] == "500 to 1,500" and prepared["machine"] == "a core of Test CPU"
    assert rows["any", images.DEVICE]["machine"] == "a core of Test CPU"
    assert prepared["measured"] == "2000-01-01, commit 1.0; 2000-01-01, commit 0.5; 2000-01-01, commit 1.5"
    on_gpu = images.rows(kept(images, gpu="One"))
    assert [(row["machine"], row["way"], row["times timm"], row["images/s"]) for row in on_gpu] == [
        ("GPU: One", images.ON_GPU, "", "4,000"),
        ("GPU: One", images.ON_GPU, "", "4,000"),
        ("GPU: One", images.DEVICE, "", "9,000"),
    ]
    assert [{"photographs": row["photographs"], "way": row["way"]} for row in on_gpu] == images.GPU_CASES
    with pytest.raises(ValueError, match="--small"):
        images.rows(kept(images) | {"small": True})


def test_rows_of_a_datasets_photographs_are_never_replaced_by_those_of_the_samples(monkeypatch, tmp_path, capsys):
    import images
    import page

    def written(*kept):
        found = []
        monkeypatch.setattr(page, "write", lambda name, title, rows, note: found.extend(rows))
        images.write(list(kept))
        with open(tmp_path / "benchmarks/images.csv", "w", newline="") as file:
            table = csv.DictWriter(file, list(found[0]))
            table.writeheader()
            table.writerows(found)
        return {(row["machine"], row["taken from"]) for row in found if row["measured"] != page.BLANK}

    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(page, "ROOT", tmp_path)
    samples = {"taken_from": images.SAMPLES}
    assert written(kept(images, **samples)) == {("a core of Test CPU", images.SAMPLES)}
    assert written(kept(images)) == {("a core of Test CPU", "150 of a dataset")}
    both = {("a core of Test CPU", "150 of a dataset"), ("GPU: One", images.SAMPLES)}
    assert written(kept(images, **samples), kept(images, "One", **samples)) == both  # of a GPU there were none
    assert "left out, for there are rows of a dataset's photographs" in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_decodes_and_does_its_part(sets):
    import images

    found = images.measure_round(sets, torch.device("cuda"), 0)
    assert found.keys() == {"as they are", "prepared", "any"} and found["any"][images.DEVICE] > 0
    assert all(found[name][images.ON_GPU] > 0 for name in ("as they are", "prepared"))
    [(_, [file, _], _), _] = sets
    encoded = torch.frombuffer(bytearray(file), dtype=torch.uint8)
    mode = images.ImageReadMode.RGB
    [on_gpu], on_cpu = images.decode_jpeg([encoded], mode, device="cuda"), images.decode_jpeg(encoded, mode)
    assert (on_gpu.cpu().float() - on_cpu.float()).abs().mean() < 2  # another decoder rounds otherwise


def tables(folder, images_rows, steps):
    """speed.csv of (model, form, images a second) on one GPU, and images.csv."""
    of_steps = [
        dict(machine="GPU: One", step="training", run="eager", precision="bf16")
        | dict(zip(("model", "form", "images/s"), row))
        for row in steps
    ]
    for name, rows in (("speed", of_steps), ("images", images_rows)):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    return folder


def cells(text):
    lines = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {line[0]: dict(zip(lines[0], line)) for line in lines[2:]}


STEPS = [
    ("ff_base_patch16_224", "transposed", "1,000.0"),
    ("ff_base_patch16_224", "tokens first", "9,000.0"),  # which is no form of ours
    ("deit_base_patch16_224", "timm", "3,000.0"),
    ("deit_tiny_patch16_224", "timm", "out of memory"),
]


@pytest.mark.parametrize("gpu", [None, "One"])
def test_the_cost_of_table_1_follows_from_the_two_tables(tmp_path, gpu):
    import cost
    import images

    measured = images.rows(kept(images)) + (images.rows(kept(images, gpu)) if gpu else [])
    slow = [
        row | {"images/s": "1", "taken from": images.SAMPLES} for row in measured
    ]  # two photographs of another kind
    measured += [row for row in slow if row["photographs"] != "any"]
    text = cost.text(tables(tmp_path, measured, STEPS))
    found = cells(text)
    ours = found["FF only, base"]
    hours = 310 * 1_281_167 / 1000 / 3600
    assert (
        ours["steps alone, 1 GPU (h)"] == f"≈ {hours:.0f}" and ours["steps alone, 8 GPUs (h)"] == f"≈ {hours / 8:.1f}"
    )
    assert ours["step (images/s)"] == "1,000 (transposed, eager)"
    assert ours["augment=image"] == f"≈ 5.3; ≈ {hours:.0f} h, step"  # 8 cores make 8 x 190 images/s
    theirs = found["DeiT, base"]
    assert theirs["augment=image"] == f"≈ 15.8; ≈ {hours * 1000 / (8 * 190):.0f} h, images"
    step = 3000 if gpu is None else 1 / (1 / 3000 + 1 / 9000)  # the device augments, too
    assert theirs["augment=batch, prepared"] == f"≈ {step / 1000:.1f}; ≈ {hours * 1000 / step:.0f} h, step"
    assert ("python benchmarks/images.py --device cuda` measures it" in text) == (gpu is None)
    for model in ("FF only, large", "DeiT, tiny"):  # never measured; failed
        assert set(list(found[model].values())[2:]) == {"not run"}
    assert "`make benchmark DEVICE=cuda` measures it" in text


def test_the_models_of_the_cost_table_are_those_of_table_1():
    import cost

    models = {config.model for config in cost.table_1()}
    assert {"ff_tiny_patch16_224", "ff_base_patch16_224", "ff_large_patch32_224", "vit_large_patch32_224"} < models
    assert "attention_only_tiny_patch16_224" not in models
    import speed

    assert models <= {case.model for case in speed.GPU_CASES if case.task == "training"}  # a command fills every row


def test_trainings_either_way_are_told_by_pairs():
    import same_recipe

    tops = {"image": (70.0, 72.0, 71.0), "batch": (71.0, 71.0, 73.0)}
    kept = {f"{way}, seed {seed}": tops[way][seed] for way in tops for seed in same_recipe.SEEDS}
    rows = same_recipe.rows(kept)
    assert [row["difference"] for row in rows] == [
        "+1.00",
        "−1.00",
        "+2.00",
        "+0.67 ± 1.53, 95 % interval −3.13 to +4.46",
    ]
    assert rows[-1]["image, top-1 (%)"] == "71.00 ± 1.00"


def test_trainings_either_way_are_of_the_same_settings_but_for_the_way():
    import same_recipe

    one, other = (same_recipe.config(way, 1, "digits").to_dict() for way in same_recipe.WAYS)
    assert {name for name in one if one[name] != other[name]} == {"augment"}
    assert one["random_erasing"] and one["auto_augment"] and one["seed"] == 1


def test_trainings_either_way_are_left_out_in_a_line_where_the_images_cannot_be_opened(monkeypatch, capsys):
    import same_recipe

    monkeypatch.setattr("sys.argv", ["same_recipe.py", "--dataset", "./nowhere"])
    monkeypatch.setattr(same_recipe, "write", None)  # its table stays as it is
    same_recipe.main()
    told = capsys.readouterr().out
    assert "same_recipe is left out, its table stays as it is: dataset './nowhere'" in told and told.count("\n") == 1
