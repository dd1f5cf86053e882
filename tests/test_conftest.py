"""The shared fixtures keep their promises."""

import os
import socket

import pytest
import torch


@pytest.mark.parametrize("name", ["example.org", "pypi.org", "8.8.8.8"])
def test_the_network_is_out_of_reach(name):
    with pytest.raises(OSError, match="must not use the network"):
        socket.create_connection((name, 443), timeout=1)
    with socket.socket() as plain, pytest.raises(OSError, match="must not use the network"):
        plain.connect(("8.8.8.8", 53))


def test_this_machine_can_be_reached():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5) as caller,
    ):
        assert caller.getpeername() == server.getsockname()


def test_the_hub_is_offline_before_it_is_imported():
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
    assert os.environ["HF_DATASETS_OFFLINE"] == "1"


def test_the_byte_level_tokenizer_gives_every_text_back(tiny_llama):
    model, tokenizer = tiny_llama
    assert len(tokenizer) == 380 and model.config.vocab_size == 384
    for text in ("A {brace}\n\n  and é 🙂", " the answer", "(A) x\t(B) y"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
        assert tokenizer.eos_token_id not in tokenizer(text).input_ids


def test_the_t5_stand_in_collapses_white_space_and_lacks_braces(tiny_t5):
    _, tokenizer = tiny_t5
    ids = tokenizer("Which  animal\nlays eggs?").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Which animal lays eggs?"
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.unk_token_id not in ids
    assert tokenizer.unk_token_id in tokenizer("{").input_ids


def test_the_random_models_say_different_things(tiny_llama, tiny_t5):
    for model, tokenizer in (tiny_llama, tiny_t5):
        batch = tokenizer("Which animal lays eggs?", return_tensors="pt")
        ids = model.generate(**batch, max_new_tokens=8, do_sample=False)[0][-8:]
        assert len(set(ids.tolist())) > 3
        assert all(parameter.device == torch.device("cpu") for parameter in model.parameters())
