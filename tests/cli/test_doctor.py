import dataclasses
import json
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest

from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.backbones.sources import SUMS
from vdit_cli.bench import machine
from vdit_cli.bench.machine import Finding
from vdit_cli.cli.app import main
from vdit_cli.errors import DONE, ENVIRONMENT, EvditError


def test_this_machine_can_run_the_suite(capsys):
    assert main(["doctor"]) == DONE
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    for name in ("python", "torch", "PyAV", "kernel sdpa", "memory", "runs/"):
        assert any(line.split("  ")[1].strip() == name for line in lines), name
    assert "kernel sdpa" in printed.out and "binds on" in printed.out


def test_each_problem_has_a_fix_and_only_essential_ones_fail(capsys, monkeypatch):
    mild = Finding("memory", "1 GB", "little memory", "close programs")
    monkeypatch.setattr(machine, "examine", lambda: [Finding("python", "3.11"), mild])
    assert main(["doctor"]) == DONE
    printed = capsys.readouterr()
    assert "!!  memory  1 GB" in printed.out
    assert "fix: close programs" in printed.out
    assert printed.err == "1 to mend\n"
    grave = Finding("PyAV", "none", "no mp4", "pip install it", is_essential=True)
    monkeypatch.setattr(machine, "examine", lambda: [mild, grave])
    assert main(["doctor", "--json"]) == ENVIRONMENT
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["problems"]) == ("evdit.doctor/1", 2)
    assert told["findings"][1] == {
        "name": "PyAV",
        "found": "none",
        "problem": "no mp4",
        "fix": "pip install it",
        "is_essential": True,
    }


def test_every_finding_of_this_machine_that_is_a_problem_has_a_fix():
    findings = machine.examine()
    assert all(finding.fix for finding in findings if finding.problem)
    assert len({finding.name for finding in findings}) == len(findings)


def test_the_model_of_the_package_is_whole():
    """Every file of `shapes` is there and is what SHA256SUMS says, and nothing else is named in it."""
    entry = find_source("shapes").entry
    lines = (entry.weights_folder / SUMS).read_text(encoding="utf-8").splitlines()
    assert [line.partition("  ")[2] for line in lines] == [needed.path for needed in entry.files]
    assert [(entry.weights_folder / each.path).stat().st_size for each in entry.files] == [f.bytes for f in entry.files]
    assert machine.embedded_model(entry).problem == ""


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda path: path.unlink(), "missing: vae/config.json"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            "the model shapes is damaged: vae/config.json is not what it was",
        ),
        (lambda path: (path.parents[1] / SUMS).unlink(), "the model shapes is damaged: SHA256SUMS (No such file"),
    ],
)
def test_a_clone_that_was_cut_off_is_a_problem(tmp_path, harm, says):
    """A file that is gone, one that is shorter, and no digests; the fix names the folder, and the model won't open."""
    folder = tmp_path / "shapes"
    shutil.copytree(find_source("shapes").entry.weights_folder, folder)
    entry = dataclasses.replace(find_source("shapes").entry, folder=str(folder))
    harm(folder / "vae" / "config.json")
    found = machine.embedded_model(entry)
    assert found.is_essential and found.problem.startswith(says) and str(folder) in found.fix
    with pytest.raises(EvditError) as refused:
        open_backbone(dataclasses.replace(find_source("shapes"), entry=entry), device="cpu")
    assert refused.value.exit_code == ENVIRONMENT and found.fix in refused.value.next_steps


def test_a_kernel_says_why_it_does_not_bind(monkeypatch):
    class Refusing:
        @staticmethod
        def supports(case):
            return f"no {case.dtype} here"

    def kernel_module(name):
        if name == "absent":
            raise ImportError("No module named 'absent'")
        return Refusing

    monkeypatch.setattr(machine, "KERNELS", ("refusing", "absent"))
    monkeypatch.setattr(machine, "kernel_module", kernel_module)
    found = machine.kernels()
    assert found[0].found.startswith("does not bind: no torch.")
    assert "No module named 'absent'" in found[1].found
    assert found[2].is_essential and found[2].problem


def test_a_folder_that_can_not_be_written_is_a_problem(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    finding = machine.writable("runs/", tmp_path / "runs", is_essential=True)
    assert finding.is_essential and "Permission denied" in finding.problem and str(tmp_path) in finding.fix


def test_little_disk_and_little_memory_are_problems(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "LEAST_FREE_DISK", 10**30)
    monkeypatch.setattr(machine, "LEAST_FREE_MEMORY", 10**30)
    for finding in (machine.disk("disk", tmp_path / "not" / "made"), machine.memory()):
        assert finding.problem and finding.fix and not finding.is_essential
    assert str(tmp_path) in machine.disk("disk", tmp_path / "not" / "made").found


def test_the_video_encoder(monkeypatch):
    """Its version and libx264; without the encoder, or without PyAV, a problem with its fix."""
    assert version("av") in machine.video_encoder().found and "libx264" in machine.video_encoder().found
    monkeypatch.setattr(machine.mp4, "ENCODER", "libx999")
    finding = machine.video_encoder()
    assert finding.is_essential and "without libx999" in finding.problem and "pip install" in finding.fix
    monkeypatch.setitem(sys.modules, "av", None)
    finding = machine.video_encoder()
    assert finding.is_essential and "PyAV can't be imported" in finding.problem and "pip install" in finding.fix


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(machine, "needed_packages", lambda: ["no-such-package"])
    finding = machine.packages()[-1]
    assert finding.is_essential and finding.fix == "pip install no-such-package"


@pytest.mark.parametrize("installed", [True, False])
def test_needed_packages_come_from_the_metadata_where_there_is_any(monkeypatch, installed):
    def requires(name):
        if not installed:
            raise machine.importlib.metadata.PackageNotFoundError(name)
        return ["torch<3,>=2.11", "rich>=14", "scipy>=1.16", "pytest>=9; extra == 'dev'"]

    monkeypatch.setattr(machine.importlib.metadata, "requires", requires)
    assert machine.needed_packages() == (["rich", "scipy"] if installed else list(machine.CORE_PACKAGES))


def test_importing_the_command_imports_no_torch():
    code = "import sys, vdit_cli.cli.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
