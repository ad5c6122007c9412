"""What ONNX Runtime answers in process to the ONNX project's operator tests, a client gets, too.

Each test is a model of its own; all of them are served by one process, beside those that cannot be
loaded, and called over the wire.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from servery.inference.v1 import grpc_service_pb2_grpc as pb_grpc
from tests.conformance.onnx_cases import Case, Tried, Verdict, attempt, generated, networks, stored
from tests.conformance.serving import Process, serving
from tests.conformance.wire import ask
from tests.inference.graphs import store

_CALLS_AT_A_TIME: Final = 32
_AT_LEAST: Final = 1479
"""Cases that ONNX Runtime 1.31 passes in process: fewer mean that the selection is broken."""


SAMPLE: Final[Mapping[str, Sequence[str]]] = {
    "add": ("add", "add_bcast", "add_int16", "add_int8", "add_uint16", "add_uint32"),
    "affinegrid": ("affine_grid_2d", "affine_grid_2d_align_corners"),
    "and_": ("and2d",),
    "argmax": ("argmax_default_axis_example",),
    "attention": (
        "attention_23_boolmask_fullymasked_row_nan_robustness",
        "attention_23_fullymasked_qk_matmul_output_mode3_zero",
    ),
    "concat": ("concat_1d_axis_0", "concat_1d_axis_negative_1"),
    "constantofshape": ("constantofshape_float_ones",),
    "conv": ("basic_conv_with_padding", "basic_conv_without_padding"),
    "equal": ("equal", "equal_bcast", "equal_string", "equal_int8"),
    "expand": ("expand_dim_changed",),
    "gather": ("gather_0",),
    "gathernd": ("gathernd_example_float32",),
    "identity": ("identity",),
    "if_": ("if",),
    "isinf": ("isinf",),
    "loop": ("loop11",),
    "lstm": ("lstm_bidirectional",),
    "matmul": ("matmul_1d_1d",),
    "nonmaxsuppression": (
        "nonmaxsuppression_center_point_box_format",
        "nonmaxsuppression_flipped_coordinates",
    ),
    "nonzero": ("nonzero_example",),
    "reshape": ("reshape_allowzero_reordered", "reshape_extended_dims"),
    "scan": ("scan9_multi_state",),
    "scatternd": ("scatternd",),
    "shape": ("shape",),
    "size": ("size",),
    "split": ("split_1d_uneven_split_opset18",),
    "string_concat": ("string_concat", "string_concat_broadcasting", "string_concat_empty_string"),
    "string_split": (
        "string_split_basic",
        "string_split_consecutive_delimiters",
        "string_split_empty_string_delimiter",
    ),
    "stringnormalizer": ("strnormalizer_export_monday_casesensintive_nochangecase",),
    "tfidfvectorizer": (
        "tfidfvectorizer_tf_batch_onlybigrams_skip0",
        "tfidfvectorizer_tf_batch_onlybigrams_skip5",
    ),
    "tile": ("tile",),
    "topk": ("top_k",),
    "where": ("where_example",),
    "regex_full_match": (
        "regex_full_match_basic",
        "regex_full_match_email_domain",
        "regex_full_match_empty",
    ),
    "pow": ("pow", "pow_bcast_array", "pow_bcast_scalar"),
    "upsample": ("upsample_nearest",),
    "ai_onnx_ml.tree_ensemble": ("ai_onnx_ml_tree_ensemble_set_membership",),
}
"""By the module that makes them: all datatypes, all kinds of shapes, control flow."""


@pytest.mark.slow
@pytest.mark.timeout(400)  # It takes 25 s on two cores that have nothing else to do.
async def test_every_operator_that_the_runtime_supports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = generated() | stored()
    verdicts, failures = await conformance(cases, tmp_path)
    counts = Counter(tried.verdict for tried in verdicts.values())
    with capsys.disabled():
        passed = counts[Verdict.SERVABLE] - len(failures)
        sys.stdout.write(f"\nONNX operator tests: {len(cases)}; passed over the wire: {passed}")
        for verdict in Verdict:
            if verdict is not Verdict.SERVABLE:
                sys.stdout.write(f"; {verdict.value}: {counts[verdict]}")
        sys.stdout.write("\n")
    assert not failures
    assert counts[Verdict.SERVABLE] >= _AT_LEAST


@pytest.mark.slow
async def test_well_known_networks(tmp_path: Path) -> None:
    verdicts, failures = await conformance(networks(), tmp_path)
    assert {tried.verdict for tried in verdicts.values()} == {Verdict.SERVABLE}
    assert not failures


async def test_a_sample_of_operators(tmp_path: Path) -> None:
    cases = generated(tuple(SAMPLE))
    sample = {
        name: cases[name]
        for operator, suffixes in SAMPLE.items()
        for name in (f"test_{suffix}" for suffix in suffixes)
    }
    verdicts, failures = await conformance(sample, tmp_path)
    assert {tried.verdict for tried in verdicts.values()} == {Verdict.SERVABLE}
    assert not failures


async def conformance(
    cases: Mapping[str, Case], folder: Path
) -> tuple[dict[str, Tried], dict[str, str]]:
    """Serve the graphs of all cases, and ask for what this process computes, too.

    Returns:
        What this process made of each case, and what the server did wrong by the case.
    """
    root = folder / "models"
    for name, case in cases.items():
        store(root, name, case.graph)
    async with serving(root, folder, ready_s=300) as process:
        verdicts = {name: attempt(case) for name, case in cases.items()}
        servable = [name for name, tried in verdicts.items() if tried.verdict is Verdict.SERVABLE]
        states = await _states(process)
        failures: dict[str, str] = {}
        left = iter(servable)

        async def one_after_the_other() -> None:
            for name in left:
                state, reason = states.get(name, ("absent", ""))
                problem = f"{state}: {reason}"
                if state == "READY":
                    problem = await _problem(process, cases[name], verdicts[name])
                if problem:
                    failures[name] = problem

        await asyncio.gather(*[one_after_the_other() for _ in range(_CALLS_AT_A_TIME)])
    return verdicts, failures


async def _states(process: Process) -> dict[str, tuple[str, str]]:
    stub: Any = pb_grpc.GRPCInferenceServiceStub(process.channel)
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest())
    return {model.name: (model.state, model.reason) for model in index.models}


async def _problem(process: Process, case: Case, tried: Tried) -> str:
    for given, expected in case.runs:
        inputs = dict(zip(tried.inputs, given, strict=True))
        try:
            answers = await ask(process.channel, case.name, inputs, tried.outputs)
            case.check(expected, [answers[name] for name in tried.outputs])
        except Exception as error:  # One case must not hide the others.
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""
