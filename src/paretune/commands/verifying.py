"""``paretune runs verify``: whether run directories are what they say."""

import json
from dataclasses import dataclass

from paretune.commands._selecting import Selecting, read_runs


@dataclass(frozen=True)
class Verify(Selecting):
    """Check runs: files whole, the bits of every row and their means, adapters, and one split of each task.

    What training says of a run, such as its seed, cannot be checked so; the same configuration trains it again.

    Args:
        runs: run directories, or directories of them.
        json: print JSON instead.
    """

    runs: list[str]
    json: bool = False

    def __call__(self) -> None:
        """Check all, say what is wrong.

        Raises:
            ValueError: something is.
        """
        from paretune.interchange.files import read_adapter
        from paretune.runs.verifying import problems, splits, versions

        read, damaged = read_runs(self.runs)
        runs = self.select(read)
        wrong = {path: [problem] for path, problem in damaged.items()}
        for run in runs:
            told = problems(run)
            if (run.path / "adapter").exists():
                try:
                    read_adapter(run.path / "adapter")
                except (ValueError, OSError) as error:
                    told.append(str(error))
            if told:
                wrong[str(run.path)] = told
        several = {task: sorted(of_task) for task, of_task in splits(runs).items() if len(of_task) > 1}
        points = sum(len(run.points) for run in runs)
        packages = {name: sorted(of_name) for name, of_name in sorted(versions(runs).items())}
        if self.json:
            told_all = {"runs": len(runs), "points": points, "problems": wrong, "splits": several}
            print(json.dumps(told_all | {"versions": packages}, indent=2))
        else:
            for path, texts in wrong.items():
                for text in texts:
                    print(f"{path}: {text}")
            for task, pairs in several.items():
                print(f"{task}: {len(pairs)} splits, which cannot be compared: {pairs}")
            print(f"{len(runs):,} runs, {points:,} points")
            for name, of_name in packages.items():
                print(f"{name} {', '.join(of_name)}")
        if wrong or several:
            raise ValueError(
                f"{len(wrong)} runs are not what they say, and {len(several)} tasks have several splits"
            )
