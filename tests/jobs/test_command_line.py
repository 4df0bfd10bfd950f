"""Wrong usage gets a message that names the cause and the way out, never a traceback."""

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import tyro

from drone.data.dataset import Dataset
from drone.labels import CLASSES
from tests.conftest import ROOT, Done, RunJob

JOBS = ("collect", "prepare", "review", "train", "tune", "evaluate", "promote", "demo", "doctor")
JOBS += ("tracking", "export", "predict", "serve")


def fails(done: Done, code: int, *parts: str) -> None:
    """Asserts that a job failed with an exit code and a message, whose line breaks do not count."""
    output = re.sub(r"[\s│]+", " ", done.err + done.out)
    assert done.code == code, output
    assert "Traceback" not in output
    for part in parts:
        assert part in output, output


@pytest.mark.parametrize("name", JOBS)
def test_help_is_quick_and_teaches(call_job: RunJob, name: str) -> None:
    done = call_job(name, "--help")
    assert done.code == 0
    assert f"python ray_jobs/{name}.py" in done.out
    assert "--json" in done.out
    if name == "train":
        assert "seed-attempt-2" in done.out and "--optim.lr-head" in done.out
        assert "--preset" not in done.out


@pytest.mark.parametrize("name", JOBS)
def test_help_names_each_default_once(call_job: RunJob, name: str) -> None:
    # Wide: where lines are short, tyro shows two columns.
    shown = re.sub(r"[\s│]+", " ", call_job(name, "--help", COLUMNS="100").out)
    assert "(default:" in shown
    assert not re.findall(r"\(default: (?:None|'')?\)", shown)
    assert not re.findall(r"\(default: [^()]*\)\. \(default: [^()]*\)", shown)


def test_the_preset_of_a_run_is_its_first_argument(call_job: RunJob) -> None:
    train = import_module("ray_jobs.train")
    assert train.parse(["frozen", "--data", "set"]).train.preset == "frozen"
    fails(call_job("train", "frozen", "--data", "set", "--preset", "smoke"), 2, "--preset")


FLAGS = {
    "collect": [
        "--negatives",
        "--table",
        "--search",
        "--query",
        "--per-class",
        "--dry-run",
        "--retry-failed",
    ],
    "prepare": [
        "--raw",
        "--negatives",
        "--out",
        "--dry-run",
        "--policy",
        "--near-duplicates",
        "--undo",
        "--decisions",
        "--diff",
    ],
    "review": ["--data", "--out", "--weights"],
    "train": ["--data", "--weights", "--seed", "--num-workers", "--resume", "--config"],
    "evaluate": ["--run", "--model", "--data", "--images"],
    "export": ["--model", "--run", "--out", "--page", "--alarm-recall", "--alarm-above"],
    "predict": ["--model", "--run", "--onnx", "--images", "--out", "--sort", "--ray-from"],
    "serve": ["--model", "--onnx", "--host", "--port", "--replicas", "--replica-cpus"],
    "promote": ["--run", "--rollback", "--name", "--dry-run"],
}


@pytest.mark.parametrize("name", FLAGS)
def test_promised_flags_exist(call_job: RunJob, name: str) -> None:
    shown = call_job(name, "--help").out
    assert all(flag in shown for flag in FLAGS[name])


def test_unknown_flags_and_presets_offer_the_nearest(call_job: RunJob, dataset: Dataset) -> None:
    fails(call_job("train", "finetun", "--data", dataset.folder), 2, "Did you mean 'finetune'?")
    fails(call_job("train", "--data", dataset.folder), 2, "Name a preset first: smoke, frozen")
    wrong = call_job("train", "smoke", "--data", dataset.folder, "--epoch", 3)
    fails(wrong, 2, "--epoch", "--epochs")
    fails(call_job("prepare", "--raw", "a", "--out", "b", "--polcy", "first"), 2, "--policy")
    fails(call_job("evaluate"), 2, "either --run RUN or --model URI")
    fails(call_job("promote"), 2, "--run RUN, --rollback or --why VERSION")


def test_settings_out_of_range(call_job: RunJob, dataset: Dataset) -> None:
    data = ["--data", dataset.folder]
    fails(call_job("train", "smoke", *data, "--epochs", 0), 2, "epochs is 0")
    deep = call_job("train", "smoke", *data, "--model.unfreeze-depth", 20)
    fails(deep, 2, "unfreeze_depth is 20; it must be 0 to 19")
    fails(call_job("prepare", "--raw", "a", "--out", "b", "--split.test", 0.5), 2, "their sum 1")


def test_a_config_file(call_job: RunJob, dataset: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("epochs: 2\nmodel: {dropuot: 0.1}\n")
    args = ["smoke", "--data", dataset.folder, "--config", file]
    fails(call_job("train", *args), 2, "my.yaml: model", "Did you mean 'dropout'?")
    file.write_text("epochs: [2\n")
    fails(call_job("train", *args), 2, "Cannot read", "my.yaml")
    fails(call_job("train", "smoke", "--config", "no.yaml"), 2, "Cannot read no.yaml")


def test_raw_folders_that_cannot_be_used(call_job: RunJob, tmp_path: Path) -> None:
    fails(call_job("prepare", "--raw", "nowhere", "--out", "set"), 1, "nowhere does not exist")
    (tmp_path / "raw" / "cats").mkdir(parents=True)
    fails(call_job("prepare", "--raw", "raw", "--out", "set"), 1, "matches a class", "cats")
    (tmp_path / "raw" / CLASSES[0]).mkdir()
    (tmp_path / "raw" / CLASSES[0] / "a.jpg").touch()
    fails(call_job("prepare", "--raw", "raw", "--out", "set"), 1, "no file of", "Winged Drones")
    (tmp_path / "file").touch()
    fails(call_job("prepare", "--raw", "raw", "--out", "file/set"), 1, "cannot be written")
    fails(call_job("prepare", "--raw", "file", "--out", "set"), 1, "neither a folder nor a zip")
    fails(call_job("prepare", "--raw", "raw", "raw", "--out", "set"), 1, "named twice")
    fails(call_job("prepare", "--raw", "s3:/bucket", "--out", "set"), 1, "does not exist")
    fails(call_job("prepare", "--raw", "ftp://host/x", "--out", "set"), 1, "cannot be opened")
    assert not (tmp_path / "set").exists()


def test_a_name_that_looks_like_markup_is_printed_as_it_is(call_job: RunJob) -> None:
    for name in ("a[bold].jpg", "[/x]"):
        fails(call_job("prepare", "--raw", name, "--out", "set"), 1, f"{name} does not exist")


def test_versions_that_do_not_exist(call_job: RunJob, dataset: Dataset) -> None:
    fails(call_job("prepare", "--raw", "raw"), 2, "--out is missing")
    fails(call_job("prepare", "--out", "set"), 2, "--raw is missing")
    for flag in ("--raw", "--negatives"):
        undo = call_job("prepare", "--out", "set", "--undo", flag, "raw")
        fails(undo, 2, "--undo takes --out alone")
    secret = ["--raw", "raw", "--negatives", "s3://me:secret@bucket/sky", "--out", "set"]
    fails(call_job("prepare", *secret), 2, "--negatives", "holds credentials")
    fails(call_job("prepare", "--out", "nowhere", "--undo"), 1, "not a prepared data set")
    fails(call_job("prepare", "--out", dataset.folder, "--undo"), 1, "no version before this one")
    fails(call_job("prepare", "--diff", dataset.folder, "gone"), 1, "not a prepared data set")
    fails(call_job("prepare", "--diff", "a", "b", "--out", "c"), 2, "takes no other flags")
    same = call_job("prepare", "--diff", dataset.folder, dataset.folder, "--json")
    assert same.code == 0 and same.result["changes"] == []
    args = ["--raw", "raw", "--out", "set", "--decisions", "gone.jsonl"]
    fails(call_job("prepare", *args), 1, "gone.jsonl cannot be read")


def test_runs_data_sets_and_weights_that_do_not_exist(call_job: RunJob, dataset: Dataset) -> None:
    fails(call_job("train", "smoke", "--data", "nowhere"), 1, "not a prepared data set")
    weights = call_job("train", "smoke", "--data", dataset.folder, "--weights", "no.pth")
    fails(weights, 1, "The weights no.pth cannot be read", "imagenet, none")
    fails(call_job("evaluate", "--run", "gone"), 1, "There is no run 'gone'", "none yet")
    fails(call_job("train", "--resume", "gone"), 1, "There is no run 'gone'")
    model = call_job("evaluate", "--model", "models:/drone-classifier@champion")
    fails(model, 1, "no model models:/drone-classifier@champion")
    fails(call_job("evaluate", "--model", "champion"), 1, "use models:/NAME@ALIAS")
    fails(call_job("promote", "--rollback"), 1, "Cannot roll back drone-classifier")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--resume", "x", "--seed", "4"], "--seed"),
        (["frozen", "--resume=x", "--weights", "none"], "the preset frozen, --weights"),
        (["--resume", "x", "--optim.lr-head", "0.1", "--name", "y"], "--name, --optim.lr-head"),
    ],
)
def test_a_resumed_run_keeps_its_settings(call_job: RunJob, args: list[str], named: str) -> None:
    fails(call_job("train", *args), 2, f"Cannot change {named} with --resume", "start a new run")


def test_a_tracking_server_that_is_down(call_job: RunJob, dataset: Dataset) -> None:
    args = ["smoke", "--data", dataset.folder, "--weights", "none"]
    done = call_job("train", *args, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    message = "tracking server http://127.0.0.1:9 cannot be used: Connection refused. Start it"
    fails(done, 1, message, "MLFLOW_TRACKING_URI")
    old = call_job("train", *args, MLFLOW_TRACKING_URI="./mlruns")
    fails(old, 1, "./mlruns cannot be used")


@pytest.mark.ray
@pytest.mark.slow
def test_more_workers_than_processors(run_job: RunJob, dataset: Dataset) -> None:
    args = ["smoke", "--data", dataset.folder, "--weights", "none", "--num-workers", 999]
    fails(run_job("train", *args), 2, "--num-workers is 999, but Ray has")


@pytest.mark.ray
def test_a_dry_run_writes_nothing(run_job: RunJob, made_up, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    args = ["--raw", made_up.folder, "--out", "set", "--dry-run", "--json"]
    done = run_job("prepare", *args)
    assert done.code == 0, done.err
    assert done.result["steps"]["found"]["total"] == len(made_up.truth.files)
    assert done.result["written"] is False
    assert not (tmp_path / "set").exists()


def commands_in(text: str) -> list[list[str]]:
    """Each `python ray_jobs/...` command of a text, as args; a backslash continues a line."""
    text = re.sub(r"\\\n\s*", "", text)
    lines = re.findall(r"^\s*(?:\$ )?(python ray_jobs/\w+\.py[^\n(`]*)", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def parsed(script: str, args: list[str]) -> object:
    """What a job's own parser makes of arguments; it exits if it cannot."""
    module = import_module(f"ray_jobs.{Path(script).stem}")
    job = getattr(module, Path(script).stem.capitalize())
    return module.parse(args) if job.__name__ == "Train" else tyro.cli(job, args=args)


def test_commands_of_the_readme_and_of_docstrings_parse() -> None:
    pages = ("classes", "collect", "data", "loop", "operations", "serving")
    files = ("README.md", *(f"docs/{name}.md" for name in pages))
    texts = [(ROOT / name).read_text() for name in files]
    sources = [(ROOT / "ray_jobs" / f"{name}.py").read_text() for name in JOBS]
    texts += [ast.get_docstring(ast.parse(source)) or "" for source in sources]
    commands = [command for text in texts for command in commands_in(text)]
    assert len(commands) > 10
    for _, script, *args in commands:
        assert parsed(script, args) is not None, args
