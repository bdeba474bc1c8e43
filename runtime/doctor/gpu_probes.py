"""What runs on the GPUs: the plugins, the host that runs them, TensorRT, and the GPUs that these serve."""

from __future__ import annotations

from sparsespec.plugins.library import PluginsUnavailableError, build_info, plugin_host_path, plugin_library_path
from sparsespec.plugins.limits import LEAST_CAPABILITY
from sparsespec.runtime.doctor.fatbin import FatbinError, GpuProgram, gpu_programs, program_for
from sparsespec.runtime.doctor.findings import Finding, found, missing, unsuitable
from sparsespec.runtime.doctor.gpus import Gpu, NoGpuError, visible_gpus


def probe_gpus() -> Finding:
    """The GPUs that PyTorch sees, and which program of the plugin library each would run."""
    try:
        gpus = visible_gpus()
    except NoGpuError as error:
        return missing("GPUs", str(error))
    try:
        programs = gpu_programs(plugin_library_path())
    except (PluginsUnavailableError, FatbinError):
        return found("GPUs", *(_described(gpu) for gpu in gpus))
    lines = [f"{_described(gpu)}; plugins: {program_for(programs, gpu.capability) or 'none'}" for gpu in gpus]
    unserved = [gpu for gpu in gpus if program_for(programs, gpu.capability) is None]
    if len(unserved) == len(gpus):
        return unsuitable("GPUs", *lines, cost=_cost_of_unserved(unserved))
    return found("GPUs", *lines, cost=_cost_of_unserved(unserved) if unserved else "")


def probe_plugin_library() -> Finding:
    """The plugins, what they were compiled for, and what is in the file."""
    from sparsespec.plugins.plugin_host import PluginError, PluginLibrary

    try:
        path = plugin_library_path()
    except PluginsUnavailableError as error:
        return missing("plugin library", *str(error).splitlines())
    try:
        details = (str(path), _compiled(), f"programs: {_listed(gpu_programs(path))}")
        plugins = PluginLibrary(path, plugin_host_path()).creator_names
    except FatbinError as error:
        return unsuitable("plugin library", str(error))
    except PluginsUnavailableError:  # no host to open it with; that is a finding of its own
        return found("plugin library", *details)
    except PluginError as error:
        return unsuitable("plugin library", *details, str(error))
    return found("plugin library", *details, f"plugins: {', '.join(plugins)}")


def probe_plugin_host() -> Finding:
    """What runs plugins without TensorRT."""
    from sparsespec.plugins.plugin_abi import HostLibrary, PluginError

    try:
        path = plugin_host_path()
        HostLibrary(path)
    except PluginsUnavailableError as error:
        return missing("plugin host", *str(error).splitlines())
    except PluginError as error:
        return unsuitable("plugin host", str(error))
    return found("plugin host", str(path))


def probe_tensorrt() -> Finding:
    """TensorRT, and whether it fits the GPUs and the headers that the plugins were compiled with."""
    from sparsespec.builder.trt.versions import TensorRTUnavailableError, open_tensorrt, version_numbers

    try:
        version = open_tensorrt().__version__
    except TensorRTUnavailableError as error:
        is_missing = isinstance(error.__cause__, ModuleNotFoundError)
        return missing("TensorRT", str(error)) if is_missing else unsuitable("TensorRT", str(error))
    obstacle = _obstacle_for_gpus(version)
    if obstacle is not None:
        return unsuitable("TensorRT", obstacle)
    headers = _headers_version()
    if headers is None or version_numbers(headers)[0] == version_numbers(version)[0]:
        return found("TensorRT", version)
    cost = "the plugins work under it, but what they have to tell goes to standard error instead of the logger"
    return found("TensorRT", f"{version}; the plugins were compiled with the headers of {headers}", cost=cost)


def _described(gpu: Gpu) -> str:
    free = "free memory unknown" if gpu.free_bytes is None else f"{gpu.free_bytes / 2**30:.1f} GiB free"
    total = f"{gpu.total_bytes / 2**30:.1f} GiB"
    return f"{gpu.index}: {gpu.name}, compute capability {_dotted(gpu.capability)}, {total}, {free}"


def _cost_of_unserved(gpus: list[Gpu]) -> str:
    numbers = ", ".join(str(gpu.index) for gpu in gpus)
    wanted = list(dict.fromkeys(gpu.capability for gpu in gpus if gpu.capability >= LEAST_CAPABILITY))
    remedy = f"the plugins need compute capability {_dotted(LEAST_CAPABILITY)} or newer"
    if wanted:
        architectures = ";".join(f"{major}{minor}" for major, minor in wanted)
        remedy = f"install again with SPARSESPEC_CUDA_ARCHITECTURES={architectures} added to those it has"
    return (
        f"16-bit engines stop on GPU {numbers}: {remedy}. --attention reference does without and is slower by orders "
        "of magnitude"
    )


def _compiled() -> str:
    try:
        info = build_info()
    except PluginsUnavailableError as error:
        return f"how it was compiled is unknown: {error}"
    headers = f"TensorRT {info.tensorrt_version}'s headers ({info.tensorrt_headers})"
    return f"compiled with CUDA {info.cuda_version} and {headers} for {';'.join(info.cuda_architectures)}"


def _headers_version() -> str | None:
    """Of TensorRT's headers; None where no plugins were compiled."""
    try:
        return build_info().tensorrt_version or None
    except PluginsUnavailableError:
        return None


def _obstacle_for_gpus(version: str) -> str | None:
    """Why TensorRT of that version does not serve one of the GPUs; None where it does, or there are none."""
    from sparsespec.builder.trt.versions import obstacle_for_gpu

    try:
        obstacles = [obstacle_for_gpu(version, gpu.capability) for gpu in visible_gpus()]
    except NoGpuError:
        return None
    return next((obstacle for obstacle in obstacles if obstacle is not None), None)


def _listed(programs: tuple[GpuProgram, ...]) -> str:
    return ", ".join(str(program) for program in programs) or "none"


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
