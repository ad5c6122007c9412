"""Gives every request its turn: alone at once, or after a wait in a batch.

All of it happens on one event loop, without locks and without a task of its own. Short runs happen
on the loop, so a request to an idle short model is answered with no hand-over at all.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final

from servery_inference.answer_order import AnswerOrder
from servery_inference.backlog import Backlog
from servery_inference.batch import Batch, NotRowWiseError, kind_of, part
from servery_inference.batch_choice import Choice, choose
from servery_inference.batch_policy import BatchPolicy
from servery_inference.company import Company
from servery_inference.engine import RunFailedError
from servery_inference.execution import Execution, Run
from servery_inference.queueing import (
    DeadlineUnreachableError,
    QueueFullError,
    QueueTimeoutError,
    Room,
    Work,
    WorkQueue,
)
from servery_inference.rate_limit import Turns
from servery_inference.request import NO_TERMS, Array, InferenceRequestInvalidError, Terms, Timing
from servery_inference.runner import Result
from servery_inference.statistics import ModelStatistics

_JOINING_PAYS_S: Final = 3e-5
"""Waking a request that waited costs about as much as a run this short."""


class ModelCannotRunError(InferenceRequestInvalidError):
    """The graph itself refuses the values of a request that fits its signature."""

    def __init__(self, model: str, problem: object) -> None:
        super().__init__(f"model '{model}' cannot run on these values: {problem}", model)


class Batcher:
    """Queue of one version of a model. For one event loop.

    Args:
        model: Name on the wire, for errors.
        outputs: Names of all outputs, in the order of the model.
        execution: Runs it.
        policy: What its config says.
        statistics: Gets every run.
        room: Bounds what waits in the process.
        slots: Most runs on other threads at a time.
        turns: Says when a run may begin; None for whenever there is one to begin.
    """

    def __init__(
        self,
        model: str,
        outputs: Sequence[str],
        execution: Execution,
        policy: BatchPolicy,
        statistics: ModelStatistics,
        room: Room,
        slots: int,
        turns: Turns | None = None,
    ) -> None:
        self._model = model
        self._outputs = outputs
        self._execution = execution
        self._costs = execution.costs
        self._policy = policy
        self._statistics = statistics
        self._slots = slots
        self._turns = turns
        self._queue = WorkQueue(policy.levels, room)
        self._joins = policy.max_rows > 1
        self._backlog = Backlog(self._queue, self._costs, slots)
        self._running: set[asyncio.Task[None]] = set()
        self._answers = AnswerOrder(policy.is_ordered)
        self._poked = False
        self._timer: asyncio.TimerHandle | None = None
        self._company = Company()

    async def run(
        self,
        feed: Mapping[str, Array],
        names: Sequence[str],
        rows: int,
        size: int,
        terms: Terms = NO_TERMS,
        deadline: float | None = None,
    ) -> Result:
        """Run the model on one request, when it is its turn; see `Runner.run`.

        Raises:
            QueueFullError: Too many wait.
            QueueTimeoutError: It would wait, or has waited, longer than it may.
            DeadlineUnreachableError: It cannot be done by `deadline`.
            ModelCannotRunError: The graph refuses the values.
        """
        arrival = time.perf_counter_ns()
        run = self.run_now(feed, names, rows, size, deadline)
        if run is not None:
            return Result(run.values, _timing(run, arrival, 0))
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        work = Work(feed, names, rows, size, arrival, deadline, future)
        self._join_queue(work, terms)
        try:
            return await future
        except asyncio.CancelledError:
            self._leave(work)
            raise

    @property
    def joins_unasked(self) -> bool:
        """Whether requests of one turn of the event loop may share a run, in any order."""
        return self._joins and not (self._policy.delay_s or self._policy.is_ordered)

    def joinable(self, count: int, rows: int, size: int) -> int:
        """Tell how many of `count` requests, all of one kind, should share a run on this thread.

        Args:
            count: How many there are, from 1 up.
            rows: Of each.
            size: Of each; see `costs`.
        """
        if not self.joins_unasked:
            return 1
        count = min(count, self._policy.max_rows // max(rows, 1))
        while count > 1 and not (
            self._costs.is_short(size * count) and self._costs.joining_pays(size, size * count)
        ):
            count //= 2
        return max(count, 1)

    def run_now(
        self,
        feed: Mapping[str, Array],
        names: Sequence[str],
        rows: int,
        size: int,
        deadline: float | None,
        *,
        is_joined: bool = False,
    ) -> Run | None:
        """Run the model at once and on this thread; None if the request has to wait.

        Args: See `Runner.run`. `is_joined` says that `feed` is of several requests.

        Raises:
            ModelCannotRunError: The graph refuses the values.
        """
        if self._queue or self._answers or self._turns is not None:
            return None
        if not (self._costs.is_short(size) and (is_joined or self._may_go_alone(size))):
            return None
        if deadline is not None and time.monotonic() >= deadline:
            return None
        try:
            run = self._execution.here((feed,), names, size)
        except RunFailedError as error:
            raise ModelCannotRunError(self._model, error) from None
        if run is not None:
            self._statistics.record_execution(rows, run.compute_input_ns, run.compute_infer_ns, 0)
        return run

    def _may_go_alone(self, size: int) -> bool:
        if not self._joins:
            return True
        if self._policy.delay_s:
            return False
        costs = self._costs  # The first question is the cheaper one, and enough for most.
        if costs.was_below(size, _JOINING_PAYS_S) or costs.estimate(size) < _JOINING_PAYS_S:
            return True
        return not self._company.expects()

    def _join_queue(self, work: Work, terms: Terms) -> None:
        now = time.monotonic()
        work.level = self._policy.level(terms)
        if self._queue.is_full(work.level):
            raise QueueFullError(self._model, self._backlog.pushback_ms(now))
        if not self._backlog.is_reachable(work, now):
            raise DeadlineUnreachableError(self._model, self._backlog.pushback_ms(now))
        wait_s = self._queue.policy(work.level).wait_s(terms)
        ahead_s = self._backlog.ahead_s(work.level, now)
        if wait_s is not None and ahead_s > wait_s and not self._policy_delays(work):
            raise QueueTimeoutError(self._model, self._backlog.pushback_ms(now))
        cost_s = self._costs.share if self._joins else self._costs.expected
        work.cost_s = cost_s(work.size)
        if not self._policy.delay_s:
            self._backlog.join(work, now)
        if self._joins:
            work.kind = kind_of(work.feed)
        self._answers.join(work)
        self._enqueue(work, wait_s)

    def _enqueue(self, work: Work, wait_s: float | None) -> None:
        work.since = now = time.monotonic()
        loop = asyncio.get_running_loop()
        left_s = self._left_s(work, now)
        if left_s is not None and (wait_s is None or wait_s > left_s):
            work.timer = loop.call_later(left_s, self._pass_deadline, work)
        elif wait_s is not None:
            work.timer = loop.call_later(wait_s, self._time_out, work)
        self._queue.put(work)
        self._statistics.pending += 1
        self._poke()

    def _left_s(self, work: Work, now: float) -> float | None:
        """How long it may wait and still be in time; None for ever."""
        if work.deadline is None:
            return None
        return max(work.deadline - now - self._costs.estimate(work.size), 0.0)

    def _policy_delays(self, work: Work) -> bool:
        return self._queue.policy(work.level).delays

    def _time_out(self, work: Work) -> None:
        if not self._policy_delays(work):
            pushback_ms = self._backlog.pushback_ms(time.monotonic())
            self._refuse(work, QueueTimeoutError(self._model, pushback_ms))
            return
        self._queue.postpone(work)
        work.timer = None
        left_s = self._left_s(work, time.monotonic())
        if left_s is not None:
            work.timer = asyncio.get_running_loop().call_later(left_s, self._pass_deadline, work)

    def _pass_deadline(self, work: Work) -> None:
        now = time.monotonic()
        self._backlog.learn(work, now)
        pushback_ms = self._backlog.pushback_ms(now)
        self._refuse(work, DeadlineUnreachableError(self._model, pushback_ms))

    def _refuse(self, work: Work, error: Exception) -> None:
        if self._dequeue(work):
            self._answers.settle(work, error)
            self._poke()

    def _leave(self, work: Work) -> None:
        """Forget a work whose caller is gone; end its run if nobody else waits for it."""
        if self._dequeue(work):
            self._poke()  # It may be what others did not fit beside.
        elif work.batch is not None:
            work.batch.live -= 1
            work.batch.options.terminate = not work.batch.live
        self._answers.release()

    def _dequeue(self, work: Work) -> bool:
        if work.timer is not None:
            work.timer.cancel()
        if not self._queue.remove(work):
            return False
        self._statistics.pending -= 1
        if self._turns is not None and not self._queue:
            self._turns.withdraw()
        return True

    def _poke(self) -> None:
        """Form batches once all that this turn of the event loop brings is here."""
        if not self._poked and self._queue:
            self._poked = True
            asyncio.get_running_loop().call_soon(self._form)

    def _form(self) -> None:
        self._poked = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue:
            now = time.monotonic()
            chosen = choose(self._queue, self._policy, self._costs, now, joins=self._joins)
            is_short = self._costs.is_short(chosen.size)
            if not is_short and len(self._running) >= self._slots:
                return
            if chosen.wait_s > 0:
                self._timer = asyncio.get_running_loop().call_later(chosen.wait_s, self._form)
                if self._turns is not None:
                    self._turns.withdraw()
                return
            if self._refuse_hopeless(chosen, now):
                continue
            batch = self._batch(chosen.works)
            if self._turns is not None:
                batch.instance = self._turns.take(self._poke)
                if batch.instance is None:
                    return
            for work in chosen.works:
                self._backlog.learn(work, now)
                self._dequeue(work)
            if not is_short or not self._run_here(batch):
                self._start(batch)
            else:
                self._end(batch)  # Others get the event loop in between.
                return

    def _refuse_hopeless(self, chosen: Choice, now: float) -> bool:
        """Refuse what would be late, if others could be in time instead; tell whether there was."""
        if len(chosen.works) == len(self._queue):
            return False
        late = [
            work
            for work in chosen.works
            if work.deadline is not None and now + self._costs.expected(work.size) > work.deadline
        ]
        for work in late:
            self._pass_deadline(work)
        return bool(late)

    def _batch(self, works: Sequence[Work]) -> Batch:
        names = works[0].names
        if any(work.names != names for work in works):
            names = self._outputs
        rows, size = sum(work.rows for work in works), sum(work.size for work in works)
        return Batch(works, names, rows, size)

    def _run_here(self, batch: Batch) -> bool:
        try:
            feeds = [work.feed for work in batch.works]
            run = self._execution.here(feeds, batch.names, batch.size)
            if run is None:
                return False
            self._deliver(batch, run)
        except (RunFailedError, NotRowWiseError) as error:
            self._fail(batch, error)
        return True

    def _start(self, batch: Batch) -> None:
        for work in batch.works:
            work.batch = batch
        batch.live = sum(not work.future.done() for work in batch.works)
        self._backlog.begin(batch, time.monotonic())
        task = asyncio.get_running_loop().create_task(self._run_elsewhere(batch))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: self._end(batch))

    def _end(self, batch: Batch) -> None:
        self._backlog.end(batch)
        self._poke()
        if self._turns is not None and batch.instance is not None:
            self._turns.end(batch.instance)

    async def _run_elsewhere(self, batch: Batch) -> None:
        feeds = [work.feed for work in batch.works]
        try:
            run = await self._execution.elsewhere(feeds, batch.names, batch.size, batch.options)
            self._deliver(batch, run)
        except (RunFailedError, NotRowWiseError) as error:
            self._fail(batch, error)
        except asyncio.CancelledError:  # The process ends.
            for work in batch.works:
                work.future.cancel()
            raise
        except Exception as error:  # RunEndedError when nobody waits; else a bug to be seen.
            for work in batch.works:
                self._answers.settle(work, error)

    def _deliver(self, batch: Batch, run: Run) -> None:
        start = time.perf_counter_ns()
        parts = part(run.values, [work.rows for work in batch.works])
        output_ns = time.perf_counter_ns() - start
        self._statistics.record_execution(
            batch.rows, run.compute_input_ns, run.compute_infer_ns, output_ns
        )
        for work, values in zip(batch.works, parts, strict=True):
            wanted = values
            if work.names != batch.names:
                by_name = dict(zip(batch.names, values, strict=True))
                wanted = [by_name[name] for name in work.names]
            share = work.rows / batch.rows if batch.rows else 1.0
            timing = _timing(run, work.arrival_ns, output_ns, share)
            self._answers.settle(work, Result(wanted, timing))

    def _fail(self, batch: Batch, error: Exception) -> None:
        """Refuse a request; of several, find out whose fault it is by running each alone."""
        if isinstance(error, NotRowWiseError):
            self._joins = False
        elif len(batch.works) == 1:
            self._answers.settle(batch.works[0], ModelCannotRunError(self._model, error))
            return
        for work in batch.works:
            if not work.future.done():
                work.is_alone, work.batch, work.ahead_s = True, None, 0.0
                self._enqueue(work, wait_s=None)


def _timing(run: Run, arrival_ns: int, output_ns: int, share: float = 1.0) -> Timing:
    queue_ns = run.started_ns - arrival_ns
    return Timing(queue_ns, run.compute_input_ns, run.compute_infer_ns, output_ns, share)
