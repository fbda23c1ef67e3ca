"""What all tests share: one thread, no network, no cache of the user's, and the data sets where they are at hand."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# Before torch and the Hugging Face libraries are imported, and inherited by the processes that tests start.
os.environ |= {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

settings.register_profile("ebrm", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("ebrm")


def pytest_configure(config: pytest.Config) -> None:
    """Give the libraries an empty cache folder, so that nothing there helps a test along, and none is left behind."""
    cache = tempfile.TemporaryDirectory(prefix="ebrm-tests-")
    config.add_cleanup(cache.cleanup)
    os.environ |= {"HF_HOME": cache.name, "MPLCONFIGDIR": cache.name, "XDG_CACHE_HOME": cache.name}


@pytest.fixture(autouse=True)
def interrupts() -> None:
    """Ctrl-C interrupts every test, whatever an earlier one in the same process has made of it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of preference data: `EBRM_DATA`, or `../shared/data` beside the project; without it, a skip."""
    folder = Path(os.environ.get("EBRM_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"there is no preference data at {folder}; set EBRM_DATA to its folder")
    return folder
