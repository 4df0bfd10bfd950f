"""What presets score, over several seeds: the table of docs/performance.md, by the jobs as typed.

    python bench/scores.py --data RAW --weights FILE
    python bench/scores.py --data RAW --others RAW --weights FILE --presets finetune frozen

Seed s stands for a split and a training of its own (`prepare.py --split.seed s`,
`train.py --seed s`). What was measured lies in scores.csv of the folder --work: stopped and typed
again, it resumes. At the end the table as Markdown: mean and standard deviation over
the seeds, and what images of other origins bring.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Arguments."""

    data: Path
    """Raw folder of class folders."""

    weights: str = "imagenet"
    """As of train.py: imagenet, none or a file."""

    others: Path | None = None
    """Class folders of images from elsewhere, which nothing is trained on."""

    presets: tuple[str, ...] = ("seed-attempt-1", "seed-attempt-2", "frozen", "finetune")
    """What is compared."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Splits and trainings."""

    work: Path = Path("scores")
    """Folder for data sets, runs and scores.csv."""


def job(work: Path, name: str, *words: object) -> dict:
    """What a job says at its end."""
    command = [sys.executable, str(ROOT / "ray_jobs" / f"{name}.py"), *map(str, words), "--json"]
    done = subprocess.run(command, cwd=work, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed; what was measured before is in {work / 'scores.csv'}.")
    result: dict = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(bench: Bench, preset: str, seed: int) -> dict[str, object]:
    """One row of scores.csv."""
    data = f"split-{seed}"
    if not (bench.work / data / "dataset.json").exists():
        words = ["--raw", bench.data.resolve(), "--out", data, "--split.seed", seed]
        job(bench.work, "prepare", *words)
    weights = bench.weights
    if Path(weights).is_file():
        weights = str(Path(weights).resolve())
    words = [preset, "--data", data, "--seed", seed, "--weights", weights, "--num-workers", 1]
    run = job(bench.work, "train", *words)["run_id"]
    test = job(bench.work, "evaluate", "--run", run)
    row = {"preset": preset, "seed": seed, "run": run}
    row |= {name: test[name] for name in ("accuracy", "macro_f1")}
    if bench.others is not None:
        words = ["--run", run, "--images", bench.others.resolve()]
        row["others"] = job(bench.work, "evaluate", *words)["accuracy"]
    return row


def table(scores: pd.DataFrame) -> str:
    """The table as Markdown, a row a preset."""
    names = {"accuracy": "test accuracy", "macro_f1": "test macro F1", "others": "other origins"}
    shown = [name for name in names if name in scores]
    lines = [
        f"| preset | {' | '.join(names[name] for name in shown)} | accuracy by seed |",
        "|---" * (len(shown) + 2) + "|",
    ]
    for preset, rows in scores.sort_values("seed").groupby("preset", sort=False):
        cells = [f"{rows[name].mean():.3f} ± {rows[name].std():.3f}" for name in shown]
        by_seed = " / ".join(f"{value:.3f}" for value in rows["accuracy"])
        lines.append(f"| `{preset}` | {' | '.join(cells)} | {by_seed} |")
    return "\n".join(lines)


def main(bench: Bench) -> None:
    """Measures what is missing, then prints the table."""
    bench.work.mkdir(parents=True, exist_ok=True)
    file = bench.work / "scores.csv"
    scores = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["preset", "seed"])
    for seed in bench.seeds:
        for preset in bench.presets:
            if ((scores["preset"] == preset) & (scores["seed"] == seed)).any():
                continue
            row = measure(bench, preset, seed)
            scores = pd.DataFrame([*scores.to_dict("records"), row])
            scores.to_csv(file, index=False)
            sys.stderr.write(f"{row}\n")
    chosen = scores["preset"].isin(bench.presets) & scores["seed"].isin(bench.seeds)
    sys.stdout.write(f"{table(scores[chosen])}\n")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
