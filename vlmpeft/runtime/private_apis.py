"""The one door to names of other libraries that are none of their public interface, or that are patched."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any


@dataclass(frozen=True)
class PrivateName:
    """A name that any version of a library may drop. Nothing is imported before it is asked for.

    Args:
        module: where it is; the first part is the library.
        name: of the function or class.
        use: what cannot be done without it.
    """

    module: str
    name: str
    use: str

    def get(self) -> Any:
        """What has the name.

        Raises:
            RuntimeError: the installed version of the library does not have it.
        """
        try:
            return getattr(importlib.import_module(self.module), self.name)
        except (ImportError, AttributeError) as error:
            library = self.module.partition(".")[0]
            raise RuntimeError(
                f"{library} {metadata.version(library)} has no {self.module}.{self.name}, which vlmpeft needs for {self.use}; "
                f"install the version of {library} that constraints.txt names"
            ) from error

    @contextmanager
    def replaced(self, by: Any) -> Iterator[None]:
        """Something else has the name for a while."""
        original, module = self.get(), importlib.import_module(self.module)
        setattr(module, self.name, by)
        try:
            yield
        finally:
            setattr(module, self.name, original)


_BLEU = "torchmetrics.functional.text.bleu"
BLEU_UPDATE = PrivateName(_BLEU, "_bleu_score_update", "the counts of Bleu")
BLEU_COMPUTE = PrivateName(_BLEU, "_bleu_score_compute", "Bleu over a split")

_LOADING, _FILES = "transformers.core_model_loading", "finding tensors in a checkpoint's files"
CONVERSION_MAPPING = PrivateName(
    "transformers.conversion_mapping", "get_model_conversion_mapping", _FILES
)
WEIGHT_CONVERTER = PrivateName(_LOADING, "WeightConverter", _FILES)
WEIGHT_RENAMING = PrivateName(_LOADING, "WeightRenaming", _FILES)
NATURAL_KEY = PrivateName(_LOADING, "dot_natural_key", _FILES)
RENAME_KEY = PrivateName(_LOADING, "rename_source_key", _FILES)
SHOULD_CONVERT = PrivateName(
    "transformers.quantizers.quantizers_utils",
    "should_convert_module",
    "estimating the bytes of a quantized base",
)

CONVERT_CONFIG = PrivateName(
    "peft.utils.transformers_weight_conversion",
    "convert_peft_config_for_transformers",
    "adapting the layers that a plan names, and no others",
)
PEFT_CONFIGS = PrivateName(
    "peft.mapping",
    "PEFT_TYPE_TO_CONFIG_MAPPING",
    "the strategy Peft, which knows its configs by it",
)
PEFT_PREFIXES = PrivateName(
    "peft.mapping", "PEFT_TYPE_TO_PREFIX_MAPPING", "telling PEFT's tensors from the base's"
)
PEFT_TUNERS = PrivateName(
    "peft.mapping", "PEFT_TYPE_TO_TUNER_MAPPING", "putting PEFT's layers on a model"
)
DEQUANTIZE = PrivateName(
    "peft.utils.integrations", "dequantize_module_weight", "merging into quantized weights"
)

ALL = tuple(value for value in vars().copy().values() if isinstance(value, PrivateName))

_REPACKS = "support_avx512bf16_for_cpu"  # of bitsandbytes' Linear4bit


def keep_4bit_as_stored(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for AVX512-BF16 at the first no-grad forward on a CPU.

    After the repacking every gradient below such a layer is wrong, not missing; scales are rounded to bf16; and it fails
    where a layer's inputs are no multiple of the block size (bitsandbytes 0.50).
    """
    for module in model.modules():
        if hasattr(module, _REPACKS):
            setattr(module, _REPACKS, False)
