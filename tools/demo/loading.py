"""Batches from host memory to a GPU while it computes: two sets of pinned and of device memory, which take turns.

    loop       fill 2 |fill 3       |fill 4       |
    copies     [ 2 ]  .....[ 3 ]    .....[ 4 ]         ..... waits until step 1 (2) has read its batch
    compute    [   step 1   ][   step 2   ][   step 3   ]

A copy overlaps with computation only from pinned memory, and only on a stream of its own. Two waits keep the bytes
right: the copy stream waits for what computes with the former batch in the same device memory, and the host waits for
the former copy out of the same pinned memory. Both ended long ago, as a rule, so nobody stands still.
"""

import torch


class Slot:
    """One of the two sets. It is as large as a batch."""

    def __init__(self, batch, device, copies):
        self.copies = copies
        self.host = {name: torch.empty_like(tensor, pin_memory=True) for name, tensor in batch.items()}
        self.device = {name: torch.empty_like(tensor, device=device) for name, tensor in batch.items()}
        self.copied, self.used = torch.cuda.Event(), torch.cuda.Event()
        for tensor in self.device.values():
            tensor.record_stream(copies)  # its memory is not given to others before the last copy has ended
        self.release()  # whose memory it was before may still compute with it

    def fill(self, batch):
        """Begins the copy of a batch."""
        self.copied.synchronize()
        for name, tensor in self.host.items():
            tensor.copy_(batch[name])
        with torch.cuda.stream(self.copies):
            self.copies.wait_event(self.used)
            for name, tensor in self.device.items():
                tensor.copy_(self.host[name], non_blocking=True)
            self.copied.record()

    def take(self):
        """The batch on the device. What the current stream computes from here on comes after the copy."""
        torch.cuda.current_stream().wait_event(self.copied)
        return self.device

    def release(self):
        """Everything that reads the batch is enqueued on the current stream."""
        self.used.record()


def check_shapes(batch, first, number):
    for name, shape in first.items():
        if name not in batch or batch[name].shape != shape:
            found = f"is {list(batch[name].shape)}" if name in batch else "is missing"
            raise ValueError(f"batch {number}: {name} {found}; in the first batch it is {list(shape)}, keep to that")


def on_device(batches, device):
    """Yields each batch, a dict of tensors in host memory, on `device`. On a GPU the next batch is on its way meanwhile,
    and the tensors hold a batch only until the next one is asked for: clone what you keep. On the CPU the copies are
    plain ones."""
    if device.type != "cuda":
        for batch in batches:
            yield {name: tensor.to(device) for name, tensor in batch.items()}
        return
    copies, slots, shapes, waiting = torch.cuda.Stream(), [], {}, None
    for number, batch in enumerate(batches):
        shapes = shapes or {name: tensor.shape for name, tensor in batch.items()}
        check_shapes(batch, shapes, number)
        if len(slots) < 2:
            slots.append(Slot(batch, device, copies))
        slot = slots[number % 2]
        slot.fill(batch)
        if waiting:
            yield waiting.take()
            waiting.release()
        waiting = slot
    if waiting:
        yield waiting.take()
