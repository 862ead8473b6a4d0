import io
import os
import signal
import time

import pytest
from transformers import TrainerCallback

from kwise.train import guards
from kwise.train.guards import LosableTracker, StopOnSignal, TrainingStopped, spike


def test_a_spike_is_told_by_robust_deviations_from_the_median_by_hand():
    """Median 2, deviations 0.1 of it: one robust deviation is 0.14826."""
    history = [1.9, 2.1] * 5 + [2.0]
    assert spike([*history, 2 + 9 * 0.14826]) == pytest.approx(9)
    assert spike([*history, 2 + 7 * 0.14826]) is None
    assert spike([*history, 0.0]) is None  # a fall is none
    assert spike([*history[:9], 100.0]) is None  # too little is known
    assert spike([2.0] * 20 + [2.1]) is None  # a loss that never moved
    assert spike([2.0] * 20 + [3.0]) == pytest.approx(50)


def test_losses_of_exactly_zero_give_no_measure_of_a_spike():
    assert spike([0.0] * 12) is None
    assert spike([0.0] * 12 + [3.0]) is None


def test_only_the_last_fifty_losses_count():
    assert spike([100.0] * 500 + [2.0] * 50 + [4.0]) == pytest.approx(100)


def until(happened):
    end = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_signal_that_comes_while_something_is_printed_to_the_same_stream_stops_no_print():
    class Raw(io.RawIOBase):
        written = b""

        def writable(self):
            return True

        def write(self, data):
            if not self.written:
                os.kill(os.getpid(), signal.SIGTERM)  # its handler runs here, within the stream's own write
            self.written += bytes(data)
            return len(data)

    raw = Raw()
    stream = io.TextIOWrapper(io.BufferedWriter(raw))
    stop = StopOnSignal(lambda text: print(text, file=stream, flush=True))
    with stop.listening():
        print("a line of the log", file=stream, flush=True)
        until(lambda: b"SIGTERM: stopping after this step" in raw.written)
    assert raw.written.startswith(b"a line of the log\n") and stop.number == signal.SIGTERM


def test_the_first_signal_is_noted_the_second_ends_and_handlers_come_back(monkeypatch):
    monkeypatch.setattr(guards, "ONE_SIGNAL", 0.0)
    said, before = [], signal.getsignal(signal.SIGTERM)
    stop = StopOnSignal(said.append)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        until(lambda: said and "SIGTERM" in said[0])
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGINT)
        assert ended.value.code == 130
    assert signal.getsignal(signal.SIGTERM) == before
    assert TrainingStopped(signal.SIGTERM, "").code == 143


def test_a_signal_that_comes_twice_at_once_is_one():
    """torchrun passes on to its processes the signal that Slurm has sent to all of them."""
    said = []
    stop = StopOnSignal(said.append)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: said)
    assert stop.number == signal.SIGTERM and len(said) == 1


class Fickle(TrainerCallback):
    def __init__(self):
        self.calls = []

    def on_train_begin(self, *_, **__):
        self.calls.append("begin")

    def on_log(self, *_, **__):
        self.calls.append("log")
        if len(self.calls) > 2:
            raise ConnectionError("the tracker went away")


def test_a_tracker_that_is_lost_on_the_way_is_said_once_and_training_goes_on(caplog):
    fickle = Fickle()
    tracker = LosableTracker(fickle)
    tracker.on_train_begin()
    for _ in range(4):
        tracker.on_log()
    assert fickle.calls == ["begin", "log", "log"]
    assert [each.message for each in caplog.records] == [
        "Fickle was lost (the tracker went away): training goes on; metrics.jsonl and the checkpoints have it all"
    ]


def test_a_tracker_that_cannot_begin_stops_the_run():
    class Broken(TrainerCallback):
        def on_train_begin(self, *_, **__):
            raise PermissionError("wrong key")

    with pytest.raises(PermissionError, match="wrong key"):
        LosableTracker(Broken()).on_train_begin()
