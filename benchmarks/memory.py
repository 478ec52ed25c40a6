"""What the memory of ATTA is worth: robust accuracy of LoRA on the demo against what training cost.

python benchmarks/memory.py                # 5 epochs, three seeds; appends to benchmarks/memory.csv
python benchmarks/memory.py --epochs 15    # does it gain with more epochs?
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from _record import append, machine
from paretune.sweeps.config import RunConfig
from paretune.training.objectives import read_objective

FILE = Path(__file__).with_suffix(".csv")
THREAT = "Linf(2/255)"
OBJECTIVES = {
    "PGD-1": f"AdversarialTraining(PGD({THREAT}, steps=1))",
    "PGD-2": f"AdversarialTraining(PGD({THREAT}, steps=2))",
    "PGD-3": f"AdversarialTraining(PGD({THREAT}, steps=3))",
    "FGSM-RS": f"AdversarialTraining(FGSM({THREAT}))",
    "N-FGSM": f"AdversarialTraining(NFGSM({THREAT}))",
    "ATTA-1": f"ATTA(PGD({THREAT}, steps=1))",
    "ATTA-2": f"ATTA(PGD({THREAT}, steps=2))",
}


def main() -> None:
    """Train every objective with one seed after the other, and append a row each."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--epochs", type=float, default=5.0)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    chosen = options.parse_args()
    torch.set_num_threads(1)
    about = machine()
    for seed in range(chosen.seeds):
        for name in chosen.objectives:
            objective = read_objective(OBJECTIVES[name])
            config = RunConfig(objective=objective, epochs=chosen.epochs, seed=seed, eval_steps=20, points=1)
            with tempfile.TemporaryDirectory() as directory:
                began = time.process_time()
                (run,) = config.run(Path(directory) / "run", progress=False)
                last = run.points.iloc[-1]
                seconds = time.process_time() - began
            row = {
                "objective": name,
                "epochs": chosen.epochs,
                "seed": seed,
                "clean": last.clean,
                "robust": last.robust,
                "gradient_evaluations": last.gradient_evaluations,
                "cpu_seconds": round(seconds, 1),
            }
            append(FILE, row | about)
            print(f"{name:8} seed {seed}: clean {last.clean:.3f}, robust {last.robust:.3f}", flush=True)


if __name__ == "__main__":
    main()
