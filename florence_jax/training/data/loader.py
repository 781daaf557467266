"""The data loader: batches as a pure function of (seed, step), made ahead of time by Grain."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import grain
import numpy as np
from absl import flags

from florence_jax.training.config import TrainConfig
from florence_jax.training.data.example import DataError, Source
from florence_jax.training.data.preprocess import (
    ExampleRef,
    Preprocessor,
    padded_to_longest,
)
from florence_jax.training.data.sources import Named
from florence_jax.training.state import Batch

# As good as endless. Grain's own endless is the largest index there is, past which the length of
# batches of one row is rounded up.
_ROWS = 2**50


class RowMaker(Protocol):
    """Makes rows of examples, and a batch of rows."""

    def __call__(self, ref: ExampleRef, rng: np.random.Generator) -> Any:
        """The row of an example; equal arguments give equal rows."""
        ...

    def collate(self, rows: Sequence[Any], micro: int = 1) -> Batch:
        """Rows as one batch of `micro` micro-batches."""
        ...


@dataclass(frozen=True, kw_only=True)
class DataLoader:
    """An endless weighted mixture of sources, shuffled anew in each epoch.

    Row r of the run is the same whatever the number of hosts, worker processes and micro-batches;
    step s takes rows s * batch_size to (s + 1) * batch_size - 1, split evenly over the hosts.

    Attributes:
        sources: (name, source, weight); the mixture draws by weight, not by size.
        preprocessor: turns an example into arrays.
        batch_size: rows of one update over all hosts and micro-batches.
        micro: micro-batches of one update.
        seed: Seed of the order and of the augmentation.
        mix: whether each row or each whole batch is drawn from the mixture.
        host, hosts: which of the equal shares this is, and how many there are.
    """

    sources: Sequence[Named]
    preprocessor: RowMaker
    batch_size: int
    micro: int = 1
    seed: int = 0
    host: int = 0
    hosts: int = 1
    mix: Literal["rows", "batches"] = "rows"

    def __post_init__(self) -> None:
        if not self.sources:
            raise DataError("no training data was named")
        if self.batch_size % (self.hosts * self.micro):
            raise DataError(
                f"a batch of {self.batch_size} rows cannot be split over {self.hosts} hosts and "
                f"{self.micro} micro-batches: make batch_size a multiple of "
                f"{self.hosts * self.micro}"
            )

    def batch(self, step: int) -> Batch:
        """This host's share of the batch of one step."""
        batch = self._batches()[step * self.hosts + self.host]
        assert batch is not None  # Grain's type for a filtered element; nothing is filtered here
        return batch

    def batches(self, start: int, *, threads: int = 4, workers: int = 0) -> Iterator[Batch]:
        """The shares of step `start` and all later ones, made ahead of time.

        Args:
            threads: images are read and decoded by this many threads...
            workers: ... in each of this many processes; 0 for threads of this process alone.
        """
        mine = self._batches().slice(slice(start * self.hosts + self.host, None, self.hosts))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 1) * 2)
        ahead = mine.to_iter_dataset(options)
        if workers:
            # Grain reads command-line flags of its own when it starts a worker; ours has none.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            ahead = ahead.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
            )
        return iter(ahead)

    def _batches(self) -> grain.MapDataset:
        shuffled = [
            _endless_refs(name, source, self.seed * 1000 + number)
            for number, (name, source, _) in enumerate(self.sources)
        ]
        weights = [weight for _, _, weight in self.sources]
        if len(shuffled) == 1:
            return self._batched(shuffled[0], self.seed)
        if self.mix == "rows":
            return self._batched(grain.MapDataset.mix(shuffled, weights), self.seed)
        batched = [
            self._batched(rows, self.seed * 1000 + number) for number, rows in enumerate(shuffled)
        ]
        # Drawn for a step, so that every host takes its share of the same source.
        steps = grain.MapDataset.mix(
            [
                grain.MapDataset.range(_ROWS // self.batch_size).map(
                    functools.partial(_numbered, number)
                )
                for number in range(len(batched))
            ],
            weights,
        )
        shares = grain.MapDataset.range(_ROWS // self.batch_size)
        return shares.map(functools.partial(_share_of, batched, steps, self.hosts))

    def _batched(self, rows: grain.MapDataset, seed: int) -> grain.MapDataset:
        return (
            rows.seed(seed)
            .random_map(self.preprocessor)
            .batch(
                self.batch_size // self.hosts,
                batch_fn=functools.partial(self.preprocessor.collate, micro=self.micro),
            )
        )


def make_loader(
    config: TrainConfig,
    preprocessor: Preprocessor,
    sources: Sequence[Named],
    share: tuple[int, int] = (0, 1),
) -> DataLoader:
    """The training data, or the share (index, count) that one process brings to each step.

    Args:
        preprocessor: As from `make_preprocessor`.
    """
    index, count = share
    data = config.data
    preprocessor = dataclasses.replace(preprocessor, augmentation=data.augment)
    if count > 1 or data.one_length:
        opened = [source for _, source, _ in sources]
        preprocessor = padded_to_longest(preprocessor, data, opened)
    return DataLoader(
        sources=sources,
        preprocessor=preprocessor,
        batch_size=config.batch_size,
        micro=config.accumulation,
        seed=config.seed,
        host=index,
        hosts=count,
        mix=data.mix,
    )


def finite_batches(
    sources: Mapping[str, Source],
    preprocessor: Preprocessor,
    batch_size: int,
    *,
    limit: int = 0,
) -> Iterator[Batch]:
    """Every example once and in order, for evaluation; the last batch is filled with empty rows.

    Args:
        limit: examples taken from each source; 0 for all.
    """
    rng = np.random.default_rng(0)
    refs = [
        ExampleRef(name, source, index)
        for name, source in sources.items()
        for index in range(min(len(source), limit or len(source)))
    ]
    for first in range(0, len(refs), batch_size):
        rows = [preprocessor(one, rng) for one in refs[first : first + batch_size]]
        empty = type(rows[0])("", np.zeros_like(rows[0].image), [], [])
        rows += [empty] * (batch_size - len(rows))
        yield preprocessor.collate(rows)


def _share_of(
    batched: Sequence[grain.MapDataset], steps: grain.MapDataset, hosts: int, index: int
) -> Batch:
    step, host = divmod(index, hosts)
    drawn = steps[step]
    assert drawn is not None
    number, of_source = drawn
    batch = batched[number][of_source * hosts + host]
    assert batch is not None
    return batch


def _numbered(number: int, index: int) -> tuple[int, int]:
    return number, int(index)


class _Refs:
    def __init__(self, name: str, source: Source):
        self.name, self.source = name, source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> ExampleRef:
        return ExampleRef(self.name, self.source, int(index))


def _endless_refs(name: str, source: Source, seed: int) -> grain.MapDataset:
    """The rows of all epochs; a stream brings an order of its own."""
    if source.endless:
        return grain.MapDataset.range(_ROWS).map(functools.partial(_ref, name, source))
    refs = grain.MapDataset.source(_Refs(name, source))
    return refs.seed(seed).shuffle().repeat(_ROWS // max(len(source), 1))


def _ref(name: str, source: Source, index: int) -> ExampleRef:
    return ExampleRef(name, source, int(index))
