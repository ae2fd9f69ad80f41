"""The generated pages say what the code says: run `make docs` when this fails."""

from __future__ import annotations

import importlib
import importlib.util
import json
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from tests.closeness import assert_close
from tests.distillation.prepared import write_data
from tests.tiny_pipeline import write_pipeline
from vdit_cli.backbones.open_sora_plan.backbone import OpenSoraPlan
from vdit_cli.data.shards import open_data
from vdit_cli.errors import USAGE, EvditError

ROOT = Path(__file__).resolve().parents[2]
TIMES = ("999", "749", "499", "249")


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/build.py as a module, run as a program runs: its own folder is on the path."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_fresh(build: ModuleType):
    """Commands, recipes, the list of flags, the picture of the masks and every table of figures."""
    stale = [
        path.relative_to(ROOT).as_posix()
        for path, text in build.pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == []


def test_a_table_is_made_from_its_data(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Titles, formats, dotted keys, a dash where there is no figure; what was between the marks goes."""
    (tmp_path / "docs" / "data").mkdir(parents=True)
    columns = [["mask", "mask", ""], ["seconds", "median.seconds", ".2f"]]
    rows = [{"mask": "1:7", "median": {"seconds": 0.0151}}, {"mask": "a|b"}]
    content = {"tables": {"cpu": {"columns": columns, "rows": rows}}}
    (tmp_path / "docs" / "data" / "speed.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    page = "before\n<!-- table: data/speed.json cpu -->\nold\n<!-- end -->\nafter\n"
    table = "| mask | seconds |\n| --- | --- |\n| 1:7 | 0.02 |\n| a\\|b | - |\n"
    assert build.with_tables(page) == f"before\n<!-- table: data/speed.json cpu -->\n{table}<!-- end -->\nafter\n"
    assert build.with_tables(build.with_tables(page)) == build.with_tables(page)


def test_files_that_are_no_code_travel_with_the_package():
    """What stands in vdit_cli/ beside the code is named by the package's data patterns, so that a wheel has it."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    package = ROOT / "vdit_cli"
    taken = {path for pattern in patterns["package-data"]["vdit_cli"] for path in package.glob(pattern)}
    others = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    within = {path for path in others if any(folder in taken for folder in (path, *path.parents))}
    assert sorted(others - within) == []


def test_every_figure_file_says_where_it_was_measured():
    """A number without its machine and command can't be checked."""
    for path in sorted((ROOT / "docs" / "data").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        assert {"machine", "command"} <= content.keys(), path.name


def test_figures_of_shapes_make_tables(build: ModuleType):
    """What docs/gather_shapes.py gathers fills every column of the tables that docs/build.py makes of it."""
    from gather_shapes import gather

    part = {"iterations": 10, "batch": 2, "seconds": 3.5, "loss": 0.25}
    training = {"machine": "M", "torch": "2", "date": "D", "text": part, "transformer": part}
    training["vae"] = {**part, "clips": 2, "psnr": {"all": 36.0, "worst": 25.0}}
    checks = ("all five", "second object", "objects", "everything")
    accuracy = {check: {"right": 3, "of": 4, "share": 0.75} for check in checks}
    score = {"clips": 4, "unreadable": 1, "accuracy": accuracy, "measures": {"jitter": 0.1}}
    for name, table in gather(training, {3.0: dict.fromkeys(("one", "two", "partial"), score)}, 3.0)["tables"].items():
        cells = [build.formatted(row, key, how) for row in table["rows"] for _, key, how in table["columns"]]
        assert cells and "-" not in cells, name


@pytest.mark.numerical
def test_figures_of_gradients_make_tables(build: ModuleType, tmp_path: Path):
    """docs/gather_gradients.py on a tiny model: eps ends pulled as v is, where it was pulled far harder before."""
    from gather_gradients import WEIGHTS, measure

    model = write_pipeline(tmp_path / "model")
    tables = measure(write_data(tmp_path / "data", model, 2), 2, str(model))["tables"]
    for name, table in tables.items():
        cells = [build.formatted(row, key, how) for row in table["rows"] for _, key, how in table["columns"]]
        assert len(table["rows"]) == 6 and "-" not in cells, name
        rows = {(row["weight"], row["kind"]): row for row in table["rows"]}
        before, after = WEIGHTS
        eps, v = ([rows[after, kind][t] for t in TIMES] for kind in ("eps", "v"))
        assert_close(eps, v, rtol=0.01)
        assert rows[before, "eps"]["999"] > 20 * v[0] and [rows[before, "v"][t] for t in TIMES] == v


@pytest.mark.numerical
def test_figures_of_times_make_a_table(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """docs/gather_errors_by_time.py on a tiny model, and on one that tells nothing: its error is all of v."""
    import gather_errors_by_time as gather

    model = write_pipeline(tmp_path / "model")
    data = write_data(tmp_path / "data", model, 2)
    table = gather.measure(data, 2, str(model), (0, 999))["tables"]["times"]
    cells = [build.formatted(row, key, how) for row in table["rows"] for _, key, how in table["columns"]]
    assert "-" not in cells and all(row["query"] > 0 for row in table["rows"])
    for row in table["rows"]:
        assert_close(row["x0"], row["noise"] * row["v"] ** 0.5, rtol=1e-5)

    weights = load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")
    embedder = {name.rpartition("embedder.")[2]: value.double() for name, value in weights.items()}
    for row in table["rows"]:  # section 3.5 of arXiv 1706.03762, then linear, SiLU, linear
        angles = row["t"] * 1e4 ** (-torch.arange(128, dtype=torch.float64) / 128)
        hidden = embedder["linear_1.weight"] @ torch.cat((angles.cos(), angles.sin())) + embedder["linear_1.bias"]
        embedded = embedder["linear_2.weight"] @ (hidden * hidden.sigmoid()) + embedder["linear_2.bias"]
        assert_close(row["embedded"], (embedded * embedded.sigmoid()).abs().sum().item(), rtol=1e-4)

    denoise = OpenSoraPlan.denoise
    monkeypatch.setattr(OpenSoraPlan, "denoise", lambda *given: 0 * denoise(*given))
    (nothing,) = gather.measure(data, 2, str(model), (999,))["tables"]["times"]["rows"]
    with pytest.raises(EvditError, match="3 clips of .*: it holds 2"):
        gather.measure(data, 3, str(model))
    # At t = 999 v is the latents but for their sign and .006 of noise.
    assert_close(nothing["v"], open_data(data).latents(range(2)).square().mean().item(), rtol=0.05)


def test_figures_of_shapes_are_of_its_prompts(build: ModuleType, tmp_path: Path):
    """Scores of other videos, a guidance told twice and a missing default are refused, and nothing is written."""
    import gather_shapes
    from gather_shapes import read_score, read_scores

    prompts = {
        name: (gather_shapes.PROMPTS / f"{name}.txt").read_text("utf-8").splitlines()
        for name, _ in gather_shapes.SETS.values()
    }
    for name, lines in prompts.items():
        videos = [{"prompt": line} for line in lines]
        score = {"videos": videos, "accuracy": {}, "measures": {}, "unreadable": 0, "clips": len(videos)}
        (tmp_path / f"{name}-3.json").write_text(json.dumps(score), encoding="utf-8")
    assert list(read_scores(tmp_path)) == [3.0]
    with pytest.raises(EvditError, match="no score of the 256 prompts of shapes-partial"):
        read_score(tmp_path / "shapes-held-out-3.json", "shapes-partial")
    before = gather_shapes.DATA.read_bytes()
    (tmp_path / "training.json").write_text("{}", encoding="utf-8")
    index = {"evdit": {"defaults": {"guidance": 2.0}}}
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(EvditError, match="no scores at guidance 2, the default"):
        gather_shapes.main([str(tmp_path), str(tmp_path)])
    (tmp_path / "model_index.json").write_text('{"evdit": {"defaults": {"guidance": [3]}}}', encoding="utf-8")
    with pytest.raises(EvditError, match="model_index.json does not hold what is read of it: .*list"):
        gather_shapes.main([str(tmp_path), str(tmp_path)])
    (tmp_path / "model_index.json").write_text('{"evdit": {"defaults": {"guidance": 3}}}', encoding="utf-8")
    with pytest.raises(EvditError, match="training.json does not hold what is read of it: there is no "):
        gather_shapes.main([str(tmp_path), str(tmp_path)])
    for name in prompts:
        (tmp_path / f"{name}-3.0.json").write_bytes((tmp_path / f"{name}-3.json").read_bytes())
    with pytest.raises(EvditError, match="guidance 3 has two files"):
        read_scores(tmp_path)
    assert gather_shapes.DATA.read_bytes() == before


@pytest.mark.parametrize("script", ["gather_gradients", "gather_errors_by_time"])
def test_odd_words_of_measuring_scripts_are_told(build: ModuleType, script: str, monkeypatch, capsys, tmp_path: Path):
    """Exit 2, told as `evdit` tells it, and no figure is written."""
    gather = importlib.import_module(script)
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data", write_pipeline(tmp_path / "model"), 2)
    monkeypatch.setattr(gather, "DATA", tmp_path / "figures.json")
    for words, told in (
        ("", "the script takes a folder of prepared data"),
        ("data", "the script takes a folder of prepared data"),
        ("data -1", "the script takes a folder of prepared data"),
        ("data x", "the script takes a folder of prepared data"),
        ("gone 1", "gone is no folder that is there"),
        (". 1", ". holds no prepared data"),
        ("data 3", "3 clips of data: it holds 2"),
        ("data 0", "0 clips of data: it holds 2"),
    ):
        monkeypatch.setattr("sys.argv", [script, *words.split()])
        assert gather.run(gather.main) == USAGE and told in capsys.readouterr().err
    assert not (tmp_path / "figures.json").exists()
