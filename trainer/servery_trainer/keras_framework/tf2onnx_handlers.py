"""Operators that TensorFlow emits and tf2onnx lacks. Importing this module registers them."""

from typing import Any

import numpy as np
from tf2onnx import utils
from tf2onnx.handler import tf_op


@tf_op("Erfc")
class Erfc:
    """1 - erf(x), of the exact GELU."""

    @classmethod
    def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
        """Rewrite with Erf, which ONNX has from opset 9."""
        _replace(ctx, node, "Erf", lambda erf, one: [one, erf])


@tf_op("Expm1")
class Expm1:
    """exp(x) - 1, of CELU and of `expm1`."""

    @classmethod
    def version_7(cls, ctx: Any, node: Any, **_: Any) -> None:
        """Rewrite with Exp."""
        _replace(ctx, node, "Exp", lambda exp, one: [exp, one])


def _replace(ctx: Any, node: Any, operator: str, operands: Any) -> None:
    """Put the difference of `operator`(x) and 1, in the order of `operands`, in place of `node`."""
    output, source, name = node.output[0], node.input[0], node.name
    types = {"dtypes": [ctx.get_dtype(output)], "shapes": [ctx.get_shape(output)]}
    number = utils.map_onnx_to_numpy_type(types["dtypes"][0])
    ctx.remove_node(name)
    inner = ctx.make_node(operator, [source], **types).output[0]
    one = ctx.make_const(utils.make_name("one"), np.array(1, number)).output[0]
    ctx.make_node("Sub", operands(inner, one), name=name, outputs=[output], **types)
