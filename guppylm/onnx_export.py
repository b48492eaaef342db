"""The model as one ONNX file, which runtimes in many languages run: onnxruntime, and WebAssembly in a browser.

Input `ids` (B, T), output `logits` (B, T, V), of any B, and of any T up to the context. With the input `inspect` true
there is also what every head looks at, `attention` (layers, B, H, T, T); with it false that has no layers, and costs
next to nothing: the weights are computed anyway.
"""

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from guppylm.checkpoint import write_whole
from guppylm.model import GuppyLM

ONNX_OPSET = 20


class Graph(nn.Module):
    """What the file computes. The model runs twice here, with and without giving its attention away.

    The exporter sees that both are the same, and keeps one.
    """

    def __init__(self, model: GuppyLM):
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, inspect: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights = torch.stack([steps.weights for steps in self.model.attention(ids)])  # (layers, B, H, T, T)
        attention = torch.cond(inspect, lambda w: w.clone(), lambda w: w[:0].clone(), (weights,))
        return self.model(ids), attention


def save_onnx(model: GuppyLM, file: Path, eight_bit: bool = True) -> None:
    """Write a model, which must be on the CPU, as an ONNX file: in 8 bits a weight, or in 32."""
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time", max=model.config.context_length)
    examples = (torch.ones(2, 5, dtype=torch.long), torch.tensor(True))
    with warnings.catch_warnings():  # the exporter warns of its own insides
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Graph(model).eval(),
            examples,
            dynamo=True,
            opset_version=ONNX_OPSET,
            input_names=["ids", "inspect"],
            output_names=["logits", "attention"],
            dynamic_shapes=({0: batch, 1: time}, {}),
            verbose=False,
        )
    proto = program.model_proto
    if eight_bit:
        quantize(proto.graph)
    onnx.checker.check_model(proto)
    write_whole(file, proto.SerializeToString())


def quantize(graph: onnx.GraphProto) -> None:
    """Store every matrix as whole numbers from -127 to 127 with a scale for each row: a quarter of the bytes.

    A row is what one output, or one token's embedding, is made of, so one scale suits all of its entries. A runtime
    multiplies them out once, when it loads the file, and computes in float32: only rounding is lost, half a step of
    1/127 of the largest entry of the row.
    """
    turned = {node.input[1] for node in graph.node if node.op_type == "MatMul"}  # by the exporter, to (in, out)
    nodes = []
    for initializer in [i for i in graph.initializer if len(i.dims) == 2]:
        name, weight = initializer.name, numpy_helper.to_array(initializer)  # (out, in), or (in, out)
        largest = np.abs(weight).max(axis=0 if name in turned else 1, keepdims=True)  # (out, 1), or (1, out)
        scale = np.maximum(largest / 127, 1e-12).astype(np.float32)
        rounded = np.round(weight / scale).astype(np.int8)
        graph.initializer.remove(initializer)
        graph.initializer.append(numpy_helper.from_array(rounded, f"{name}.int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
        nodes.append(helper.make_node("Cast", [f"{name}.int8"], [f"{name}.cast"], to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"{name}.cast", f"{name}.scale"], [name]))
    for node in reversed(nodes):
        graph.node.insert(0, node)  # before whatever reads them
