"""Tiny random models with real tokenizers, built in memory without files or network, the same on every call."""

import string
from functools import lru_cache
from pathlib import Path
from typing import Any

SENTENCES = (
    "A plant makes its own food when sunlight falls on its leaves.",
    "Which of these materials would let an electric current pass most easily?",
    "The answer is that copper conducts electricity better than wood or glass.",
    "A student wants to know why the moon looks different during the month.",
    "Because the earth turns, the sun seems to rise in the east and set in the west.",
    "Is the treatment useful for these patients: yes, no, or maybe?",
    "What has keys but cannot open a single door? A piano in the corner of the room.",
    "To keep a drink cold, put ice in the cup and close the lid.",
    "Question: which animal lays eggs? Options: (A) a dog (B) a hen (C) a horse (D) a whale",
    "Explain the choice step by step, then give the answer.",
    "Water boils at one hundred degrees and freezes at zero degrees.",
    "The teacher said that friction makes the wheels of a car slow down.",
    "Answer: it rains when the drops in a cloud become too heavy to float.",
    "Rationale: iron is pulled by a magnet, so the nail will move and the paper will not.",
)
LLAMA_VOCAB_ROWS = 384  # more rows than the tokenizer has entries, as in many real models
BPE_ENTRIES = 380
T5_VOCAB_ROWS = 256


@lru_cache(maxsize=1)
def _bpe_json() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_ENTRIES,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


@lru_cache(maxsize=1)
def _unigram_json() -> str:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]  # white space collapses, as in T5
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    alphabet = sorted(set(string.ascii_letters + string.digits + string.punctuation) - set("{}"))
    trainer = trainers.UnigramTrainer(
        vocab_size=240,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    # every character once: the trainer drops those that it has not seen
    tokenizer.train_from_iterator([*SENTENCES, *alphabet], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return tokenizer.to_str()


def _fast_tokenizer(serialized: str, **special: str) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(serialized),
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **special,
    )


def bpe_tokenizer() -> Any:
    """A byte-level BPE tokenizer of 380 entries: no BOS, EOS `<eos>`, PAD `<pad>`; every text round-trips."""
    return _fast_tokenizer(_bpe_json(), eos_token="<eos>", pad_token="<pad>")


def unigram_tokenizer() -> Any:
    """A tokenizer like T5's: Unigram, `</s>` appended, white space collapses, no braces."""
    return _fast_tokenizer(_unigram_json(), eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def tiny_llama(seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """`(model, tokenizer)`: a random two-layer Llama in float32 on the CPU; `changes` go to its config."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = bpe_tokenizer()
    settings: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 2048,
        "vocab_size": LLAMA_VOCAB_ROWS,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,  # large enough that the logits of different tokens differ clearly
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))
    return model.eval(), tokenizer


def tiny_t5(seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """`(model, tokenizer)`: a random T5 with two encoder and two decoder layers, without dropout."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = unigram_tokenizer()
    settings: dict[str, Any] = {
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "vocab_size": T5_VOCAB_ROWS,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,  # as in FLAN-T5
        "decoder_start_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(T5Config(**{**settings, **changes}))
        if not model.config.scale_decoder_outputs:
            # transformers 5 ties every T5 it makes afresh and unties it only where a checkpoint holds a second table.
            # A tied random T5 would also do nothing but repeat its start token.
            model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape) * 0.2)
    return model.eval(), tokenizer


def saved(pair: tuple[Any, Any], folder: Path) -> Path:
    """Save `(model, tokenizer)` as an ordinary Hugging Face folder and return the folder."""
    model, tokenizer = pair
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
