"""What the machine has: Python, PyTorch, NVIDIA's driver, the CUDA toolkit, MPI."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys

from sparsespec.plugins.library import PluginsUnavailableError, build_info
from sparsespec.runtime.doctor.cuda_driver import (
    CudaDriver,
    DriverUnavailableError,
    kernel_driver_version,
    open_driver,
)
from sparsespec.runtime.doctor.findings import Finding, found, missing, unsuitable

LEAST_CUDA = (12, 4)  # to compile the plugins; cmake/cuda_toolkit.cmake says the same
_NVCC_SECONDS = 10


def probe_python() -> Finding:
    """The interpreter; there always is one."""
    return found("Python", f"{platform.python_version()}, {sys.executable}")


def probe_torch() -> Finding:
    """PyTorch, and whether it can use the GPUs that the driver has."""
    try:
        import torch
    except ModuleNotFoundError as error:
        return missing("PyTorch", str(error))
    except (ImportError, OSError) as error:
        return unsuitable("PyTorch", f"cannot be imported: {error}")
    if torch.version.cuda is not None:
        return found("PyTorch", f"{torch.__version__}, built for CUDA {torch.version.cuda}")
    cost = "the GPUs are not used: engines run on the CPU with the torch reference ops. Install a build for CUDA"
    return found("PyTorch", f"{torch.__version__}, a CPU build", cost=cost if _num_gpus() else "")


def probe_driver() -> Finding:
    """NVIDIA's driver, and whether it is new enough for PyTorch and the plugins."""
    kernel = kernel_driver_version()
    try:
        driver = open_driver()
    except DriverUnavailableError as error:
        if kernel is None:
            return missing("NVIDIA driver", str(error))
        hint = "in a container: start it with the GPUs"
        return missing("NVIDIA driver", f"the kernel has {kernel}, but {error} ({hint})")
    details = f"{kernel or 'version unknown'}, for CUDA up to {_dotted(driver.cuda_version)}"
    if driver.problem:
        return unsuitable("NVIDIA driver", details, f"does not start: {driver.problem}")
    too_new = [(user, major) for user, major in _users_of_cuda() if major > driver.cuda_version[0]]
    if too_new:
        users, newest = " and ".join(user for user, _ in too_new), max(major for _, major in too_new)
        cost = f"{users} cannot use the GPUs: a driver for CUDA {newest} is needed"
        return unsuitable("NVIDIA driver", details, cost=cost)
    return found("NVIDIA driver", f"{details}, {_counted(driver)}")


def probe_cuda_toolkit() -> Finding:
    """The compiler of the plugins, looked for where an install looks."""
    nvcc = _find_nvcc()
    if nvcc is None:
        return missing("CUDA toolkit", "no nvcc in CUDACXX, on PATH, in CUDA_HOME, CUDA_PATH or /usr/local/cuda")
    try:
        done = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, errors="replace", timeout=_NVCC_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return unsuitable("CUDA toolkit", f"{nvcc} does not run: {error}")
    release = re.search(r"release (\d+)\.(\d+)", done.stdout)
    if release is None:
        return unsuitable("CUDA toolkit", f"{nvcc} does not tell its version (exit code {done.returncode})")
    version = int(release[1]), int(release[2])
    details = f"nvcc {_dotted(version)}, {nvcc}"
    if version < LEAST_CUDA:
        return unsuitable("CUDA toolkit", f"{details}; expected {_dotted(LEAST_CUDA)} or newer")
    return found("CUDA toolkit", details)


def probe_mpi() -> Finding:
    """mpi4py and the library under it, which is loaded and not started."""
    try:
        mpi4py = importlib.import_module("mpi4py")
        mpi4py.rc.initialize = False
        library: str = importlib.import_module("mpi4py.MPI").Get_library_version()
    except ModuleNotFoundError as error:
        return missing("MPI", str(error))
    except (ImportError, RuntimeError, OSError) as error:
        return unsuitable("MPI", f"mpi4py is here, but not the library under it: {error}")
    name = next(iter(library.strip("\0\n ").splitlines()), "an MPI that does not tell its name")
    return found("MPI", f"mpi4py {mpi4py.__version__} over {name}")


def _find_nvcc() -> str | None:
    named = os.environ.get("CUDACXX")
    if named:
        return shutil.which(named) or named
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def _users_of_cuda() -> list[tuple[str, int]]:
    """Who brings a CUDA runtime, and of which major version: a driver serves no newer one."""
    versions = (("PyTorch", _cuda_of_torch()), ("the plugins", _cuda_of_plugins()))
    majors = [(user, version.partition(".")[0]) for user, version in versions]
    return [(user, int(major)) for user, major in majors if major.isdecimal()]


def _cuda_of_torch() -> str:
    try:
        import torch
    except (ImportError, OSError):
        return ""
    return torch.version.cuda or ""


def _cuda_of_plugins() -> str:
    try:
        return build_info().cuda_version
    except PluginsUnavailableError:
        return ""


def _num_gpus() -> int:
    try:
        return open_driver().num_gpus
    except DriverUnavailableError:
        return 0


def _counted(driver: CudaDriver) -> str:
    return "1 GPU" if driver.num_gpus == 1 else f"{driver.num_gpus} GPUs"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
