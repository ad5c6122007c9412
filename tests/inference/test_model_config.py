"""What a model is told to be, through the wire: config.pbtxt, completed from the graph."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from servery.inference.v1 import grpc_service_pb2 as pb
from servery.inference.v1 import model_config_pb2 as config_pb
from tests.inference import graphs
from tests.inference.calling import answers, failure, index, infer_request, raw, stub
from tests.inference.conftest import serve_directory

FREE_OUTPUT = ("n", 2)


def write_config(root: Path, text: str, model: str = "m") -> None:
    (root / model).mkdir(exist_ok=True)
    (root / model / "config.pbtxt").write_text(text)


async def config_of(channel: grpc.aio.Channel, model: str = "m") -> config_pb.ModelConfig:
    response = await stub(channel).ModelConfig(pb.ModelConfigRequest(name=model))
    return response.config


async def shapes_of(channel: grpc.aio.Channel, model: str = "m") -> dict[str, list[int]]:
    metadata = await stub(channel).ModelMetadata(pb.ModelMetadataRequest(name=model))
    return {t.name: list(t.shape) for t in (*metadata.inputs, *metadata.outputs)}


def scale_by_default() -> bytes:
    """`y` is `x` FP32 [batch, 2] times `k` FP32 [1], which is 3 where it is not given."""
    node = helper.make_node("Mul", ["x", "k"], ["y"])
    shape = ("batch", 2)
    inputs = [graphs.value("x", "FP32", shape), graphs.value("k", "FP32", (1,))]
    default = numpy_helper.from_array(np.array([3], np.float32), "k")
    return graphs.model([node], inputs, [graphs.value("y", "FP32", shape)], [default])


def fixed_output() -> bytes:
    """`y` FP32 [2] is the sum of the rows of `x` FP32 [batch, 2]: no model that can batch."""
    node = helper.make_node("ReduceSum", ["x", "zero"], ["y"], keepdims=0)
    zero = numpy_helper.from_array(np.array([0]), "zero")
    inputs = [graphs.value("x", "FP32", ("batch", 2))]
    return graphs.model([node], inputs, [graphs.value("y", "FP32", (2,))], [zero])


async def test_a_graph_that_can_batch_gets_a_config_that_batches(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.add_and_subtract())
    async with serve_directory(tmp_path) as channel:
        config = await config_of(channel)
        assert config.name == "m"
        assert (config.platform, config.backend) == ("onnxruntime_onnx", "onnxruntime")
        assert config.max_batch_size == 8192
        assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [
            ("a", config_pb.TYPE_INT32, [16]),
            ("b", config_pb.TYPE_INT32, [16]),
        ]
        assert [(o.name, list(o.dims)) for o in config.output] == [
            ("sum", [16]),
            ("difference", [16]),
        ]
        assert config.version_policy.latest.num_versions == 1
        assert config.default_model_filename == "model.onnx"
        assert config.optimization.input_pinned_memory.enable
        assert config.optimization.output_pinned_memory.enable
        assert list(config.dynamic_batching.preferred_batch_size) == [8192]
        (group,) = config.instance_group
        assert group.name
        assert group.kind == config_pb.ModelInstanceGroup.KIND_CPU
        assert group.count >= 1
        assert await shapes_of(channel) == {
            name: [-1, 16] for name in ("a", "b", "sum", "difference")
        }


@pytest.mark.parametrize(
    ("graph", "config", "expected", "shapes"),
    [
        pytest.param(graphs.identity("FP32", (2, 3)), "", 0, [2, 3], id="fixed axes"),
        pytest.param(graphs.identity("FP32", ()), "", 0, [], id="a scalar"),
        pytest.param(graphs.identity("FP32"), "max_batch_size: 8", 8, [-1, 2], id="said"),
        pytest.param(graphs.identity("FP32"), "max_batch_size: 0", 0, [-1, 2], id="said not to"),
        pytest.param(
            graphs.identity("FP32"),
            'input { name: "x" data_type: TYPE_FP32 dims: [-1, 2] }',
            0,
            [-1, 2],
            id="dims with the batch",
        ),
        pytest.param(
            graphs.identity("FP32"),
            'input { name: "x" data_type: TYPE_FP32 dims: [2] }',
            8192,
            [-1, 2],
            id="dims without the batch",
        ),
        pytest.param(
            graphs.identity("FP32", ("n", "m")),
            'max_batch_size: 4 input { name: "x" dims: 7 }',
            4,
            [-1, 7],
            id="a free axis made fixed",
        ),
    ],
)
async def test_batching_is_said_or_guessed(
    tmp_path: Path, graph: bytes, config: str, expected: int, shapes: list[int]
) -> None:
    graphs.store(tmp_path, "m", graph)
    write_config(tmp_path, config)
    async with serve_directory(tmp_path) as channel:
        resolved = await config_of(channel)
        assert resolved.max_batch_size == expected
        assert resolved.HasField("dynamic_batching") == (expected == 8192)
        assert (await shapes_of(channel))["x"] == shapes
        dims = [list(io.dims) for io in resolved.input]
        assert dims == [shapes[1:] if expected else shapes]


async def test_an_output_without_rows_means_no_batching(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", fixed_output())
    async with serve_directory(tmp_path) as channel:
        assert (await config_of(channel)).max_batch_size == 0
        x = np.ones((3, 2), "<f4")
        response = await stub(channel).ModelInfer(infer_request("m", {"x": x}))
        assert answers(response)["y"].tolist() == [3, 3]


async def test_more_rows_than_max_batch_size_are_refused(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.identity("FP32"))
    write_config(tmp_path, "max_batch_size: 2")
    async with serve_directory(tmp_path) as channel:
        await stub(channel).ModelInfer(infer_request("m", {"x": np.zeros((2, 2), "<f4")}))
        request = infer_request("m", {"x": np.zeros((3, 2), "<f4")})
        error = await failure(stub(channel).ModelInfer(request))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert error.message == (
            "[request id: <id_unknown>] inference request batch-size must be <= 2 for 'm'"
        )
        request.id = "r7"
        error = await failure(stub(channel).ModelInfer(request))
        assert error.message.startswith("[request id: r7] ")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("nonsense", id="no text format"),
        pytest.param("max_batch_size: -1", id="negative batch size"),
        pytest.param("model_transaction_policy { decoupled: true }", id="decoupled"),
        pytest.param("batch_input { kind: BATCH_ELEMENT_COUNT }", id="batch input"),
        pytest.param('input { name: "x" allow_ragged_batch: true }', id="ragged"),
        pytest.param(
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: [5] }",
            id="preferred more than the most",
        ),
        pytest.param(
            "max_batch_size: 4 dynamic_batching { priority_levels: 2 }", id="no default level"
        ),
        pytest.param(
            "max_batch_size: 4 dynamic_batching { priority_levels: 2 default_priority_level: 1"
            " priority_queue_policy { key: 3 value {} } }",
            id="a policy for no level",
        ),
        pytest.param('name: "other"', id="the name of another model"),
        pytest.param('backend: "pytorch"', id="another backend"),
        pytest.param('platform: "tensorrt_plan"', id="another platform"),
        pytest.param('input { name: "nope" dims: 2 }', id="an unknown input"),
        pytest.param('output { name: "nope" dims: 2 }', id="an unknown output"),
        pytest.param('input { name: "x" data_type: TYPE_INT32 dims: 2 }', id="another type"),
        pytest.param('input { name: "x" dims: 3 }', id="another size"),
        pytest.param('input { name: "x" dims: [2, 2, 2] }', id="another rank"),
        pytest.param('input { name: "x" dims: -5 }', id="a negative size"),
        pytest.param('input { name: "x" } input { name: "x" }', id="an input twice"),
        pytest.param('input { name: "x" optional: true }', id="optional without a default"),
        pytest.param('input { name: "x" dims: 3 reshape { shape: 2 } }', id="reshape of others"),
        pytest.param("instance_group { count: -1 }", id="a negative count"),
        pytest.param("instance_group { kind: KIND_GPU }", id="no such device"),
        pytest.param("instance_group { kind: KIND_CPU gpus: 0 }", id="GPUs for a CPU"),
        pytest.param("optimization { graph { level: 7 } }", id="an unknown level"),
        pytest.param(
            "optimization { execution_accelerators { cpu_execution_accelerator {"
            ' name: "openvino" } } }',
            id="an accelerator that is not there",
        ),
        pytest.param(
            'parameters { key: "intra_op_thread_count" value { string_value: "x" } }',
            id="threads that are no number",
        ),
        pytest.param('output { name: "y" label_filename: "nope.txt" }', id="no label file"),
        pytest.param('output { name: "y" label_filename: "../../x" }', id="labels elsewhere"),
    ],
)
async def test_a_bad_config_is_unavailable_with_a_reason(tmp_path: Path, text: str) -> None:
    graphs.store(tmp_path, "m", graphs.identity("FP32"))
    write_config(tmp_path, text)
    async with serve_directory(tmp_path) as channel:
        state, reason = (await index(channel))["m", "1"]
        assert state == "UNAVAILABLE"
        assert reason
        assert "internal" not in reason
        assert str(tmp_path) not in reason


async def test_a_graph_that_cannot_batch_is_not_made_to(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.identity("FP32", (2, 3)))
    write_config(tmp_path, "max_batch_size: 4")
    async with serve_directory(tmp_path) as channel:
        assert "cannot batch" in (await index(channel))["m", "1"][1]


async def test_reshape_lets_clients_see_another_shape(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.identity("INT32", ("n", "w", 6)))
    write_config(
        tmp_path,
        """max_batch_size: 8
        input { name: "x" dims: [-1, 2, 3] reshape { shape: [-1, 6] } }
        output { name: "y" dims: [-1, 3, 2] reshape { shape: [-1, 6] } }""",
    )
    async with serve_directory(tmp_path) as channel:
        assert await shapes_of(channel) == {"x": [-1, -1, 2, 3], "y": [-1, -1, 3, 2]}
        x = np.arange(5 * 4 * 6, dtype="<i4").reshape(5, 4, 2, 3)
        response = await stub(channel).ModelInfer(infer_request("m", {"x": x}))
        assert np.array_equal(answers(response)["y"], x.reshape(5, 4, 3, 2))
        refused = infer_request("m", {"x": x.reshape(5, 4, 6)})
        assert (await failure(stub(channel).ModelInfer(refused))).code.name == "INVALID_ARGUMENT"


async def test_reshape_adds_and_takes_away_axes(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.pick())
    write_config(
        tmp_path,
        """max_batch_size: 8
        input { name: "x" dims: 1 reshape { shape: [] } }
        output { name: "y" dims: [1, 1] reshape { shape: [] } }""",
    )
    async with serve_directory(tmp_path) as channel:
        x = np.array([[2], [0]], "<i8")
        response = await stub(channel).ModelInfer(infer_request("m", {"x": x}))
        assert answers(response)["y"].tolist() == [[[2]], [[0]]]


async def test_an_optional_input_may_be_left_out(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", scale_by_default())
    write_config(
        tmp_path, 'max_batch_size: 0 input { name: "x" } input { name: "k" optional: true }'
    )
    graphs.store(tmp_path, "plain", scale_by_default())
    x, k = np.ones((1, 2), "<f4"), np.array([5], "<f4")
    async with serve_directory(tmp_path) as channel:
        config = await config_of(channel)
        assert [io.optional for io in config.input] == [False, True]
        for inputs, expected in (({"x": x}, 3), ({"x": x, "k": k}, 5)):
            response = await stub(channel).ModelInfer(infer_request("m", inputs))
            assert answers(response)["y"].tolist() == [[expected, expected]]
        error = await failure(stub(channel).ModelInfer(infer_request("m", {"k": k})))
        assert "missing required input(s) ['x']" in error.message
        error = await failure(stub(channel).ModelInfer(infer_request("plain", {"x": x, "k": k})))
        assert error.message == "unexpected inference input 'k' for model 'plain'"


async def test_a_config_may_offer_fewer_outputs(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.add_and_subtract())
    write_config(tmp_path, 'output { name: "difference" }')
    a = np.ones((1, 16), "<i4")
    async with serve_directory(tmp_path) as channel:
        response = await stub(channel).ModelInfer(infer_request("m", {"a": a, "b": a}))
        assert list(answers(response)) == ["difference"]


@pytest.mark.parametrize("shape", [(3, 2), (1, 2), (0, 2)])
async def test_bf16_travels_raw(tmp_path: Path, shape: tuple[int, ...]) -> None:
    graphs.store(tmp_path, "m", graphs.identity("BF16"))
    bits = np.arange(0x3F80, 0x3F80 + shape[0] * 2, dtype="<u2").reshape(shape)
    request = infer_request("m", {"x": bits})
    request.inputs[0].datatype = "BF16"
    async with serve_directory(tmp_path) as channel:
        assert (await config_of(channel)).input[0].data_type == config_pb.TYPE_BF16
        response = await stub(channel).ModelInfer(request)
        (output,) = response.outputs
        assert (output.datatype, tuple(output.shape)) == ("BF16", shape)
        assert response.raw_output_contents[0] == bits.tobytes()


async def test_bf16_goes_with_other_numbers_but_not_with_texts(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16),
        helper.make_node("Identity", ["t"], ["u"]),
    ]

    def mixed(datatype: str) -> bytes:
        inputs = [graphs.value("x", "FP32", FREE_OUTPUT), graphs.value("t", datatype, FREE_OUTPUT)]
        outputs = [graphs.value("y", "BF16", FREE_OUTPUT), graphs.value("u", datatype, FREE_OUTPUT)]
        return graphs.model(nodes, inputs, outputs)

    graphs.store(tmp_path, "m", mixed("INT8"))
    graphs.store(tmp_path, "texts", mixed("BYTES"))
    x, t = np.array([[1, -2]], "<f4"), np.array([[7, 8]], "i1")
    async with serve_directory(tmp_path) as channel:
        response = await stub(channel).ModelInfer(infer_request("m", {"x": x, "t": t}))
        names = [output.name for output in response.outputs]
        got = dict(zip(names, response.raw_output_contents, strict=True))
        assert got == {"y": np.array([0x3F80, 0xC000], "<u2").tobytes(), "u": raw(t)}
        assert "BF16 beside the BYTES input 't'" in (await index(channel))["texts", "1"][1]


@pytest.mark.parametrize(
    ("declared", "shape"),
    [
        pytest.param((), (), id="a scalar"),
        pytest.param(("n", 2), (0, 2), id="no rows"),
        pytest.param(("n", "w"), (2, 0), id="no columns"),
        pytest.param(("n", "a", "b", "c"), (2, 1, 3, 5), id="every axis free"),
        pytest.param((0,), (0,), id="always empty"),
    ],
)
@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BOOL"])
async def test_odd_shapes_travel(
    tmp_path: Path, declared: Any, shape: tuple[int, ...], datatype: str
) -> None:
    graphs.store(tmp_path, "m", graphs.identity(datatype, declared))
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    x = {"FP32": values.astype("<f4"), "BOOL": values % 2 == 1, "BYTES": values.astype(str)}
    sent = x[datatype].astype(object) if datatype == "BYTES" else x[datatype]
    async with serve_directory(tmp_path) as channel:
        response = await stub(channel).ModelInfer(infer_request("m", {"x": sent}))
        assert tuple(response.outputs[0].shape) == shape
        assert response.raw_output_contents[0] == raw(sent)


async def test_external_data_comes_from_the_folder_of_the_version_only(tmp_path: Path) -> None:
    def external(location: str) -> bytes:
        model = onnx.ModelProto.FromString(graphs.plus(1))
        (weight,) = model.graph.initializer
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "8")):
            weight.external_data.add(key=key, value=value)
        return bytes(model.SerializeToString())

    data = np.array([7, 7], "<f4").tobytes()
    (tmp_path / "secret").write_bytes(data)
    root = tmp_path / "root"
    graphs.store(root, "good", external("weights"), weights=data)
    graphs.store(root, "parent", external("../weights"))
    (root / "parent" / "weights").write_bytes(data)
    graphs.store(root, "absolute", external(str(tmp_path / "secret")))
    graphs.store(root, "linked", external("weights"))
    (root / "linked" / "1" / "weights").symlink_to(tmp_path / "secret")
    async with serve_directory(root) as channel:
        response = await stub(channel).ModelInfer(
            infer_request("good", {"x": np.zeros((1, 2), "<f4")})
        )
        assert answers(response)["y"].tolist() == [[7, 7]]
        listed = await index(channel)
        del listed["good", "1"]
        assert {state for state, _ in listed.values()} == {"UNAVAILABLE"}
