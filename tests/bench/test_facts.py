"""The machine in words and numbers."""

from __future__ import annotations

import json
import subprocess

import torch

from vdit_cli.bench.facts import machine_facts, machine_line, package_versions, read_gpu_line

LINE = "NVIDIA H200, 570.86.15, 1980, 3201, 1980, 3201, 700.00, 34\n"


def test_the_cpu_is_a_kind_of_machine():
    """Cores and threads; plain JSON."""
    facts = json.loads(json.dumps(machine_facts(torch.device("cpu"))))
    assert facts["kind"].endswith(" CPU") and facts["threads"] == torch.get_num_threads()
    versions = package_versions()
    line = machine_line(facts, versions)
    assert facts["kind"] in line and f"torch {versions['torch']}" in line


def test_a_line_of_nvidia_smi_is_read_by_name():
    """Clocks in MHz stand in the head of a table."""
    gpu = {"name": "NVIDIA H200", "cuda": "13.0", "cudnn": 91900, **read_gpu_line(LINE)}
    assert (gpu["driver_version"], gpu["clocks_sm"], gpu["temperature_gpu"]) == ("570.86.15", "1980", "34")
    line = machine_line({"kind": "NVIDIA H200", "threads": 8, "gpu": gpu}, {"torch": "2.11"})
    assert "SM 1980 of 1980 MHz" in line and "driver 570.86.15" in line and "torch 2.11" in line
    assert read_gpu_line("") == {}


def test_gpus_without_nvidia_smi_are_told_so():
    """The head says that clocks are unknown."""
    gpu = {"name": "x", "cuda": "13.0", "cudnn": 1, "clocks": "unknown: there is no nvidia-smi"}
    assert "clocks unknown" in machine_line({"kind": "x", "gpu": gpu, "threads": 1}, {})


def test_results_stay_importable_without_a_display():
    """Drawing takes no window system, and the modules of words take no torch."""
    program = "import sys, vdit_cli.bench.presets, vdit_cli.bench.paper, vdit_cli.bench.rows, vdit_cli.bench.picture; "
    program += "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    import sys

    subprocess.run([sys.executable, "-c", program], check=True)
