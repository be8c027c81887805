"""The coordinator: trains what everyone shares with torch, and publishes it as plain ONNX."""
