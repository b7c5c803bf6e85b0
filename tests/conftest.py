"""What all tests share: one seed, few threads, and the default tokenizer loaded once."""

import os

import pytest
import torch

import vqtok
from vqtok.tokenizer import Tokenizer

# Tests run in two processes; threads of theirs would only wait for each other. Commands that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what test_triton.py runs in a process of its own, with Triton's interpreter, where there is no GPU."""
    if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available():
        return
    elsewhere = [item for item in items if {"codes", "certificate", "training"} & {m.name for m in item.iter_markers()}]
    config.hook.pytest_deselected(items=elsewhere)
    left_out = set(elsewhere)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[torch.float16, torch.bfloat16, torch.float64], ids=str)
def default_dtype(request) -> torch.dtype:
    """Another default dtype, as programs set it for their networks."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def photo_f8() -> Tokenizer:
    return vqtok.load()
