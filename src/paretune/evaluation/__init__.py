"""What a model gets right, clean and under attack, example by example."""

from paretune.evaluation.correctness import evaluate
from paretune.evaluation.reuse import Candidates
from paretune.evaluation.scores import Scores

__all__ = ["Candidates", "Scores", "evaluate"]
