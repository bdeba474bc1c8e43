"""Runs every probe. Whatever becomes of one, in however broken an installation, is a finding."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread

from sparsespec.runtime.doctor import gpu_probes, machine_probes
from sparsespec.runtime.doctor.findings import Finding, Subject, unsuitable

# A driver in trouble may never answer; importing PyTorch from a slow disk takes its time.
MOST_SECONDS = 120.0


@dataclass(frozen=True)
class Probe:
    """Who looks for a subject."""

    subject: Subject
    look: Callable[[], Finding]


PROBES = (
    Probe("Python", machine_probes.probe_python),
    Probe("PyTorch", machine_probes.probe_torch),
    Probe("NVIDIA driver", machine_probes.probe_driver),
    Probe("GPUs", gpu_probes.probe_gpus),
    Probe("CUDA toolkit", machine_probes.probe_cuda_toolkit),
    Probe("plugin library", gpu_probes.probe_plugin_library),
    Probe("plugin host", gpu_probes.probe_plugin_host),
    Probe("TensorRT", gpu_probes.probe_tensorrt),
    Probe("MPI", machine_probes.probe_mpi),
)


def examine() -> tuple[Finding, ...]:
    """One finding of every probe, in their order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong is told by the findings
        return tuple(answer(probe, MOST_SECONDS) for probe in PROBES)


def answer(probe: Probe, most_seconds: float) -> Finding:
    """What the probe finds; a finding too where it fails, or gives no answer in time."""
    answers: list[Finding] = []
    thread = Thread(target=lambda: answers.append(_look(probe)), daemon=True)
    thread.start()
    thread.join(most_seconds)
    return answers[0] if answers else unsuitable(probe.subject, f"no answer within {most_seconds:g} s")


def _look(probe: Probe) -> Finding:
    try:
        return probe.look()
    except (Exception, SystemExit) as error:
        reason = next(iter(str(error).splitlines()), "no reason given")
        return unsuitable(probe.subject, f"looking for it failed: {type(error).__name__}: {reason}")
