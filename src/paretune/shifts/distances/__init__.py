"""How far two data sets are apart, before anything is trained on them.

A kind of distance is a value: :class:`OTDD` sees images and labels, :class:`MMD` and :class:`Frechet` images alone. All are
squared distances of samples, as their papers define them; :func:`distance` says what that means for the numbers.
"""

from paretune.shifts.distances.base import Kind
from paretune.shifts.distances.frechet import Frechet
from paretune.shifts.distances.measuring import DISTANCES, Distance, distance
from paretune.shifts.distances.mmd import MMD
from paretune.shifts.distances.otdd import OTDD

__all__ = ["DISTANCES", "MMD", "OTDD", "Distance", "Frechet", "Kind", "distance"]
