"""From bytes to an answer, on numpy, pillow and onnxruntime alone."""
