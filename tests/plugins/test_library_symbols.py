"""What the compiled libraries show to the process that loads them, and what they ask of it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from built_plugins import built
from elf_file import SharedLibrary, read_shared_library
from sparsespec.plugins.library import build_info, plugin_host_path, plugin_library_path

# What every Linux has; pthread, dl and rt are parts of libc that older ones kept apart.
SYSTEM = re.compile(
    r"(libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+|ld-linux-x86-64|ld-linux-aarch64)\.so\.\d+"
)
# Names of TensorRT (nvinfer1::..., getPluginRegistry, createInferBuilder_INTERNAL) and of the CUDA runtime and driver.
FOREIGN = re.compile(r"nvinfer|getPluginRegistry|createInfer|getLogger|^cu[A-Z]|^cuda|^__cuda")


@pytest.fixture(scope="module", params=[plugin_library_path, plugin_host_path], ids=["plugins", "host"])
def library(request: pytest.FixtureRequest) -> SharedLibrary:
    return read_shared_library(built(request.param))


def test_the_plugin_library_exports_what_tensorrt_looks_for_and_no_more() -> None:
    plugins = read_shared_library(built(plugin_library_path))
    assert plugins.exported == {"getCreators", "setLoggerFinder"}


def test_the_host_exports_its_own_names_and_the_version_of_its_headers() -> None:
    host = read_shared_library(built(plugin_host_path))
    own = {name for name in host.exported if name.startswith("sparsespec_host_")}
    assert own
    assert host.exported == own | {"getInferLibMajorVersion"}


def test_no_symbol_of_tensorrt_or_cuda_is_left_open(library: SharedLibrary) -> None:
    assert "__cxa_finalize" in library.undefined, "every C++ library has this one open"
    assert [name for name in library.undefined if FOREIGN.search(name)] == []


def test_only_system_libraries_are_loaded_along(library: SharedLibrary) -> None:
    assert "libc.so.6" in library.needed
    assert [name for name in library.needed if not SYSTEM.fullmatch(name)] == []


def test_the_reader_agrees_with_nm(library: SharedLibrary, request: pytest.FixtureRequest) -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm")
    path: Path = request.node.callspec.params["library"]()
    lines = subprocess.run([nm, "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True).stdout
    assert library.exported == {line.split()[-1] for line in lines.splitlines()}


def test_programs_are_in_it_for_every_architecture_that_was_asked_for() -> None:
    path = built(plugin_library_path)
    cuobjdump = shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin")
    if cuobjdump is None:
        pytest.skip("needs cuobjdump")
    listed = subprocess.run([cuobjdump, "--list-elf", str(path)], capture_output=True, text=True, check=True).stdout
    asked = {name.removesuffix("-real") for name in build_info().cuda_architectures if not name.endswith("-virtual")}
    assert set(re.findall(r"sm_(\w+)\.cubin", listed)) == asked
