"""What importing costs: no torch for the host's own modules, no network for any."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import sparsespec.builder
import sparsespec.plugins
import sparsespec.runtime

HOST_MODULES = (
    "adaptive_cycles",
    "agreement",
    "chrome_trace",
    "chooser",
    "collector",
    "config",
    "cost_model",
    "cycles",
    "detokenizer",
    "engine_status",
    "gpu_timeline",
    "gpu_trace",
    "kv_cache",
    "offload",
    "outputs",
    "profile_summary",
    "profile_trace",
    "request",
    "results",
    "running",
    "sampling_params",
    "scheduled_step",
    "scheduler",
    "serving.openai.errors",
    "serving.openai.event_stream",
    "serving.histogram",
    "serving.logs",
    "serving.metrics",
    "serving.openai.models",
    "serving.openai.answer_types",
    "serving.openai.request_types",
    "serving.process",
    "serving.recent",
    "serving.openai.request_errors",
    "serving.request_record",
    "serving.openai.sampling_fields",
    "serving.service_config",
    "serving.service_errors",
    "serving.step_meter",
    "serving.openai.token_answers",
    "step_counts",
    "step_loop",
    "step_pace",
    "step_sizes",
    "stop_texts",
    "text_stream",
    "tracing",
    "verification",
)
NO_NETWORK = """
import sys

def forbid(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise SystemExit(f"{event} {arguments}")

sys.addaudithook(forbid)
"""


def run_python(code: str) -> str:
    """Output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def import_lines(names: list[str]) -> str:
    return "\n".join(f"import {name}" for name in names)


def test_host_modules_import_no_torch() -> None:
    names = [f"sparsespec.runtime.{name}" for name in HOST_MODULES]
    heavy = ("torch", "numpy", "transformers", "tokenizers", "safetensors")
    code = f"import sys\n{import_lines(names)}\nprint([name for name in {heavy} if name in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_no_import_touches_the_network() -> None:
    rooms = (sparsespec.plugins, sparsespec.builder, sparsespec.runtime)
    found = [module for room in rooms for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")]
    # The compiled plugins lie beside the modules and end in .so as a module might.
    names = [module.name for module in found if not module.name.rpartition(".")[2].startswith("lib")]
    assert "sparsespec.runtime.llm" in names
    importable = [name for name in names if not name.endswith("__main__")]
    assert run_python(f"{NO_NETWORK}\n{import_lines(importable)}\nprint('done')").strip() == "done"


def test_a_folder_of_the_same_name_is_not_taken_for_the_package(tmp_path: Path) -> None:
    """A clone is called sparsespec too, and so is a folder in it that a script lies beside."""
    (tmp_path / "sparsespec" / "plugins").mkdir(parents=True)
    (tmp_path / "sparsespec" / "plugins" / "phase.py").write_text("raise SystemExit('another folder')")
    code = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport sparsespec.plugins.phase\nprint('found')"
    assert run_python(code).strip() == "found"


def test_the_audit_hook_sees_a_connection() -> None:
    """The test above can fail."""
    code = f"{NO_NETWORK}\nimport socket\nsocket.create_connection(('localhost', 9))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "socket.getaddrinfo" in done.stderr
