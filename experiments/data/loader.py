"""Makes batches of a source in an order that depends only on the seed and the step, not on hosts or restarts.

The row r of a batch has the position p = step * batch + r. It is the example at place p mod n of a permutation that is
drawn anew for each epoch p div n. So every example comes once an epoch, and a batch may span two epochs. Each host
reads a contiguous part of each batch, and the batch does not depend on the number of parts. A loader has no state:
`at(step)` is a pure function.

We do not use grain, which is well maintained and free of TensorFlow. It shuffles each host's range of the set by
itself, so that batches depend on the number of hosts, and a run cannot go on with another number. Its worker processes
pickle their state.
"""

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from experiments.data import pictures
from experiments.data.sources import Source


class Loader:
    """Makes batches: at(step) is {"image": uint8 [b, H, W, C]} with "label": int32 [b], or "caption": a list of b str.

    batch: the rows of all parts together. part: (index, count); this loader reads the rows [index b, (index + 1) b)
    with b = batch / count. flip: mirrors each image with probability 1/2, drawn anew in each epoch. If an example has
    several captions, each epoch draws one. Raises ValueError unless count divides batch and the source has examples.
    """

    def __init__(
        self, source: Source, batch: int, seed: int = 0, part: tuple[int, int] = (0, 1), flip: bool = False
    ) -> None:
        index, count = part
        if batch < 1 or batch % count or not 0 <= index < count:
            raise ValueError(f"a batch of {batch} has no part {index} of {count}: the number of parts must divide it")
        if len(source) == 0:
            raise ValueError(f"{source.name} has no examples")
        self.source, self.batch, self.seed, self.flip = source, batch, seed, flip
        self.rows = np.arange(index * batch // count, (index + 1) * batch // count)
        self._orders: dict[int, np.ndarray] = {}

    def where(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the epoch [b] of each row of a step, and the index [b] of its example in the source."""
        epoch, place = np.divmod(step * self.batch + self.rows, len(self.source))
        index = np.empty_like(place)
        for e in np.unique(epoch):
            index[epoch == e] = self._order(int(e))[place[epoch == e]]
        return epoch, index

    def at(self, step: int) -> dict[str, Any]:
        """Returns the batch of a step. Raises ValueError for an unreadable example, and if images differ in shape."""
        epochs, indices = self.where(step)
        examples = [self._example(int(e), int(i)) for e, i in zip(epochs, indices, strict=True)]
        first = examples[0]["image"].shape
        for i, example in zip(indices, examples, strict=True):
            if example["image"].shape != first:
                raise ValueError(
                    f"{self.source.name}[{i}]: image of shape {example['image'].shape} in a batch of {first}; "
                    "crop the source to one size"
                )
        batch: dict[str, Any] = {"image": np.stack([example["image"] for example in examples])}
        if "label" in examples[0]:
            batch["label"] = np.array([example["label"] for example in examples], np.int32)
        if "caption" in examples[0]:
            batch["caption"] = [example["caption"] for example in examples]
        return batch

    def stream(self, start: int = 0, ahead: int = 4, threads: int = 4) -> Iterator[dict[str, Any]]:
        """Yields at(start), at(start + 1), ... without end; `threads` threads read up to `ahead` batches in advance.

        An exception of `at` is raised at its step. The threads end when the iterator is closed or deleted.
        """
        pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
        queue = collections.deque(pool.submit(self.at, start + k) for k in range(ahead))
        step = start + ahead
        try:
            while True:
                batch = queue.popleft().result()
                queue.append(pool.submit(self.at, step))
                step += 1
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def in_order(self) -> Callable[[int], dict[str, Any]]:
        """Returns a function like `at` that reads ahead, as `stream` does, while it is called for successive steps."""
        stream, following = None, None

        def at(step):
            nonlocal stream, following
            if step != following:
                stream = self.stream(step)
            following = step + 1
            return next(stream)

        return at

    def _order(self, epoch: int) -> np.ndarray:
        """Returns the permutation of an epoch, which sorts n raw random words; numpy keeps these for all versions."""
        order = self._orders.get(epoch)
        if order is None:
            words = np.random.Philox(np.random.SeedSequence((self.seed, epoch))).random_raw(len(self.source))
            order = np.argsort(words, kind="stable")
            newest = sorted(self._orders)[-2:]  # enough for the batches that are read ahead
            self._orders = {e: self._orders[e] for e in newest} | {epoch: order}
        return order

    def _example(self, epoch: int, index: int) -> dict[str, Any]:
        example = dict(self.source[index])
        mirror, pick = np.random.SeedSequence((self.seed, epoch, index)).generate_state(2)
        if self.flip and mirror & 1:
            example["image"] = pictures.mirrored(example["image"])
        captions = example.pop("captions", None)
        if captions is not None:
            example["caption"] = captions[int(pick) % len(captions)]
        return example
