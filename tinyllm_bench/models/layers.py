"""`?layers=START:STOP:STEP`: a smaller student from some layers of a larger model."""

from typing import TYPE_CHECKING, Any

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.specs import Layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")  # config lists with one entry per layer


def keep_layers(model: "PreTrainedModel", layers: Layers) -> None:
    """Keep the chosen layers of a model, in place; an encoder-decoder keeps them in both stacks.

    The config and each layer's own index (which names its place in the key-value cache) follow, so that the result is
    the model that its config describes.

    Raises:
        UserError: a layer that the model does not have, or a model whose layers we do not know how to find.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        _keep_in_t5(model, layers)
    else:
        _keep_in_decoder(model, layers)


def _chosen(layers: Layers, have: int, what: str) -> list[int]:
    if layers[1] > have:
        text = ":".join(str(part) for part in layers)
        raise UserError(
            f"?layers={text}: the {what} has only {have} layers (0 to {have - 1}); STOP may be at most {have}"
        )
    return list(range(*layers))


def _take(stack: Any, chosen: list[int]) -> Any:
    """The chosen modules as a new list, renumbered."""
    from torch import nn

    kept = nn.ModuleList([stack[index] for index in chosen])
    for place, layer in enumerate(kept):
        for module in layer.modules():
            if getattr(module, "layer_idx", None) is not None:
                setattr(module, "layer_idx", place)  # noqa: B010 (torch types every attribute as a tensor)
    return kept


def _keep_in_decoder(model: Any, layers: Layers) -> None:
    body = getattr(model, "model", None)
    if body is None or not hasattr(body, "layers"):
        raise UserError(
            f"?layers= does not work for model type {model.config.model_type!r}: only Llama-like models and T5"
        )
    chosen = _chosen(layers, len(body.layers), "model")
    body.layers = _take(body.layers, chosen)
    for key in _PER_LAYER:
        entries = getattr(model.config, key, None)
        if entries is not None:
            setattr(model.config, key, [entries[index] for index in chosen])
    model.config.num_hidden_layers = len(chosen)


def _keep_in_t5(model: Any, layers: Layers) -> None:
    if not hasattr(getattr(model, "encoder", None), "block"):
        raise UserError(
            f"?layers= does not work for model type {model.config.model_type!r}: only Llama-like models and T5"
        )
    for stack, field in ((model.encoder, "num_layers"), (model.decoder, "num_decoder_layers")):
        chosen = _chosen(layers, len(stack.block), field.removeprefix("num_").replace("_", " "))
        first = stack.block[0].layer[0].SelfAttention
        stack.block = _take(stack.block, chosen)
        new_first = stack.block[0].layer[0].SelfAttention
        if new_first is not first:  # the stack's only relative position table lives in its first layer
            new_first.relative_attention_bias = first.relative_attention_bias
            new_first.has_relative_attention_bias = True
        setattr(model.config, field, len(chosen))
        stack.config.num_layers = len(chosen)  # each T5 stack holds a config of its own
