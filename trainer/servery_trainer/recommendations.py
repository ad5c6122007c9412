"""The head of recommendation: the best items for a user, but for those the user took already.

Shape suffixes: B rows, I items, K items in an answer, N interactions.
"""

from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer import plots
from servery_trainer.heads import Arrays, Findings, GraphTail, Output, intervals
from servery_trainer.preprocessing import FloatArray, initializers
from servery_trainer.scores import bootstrap

ITEMS: Final = "items"
SCORES: Final = "scores"

_NEVER: Final = np.float32(-1e30)
"""Score of an item that is not to be recommended."""
_CHUNK: Final = 256
"""Rows with a score for each item at a time."""


@dataclass(frozen=True, slots=True)
class Recommendations:
    """See `heads.Head`; the answers [B, 1 + I] are the number of the user and a score of each item.

    Args:
        items: Their texts.
        k: How many to answer.
        log_shares: Of each item in the training part [I], natural logarithms; `_NEVER` for one that
            is not in it.
        taken: The items of all users [N], one user after the other, by number.
        ends: Where in `taken` those of each user end, by number.
    """

    items: tuple[str, ...]
    k: int
    log_shares: FloatArray
    taken: NDArray[np.int64]
    ends: NDArray[np.int64]

    score = "ndcg"

    @classmethod
    def of(
        cls, train: NDArray[np.int64], items: tuple[str, ...], k: int, *, repeat_items: bool
    ) -> Self:
        """Note what the training part says.

        Args:
            train: `Interactions.values` of it.
            items: The texts of all items.
            k: How many to answer.
            repeat_items: Recommend what a user took already, too.
        """
        counts = np.bincount(train[:, 1], minlength=len(items))
        shares = np.log(np.maximum(counts, 1) / len(train)).astype(np.float32)
        pairs = np.unique(train, axis=0)[: 0 if repeat_items else None]
        return cls(
            items=items,
            k=k,
            log_shares=np.where(counts > 0, shares, _NEVER),
            taken=pairs[:, 1],
            ends=np.bincount(pairs[:, 0], minlength=train[:, 0].max() + 1).cumsum(),
        )

    @property
    def outputs(self) -> tuple[Output, ...]:
        """See `Head`."""
        return (
            Output(
                name=ITEMS,
                dtype=np.dtype(np.object_),
                shape=(self.k,),
                meaning="the best items, the best first; empty if none is left",
            ),
            Output(
                name=SCORES,
                dtype=np.dtype(np.float32),
                shape=(self.k,),
                meaning="logarithm of the chance of each, up to a constant; 0 if none is left",
            ),
        )

    @property
    def _texts(self) -> NDArray[np.object_]:
        return np.array(self.items, np.object_)

    def decode(self, answers: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """See `Head`."""
        best_BK, scores_BK = self._ranked(answers, self.k)
        left_BK = scores_BK > _NEVER / 2
        return {
            ITEMS: np.where(left_BK, self._texts[best_BK], "").astype(np.str_),
            SCORES: np.where(left_BK, scores_BK, np.float32(0)),
        }

    def _ranked(
        self, answers: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best items and their scores; of equal ones the first in order."""
        scores = answers[:, 1:].copy()
        for row, number in enumerate(answers[:, 0].astype(np.int64)):
            start = self.ends[number - 1] if number else 0
            scores[row, self.taken[start : self.ends[number]]] = _NEVER
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return best, np.take_along_axis(scores, best, axis=1)

    def to_onnx(self, answers: str, prefix: str) -> GraphTail:
        """See `Head`."""
        graph = _Tail(prefix)
        width = len(self.items)
        number = graph.node("Slice", answers, graph.ints(0), graph.ints(1), graph.ints(1))
        number = graph.node("Cast", number, to=onnx.TensorProto.INT64)
        scores = graph.node("Slice", answers, graph.ints(1), graph.ints(1 + width), graph.ints(1))
        if len(self.taken):
            scores = self._without_taken(graph, number, scores)
        best_scores, best = graph.pair("TopK", scores, graph.ints(self.k), axis=1)
        left = graph.node("Greater", best_scores, graph.constant(np.array(_NEVER / 2, np.float32)))
        texts = graph.node("Gather", graph.constant(self._texts), best)
        nothing = graph.constant(np.array([""], np.object_))
        zero = graph.constant(np.array(0, np.float32))
        graph.nodes += [
            helper.make_node("Where", [left, texts, nothing], [ITEMS]),
            helper.make_node("Where", [left, best_scores, zero], [SCORES]),
        ]
        return GraphTail(nodes=graph.nodes, initializers=initializers(graph.constants))

    def _without_taken(self, graph: "_Tail", number: str, scores: str) -> str:
        """Set the scores of what users took; rows of users with less set a column beyond, too."""
        width = len(self.items)
        starts = np.concatenate([[0], self.ends[:-1]])
        start = graph.node("Gather", graph.constant(starts), number)
        end = graph.node("Gather", graph.constant(self.ends), number)
        most = graph.node("ReduceMax", graph.node("Sub", end, start), keepdims=0)
        zero, one = (graph.constant(np.array(value)) for value in (0, 1))
        place = graph.node("Add", start, graph.node("Range", zero, most, one))
        beyond = graph.node("GreaterOrEqual", place, end)
        last = graph.constant(np.array(len(self.taken) - 1))
        item = graph.node("Gather", graph.constant(self.taken), graph.node("Min", place, last))
        item = graph.node("Where", beyond, graph.constant(np.array(width)), item)
        never = graph.constant(np.array([_NEVER]))
        updates = graph.node("Expand", never, graph.node("Shape", item))
        pads = graph.constant(np.array([0, 0, 0, 1]))
        scores = graph.node("Pad", scores, pads)
        scores = graph.node("ScatterElements", scores, item, updates, axis=1)
        return graph.node("Slice", scores, graph.ints(0), graph.ints(width), graph.ints(1))

    def clearness_B(self, answers: NDArray[np.float32]) -> NDArray[np.floating]:
        """See `Head`: the least difference between two scores that decides on the answer."""
        _, scores = self._ranked(answers, self.k + 1)
        steps = np.where(scores[:, 1:] > _NEVER / 2, -np.diff(scores, axis=1), np.inf)
        clearness_B: NDArray[np.floating] = steps.min(axis=1, initial=np.inf)
        return clearness_B

    def row_scores(self, outputs: Arrays, values: NDArray[Any]) -> NDArray[np.float64]:
        """See `Head`: 1 / log2(1 + rank) of the item that was taken, 0 if it is not answered.

        With one item held out per user, that is NDCG (Järvelin and Kekäläinen, 2002).
        """
        gains_B: NDArray[np.float64] = self._hits(outputs, values) @ (
            1 / np.log2(np.arange(self.k) + 2)
        )
        return gains_B

    def _hits(self, outputs: Arrays, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Return where in the answers [B, K] the item that was taken is."""
        hits: NDArray[np.bool_] = outputs[ITEMS] == self._texts[values[:, 1], None].astype(np.str_)
        return hits

    def metrics(self, outputs: Arrays, values: NDArray[Any]) -> dict[str, float]:
        """See `Head`."""
        popular = self._popular(values)
        known = int((self.log_shares > _NEVER / 2).sum())
        return {
            "recall": float(self._hits(outputs, values).any(axis=1).mean()),
            "ndcg": float(self.row_scores(outputs, values).mean()),
            "popularity_recall": float(self._hits(popular, values).any(axis=1).mean()),
            "popularity_ndcg": float(self.row_scores(popular, values).mean()),
            "coverage": len(set(outputs[ITEMS].ravel().tolist()) - {""}) / known,
        }

    def _popular(self, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs of recommending what is taken most often."""
        parts = []
        for start in range(0, len(values), _CHUNK):
            numbers = values[start : start + _CHUNK, :1].astype(np.float32)
            shares = np.broadcast_to(self.log_shares, (len(numbers), len(self.items)))
            parts.append(self.decode(np.concatenate([numbers, shares], axis=1)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def evaluate(self, outputs: Arrays, values: NDArray[Any]) -> Findings:
        """See `Head`."""
        popular = self._popular(values)
        hits = {"": self._hits(outputs, values), "popularity_": self._hits(popular, values)}
        rows: dict[str, NDArray[Any]] = {
            f"{by}recall": np.any(hit, axis=1) for by, hit in hits.items()
        }
        rows["ndcg"] = self.row_scores(outputs, values)
        rows["popularity_ndcg"] = self.row_scores(popular, values)
        found = bootstrap(rows, {name: _mean_of(name) for name in rows})
        return Findings(
            result=pb.TrainingResult(
                metrics=self.metrics(outputs, values), intervals=intervals(found)
            ),
            pictures={"recall.png": plots.recall(hits[""], hits["popularity_"])},
        )


def _mean_of(name: str) -> Any:
    return lambda draws: draws[name].mean(axis=1)


class _Tail:
    """Nodes under construction; each method adds some and returns what they make."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Any] = {}
        self._prefix = f"{prefix}recommending/"

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{self._prefix}step{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def pair(self, operator: str, *inputs: str, **attributes: Any) -> tuple[str, str]:
        names = (f"{self._prefix}step{len(self.nodes)}.0", f"{self._prefix}step{len(self.nodes)}.1")
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names

    def constant(self, value: NDArray[Any]) -> str:
        name = f"{self._prefix}constant{len(self.constants)}"
        self.constants[name] = value
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values))
