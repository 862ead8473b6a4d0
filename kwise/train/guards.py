"""What may befall a long run: a signal to stop, a loss that jumps, a tracker that is lost."""

import contextlib
import logging
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from transformers import TrainerCallback

logger = logging.getLogger(__name__)

SPIKE_HISTORY = 50  # logged losses that the next one is compared with
SPIKE_LEAST = 10  # and how many of them there must be
SPIKE_DEVIATIONS = 8  # robust standard deviations above their median that make a spike
ONE_SIGNAL = 5.0  # seconds: Slurm and systemd tell all processes of a job, and torchrun passes on what it is told


class TrainingStopped(SystemExit):
    """A signal stopped training after its state was saved. The exit code is 128 + the signal's number, as shells have it."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(128 + number)
        self.message = message


class StopOnSignal:
    """Within it, the first SIGTERM or SIGINT sets ``number`` instead of ending the process; a second one ends it at once,
    unless it comes so soon that it may be the first over again (``ONE_SIGNAL``)."""

    def __init__(self, say: Any) -> None:
        self.number, self.at, self.say = 0, 0.0, say

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals. Only the main thread may."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.number:
            if time.monotonic() - self.at > ONE_SIGNAL:
                raise SystemExit(128 + number)
            return
        self.number, self.at = number, time.monotonic()
        name = signal.Signals(number).name
        text = f"{name}: stopping after this step, with a checkpoint; once more, after {ONE_SIGNAL:g} s, stops at once"
        # not here: the signal may have come while this thread writes to the same stream, which then refuses
        threading.Thread(target=self.say, args=(text,)).start()


def spike(losses: Sequence[float]) -> float | None:
    """How many robust standard deviations the last of ``losses`` lies above the median of those before it, if it is a spike.

    The deviation is 1.4826 times the median absolute deviation, and at least a hundredth of the median, so that a loss that
    hardly moves is not called a spike when it does.
    """
    history, last = losses[-SPIKE_HISTORY - 1 : -1], losses[-1]
    if len(history) < SPIKE_LEAST:
        return None
    median = statistics.median(history)
    deviation = max(1.4826 * statistics.median(abs(each - median) for each in history), 0.01 * abs(median))
    if not deviation:  # losses that are exactly 0, of ties or of what is known by heart, give no measure
        return None
    height = (last - median) / deviation
    return height if height > SPIKE_DEVIATIONS else None


class LosableTracker(TrainerCallback):
    """A tracker (``report_to``) that may be lost on the way: its first error is said, and training goes on without it.

    At the beginning of training an error stops the run instead: nothing is lost yet, and a wrong key should be mended.
    """

    def __init__(self, tracker: TrainerCallback) -> None:
        self.tracker, self.lost = tracker, False

    def on_train_begin(self, *inputs: Any, **named: Any) -> Any:
        """The tracker's own, with its errors."""
        return self.tracker.on_train_begin(*inputs, **named)

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_") or name == "on_train_begin":
            return super().__getattribute__(name)

        def survive(*inputs: Any, **named: Any) -> Any:
            if self.lost:
                return None
            try:
                return getattr(self.tracker, name)(*inputs, **named)
            except Exception as error:  # noqa: BLE001  whatever a tracker's client raises is no reason to lose days of training
                self.lost = True
                kind = type(self.tracker).__name__
                logger.warning(
                    f"{kind} was lost ({error}): training goes on; metrics.jsonl and the checkpoints have it all"
                )
                return None

        return survive


class Moments(TrainerCallback):
    """Two moments that transformers tells callbacks alone: ``begin`` is called after it has set its sums to zero and before the
    first step, ``epoch_end`` before what is due at an epoch's end is done."""

    def __init__(self, begin: Callable[[], None], epoch_end: Callable[[], None]) -> None:
        self.begin, self.epoch_end = begin, epoch_end

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """See the class."""
        self.begin()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """See the class."""
        self.epoch_end()
