"""What all tests share: poisoned memory, the folder of test data, and tests that need a GPU."""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it where poisoned_memory is on


def pytest_addoption(parser):
    parser.addoption(
        "--data",
        metavar="DIR",
        help="folder of test data, as --data=DIR (written apart, pytest takes DIR for tests); without it, "
        "tests that need it skip",
    )


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # tests run side by side already
    folder = config.getoption("--data")
    if folder is not None and not Path(folder).is_dir():
        raise pytest.UsageError(f"--data {folder}: is not a directory")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def data_dir(request):
    """The folder given by ``--data DIR``, read only."""
    folder = request.config.getoption("--data")
    if folder is None:
        pytest.skip("needs test data: pytest --data=DIR (make test DATA=DIR)")
    return Path(folder).resolve()


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty() returns NaN in every test, so a kernel that skips an element fails."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
