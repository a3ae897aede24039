"""tools/demo/loading.py on a simulated GPU: batches arrive in order, and none is overwritten before it was used.

The simulation stands in for torch. Its streams run whenever chance wants, each in its order; copies and computations
take time, so that they may overlap when nothing keeps them apart.
"""

import collections
import contextlib
import importlib
import random
import sys
import types
from pathlib import Path

import pytest

CUDA, CPU = types.SimpleNamespace(type="cuda"), types.SimpleNamespace(type="cpu")
N_BATCHES = 12


class Stream:
    def __init__(self, gpu):
        self.gpu, self.work = gpu, collections.deque()
        gpu.streams.append(self)

    def enqueue(self, *steps):
        self.work.extend(steps)
        self.gpu.pass_time()

    def advance(self):
        """A step of work says False while it waits for another stream."""
        if self.work and self.work[0]() is not False:
            self.work.popleft()

    def wait_event(self, event):
        number = event.recorded
        if "wait_event" not in self.gpu.ignored:
            self.enqueue(lambda: event.reached >= number)


class Event:
    def __init__(self, gpu):
        self.gpu, self.recorded, self.reached = gpu, 0, 0

    def record(self):
        self.recorded += 1
        number = self.recorded
        self.gpu.current.enqueue(lambda: setattr(self, "reached", number))

    def synchronize(self):
        if "synchronize" in self.gpu.ignored:
            return
        for _ in range(10000):
            if self.reached == self.recorded:
                return
            self.gpu.advance_any()
        raise AssertionError("the host waits for ever")


class Tensor:
    def __init__(self, gpu, value, place="host"):
        self.gpu, self.value, self.place, self.shape = gpu, value, place, (4, 8)

    def copy_(self, other, non_blocking=False):
        if self.place != "device":
            self.value = other.value
            return
        assert non_blocking and other.place == "pinned" and self.gpu.current is not self.gpu.streams[0]
        steps = [lambda: setattr(self, "value", "torn"), lambda: setattr(self, "value", other.value)]
        self.gpu.current.enqueue(*steps)

    def record_stream(self, stream):
        pass

    def to(self, device):
        return Tensor(self.gpu, self.value, device.type)


class Gpu:
    """weights: of the streams, compute and copies, in what chance lets run."""

    def __init__(self, seed, weights, ignored):
        self.chance, self.weights, self.ignored = random.Random(seed), weights, ignored
        self.streams, self.allocated = [], collections.Counter()
        self.current = Stream(self)

    def pass_time(self):
        for _ in range(self.chance.randrange(8) if len(self.streams) > 1 else 0):
            self.chance.choices(self.streams, self.weights)[0].advance()

    def advance_any(self):
        self.chance.choice(self.streams).advance()

    def finish(self):
        while any(stream.work for stream in self.streams):
            self.advance_any()

    def empty_like(self, tensor, pin_memory=False, device=None):
        assert pin_memory != (device is CUDA)
        made = Tensor(self, None, "pinned" if pin_memory else "device")
        self.allocated[made.place] += 1
        if made.place == "device":  # another tensor had this memory, and work with it is still enqueued
            self.current.enqueue(lambda: setattr(made, "value", "old"))
        return made

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def as_torch(self):
        cuda = types.SimpleNamespace(Stream=lambda: Stream(self), Event=lambda: Event(self), stream=self.stream)
        cuda.current_stream = lambda: self.current
        return types.SimpleNamespace(cuda=cuda, empty_like=self.empty_like)


@pytest.fixture
def run(monkeypatch):
    """-> a function that drives a training loop; it returns what the steps read, and the GPU."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tools/demo")

    def drive(seed, weights=(1, 1), ignored=(), n=N_BATCHES, device=CUDA, change=lambda number, batch: batch):
        gpu, seen, n_made = Gpu(seed, weights, ignored), [], 0
        monkeypatch.setitem(sys.modules, "torch", gpu.as_torch())
        monkeypatch.delitem(sys.modules, "loading", raising=False)
        loading = importlib.import_module("loading")

        def batches():
            nonlocal n_made
            for n_made in range(1, n + 1):
                yield change(n_made - 1, {name: Tensor(gpu, (name, n_made - 1)) for name in ("ids", "labels")})

        for i, batch in enumerate(loading.on_device(batches(), device)):
            assert n_made == min(i + 2, n) or device is CPU  # the next one is on its way
            for tensor in batch.values():
                read = []
                steps = [lambda t=tensor, r=read: r.append(t.value)] * 3
                gpu.current.enqueue(*steps, lambda r=read: seen.append(r[0] if len(set(r)) == 1 else r))
        gpu.finish()
        return seen, gpu

    yield drive
    sys.modules.pop("loading", None)


def in_order(n):
    return [(name, i) for i in range(n) for name in ("ids", "labels")]


@pytest.mark.parametrize("weights", [(1, 1), (1, 0), (0, 1), (1, 10), (10, 1)])
def test_each_step_reads_its_batch(run, weights):
    for seed in range(20):
        seen, gpu = run(seed, weights)
        assert seen == in_order(N_BATCHES)
        assert gpu.allocated == {"pinned": 4, "device": 4}  # two tensors twice


@pytest.mark.parametrize("ignored", ["wait_event", "synchronize"])
def test_the_simulation_would_see_a_missing_wait(run, ignored):
    assert any(run(seed, (1, 10), ignored)[0] != in_order(N_BATCHES) for seed in range(20))


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_batches(run, n):
    assert run(1, n=n)[0] == in_order(n)


def test_on_the_cpu_copies_are_plain(run):
    seen, gpu = run(1, device=CPU)
    assert seen == in_order(N_BATCHES) and not gpu.allocated


def test_batches_of_other_shapes_are_refused(run):
    def shorten(number, batch):
        batch["labels"].shape = (4 if number < 5 else 3, 8)
        return batch

    with pytest.raises(ValueError, match=r"batch 5: labels is \[3, 8\]; in the first batch it is \[4, 8\]"):
        run(1, change=shorten)
    with pytest.raises(ValueError, match="batch 1: labels is missing"):
        run(1, change=lambda number, batch: batch if number == 0 else {"ids": batch["ids"]})
