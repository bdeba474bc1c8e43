"""Finding the compiled plugins, and what is said where there are none."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparsespec import plugins
from sparsespec.plugins.library import (
    BuildInfo,
    PluginsUnavailableError,
    build_info,
    plugin_host_path,
    plugin_library_path,
)

REPOSITORY = Path(__file__).parents[2]


def write_build_info(folder: Path, *missing: str) -> None:
    info = {
        "missing": missing,
        "cuda_architectures": [] if missing else ["80", "90a-real"],
        "cuda_version": "13.0.88",
        "tensorrt_version": "10.14.1",
        "tensorrt_headers": "PyPI",
    }
    (folder / "build_info.json").write_text(json.dumps(info))


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that SPARSESPEC_PLUGIN_DIR names."""
    monkeypatch.setenv("SPARSESPEC_PLUGIN_DIR", str(tmp_path))
    return tmp_path


def test_both_libraries_come_from_the_chosen_folder(chosen: Path) -> None:
    (chosen / "libsparsespec_plugins.so").touch()
    (chosen / "libsparsespec_plugin_host.so").touch()
    assert plugin_library_path() == chosen / "libsparsespec_plugins.so"
    assert plugin_host_path() == chosen / "libsparsespec_plugin_host.so"


def test_without_a_choice_every_folder_of_the_package_is_looked_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, installed = tmp_path / "sources", tmp_path / "installed"
    sources.mkdir()
    installed.mkdir()
    (installed / "libsparsespec_plugins.so").touch()
    monkeypatch.delenv("SPARSESPEC_PLUGIN_DIR", raising=False)
    monkeypatch.setattr(plugins, "__path__", [str(sources), str(installed)])
    assert plugin_library_path() == installed / "libsparsespec_plugins.so"
    with pytest.raises(PluginsUnavailableError, match=r"sources or .*installed.* install sparsespec with pip"):
        plugin_host_path()


def test_an_empty_choice_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSESPEC_PLUGIN_DIR", "")
    monkeypatch.setattr(plugins, "__path__", [str(tmp_path)])
    with pytest.raises(PluginsUnavailableError, match="install sparsespec with pip"):
        plugin_library_path()


def test_a_wrong_choice_is_named(chosen: Path) -> None:
    write_build_info(chosen)
    expected = f"expected libsparsespec_plugins.so in {chosen}, which SPARSESPEC_PLUGIN_DIR names"
    with pytest.raises(PluginsUnavailableError) as error:
        plugin_library_path()
    assert expected in str(error.value)


def test_the_error_says_what_the_build_missed(chosen: Path) -> None:
    write_build_info(chosen, "nvcc: install it", "headers: name them")
    with pytest.raises(PluginsUnavailableError) as error:
        plugin_host_path()
    assert str(error.value) == (
        "libsparsespec_plugin_host.so was not built. There was missing\n- nvcc: install it\n- headers: name them\n"
        "Then install sparsespec again."
    )


def test_build_info_is_read(chosen: Path) -> None:
    write_build_info(chosen)
    assert build_info() == BuildInfo((), ("80", "90a-real"), "13.0.88", "10.14.1", "PyPI")


@pytest.mark.parametrize("content", ["", "[]", '{"missing": ["x"]}', '{"missing": 3, "cuda_architectures": []}'])
def test_damaged_build_info_is_an_error_that_names_it(chosen: Path, content: str) -> None:
    (chosen / "build_info.json").write_text(content)
    for find in (build_info, plugin_library_path):
        with pytest.raises(PluginsUnavailableError, match=r"build_info\.json: expected what a build"):
            find()


@pytest.mark.usefixtures("chosen")
def test_no_build_info_is_an_error_that_names_it() -> None:
    with pytest.raises(PluginsUnavailableError, match=r"build_info\.json"):
        build_info()


def cmake(settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs cmake with nothing that a user's environment says about this build but `settings`."""
    program = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        pytest.skip("needs cmake")
    theirs = ("SPARSESPEC_", "TENSORRT_ROOT", "CUDACXX", "CXX", "CMAKE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, env=environment | settings
    )


def configure(build: Path, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return cmake(settings, "-S", str(REPOSITORY), "-B", str(build))


def install(build: Path) -> Path:
    """The folder of the package's plugins after a build in which there is nothing to compile."""
    done = cmake({}, "--install", str(build), "--prefix", str(build / "installed"))
    assert done.returncode == 0, done.stderr
    return build / "installed" / "sparsespec" / "plugins"


def test_without_nvcc_the_build_succeeds_and_the_library_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = configure(tmp_path, {"CUDACXX": "/nowhere/nvcc"})
    assert done.returncode == 0, done.stderr
    assert "nvcc" in done.stderr
    monkeypatch.setenv("SPARSESPEC_PLUGIN_DIR", str(install(tmp_path)))
    with pytest.raises(PluginsUnavailableError, match=r"install the CUDA toolkit 12\.4 or newer"):
        plugin_library_path()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, without which nobody asks for headers")
def test_without_headers_the_library_says_where_they_could_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"TENSORRT_ROOT": str(tmp_path / "empty"), "SPARSESPEC_FETCH_TENSORRT_HEADERS": "OFF"}
    done = configure(tmp_path, settings)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("SPARSESPEC_PLUGIN_DIR", str(install(tmp_path)))
    with pytest.raises(PluginsUnavailableError, match=rf"TensorRT's headers .* in TENSORRT_ROOT, {tmp_path}/empty"):
        plugin_library_path()


def test_a_required_build_without_nvcc_fails(tmp_path: Path) -> None:
    done = configure(tmp_path, {"CUDACXX": "/nowhere/nvcc", "SPARSESPEC_PLUGINS": "require"})
    assert done.returncode != 0
    assert "nvcc" in done.stderr
    assert not (tmp_path / "build_info.json").exists()


def test_plugins_that_nobody_wants_are_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = configure(tmp_path, {"SPARSESPEC_PLUGINS": "off"})
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    monkeypatch.setenv("SPARSESPEC_PLUGIN_DIR", str(install(tmp_path)))
    with pytest.raises(PluginsUnavailableError, match="SPARSESPEC_PLUGINS was off"):
        plugin_library_path()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, without which nobody asks for architectures")
@pytest.mark.parametrize("wanted", ["native", "sm_90", "70", "80;all-major"])
def test_architectures_that_are_none_are_refused(tmp_path: Path, wanted: str) -> None:
    done = configure(tmp_path, {"SPARSESPEC_CUDA_ARCHITECTURES": wanted})
    assert done.returncode != 0
    assert f'SPARSESPEC_CUDA_ARCHITECTURES holds "{wanted.rpartition(";")[2]}", expected 80 or newer' in done.stderr


def test_a_setting_that_is_none_is_refused(tmp_path: Path) -> None:
    done = configure(tmp_path, {"SPARSESPEC_PLUGINS": "yes"})
    assert done.returncode != 0
    assert 'SPARSESPEC_PLUGINS is "yes", expected auto, require or off' in done.stderr
