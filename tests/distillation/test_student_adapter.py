"""The adapter that a student trained by LoRA leaves: PEFT takes it, and so do --checkpoint and --lora."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from tests.backbones.open_sora_plan.opened import latents, made, opened
from tests.closeness import assert_close
from tests.distillation.prepared import write_data
from tests.distillation.small_mlcd import distill_small
from tests.tiny_pipeline import write_pipeline
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.backbones.base import own_plan
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.distillation.student_networks import PAIR_ENDS, write_student
from vdit_cli.errors import USAGE, EvditError
from vdit_cli.tiles.plan import MaskPlan

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher."""
    return write_pipeline(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def student(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a masked student of the teacher, trained by pairs of rank 2."""
    folder = tmp_path_factory.mktemp("student")
    data = write_data(folder / "data", model)
    return distill_small(model, data, folder / "run", lora_rank=2, masks="1:2", learning_rate=3e-2)


@pytest.mark.numerical
@torch.no_grad()
def test_peft_takes_the_adapter(model: Path, student: Path):
    """On the teacher's transformer it computes what the student does."""
    plain = opened(model)
    with plain.resident("text"):
        text = plain.encode_text(["a large red circle moving right over black", "a blue square"])
    peft = PeftModel.from_pretrained(OpenSoraT2V.from_pretrained(model / "transformer"), student / "adapter").eval()
    found = peft(latents(), torch.tensor([999, 500]), text.states_BLC, text.mask_BL)
    assert_close(found, made(opened(model, checkpoint=str(student)))[1], planted=made(plain)[1], rtol=1e-3, atol=1e-3)


@pytest.mark.numerical
def test_the_adapter_is_a_checkpoint(model: Path, student: Path):
    """Sampled as the student is, under its plan, from the teacher's weights; --lora adds the same and no more."""
    whole, adapter = opened(model, checkpoint=str(student)), opened(model, checkpoint=str(student / "adapter"))
    plain = opened(model)
    assert adapter.sampler == whole.sampler == Sampler.read(student) is not None
    assert own_plan(adapter) == own_plan(whole) == MaskPlan.read(student)
    assert adapter.lineage == whole.lineage == (plain.weights_digest,)
    added = opened(model, lora=(str(student.parent),))
    assert added.trained_elsewhere() == adapter.trained_elsewhere() == []
    assert added.weights_digest == adapter.weights_digest and added.sampler is own_plan(added) is None
    expected = made(whole)[1]
    for backbone in (adapter, added):
        assert_close(made(backbone)[1], expected, planted=made(plain)[1], rtol=1e-3, atol=1e-3)


@pytest.mark.numerical
def test_the_adapter_of_a_student_of_students_is_one_of_the_first_start(model: Path, student: Path, tmp_path: Path):
    """All pairs of `--steps 8,4` lie beside the teacher's weights: each adapter alone makes its student of these."""
    options = {"steps": "8,4", "lora_rank": 16, "milestones": (999, 749, 499, 149), "learning_rate": 3e-2}
    last = distill_small(model, student.parents[1] / "data", tmp_path / "run", **options)
    before = tmp_path / "run" / "steps-8" / "student"
    whole, earlier = opened(model, checkpoint=str(last)), opened(model, checkpoint=str(before))
    assert whole.lineage == (earlier.weights_digest, opened(model).weights_digest)
    for each, backbone in ((last, whole), (before, earlier)):
        adapter = opened(model, checkpoint=str(each / "adapter"))
        assert adapter.lineage == (opened(model).weights_digest,) and adapter.sampler == Sampler.read(each)
        assert_close(made(adapter)[1], made(backbone)[1], planted=made(opened(model))[1], rtol=1e-3, atol=1e-3)
    assert whole.sampler.timesteps == (999, 749, 499, 149) and earlier.sampler.timesteps[:2] == (999, 874)


@pytest.mark.parametrize("checkpoint", ["student", "adapter"])
@pytest.mark.parametrize("lora", ["{}", "{}:0.5"])
def test_an_adapter_is_not_added_twice(model: Path, student: Path, checkpoint: str, lora: str):
    """The student's weights have it inside, and the adapter as a checkpoint is it: whatever its scale."""
    adapter = student / "adapter"
    with pytest.raises(EvditError, match="is in the checkpoint's weights already: it would be added twice") as caught:
        opened(model, checkpoint=str(student if checkpoint == "student" else adapter), lora=(lora.format(adapter),))
    assert caught.value.exit_code == USAGE


def test_the_same_adapter_twice_in_a_row_is_refused(model: Path, student: Path, tmp_path: Path):
    """Under another path too; the step offered adds what was asked for, and a scale of 0 adds nothing to anything."""
    adapter, copy = str(student / "adapter"), str(tmp_path / "copy")
    shutil.copytree(adapter, copy)
    with pytest.raises(EvditError, match="stands 2 times in the row of --lora: it would be added as often") as caught:
        opened(model, lora=(f"{adapter}:0.5", f"{copy}:0", f"{copy}:0.25"))
    assert caught.value.exit_code == USAGE and caught.value.where == f"--lora {adapter}"
    assert caught.value.next_steps == (f"--lora {adapter}:0.75  (what they add up to)",)
    assert len(opened(model, lora=(f"{adapter}:0.75", f"{copy}:0")).loras) == 2
    for checkpoint in (str(student), adapter):
        assert opened(model, checkpoint=checkpoint, lora=(f"{copy}:0",)).loras[-1].scale == 0


def test_an_adapter_to_other_weights_is_no_checkpoint(model: Path, student: Path, tmp_path: Path):
    other = write_pipeline(tmp_path / "other", seed=9)
    backbone = opened(other, checkpoint=str(student / "adapter"))
    with pytest.raises(EvditError, match="the adapter was trained on weights") as caught:
        assert backbone.weights_digest
    assert caught.value.exit_code == USAGE and "--lora" in caught.value.next_steps[0]
    (told,) = opened(other, lora=(str(student / "adapter"),)).trained_elsewhere()
    assert told.path == str(student / "adapter")


@pytest.mark.numerical
def test_a_student_goes_on_from_an_adapter(model: Path, student: Path, tmp_path: Path):
    """Its own is written with the old pairs merged: without learning it is the student that it started from."""
    data = write_data(tmp_path / "data", model)
    options = {"lora_rank": 2, "learning_rate": 0.0, "iterations": 1}
    again = distill_small(model, data, tmp_path / "run", checkpoint=str(student / "adapter"), **options)
    teacher, start = load_file(model / "transformer" / WEIGHTS), load_file(student / WEIGHTS)
    changed = {name for name in teacher if not torch.equal(teacher[name], start[name])}
    found = load_file(again / WEIGHTS)
    assert changed and all(torch.equal(found[name], teacher[name]) for name in teacher.keys() - changed)
    deltas = [{name: state[name] - teacher[name] for name in changed} for state in (found, start)]
    assert_close(*deltas, atol=1e-4, rtol=1e-3, planted={name: 3 * x + 0.1 for name, x in deltas[1].items()})
    assert RunDir.open(tmp_path / "run").lineage()[-1] == opened(model).weights_digest
    with pytest.raises(EvditError, match="the adapter was trained on weights"):
        assert opened(model, checkpoint=str(again / "adapter")).weights_digest
    second = (str(again / "adapter"),)
    assert len(opened(model, lora=second).trained_elsewhere()) == 1
    assert opened(model, checkpoint=str(student / "adapter"), lora=second).trained_elsewhere() == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_small_update_is_kept(tmp_path: Path, dtype: torch.dtype):
    """Of |dW| / |W| = 3e-4 less than a fiftieth is lost, whatever the stored type; nothing else changes by a bit."""
    model = write_pipeline(tmp_path / "model")
    OpenSoraT2V.from_pretrained(model / "transformer").save_pretrained(model / "transformer", dtype)
    stored = load_file(model / "transformer" / WEIGHTS)
    trained: dict[str, Tensor] = {}
    random = torch.Generator().manual_seed(0)
    for layer in ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.2"):
        weight = stored[f"{layer}.weight"].double()
        down, up = (torch.randn(*shape, generator=random) for shape in ((2, weight.shape[1]), (weight.shape[0], 2)))
        up *= float(3e-4 * weight.norm() / (up @ down).norm())
        trained |= {layer + PAIR_ENDS[0]: down, layer + PAIR_ENDS[1]: up}
    backbone = opened(model, dtype="bfloat16")
    write_student(backbone, tmp_path / "student", trained, Sampler("milestones", (999,), 1.0), "card", (), (), None)
    written = load_file(tmp_path / "student" / WEIGHTS)
    for name in stored:
        layer = name.removesuffix(".weight")
        if layer + PAIR_ENDS[0] not in trained:
            assert written[name].dtype == dtype and torch.equal(written[name], stored[name])
            continue
        update = trained[layer + PAIR_ENDS[1]].double() @ trained[layer + PAIR_ENDS[0]].double()
        lost = (written[name].double() - stored[name].double() - update).norm()
        assert 50 * lost < update.norm()
