"""What a benchmark ran on, for the head of its figures."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path


def processor() -> str:
    """The processor's name, where Python's own answer is often its architecture, and its cores."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores"


def machine(device: str = "cpu") -> dict[str, str]:
    """Processor, cores and system, how busy it is, and the GPU if one was asked for."""
    about = {"machine": f"{processor()}, {platform.system()} {platform.machine()}"}
    if hasattr(os, "getloadavg"):
        about["load"] = f"{os.getloadavg()[0]:.1f} processes at the start, beside this one"
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.exit("--device cuda: torch finds no CUDA device here; leave it away to measure on the CPU")
        about["gpu"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return about


def versions(*names: str) -> str:
    """Python's version and those of installed packages."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])
