"""From a trained subnet to what ships: folded, ONNX, int8, a folder to hand over, a backbone."""
