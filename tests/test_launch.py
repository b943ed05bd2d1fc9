"""What a model's parameters and a runner's launch make of the engine's own settings: read back from the engine's library."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ndani.engines import Launch, LaunchOptions
from ndani.engines.host_llama import LlamaHost

LAUNCH = Launch(LaunchOptions("llama"), "/run/x.sock", 7)


def with_options(**said: object) -> Launch:
    return replace(LAUNCH, options=replace(LAUNCH.options, **said))  # type: ignore[arg-type]


def parameters(launch: Launch) -> object:
    host = LlamaHost()
    host.prepare(LAUNCH)
    return host._parameters(launch)


@pytest.mark.parametrize(("num_gpu", "main_gpu", "num_thread"), [(-1, 0, 1), (0, 0, 2), (1, 1, 8)])
def test_threads_and_layers_reach_the_engine(num_gpu: int, main_gpu: int, num_thread: int) -> None:
    found = parameters(with_options(num_gpu=num_gpu, main_gpu=main_gpu, num_thread=num_thread))
    assert (found.n_gpu_layers, found.main_gpu) == (num_gpu, main_gpu)  # type: ignore[attr-defined]
    assert found.cpuparams.n_threads == found.cpuparams_batch.n_threads == num_thread  # type: ignore[attr-defined]


def test_an_adapter_reaches_the_engine_by_its_descriptor() -> None:
    assert parameters(LAUNCH).lora_adapters == []  # type: ignore[attr-defined]
    (one,) = parameters(replace(LAUNCH, adapter=9)).lora_adapters  # type: ignore[attr-defined]
    assert (one.path, one.scale) == ("/proc/self/fd/9", 1.0)


def test_a_projector_reaches_the_engine_by_its_descriptor() -> None:
    assert parameters(LAUNCH).mmproj.path == ""  # type: ignore[attr-defined]
    found = parameters(replace(with_options(num_gpu=0), projector=9))
    assert (found.mmproj.path, found.mmproj_use_gpu) == ("/proc/self/fd/9", False)  # type: ignore[attr-defined]
    assert parameters(replace(LAUNCH, projector=9)).mmproj_use_gpu  # type: ignore[attr-defined]


def test_a_library_for_processors_alone_asks_for_no_gpu() -> None:
    host = LlamaHost()
    host.prepare(with_options(num_gpu=1))
    backends = {line.partition(" : ")[0].strip() for line in host._library.get_system_info().split("|")}
    assert host.gpu is bool(backends & {"CUDA", "ROCm", "Vulkan", "SYCL", "Metal"})
