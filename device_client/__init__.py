"""The edge: learns a private profile with onnxruntime and numpy, and predicts with it. No torch here."""
