"""``paretune runs verify``: whether run directories are what they say."""

import json
from dataclasses import dataclass

from paretune.commands._selecting import Selecting, read_runs


@dataclass(frozen=True)
class Verify(Selecting):
    """Check runs: each file as it was when the run finished, the bits of every row and their means, one split of each task.

    Of a submission to a leaderboard also that no run was added, taken away or exchanged. Versions of packages that differ
    are told, and so is of which runs less can be said. What training says of a run, such as its seed, cannot be checked
    so; the same configuration trains it again.

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
        from paretune.runs.rows import training_of
        from paretune.runs.verifying import copies, problems, splits, submission_problems, unproven, versions

        read, damaged = read_runs(self.runs)
        runs = self.select(read)
        wrong = {path: [problem] for path, problem in damaged.items()}
        for run in runs:
            told = problems(run)
            for directory in dict.fromkeys((run.path, training_of(run.path))):
                try:
                    if (directory / "adapter").exists():
                        read_adapter(directory / "adapter")
                except (ValueError, OSError) as error:
                    told.append(str(error))
            if told:
                wrong[str(run.path)] = told
        for path, first in copies(runs).items():
            wrong.setdefault(path, []).append(f"a copy of {first}; remove one of them")
        submissions = submission_problems(self.runs)
        several = {task: of_task for task, of_task in splits(runs).items() if len(of_task) > 1}
        points = sum(len(run.points) for run in runs)
        packages = {name: sorted(of_name) for name, of_name in sorted(versions(runs).items())}
        less = unproven(runs)
        if self.json:
            pairs = {
                task: [
                    {"report": pair[0], "select": pair[1], "runs": paths} for pair, paths in of_task.items()
                ]
                for task, of_task in several.items()
            }
            told_all = {"runs": len(runs), "points": points, "problems": wrong | submissions, "splits": pairs}
            print(json.dumps(told_all | {"versions": packages, "unproven": less}, indent=2))
        else:
            for path, texts in (wrong | submissions).items():
                for text in texts:
                    print(f"{path}: {text}")
            for task, of_task in several.items():
                print(f"{task}: {len(of_task)} splits, which cannot be compared")
                for (report, select), paths in of_task.items():
                    print(f"  report {report[:12]}, select {select[:12]}: {', '.join(paths)}")
            print(f"{len(runs):,} runs, {points:,} points")
            for why, paths in less.items():
                print(f"{len(paths):,} {why}")
            for name, of_name in packages.items():
                print(f"{name} {', '.join(of_name)}" + " (not the same for all points)" * (len(of_name) > 1))
        if wrong or several or submissions:
            counts = f"{len(wrong)} runs are not what they say"
            counts += f", {len(submissions)} submissions neither" if submissions else ""
            raise ValueError(f"{counts}, and {len(several)} tasks have several splits")
