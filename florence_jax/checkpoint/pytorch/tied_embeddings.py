"""Decide which embeddings a checkpoint ties: one token table may have up to four names.

Both reference classes embed the prompt and the decoder's input with `shared` (the decoder through
`decoder.embed_tokens`) and hand the encoder ready-made embeddings, so `encoder.embed_tokens` is
never read: training under FSDP or DeepSpeed, which separates the four, leaves it stale. Like
transformers 5, only what holds equal values is tied, whatever config.json says.
"""

import dataclasses

from florence_jax.checkpoint.errors import ErrorCollector
from florence_jax.checkpoint.plan import Source
from florence_jax.checkpoint.pytorch.key_map import (
    DECODER_TOKENS,
    ENCODER_TOKENS,
    LM_HEAD,
    LOGITS_BIAS_PATH,
    SHARED,
)
from florence_jax.checkpoint.pytorch.lazy_tensor import is_zero, same_values
from florence_jax.config import Florence2Config

# The published vocabulary, and the same padded to a multiple of 64 by the native conversion.
_PUBLISHED_VOCABULARIES = (51289, 51328)
# Where `shared` itself is absent, the first of these that is present is the token table: the order
# in which transformers looks for a substitute.
TOKEN_TABLES = (SHARED, DECODER_TOKENS, ENCODER_TOKENS, LM_HEAD)


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """The decision: which tensors become leaves, and the config that says so.

    Attributes:
        sources: the checkpoint's tensors without the duplicates of the token table.
        config: with the vocabulary, `tie_word_embeddings` and `final_logits_bias` of the tensors.
        tied: file names of tensors that equal the token table.
        untied: what was kept apart, one sentence each.
        ignored: file names of tensors that are not read -> why.
        warnings: where config.json and the tensors disagree, one sentence each.
    """

    sources: dict[str, Source]
    config: Florence2Config
    tied: tuple[str, ...]
    untied: tuple[str, ...]
    ignored: dict[str, str]
    warnings: tuple[str, ...]


def resolve_embeddings(
    sources: dict[str, Source],
    config: Florence2Config,
    declared_tied: bool,
    problems: ErrorCollector,
) -> Embeddings:
    """Compare the embedding tables' values and tie those that are equal.

    Args:
        sources: every recognised tensor, by our path.
        config: sizes from config.json.
        declared_tied: what config.json says in `tie_word_embeddings`.
        problems: collects tables that cannot be represented.
    """
    kept = dict(sources)
    tables = {path: kept.pop(path) for path in TOKEN_TABLES if path in kept}
    tied: list[str] = []
    untied: list[str] = []
    ignored: dict[str, str] = {}
    warnings: list[str] = []
    is_tied = True
    if _comparable(tables, problems):
        origin = next(iter(tables))
        table = tables[origin]
        kept[SHARED] = table
        if origin != SHARED:
            tied.append(table.tensor.name)
            warnings.append(f"no `shared` table; {table.tensor.name} takes its place")
        for path, source in list(tables.items())[1:]:
            name = source.tensor.name
            if same_values(table.tensor, source.tensor):
                tied.append(name)
            elif path == LM_HEAD:
                is_tied = False
                kept[LM_HEAD] = source
                untied.append(f"{name} differs from {table.tensor.name}; both are kept")
            elif path == ENCODER_TOKENS:
                ignored[name] = (
                    f"differs from {table.tensor.name}, but neither reference model reads it"
                )
            else:
                problems.add(
                    "token tables that differ",
                    name,
                    f"its values are not those of {table.tensor.name}",
                )
                problems.hint(
                    "the model has one token table for prompt and decoder: if training separated "
                    "them by accident, remove the stale one from the file"
                )
        warnings += _tie_warnings(declared_tied, is_tied, LM_HEAD in tables)
        config = _with_vocabulary(config, table, warnings)
    elif tables:
        kept[SHARED] = next(iter(tables.values()))
    has_bias = _keep_bias(kept, ignored, untied)
    config = dataclasses.replace(config, tie_word_embeddings=is_tied, final_logits_bias=has_bias)
    return Embeddings(kept, config, tuple(tied), tuple(untied), ignored, tuple(warnings))


def _comparable(tables: dict[str, Source], problems: ErrorCollector) -> bool:
    """Whether there is a table, and all are readable and of the same two-dimensional shape."""
    if not tables or not all(source.tensor.is_readable for source in tables.values()):
        return False  # the plan reports missing tensors and unsupported dtypes
    shapes = {source.tensor.shape for source in tables.values()}
    if len(shapes) == 1 and len(next(iter(shapes))) == 2:
        return True
    for source in tables.values():
        problems.add(
            "token tables whose shapes disagree",
            source.tensor.name,
            str(list(source.tensor.shape)),
        )
    problems.hint(
        "resize every token table to one vocabulary (transformers' resize_token_embeddings does)"
    )
    return False


def _tie_warnings(declared_tied: bool, is_tied: bool, has_lm_head: bool) -> list[str]:
    if declared_tied and not is_tied:
        return ["config.json: tie_word_embeddings is true, but lm_head differs: it is kept"]
    if not declared_tied and is_tied:
        state = "equals the token table" if has_lm_head else "is not in the files"
        return [f"config.json: tie_word_embeddings is false, but lm_head {state}: it is tied"]
    return []


def _with_vocabulary(
    config: Florence2Config, table: Source, warnings: list[str]
) -> Florence2Config:
    rows, declared = table.tensor.shape[0], config.text.vocab_size
    if rows > _PUBLISHED_VOCABULARIES[0] and rows not in _PUBLISHED_VOCABULARIES:
        extra = rows - _PUBLISHED_VOCABULARIES[0]
        warnings.append(f"vocabulary of {rows}: {extra} more than the published model's")
    if rows == declared:
        return config
    warnings.append(
        f"config.json: text_config.vocab_size is {declared}, every token table has {rows} rows: "
        f"{rows} is used; correct config.json to silence this"
    )
    return dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=rows))


def _keep_bias(kept: dict[str, Source], ignored: dict[str, str], untied: list[str]) -> bool:
    bias = kept.get(LOGITS_BIAS_PATH)
    if bias is None:
        return False
    if bias.tensor.is_readable and is_zero(bias.tensor):
        ignored[bias.tensor.name] = "all zero"
        del kept[LOGITS_BIAS_PATH]
        return False
    untied.append(f"{bias.tensor.name} is not zero; it is added to the logits")
    return True
