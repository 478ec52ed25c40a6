"""What importing costs, and what it exposes."""

import json
import subprocess
import sys

import paretune


def modules_after(statement: str) -> set[str]:
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_import_loads_no_heavy_package_and_starts_no_gpu() -> None:
    loaded = modules_after("import paretune")
    assert not loaded & {
        "torch",
        "transformers",
        "peft",
        "timm",
        "matplotlib",
        "altair",
        "vl_convert",
        "pandas",
    }


def test_statistics_and_report_need_no_torch() -> None:
    loaded = modules_after(
        "import paretune; paretune.area, paretune.compare, paretune.write_report, paretune.runs.load_runs, "
        "paretune.analyze, paretune.report.write_analysis"
    )
    assert not loaded & {"torch", "transformers", "peft", "timm", "matplotlib", "altair"}


def test_training_starts_without_what_it_may_never_use() -> None:
    loaded = modules_after("import paretune.sweeps.entry")
    assert "torch" in loaded
    assert not loaded & {
        "scipy.stats",
        "torch.distributed.fsdp",
        "torch.distributed.tensor",
        "timm",
        "transformers",
        "peft",
    }


def test_every_exported_name_exists_and_is_listed() -> None:
    assert sorted(paretune.__all__) == paretune.__all__
    for name in paretune.__all__:
        assert getattr(paretune, name) is not None
    assert {*dir(paretune)} > {*paretune.__all__}


def test_sizes_of_images_need_no_torch_and_the_names_of_data_are_listed() -> None:
    loaded = modules_after("from paretune.data.sizes import Sides; import paretune.data; dir(paretune.data)")
    assert not loaded & {"torch", "timm", "transformers"}
    assert {*paretune.data.__all__} <= {*dir(paretune.data)}
    assert all(getattr(paretune.data, name) is not None for name in paretune.data.__all__)
