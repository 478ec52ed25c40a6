"""What a model gets right, clean and under attack, example by example."""

from paretune.evaluation.correctness import Scores, evaluate

__all__ = ["Scores", "evaluate"]
