"""One class per package that embeds text; each is loaded in a process of its own (see worker.py)."""

from contenders.base import Contender

# Name → (module, class, arguments). The modules import their packages on request, which is timed.
CONTENDERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "model_manager-f32": ("contenders.ours", "ModelManagerContender", {"dtype": "float32"}),
    "model_manager-auto": ("contenders.ours", "ModelManagerContender", {"dtype": "auto"}),
    "model_manager-int8": ("contenders.ours", "ModelManagerContender", {"dtype": "int8"}),
    "sentence-transformers-f32": ("contenders.torch_st", "TorchContender", {"dtype": "float32"}),
    "sentence-transformers-bf16": ("contenders.torch_st", "TorchContender", {"dtype": "bfloat16"}),
    "sentence-transformers-f16": ("contenders.torch_st", "TorchContender", {"dtype": "float16"}),
    "onnxruntime-f32": ("contenders.ort", "OrtContender", {"graph": "fused.onnx"}),
    "onnxruntime-int8": ("contenders.ort", "OrtContender", {"graph": "int8.onnx"}),
    "openvino-f32": ("contenders.ov", "OpenVinoContender", {"precision": "f32"}),
    "openvino-bf16": ("contenders.ov", "OpenVinoContender", {"precision": "bf16"}),
    "openvino-f16": ("contenders.ov", "OpenVinoContender", {"precision": "f16"}),
}


def create(name: str) -> Contender:
    """The contender of that name; its package is not imported yet."""
    from importlib import import_module

    module, cls, arguments = CONTENDERS[name]
    contender: Contender = getattr(import_module(module), cls)(**arguments)
    return contender
