"""Where a language model keeps its neurons and heads: the one place that knows the architectures apart.

GPT-2, Llama (with Mistral and SmolLM2) and Gemma differ in the modules that read neurons and heads, in the
norms behind attention and MLP and in the gain of the last norm. A new architecture is added here and nowhere
else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor, nn

from companion.errors import CompanionError
from companion.lm.models import LanguageModel, quiet

if TYPE_CHECKING:
    from transformer_lens import TransformerBridge


def layers(lm: LanguageModel) -> list[Any]:
    """The layers in order, modules that are given the residual stream; of a bridged model those within it.

    Raises
    ------
    CompanionError
        If the architecture is not known here.
    """
    match lm.model.config.model_type:
        case "gpt2":
            modules = lm.model.get_decoder().h
        case "llama" | "mistral" | "gemma" | "gemma2" | "gemma3_text":
            modules = lm.model.get_decoder().layers
        case other:
            raise CompanionError(
                f"models of type '{other}' are not supported: use GPT-2, Llama, Mistral or Gemma."
            )
    return [_own(block) for block in modules]


def _own(module: nn.Module) -> Any:
    """The module itself, or the one within a bridge's component."""
    return getattr(module, "original_component", module)


def neuron_sites(lm: LanguageModel) -> dict[str, nn.Module]:
    """Return, by TransformerLens name, the module whose *input* is a layer's neuron activations.

    ``blocks.{l}.mlp.hook_post`` is the input of ``down_proj`` (Llama, Gemma, Mistral: the gated
    product) or ``c_proj`` (GPT-2: after GELU). Lee et al. (2024), section 2, call it m. Of a bridged
    model it is the module within the bridge's, whose input has been through the hook points.
    """
    name = "c_proj" if _is_gpt2(lm) else "down_proj"
    return {
        f"blocks.{layer}.mlp.hook_post": _own(getattr(block.mlp, name))
        for layer, block in enumerate(layers(lm))
    }


def is_gated(lm: LanguageModel) -> bool:
    """Whether a neuron's activation is a gate times a linear branch: in all families but GPT-2."""
    return not _is_gpt2(lm)


def attention_sites(lm: LanguageModel) -> dict[str, nn.Module]:
    """Return, by TransformerLens name, the module whose *input* is the values of a layer's heads.

    ``blocks.{l}.attn.hook_z``, head after head, is the input of ``o_proj``, or ``c_proj`` (GPT-2).
    """
    path = ("attn", "c_proj") if _is_gpt2(lm) else ("self_attn", "o_proj")
    return {
        f"blocks.{layer}.attn.hook_z": _own(getattr(getattr(block, path[0]), path[1]))
        for layer, block in enumerate(layers(lm))
    }


def _is_gpt2(lm: LanguageModel) -> bool:
    return lm.model.config.model_type == "gpt2"


def mlp_norms(lm: LanguageModel) -> list[nn.Module | None]:
    """The norm of each layer between MLP output and residual stream (Gemma 2 and 3), or None."""
    return [block.post_feedforward_layernorm if _norms_outputs(lm) else None for block in layers(lm)]


def attention_norms(lm: LanguageModel) -> list[nn.Module | None]:
    """The norm of each layer between attention output and residual stream (Gemma 2 and 3), or None."""
    return [block.post_attention_layernorm if _norms_outputs(lm) else None for block in layers(lm)]


def _norms_outputs(lm: LanguageModel) -> bool:
    """Whether norms stand behind attention and MLP; Llama gives such a name to the norm *before* its MLP."""
    return lm.model.config.model_type in ("gemma2", "gemma3_text")


def output_norm_eps(lm: LanguageModel) -> float | None:
    """What these norms add to the mean square before the root; None if there are no such norms."""
    return lm.model.config.rms_norm_eps if _norms_outputs(lm) else None


def output_vectors(
    lm: LanguageModel, site: nn.Module, norm: nn.Module | None
) -> Float[Tensor, "inputs d_model"]:
    """What a unit of each input of such a module writes: its columns, in GPT-2 its rows.

    Times the gain of the norm that follows; that norm's scale differs by token and is left out.
    """
    weight = site.get_parameter("weight").detach()
    return _scaled(weight if _is_gpt2(lm) else weight.T, norm)


def output_bias(lm: LanguageModel, site: nn.Module, norm: nn.Module | None) -> Float[Tensor, "d_model"]:
    """What such a module writes whatever its input, times the gain of the norm that follows; 0 if nothing."""
    if getattr(site, "bias", None) is None:
        return site.get_parameter("weight").new_zeros(lm.model.config.hidden_size)
    return _scaled(site.get_parameter("bias").detach(), norm)


def _scaled(
    written: Float[Tensor, "*inputs d_model"], norm: nn.Module | None
) -> Float[Tensor, "*inputs d_model"]:
    """Times the gain of a norm of Gemma, which stores it as its difference from 1."""
    return written if norm is None else written * (1 + norm.get_parameter("weight").detach())


def bridge(lm: LanguageModel) -> TransformerBridge:
    """View a model through TransformerLens: hook points and weights under uniform names.

    The bridge wraps the model in place (weights are shared, logits stay equal). Save or
    fine-tune the model first, wrap it last. Only blocks and MLPs keep their hook points: those of
    attention and norms, which nothing here uses, make decoding a third slower.
    """
    from transformer_lens import TransformerBridge  # takes 3 s, and most chapters need no bridge

    attention = lm.model.config._attn_implementation
    with quiet():
        view = TransformerBridge.boot_transformers(
            lm.name, hf_model=lm.model, tokenizer=lm.tokenizer, device=str(lm.device)
        )
    for block in view.blocks:
        _unwrap(block.original_component, keep="mlp")
    lm.model.set_attn_implementation(attention)  # the bridge had chosen the slower one that shows its pattern
    return view


def _unwrap(module: nn.Module, keep: str = "") -> None:
    """Put a module's own parts back in the place of the bridge's components, but for ``keep``."""
    for name, child in list(module.named_children()):
        own = getattr(child, "original_component", None)
        if own is not None and name != keep:
            setattr(module, name, own)
            _unwrap(own)


def final_norm(lm: LanguageModel) -> nn.Module:
    """The norm before the unembedding."""
    decoder = lm.model.get_decoder()
    return decoder.ln_f if _is_gpt2(lm) else decoder.norm


def final_norm_gain(lm: LanguageModel) -> Float[Tensor, "d_model"]:
    """Gain of the norm before the unembedding; Gemma stores it as its difference from 1."""
    gain = final_norm(lm).get_parameter("weight")
    return gain + 1 if lm.model.config.model_type.startswith("gemma") else gain
