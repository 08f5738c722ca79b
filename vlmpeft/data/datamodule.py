"""Train, val and test conversations for Lightning: read, checked, encoded, batched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from torch.utils.data import DataLoader

from vlmpeft.runtime.torchvision_ops import declare_torchvision_ops

declare_torchvision_ops()  # Lightning imports torchmetrics, and that imports torchvision

import lightning.pytorch as pl

from vlmpeft.data.batches.collate import collate
from vlmpeft.data.batches.dataset import EncodedDataset, Item, scored_items
from vlmpeft.data.batches.encode import Encoded, Encoder
from vlmpeft.data.batches.lengths import Measured, measure
from vlmpeft.data.batches.sampler import BucketBatchSampler
from vlmpeft.data.controls import CONTROLS
from vlmpeft.data.conversation import Conversation
from vlmpeft.data.digests import Digests
from vlmpeft.data.formats.rows import Columns, Recipe, as_choices, check_target
from vlmpeft.data.images import DEFAULT_MAX_PIXELS
from vlmpeft.data.split_reader import SPLITS, Read, SplitReader
from vlmpeft.runtime.errors import UserError, did_you_mean


class VLMData(pl.LightningDataModule):
    """Conversations about pictures.

    Args:
        train: JSON, JSONL, CSV, TSV, Parquet or tar file, pattern or folder; a list of those or of
            {path, weight, ...}; or `workbench:TASK`, which also brings val and test.
        val: of the validation split, or a share of train such as 0.1.
        test: of the test split, or a share of train.
        retention: conversations, with or without pictures, that are scored before and after and never learnt: what
            does the model still know? Of `workbench:TASK` it is the test split; `workbench:source_pictures` is the
            embedded base's own task.
        image_dir: what image paths are relative to; default: the annotation file's folder.
        allow_outside: whether image paths may lead out of it, by .., from / or by links; false for data of others.
        columns: of a table, which column is image, prompt, answers, ...; default: the usual names.
        prompt: of a table, the question as a template over columns, `Describe {category}.`.
        target: of a table, the answer as a template, or {json: [column, ...]} for a JSON object of columns.
        choices: possible answers of every question, for metrics that compare their likelihoods.
        split_by: what a split by share keeps together beside images: image alone, or a column.
        group_by: field or column by whose values scores are also given.
        batch_size: conversations a step and device; effective batch = batch_size x
            trainer.accumulate_grad_batches x devices.
        max_length: most tokens of a conversation, image tokens included.
        max_pixels: most pixels of an image; larger ones are scaled down; null keeps them.
        over_length: what happens to longer ones: error names the first of them, drop leaves them out.
        on_error: what happens to unreadable ones: error stops at the first, skip counts and lists them.
        chat_template: Jinja template, file, or name under configs/templates, instead of the base's own.
        num_workers: processes that prepare batches.
        cache_bytes: memory for encoded conversations, so that small sets are decoded once.
    """

    def __init__(
        self,
        train: str | list[str | dict[str, Any]] | None = "workbench:format",
        val: float | str | list[str | dict[str, Any]] | None = None,
        test: float | str | list[str | dict[str, Any]] | None = None,
        retention: str | list[str | dict[str, Any]] | None = None,
        image_dir: str | None = None,
        allow_outside: bool = True,
        columns: Columns = Columns(),
        prompt: str | None = None,
        target: str | dict[str, Any] | None = None,
        choices: list[str | bool | int | float] | None = None,
        split_by: str = "image",
        group_by: str | None = None,
        batch_size: int = 16,
        max_length: int = 2048,
        max_pixels: int | None = DEFAULT_MAX_PIXELS,
        over_length: Literal["error", "drop"] = "error",
        on_error: Literal["error", "skip"] = "error",
        chat_template: str | None = None,
        num_workers: int = 0,
        cache_bytes: int = 512 * 2**20,
    ):
        super().__init__()
        check_target(target)
        self.batch_size, self.num_workers, self.cache_bytes = batch_size, num_workers, cache_bytes
        self.max_length, self.over_length, self.on_error = max_length, over_length, on_error
        self.max_pixels, self.chat_template, self.group_by = max_pixels, chat_template, group_by
        self.seed, self.eval_batch_size = 0, 64
        self.eval_limit: int | None = None
        self.skipped: list[str] = []
        self.max_target_tokens = 0
        self.longest_answer: dict[str, int] = {}
        self.end_ids: set[int] = set()
        self.sampler: BucketBatchSampler | None = None
        self.digests = Digests()
        self.reader = SplitReader(
            {"train": train, "val": val, "test": test, "retention": retention},
            image_dir,
            Recipe(columns, prompt, target, as_choices(choices)),
            split_by,
            self.digests,
            self._on_error,
            allow_outside=allow_outside,
        )
        self._read: dict[str, Read] = {}
        self._datasets: dict[str, EncodedDataset] = {}
        self.measured: dict[str, list[Measured]] = {}
        self._identity: dict[str, dict[str, Any]] = {}

    # -- reading -------------------------------------------------------------------------------

    def prepare(self, processor: Any, splits: Sequence[str] = SPLITS) -> None:
        """Read and check the splits that are given; encode conversations once to know their lengths.

        Raises:
            UserError: a missing or broken file, record or image (unless on_error is skip), a
                conversation longer than max_length, a split without conversations.
        """
        self.processor = processor
        self.encoder = Encoder(processor, self.chat_template, self.max_pixels)
        self.pad_id = processor.tokenizer.pad_token_id
        if self.pad_id is None:
            self.pad_id = processor.tokenizer.eos_token_id
        for split in splits:
            if split not in self._read and self.reader.has(split):
                # the length limit of generated answers is the longest training answer
                self._prepare_split(split, sets_limit=split == "train" or "train" not in splits)

    def _prepare_split(self, split: str, sets_limit: bool) -> None:
        read = self.reader.read(split)
        items = [Item(c.id, c) for c in read.conversations]
        if split != "train":
            items = scored_items(read.conversations)[: self.eval_limit]
            self._check_scored(split, items)
        dataset = EncodedDataset(items, self.encoder, self.cache_bytes // 2)
        results = measure(dataset, self.digests.all(read.conversations), self.num_workers)
        kept = [i for i, result in enumerate(results) if self._is_usable(items[i], result)]
        if not kept:
            why = (
                f"; of {len(self.skipped)} left out the first: {self.skipped[0]}"
                if self.skipped
                else ""
            )
            raise UserError(
                f"data file {self.reader.name(split)}: no conversation is left for {split}{why}"
            )
        self._datasets[split] = dataset = dataset.subset(kept)
        chosen = {id(item.conversation) for item in dataset.items}
        pairs = zip(read.conversations, read.weights, strict=True)
        usable = [(c, weight) for c, weight in pairs if id(c) in chosen]
        self._read[split] = Read([c for c, _ in usable], [w for _, w in usable], read.dealt)
        self.measured[split] = [results[i] for i in kept]  # type: ignore[misc]
        self.longest_answer[split] = max(m.longest_answer for m in self.measured[split])
        for result in self.measured[split] if sets_limit else ():
            self.max_target_tokens = max(self.max_target_tokens, result.longest_answer)
            self.end_ids |= {*result.end_ids}

    def _is_usable(self, item: Item, result: Measured | UserError) -> bool:
        """Whether an item can be used; if not, it is an error or counted, as the settings say."""
        place = item.conversation.place
        if isinstance(result, UserError):
            self._on_error(UserError(f"{place}: {result}"))
            return False
        if result.length <= self.max_length:
            return True
        if self.over_length == "error":
            raise UserError(
                f"{place}: conversation {item.id} has {result.length} tokens, more than "
                f"data.max_length={self.max_length}; raise it, or set data.over_length=drop"
            )
        self.skipped.append(f"{place}: {result.length} tokens")
        return False

    def _check_scored(self, split: str, items: Sequence[Item]) -> None:
        fields = {name for item in items for name in item.conversation.extra}
        if self.group_by and split != "retention" and self.group_by not in fields:
            raise UserError(
                f"data.group_by: no conversation of {split} has a field {self.group_by!r}."
                f"{did_you_mean(self.group_by, fields)}"
            )

    def _on_error(self, error: UserError) -> None:
        if self.on_error == "error":
            raise error
        if (
            str(error) not in self.skipped
        ):  # once a conversation, however many of its answers are scored
            self.skipped.append(str(error))

    def identity(self) -> dict[str, dict[str, Any]]:
        """Split -> content hash, number of conversations and how it was split, as a record keeps them."""
        for split, read in self._read.items():
            if split not in self._identity:
                sha256, number = self.digests.all(read.conversations), len(read.conversations)
                more: dict[str, Any] = {"split": read.dealt} if read.dealt else {}
                if set(read.weights) != {1.0}:
                    more["weights"] = sorted(Counter(read.weights).items())
                self._identity[split] = {"sha256": sha256, "conversations": number} | more
        return dict(self._identity)

    def answer_limit(self, split: str) -> int:
        """Most tokens of an answer: of the longest training answer, and of retention's own, which was learnt before."""
        own = self.longest_answer[split] if split == "retention" else 0
        return max(self.max_target_tokens, own)

    def prepared(self) -> list[str]:
        """The splits that were read, in order."""
        return [split for split in SPLITS if split in self._datasets]

    def split_members(self) -> dict[str, list[str]]:
        """Split -> ids of its conversations, where splits were taken out of train."""
        return {name: [c.id for c in r.conversations] for name, r in self._read.items() if r.dealt}

    def has(self, split: str) -> bool:
        return split in self._datasets

    def has_source(self, split: str) -> bool:
        """Whether a split was given, read or not."""
        return self.reader.has(split)

    def dataset(self, split: str) -> EncodedDataset:
        return self._datasets[split]

    def scored_items(self) -> list[Item]:
        """The items of val and test that are prepared."""
        splits = [split for split in ("val", "test") if self.has(split)]
        return [item for split in splits for item in self.dataset(split).items]

    def conversations(self, split: str) -> list[Conversation]:
        """The usable conversations of a split."""
        return self._read[split].conversations

    def num_pictures(self, split: str) -> int:
        """How many different pictures the usable conversations of a split show."""
        return len({image for c in self.conversations(split) for image in c.images})

    def lengths(self, split: str) -> list[int]:
        """Tokens of each item, image tokens included."""
        return [result.length for result in self.measured[split]]

    # -- batching ------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        self.sampler = BucketBatchSampler(
            self.lengths("train"),
            self.batch_size,
            weights=self._read["train"].weights,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        if self._resume_at:
            self.sampler.resume(*self._resume_at)
        collate_fn = partial(_train_batch, pad_id=self.pad_id)
        return self._loader(self._datasets["train"], collate_fn, batch_sampler=self.sampler)

    def probe_batch(self) -> dict[str, Any]:
        """Two training conversations as a batch, with pictures if the data has some."""
        dataset = self._datasets["train"]
        order = sorted(range(len(dataset)), key=lambda i: not dataset.items[i].conversation.images)
        return collate([dataset[i][1] for i in order[:2]], self.pad_id)

    def val_dataloader(self) -> DataLoader | list:
        return self.scoring_loader("val") if self.has("val") else []

    def test_dataloader(self) -> DataLoader:
        return self.scoring_loader("test")

    def scoring_loader(self, split: str, control: str | None = None) -> DataLoader:
        """Samples (item, encoded) of a split in batches, in an order that nothing but the data decides.

        Answers of similar length are together, so that no short one waits for a long one, and within those
        questions about one picture, so that the picture is looked at once.

        Args:
            split: val, test or retention.
            control: blank or shuffled: what is shown instead of each picture.
        """
        if not self.has(split):
            raise UserError(f"there is no {split} split; give one: data.{split}=FILE")
        dataset = self._datasets[split]
        if control:
            dataset = EncodedDataset(CONTROLS[control](dataset.items), dataset.encoder)
        size, order = self.eval_batch_size, self._scoring_order(split)
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        return self._loader(dataset, list, batch_sampler=batches)

    def _scoring_order(self, split: str) -> list[int]:
        """Positions by answer length (in powers of two), then picture, then length."""
        measured, items = self.measured[split], self._datasets[split].items

        def key(index: int) -> tuple[int, tuple[str, ...], int]:
            pictures = tuple(f"{i.source} {i.offset}" for i in items[index].conversation.images)
            return measured[index].supervised.bit_length(), pictures, measured[index].length

        return sorted(range(len(items)), key=key)

    def _loader(self, dataset: EncodedDataset, collate_fn: Any, batch_sampler: Any) -> DataLoader:
        return DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=collate_fn,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=collate_fn is not list and _on_gpu(self.trainer),
        )

    # -- resuming ------------------------------------------------------------------------------

    def begin_again(self, seed: int) -> None:
        """Serve another run from its first batch on; what was read and encoded stays."""
        self.seed, self._resume_at, self.sampler = seed, None, None

    _resume_at: tuple[int, int] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Where in which epoch the sampler is; the order itself follows from the seed."""
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current  # type: ignore[union-attr]
        return {"epoch": self.trainer.current_epoch, "batch": progress.ready, "seed": self.seed}  # type: ignore[union-attr]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["seed"] != self.seed:
            raise UserError(
                f"the checkpoint was made with seed {state_dict['seed']}, not {self.seed}"
            )
        self._resume_at = (state_dict["epoch"], state_dict["batch"])


def _train_batch(samples: list[tuple[Item, Encoded]], pad_id: int) -> dict[str, Any]:
    """The batch, and under `pictures` what each conversation shows."""
    batch: dict[str, Any] = collate([encoded for _, encoded in samples], pad_id)
    return batch | {"pictures": [item.conversation.images for item, _ in samples]}


def _on_gpu(trainer: Any) -> bool:
    return trainer is not None and trainer.strategy.root_device.type == "cuda"
