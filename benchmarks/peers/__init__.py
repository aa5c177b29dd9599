"""The same model in other servers: one file each, run in an environment of its own.

Every peer reads `MODEL_FILE` (LightGBM text, one thread) or `ONNX_FILE`, takes an Open Inference Protocol document with
one input, and answers with one output, on whatever path it has.
"""
