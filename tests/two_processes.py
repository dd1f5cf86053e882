"""Run under torch.distributed.run: one step of every method in float64; the main process saves the gradients."""

import sys
from pathlib import Path

from safetensors.torch import save_file

from tests.learning import METHODS, gradients, make_groups, make_method, make_trainer
from tests.tiny_models import tiny_llama


def main() -> None:
    folder = Path(sys.argv[1])
    for name in METHODS:
        model, tokenizer = tiny_llama()
        groups = make_groups(make_method(name), tokenizer)
        trainer = make_trainer(
            model.double(), tokenizer, make_method(name), groups, folder / name, micro_batch_tokens=300
        )
        found = gradients(trainer)
        if trainer.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({key: grad.contiguous() for key, grad in found.items()}, folder / f"{name}.safetensors")
        trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
