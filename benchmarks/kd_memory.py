"""The memory of a divergence over the vocabulary: plain autograd, our chunked form, and liger-kernel's if installed.

A step is the forward and backward pass of GKD's JSD (beta 0.5) from hidden states through two heads in float32, until
the gradients of the student's hidden states and head exist. Every measurement runs in a process of its own and reports
the peak of resident memory (of GPU memory, if there is a GPU) minus weights and inputs. The minimum is what every form
needs: the two gradients.

- eager: all logits at once, the formula written with log_softmax and logaddexp;
- ours: `models.lm.LM`'s chunks with `training.divergences`, the teacher's logits computed chunk by chunk too;
- liger: `LigerFusedLinearJSDLoss`, which divides by the tokens itself.

`python benchmarks/kd_memory.py [--vocabulary 32000,50257,151936,256000] [--positions 1024] [--chunk 128]`
"""

import argparse
import ctypes
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from tinyllm_bench.base import provenance
from tinyllm_bench.models.lm import LM
from tinyllm_bench.training.divergences import DivergenceConfig, divergence_of
from tinyllm_bench.training.teacher_signals import Distributions

HIDDEN, BETA = 576, 0.5
EAGER_BUFFERS = 14  # of positions x vocabulary; an upper bound, to know beforehand that a measurement fits
Step = Callable[["Inputs"], Tensor]


class Inputs:
    """Hidden states and heads of both sides; only the student's have gradients."""

    def __init__(self, positions: int, vocabulary: int, device: str) -> None:
        torch.manual_seed(0)
        self.student_NH = torch.randn(positions, HIDDEN, device=device, requires_grad=True)
        self.teacher_NH = torch.randn(positions, HIDDEN, device=device)
        self.student_VH = (torch.randn(vocabulary, HIDDEN, device=device) * 0.05).requires_grad_()
        self.teacher_VH = torch.randn(vocabulary, HIDDEN, device=device) * 0.05


class HeadAlone(LM):
    """`LM` without a backbone: its chunks, its recomputation, and a head."""

    def __init__(self, inputs: Inputs, chunk: int) -> None:
        super().__init__(nn.Identity(), chunk_positions=chunk)
        self.inputs = inputs

    def target_hidden_states(self, batch: Any) -> Tensor:
        """The student's hidden states."""
        return self.inputs.student_NH

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """The student's head."""
        return hidden_NH @ self.inputs.student_VH.T


def eager(inputs: Inputs) -> Tensor:
    """Mean JSD with every logit at once."""
    logq_NV = torch.log_softmax(inputs.student_NH @ inputs.student_VH.T, -1)
    with torch.no_grad():
        logp_NV = torch.log_softmax(inputs.teacher_NH @ inputs.teacher_VH.T, -1)
    half = torch.tensor(BETA, device=logq_NV.device).log()
    logm_NV = torch.logaddexp(logq_NV + half, logp_NV + half)
    to_p_NV, to_q_NV = logp_NV.exp() * (logp_NV - logm_NV), logq_NV.exp() * (logq_NV - logm_NV)
    return (BETA * to_p_NV + (1 - BETA) * to_q_NV).sum() / len(logq_NV)


def chunked(inputs: Inputs, chunk: int) -> Tensor:
    """Mean JSD as in training."""
    teacher = Distributions(lambda rows: inputs.teacher_NH[rows] @ inputs.teacher_VH.T)
    loss = divergence_of(teacher, DivergenceConfig(kind="jsd", beta=BETA))
    total = HeadAlone(inputs, chunk)(SimpleNamespace(), lambda logits_NV, rows: loss(logits_NV, rows).sum())
    return total / len(inputs.student_NH)


def liger(inputs: Inputs, chunk: int) -> Tensor:
    """Mean JSD of liger-kernel."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    compiled = inputs.student_NH.is_cuda
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETA, compiled=compiled, chunk_size=chunk
    )
    labels_N = torch.zeros(len(inputs.student_NH), dtype=torch.long, device=inputs.student_NH.device)
    return loss(inputs.student_NH, inputs.student_VH, inputs.teacher_NH, inputs.teacher_VH, labels_N)


def forms(chunk: int) -> dict[str, Step]:
    """The forms that can run here."""
    steps: dict[str, Step] = {"eager": eager, "ours": lambda inputs: chunked(inputs, chunk)}
    if importlib.util.find_spec("liger_kernel"):
        steps["liger"] = lambda inputs: liger(inputs, chunk)
    return steps


def measure(name: str, positions: int, vocabulary: int, chunk: int) -> dict[str, float]:
    """One measurement, in this process: bytes above weights and inputs, seconds, loss and gradient norm."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    step = forms(chunk)[name]
    step(Inputs(8, 64, device)).backward()  # load and compile what is loaded or compiled on first use
    inputs = Inputs(positions, vocabulary, device)
    # return freed memory to the system, and measure the peak from here
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    provenance.reset_peak_memory()
    before = provenance.peak_memory()
    began = time.perf_counter()
    loss = step(inputs)
    loss.backward()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds, peak = time.perf_counter() - began, provenance.peak_memory()
    assert inputs.student_VH.grad is not None
    return {
        "bytes": peak - before,
        "seconds": seconds,
        "loss": loss.item(),
        "gradient": inputs.student_VH.grad.norm().item(),
    }


def in_its_own_process(name: str, positions: int, vocabulary: int, chunk: int) -> dict[str, float] | None:
    """The same in a new process; None if this machine has too little memory for it."""
    need = positions * vocabulary * 4 * EAGER_BUFFERS if name == "eager" else 0
    if not torch.cuda.is_available() and need > psutil.virtual_memory().available:
        return None
    arguments = ["--one", name, *map(str, (positions, vocabulary, chunk))]
    result = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"{name}, vocabulary {vocabulary}: status {result.returncode}\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Measure all forms and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", default="32000,50257,151936,256000")
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], *map(int, args.one[1:]))))
        return
    print(f"{provenance.device_name()}: {args.positions} positions, H {HIDDEN}, float32, chunk {args.chunk}, JSD")
    print("MiB above weights and inputs\n")
    heading = f"{'vocabulary':>10} {'minimum':>7}  {'form':<6} {'MiB':>7} {'of eager':>8}"
    print(f"{heading} {'seconds':>8} {'loss':>10} {'|grad|':>10}")
    for vocabulary in map(int, args.vocabulary.split(",")):
        show(args.positions, vocabulary, args.chunk)


def show(positions: int, vocabulary: int, chunk: int) -> None:
    """Print the rows of one vocabulary."""
    minimum, eager_bytes = (vocabulary + positions) * HIDDEN * 4 / 2**20, None
    for name in forms(chunk):
        result = in_its_own_process(name, positions, vocabulary, chunk)
        if result is None:
            print(f"{vocabulary:10,} {minimum:7,.0f}  {name:<6} too little memory free on this machine")
            continue
        eager_bytes = result["bytes"] if name == "eager" else eager_bytes
        share = f"{result['bytes'] / eager_bytes:8.1%}" if eager_bytes else " " * 8
        numbers = f"{result['seconds']:8.2f} {result['loss']:10.6f} {result['gradient']:10.6f}"
        print(
            f"{vocabulary:10,} {minimum:7,.0f}  {name:<6} {result['bytes'] / 2**20:7,.0f} {share} {numbers}", flush=True
        )


if __name__ == "__main__":
    main()
