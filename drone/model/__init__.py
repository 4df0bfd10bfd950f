"""The network: MobileNet_V2 with a head of its own, from its configuration to an ONNX file.

- `config.ModelConfig`: Trainable blocks, head, dropout, BatchNorm mode and resizer.
- `mobilenet.build`: Builds a `Classifier`, reproducibly for a seed.
- `weights.load`: Loads the starting weights of the backbone.
- `resizer.Resizer`: Learned downsampling for multi-resolution models.
- `export.to_onnx`, `quantization.to_int8`: Write the model for serving.
- `cost`: Multiply-accumulates and activation sizes of each block.

`batchnorm` and `folding` change how BatchNorm is computed, `inference` turns logits into
probabilities.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
