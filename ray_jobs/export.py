"""Writes the files that serve a model: ONNX with everything that serving must know inside.

    python ray_jobs/export.py --model models:/drone-classifier@champion --out export
    python ray_jobs/export.py --run finetune-s0 --out export --page public
    python ray_jobs/export.py --run finetune-s0 --out export --alarm-recall 0.95

The exported model is compared with the trained one on the test split and calibrated on images that
it was not trained on. --int8 also tries 8-bit integers, which are kept if they cost at most half a
point of accuracy and are faster here. --page writes a complete web site: the page with the model in
it, for S3 or any web server.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
ROOTS = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(root for root in ROOTS if (root / "drone").is_dir())))

from ray_jobs import bug_report

bug_report.install(__name__)

from drone.commands import command
from drone.workflows.requests import ExportRequest
from ray_jobs import cli, console

if TYPE_CHECKING:
    from drone.evaluation.operating_point import Alarms


@dataclass(frozen=True, kw_only=True)
class Export(ExportRequest):
    """Arguments of the job."""

    json: bool = False
    """Print the result as one JSON object, last."""


def main(job: Export) -> cli.Result:
    """Runs the job."""
    # Imported late: it takes seconds, for which --help and wrong usage should not wait.
    from drone.workflows import export

    result = export.export_model(job, console.ConsoleDisplay())
    if result.parity:
        console.show(
            f"On {result.parity.num_images} test images the class is the trained model's for "
            f"{result.parity.top1_agreement:.0%}; probabilities differ by at most "
            f"{result.parity.max_difference:.1e}."
        )
    if result.quantization:
        int8 = result.quantization
        console.show(
            f"8-bit integers: accuracy {int8.accuracy_int8:.3f} (fp32 {int8.accuracy_fp32:.3f}) on "
            f"validation, {int8.speedup:.1f} times as fast, {int8.size_mb:.1f} MB: "
            f"{'kept as model.int8.onnx' if int8.kept else 'not kept'}."
        )
    info = result.info
    console.show(
        f"Temperature {info['temperature']}, unsure below {info['unsure_below']}, none of these "
        f"below a known score of {info['known_above']}.",
        *_alarm_sentences(result.alarms),
        f"Wrote {job.out}. Next: {command('serve', onnx=job.out / 'model.onnx')}",
    )
    if job.page:
        console.show(f"The page: {job.page}")
    return result.as_dict()


def _alarm_sentences(alarms: "Alarms | None") -> list[str]:
    if alarms is None:
        return []
    birds, drones = alarms.false_alarms.get("birds"), alarms.drones
    text = f"Alarm from a drone probability of {alarms.threshold:g}: on the test split "
    text += f"{drones.value:.1%} of {drones.support} drones ({drones.low:.1%} to {drones.high:.1%})"
    if birds:
        text += f", and {birds.value:.0f} per 1,000 birds ({birds.low:.0f} to {birds.high:.0f})"
    return [f"{text}."]


if __name__ == "__main__":
    cli.start(Export, main, __doc__)
