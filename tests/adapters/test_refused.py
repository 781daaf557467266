"""What is not plain LoRA on linear layers is refused with its reason, everything in one error."""

import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from florence_jax.adapters import read_adapter
from florence_jax.checkpoint import CheckpointError

LAYER = "base_model.model.model.language_model.encoder.layers.0"
HEAD = "base_model.model.lm_head"


def write(directory, tensors, **settings):
    directory.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["fc1"]}
    (directory / "adapter_config.json").write_text(json.dumps(config | settings))
    arrays = {name: np.ones(shape, np.float32) for name, shape in tensors.items()}
    save_file(arrays, directory / "adapter_model.safetensors")
    return directory


def pair(module, inputs=24, outputs=48, rank=2):
    return {
        f"{module}.lora_A.weight": (rank, inputs),
        f"{module}.lora_B.weight": (outputs, rank),
    }


def message_of(directory):
    with pytest.raises(CheckpointError) as caught:
        read_adapter(directory)
    return str(caught.value)


def test_a_minimal_adapter_is_read(tmp_path):
    adapter = read_adapter(write(tmp_path, pair(f"{LAYER}.fc1")))
    assert adapter.naming == "native"
    assert {path: (m.a.shape, m.b.shape) for path, m in adapter.modules.items()} == {
        "encoder/layers/0/fc1/kernel": ((24, 2), (2, 48))
    }
    assert adapter.scale("encoder/layers/0/fc1/kernel") == 2


@pytest.mark.parametrize(
    "kind", ["IA3", "ADALORA", "VERA", "LOHA", "LOKR", "OFT", "PROMPT_TUNING", None, 7, ["LORA"]]
)
def test_other_methods_are_named(tmp_path, kind):
    message = message_of(write(tmp_path, pair(f"{LAYER}.fc1"), peft_type=kind))
    assert repr(kind) in message
    assert "merge_and_unload" in message


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("use_dora", True, "magnitude"),
        ("use_qalora", True, "pools"),
        ("use_bdlora", {"nblocks": 2}, "block-diagonal"),
        ("alora_invocation_tokens", [1, 2], "only after certain tokens"),
        ("layer_replication", [[0, 2]], "repeats layers"),
        ("target_parameters", ["image_projection"], "bare parameters"),
        ("trainable_token_indices", [5], "retrains rows"),
        ("loftq_config", {"loftq_bits": 4}, "quantised"),
        ("init_lora_weights", "pissa_niter_16", "changed the base weights"),
        ("init_lora_weights", "olora", "path_initial_model_for_weight_conversion"),
        ("r", 0, "a positive integer"),
        ("r", True, "a positive integer"),
        ("lora_alpha", "16", "expected a number"),
        ("rank_pattern", [1], "expected an object"),
        ("rank_pattern", {"fc1": 1.5}, "a positive integer"),
        ("rank_pattern", {"fc1(": 2}, "not a regular expression"),
        ("alpha_pattern", {"(a+)+x": 2}, "too complex"),
        ("alpha_pattern", {"a?" * 40 + "a" * 40: 2}, "wildcards|more than 4"),
    ],
)
def test_settings_that_are_not_plain_lora_are_named_with_the_reason(
    tmp_path, setting, value, reason
):
    message = message_of(write(tmp_path, pair(f"{LAYER}.fc1"), **{setting: value}))
    assert setting in message
    assert any(part in message for part in reason.split("|")), message


def test_settings_without_influence_are_noted_or_ignored(tmp_path):
    directory = write(
        tmp_path,
        pair(f"{LAYER}.fc1"),
        init_lora_weights="gaussian",
        lora_dropout=0.1,
        use_dora=False,
        a_setting_of_the_future=3,
        target_modules=["fc1", "linear"],
    )
    notes = read_adapter(directory).notes
    assert any("a_setting_of_the_future" in note for note in notes)
    assert any("'linear'" in note for note in notes)
    assert len(notes) == 2


def test_every_tensor_that_does_not_fit_is_in_one_error(tmp_path):
    original = "base_model.model"
    vision = f"{original}.vision_tower"
    block = f"{vision}.blocks.0.0.spatial_block"
    text = f"{original}.language_model.model"
    tensors = {
        **pair(f"{text}.encoder.layers.0.fc1"),
        **pair(f"{text}.encoder.layers.0.fc2", rank=3),
        **pair(f"{original}.another_model.fc1"),
        f"{vision}.convs.0.proj.lora_A.weight": (2, 3, 7, 7),
        f"{vision}.convs.0.proj.lora_B.weight": (8, 2, 1, 1),
        f"{block}.conv1.fn.dw.lora_A.weight": (2, 1, 3, 3),
        f"{block}.conv1.fn.dw.lora_B.weight": (8, 2, 1, 1),
        f"{text}.shared.lora_embedding_A": (2, 1285),
        f"{text}.shared.lora_embedding_B": (24, 2),
        f"{text}.encoder.layers.1.fc1.lora_A.weight": (2, 24),
        f"{text}.encoder.layers.1.fc2.lora_magnitude_vector": (24,),
        f"{text}.decoder.embed_tokens.token_adapter.trainable_tokens_delta": (2, 24),
        f"{text}.encoder.layers.1.fc2.lora_E": (2,),
        f"{text}.encoder.layers.1.unknown.weight": (2,),
        "model.fc1.weight": (2, 2),
    }
    message = message_of(write(tmp_path, tensors, use_dora=True))
    for part in (
        "use_dora",
        "lora_A is [3, 24]",
        "another_model.fc1",
        "LoRA on convolutions (2)",
        "vision_tower.convs.{}.proj" if "convs.{}" in message else "vision_tower.convs.0.proj",
        "conv1.fn.dw",
        "target 'fn.proj'",
        "LoRA on embeddings (2)",
        "train the adapter without shared and embed_tokens",
        "layers.1.fc1.lora_B.weight",
        "DoRA magnitudes",
        "retrained token rows",
        "lora_E",
        "layers.1.unknown.weight",
        "does not begin with base_model.model.",
    ):
        assert part in message, f"{part!r} is missing in:\n{message}"


def test_another_models_adapter_is_named_as_such(tmp_path):
    message = message_of(write(tmp_path, pair("base_model.model.model.layers.0.mlp.up_proj")))
    assert "none of the adapter's 1 modules" in message
    assert "model.layers.0.mlp.up_proj" in message


def test_quantised_factors_are_refused(tmp_path):
    directory = write(tmp_path, pair(f"{LAYER}.fc1"))
    file = directory / "adapter_model.safetensors"
    save_file({name: array.astype(np.int8) for name, array in load_file(file).items()}, file)
    assert "unsupported dtype" in message_of(directory)


def test_what_is_not_there_is_said(tmp_path):
    assert "is no directory" in message_of(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "has no adapter_config.json" in message_of(tmp_path / "empty")
    directory = write(tmp_path / "half", pair(f"{LAYER}.fc1"))
    (directory / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors" in message_of(directory)


def test_code_in_a_torch_file_is_not_run(tmp_path):
    pytest.importorskip("torch")
    directory = write(tmp_path / "adapter", pair(f"{LAYER}.fc1"))
    (directory / "adapter_model.safetensors").unlink()
    (directory / "adapter_model.bin").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    message_of(directory)
    assert not (tmp_path / "ran").exists()


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_weight_file_outside_the_directory_is_refused(tmp_path):
    directory = write(tmp_path / "adapter", pair(f"{LAYER}.fc1"))
    file = directory / "adapter_model.safetensors"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert "outside" in message_of(directory)


def test_mutated_adapters_give_errors_and_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    directory = write(
        tmp_path,
        pair(f"{LAYER}.fc1") | pair(HEAD, 24, 1285),
        rank_pattern={"fc1": 2},
        alpha_pattern={"lm_head": 3},
    )
    files = [directory / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    whole = [file.read_bytes() for file in files]
    refused = 0
    for round_ in range(400):
        number = round_ % 2
        content = bytearray(whole[number])
        header = len(content) if number == 0 else 8 + int.from_bytes(content[:8], "little")
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(header)] = rng.integers(256)
        files[number].write_bytes(content)
        try:
            read_adapter(directory)
        except CheckpointError:
            refused += 1
        files[number].write_bytes(whole[number])
    assert refused > 300
