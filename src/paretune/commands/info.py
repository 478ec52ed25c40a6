"""``paretune info``: versions, devices, and what is installed."""

import sys
from dataclasses import dataclass

from paretune.commands._printing import print_table


@dataclass(frozen=True, kw_only=True)
class Info:
    """Print versions, devices and what is installed for use without a network."""

    def __call__(self) -> None:
        """Print two columns."""
        import importlib.util
        from importlib.metadata import PackageNotFoundError, version

        import torch

        from paretune.backbones.offline import OFFLINE

        def versioned(name: str) -> str:
            try:
                return version(name)
            except PackageNotFoundError:
                return "not installed"

        rows = [
            [name, versioned(name)] for name in ("paretune", "torch", "timm", "transformers", "accelerate")
        ]
        rows.append(["python", sys.version.split()[0]])
        rows.append(["CPU threads", str(torch.get_num_threads())])
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        rows.append(["GPU", gpu])
        for name, record in OFFLINE.items():
            installed = importlib.util.find_spec(record.package) is not None
            rows.append([f"weights {name}", "installed" if installed else record.install])
        for name, extra in (
            ("vl_convert", "report"),
            ("matplotlib", "plot"),
            ("datasets", "datasets"),
            ("ray", "ray"),
            ("submitit", "slurm"),
        ):
            installed = importlib.util.find_spec(name) is not None
            rows.append([name, "installed" if installed else f'pip install "paretune[{extra}]"'])
        print_table(["what", "state"], rows)
