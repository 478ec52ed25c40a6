"""One thread, also in the processes that tests start: the models here are too small to share, threads of several processes
that wait for each other on few cores take many times as long, and results do not depend on the machine's cores. No
deadlines: how long a test takes depends on what else the machine does.
"""

import os
import time

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import pytest
import torch
from hypothesis import settings

from tests.choosing import leave_out

torch.set_num_threads(1)
settings.register_profile("paretune", deadline=None)
settings.load_profile("paretune")

STARTED = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--begin-within",
        type=float,
        metavar="SECONDS",
        help="skip the tests that have not begun by then, so that all together end in time on slow machines too",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    seconds = item.config.getoption("--begin-within")
    if seconds is not None and time.monotonic() - STARTED > seconds:
        pytest.skip(f"it would have begun after {seconds:g} seconds")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leave_out(items)
