"""model.onnx to integer program to schedule to artefact. Data walks one way: frontend, quantize, ir, passes, schedule, image."""
