"""From a torch model to plain ONNX graphs with gradients, and the proof that both agree."""
