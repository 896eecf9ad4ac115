"""Where a language model keeps its neurons: the one place that knows the architectures apart.

GPT-2, Llama (with Mistral and SmolLM2) and Gemma differ in the module that reads the neurons, in the norm
behind the MLP and in the gain of the last norm. A new architecture is added here and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor, nn

from companion.errors import CompanionError
from companion.lm.models import LanguageModel, quiet

if TYPE_CHECKING:
    from transformer_lens import TransformerBridge


def neuron_sites(lm: LanguageModel) -> dict[str, nn.Module]:
    """Return, by TransformerLens name, the module whose *input* is a layer's neuron activations.

    ``blocks.{l}.mlp.hook_post`` is the input of ``down_proj`` (Llama, Gemma, Mistral: the gated
    product) or ``c_proj`` (GPT-2: after GELU). Lee et al. (2024), section 2, call it m. Of a bridged
    model it is the module within the bridge's, whose input has been through the hook points.
    """
    match lm.model.config.model_type:
        case "gpt2":
            modules = [block.mlp.c_proj for block in lm.model.get_decoder().h]
        case "llama" | "mistral" | "gemma" | "gemma2" | "gemma3_text":
            modules = [layer.mlp.down_proj for layer in lm.model.get_decoder().layers]
        case other:
            raise CompanionError(
                f"models of type '{other}' are not supported: use GPT-2, Llama, Mistral or Gemma."
            )
    return {
        f"blocks.{layer}.mlp.hook_post": getattr(module, "original_component", module)
        for layer, module in enumerate(modules)
    }


def mlp_norms(lm: LanguageModel) -> list[nn.Module] | None:
    """The norm of each layer between MLP output and residual stream (Gemma 2 and 3), or None."""
    if lm.model.config.model_type not in ("gemma2", "gemma3_text"):
        return None
    return [layer.post_feedforward_layernorm for layer in lm.model.get_decoder().layers]


def mlp_norm_eps(lm: LanguageModel) -> float | None:
    """What that norm adds to the mean square before the root; None if there is no such norm."""
    return lm.model.config.rms_norm_eps if mlp_norms(lm) else None


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


def final_norm_gain(lm: LanguageModel) -> Float[Tensor, "d_model"]:
    """Gain of the norm before the unembedding; Gemma stores it as its difference from 1."""
    decoder, kind = lm.model.get_decoder(), lm.model.config.model_type
    if kind == "gpt2":
        return decoder.ln_f.weight
    return decoder.norm.weight + 1 if kind.startswith("gemma") else decoder.norm.weight
