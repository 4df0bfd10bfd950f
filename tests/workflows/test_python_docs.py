"""docs/python.md: its code runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, MadeUp

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_the_code_of_the_docs_runs(
    made_up: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("my-images").symlink_to(made_up.folder)
    text = (ROOT / "docs" / "python.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    assert all(len(block.strip().splitlines()) <= 10 for block in blocks)
    code = "\n".join(blocks)
    # The test neither downloads weights nor waits for twelve epochs.
    for original, quick in (('"imagenet"', '"none"'), ('"epochs": 12', '"epochs": 1')):
        assert original in code
        code = code.replace(original, quick)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/python.md", "exec"), names)
    assert names["result"].report.is_file()
    assert names["prediction"].label in names["predictor"].info.classes
