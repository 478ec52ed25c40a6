import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, linprog, minimize
from torch import Tensor

from paretune.attacks import L1, L2, Linf, Threat
from paretune.attacks.projections import onto_plane

THREATS = [Linf(1.0), L2(1.0), L1(1.0)]


def problem(n: int, pixels: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Points with pixels at the bounds, planes with zero weights, and gaps of both signs that can be closed."""
    draw = torch.Generator().manual_seed(seed)
    points = (1.4 * torch.rand(n, pixels, generator=draw) - 0.2).clamp(0, 1)
    normal = torch.randn(n, pixels, generator=draw)
    normal[:, ::5] = 0
    inside = torch.rand(n, pixels, generator=draw)
    return points, normal, (normal * (inside - points)).sum(dim=1)


def shortest(threat: Threat, point: Tensor, normal: Tensor, gap: Tensor) -> float:
    """The least norm by a general solver."""
    x, w, n = point.double().numpy(), normal.double().numpy(), len(point)
    if isinstance(threat, L2):
        found = minimize(
            lambda d: 0.5 * d @ d,
            np.zeros(n),
            jac=lambda d: d,
            method="SLSQP",
            bounds=list(zip(-x, 1 - x, strict=True)),
            constraints=LinearConstraint(w[None], float(gap), float(gap)),
            options={"ftol": 1e-12, "maxiter": 500},
        )
        assert found.success
        return float(np.linalg.norm(found.x))
    # delta = plus - minus; Linf adds the bound t.
    bounds = [(0, 1 - p) for p in x] + [(0, p) for p in x]
    if isinstance(threat, L1):
        found = linprog(np.ones(2 * n), A_eq=[[*w, *-w]], b_eq=[float(gap)], bounds=bounds)
    else:
        upper = np.hstack([np.eye(2 * n), -np.ones((2 * n, 1))])
        found = linprog(
            [*np.zeros(2 * n), 1],
            A_ub=upper,
            b_ub=np.zeros(2 * n),
            A_eq=[[*w, *-w, 0]],
            b_eq=[float(gap)],
            bounds=[*bounds, (0, None)],
        )
    assert found.success
    return float(found.fun)


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_the_way_to_the_plane_is_the_shortest_of_all(threat: Threat) -> None:
    points, normal, gap = problem(12, 20)
    way = onto_plane(threat, points, normal, gap)
    lengths = threat.distance(way, torch.zeros_like(way))
    expected = torch.tensor([shortest(threat, *row) for row in zip(points, normal, gap, strict=True)])
    torch.testing.assert_close(lengths, expected, rtol=1e-4, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_the_end_lies_on_the_plane_and_in_the_box(threat: Threat) -> None:
    points, normal, gap = problem(40, 3 * 16 * 16, seed=1)
    way = onto_plane(threat, points, normal, gap)
    torch.testing.assert_close((way * normal).sum(dim=1), gap, rtol=1e-4, atol=1e-3)
    assert (points + way).min() >= -(2**-24)
    assert (points + way).max() <= 1 + 2**-23
    assert (way[normal == 0] == 0).all()


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_a_plane_out_of_reach_is_approached_as_far_as_the_box_allows(threat: Threat) -> None:
    points, normal, _ = problem(4, 15)
    way = onto_plane(threat, points, normal, torch.full((4,), 1e4))
    corner = torch.where(normal > 0, 1.0, torch.where(normal < 0, 0.0, points))
    torch.testing.assert_close(points + way, corner)


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_no_gap_and_no_slope_move_nothing(threat: Threat) -> None:
    points, normal, _ = problem(3, 10)
    assert (onto_plane(threat, points, normal, torch.zeros(3)) == 0).all()
    assert (onto_plane(threat, points, torch.zeros_like(normal), torch.ones(3)) == 0).all()
    assert onto_plane(threat, points[:0], normal[:0], torch.zeros(0)).shape == (0, 10)
