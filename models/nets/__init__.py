"""Networks: their definitions for training, which need PyTorch, and their ONNX files, which do not."""
