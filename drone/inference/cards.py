"""The cards of the contact sheet: what it shows of each row, as JSON."""

import base64
import json

from drone.inference.rows import Row


def card(row: Row) -> bytes:
    """Returns what the contact sheet shows of a row, as a JSON object in UTF-8."""
    item, prediction = row.item, row.prediction
    content: dict[str, object] = {"path": item.path, "name": item.name}
    if item.local_file:
        content["link"] = item.local_file.as_uri()
    if row.time_s is not None:
        content["time_s"] = round(row.time_s, 3)
    if row.track is not None:
        content["track"] = row.track
    if prediction is None:
        content["detail"] = row.detail
    else:
        content["label"] = prediction.label
        content["confidence"] = round(prediction.confidence, 4)
        content["known"] = round(prediction.known, 4)
        content["unsure"] = prediction.unsure
        content["alarm"] = prediction.alarm
        content["probabilities"] = [round(p, 3) for p in prediction.probabilities.values()]
        content["image"] = base64.b64encode(row.thumbnail).decode()
        if prediction.evidence:
            content["evidence"] = prediction.evidence.encoded()
    return json.dumps(content).encode()
