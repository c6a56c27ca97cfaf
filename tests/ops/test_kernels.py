"""With and without flamvid._C: the same model, and one line where it does not load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flamvid.ops import implementation

ROOT = Path(__file__).parents[2]
SAME = """
import sys
sys.path[:0] = ["tests/models", "tests/ops"]
import torch
from test_flamingo import example, tiny
from flamvid.ops import OPERATIONS, implementation, media_attention

model = tiny(gates=0.5)
features, ids, index = example()
counts = torch.tensor([[4, 2], [1, 3]])
logits = model(features, ids, index, frame_counts_BM=counts)
logits.square().mean().backward()
grads = {name: p.grad for name, p in model.trained()}

q, k, v = (torch.randn(2, 2, n, 16, requires_grad=True) for n in (9, 8, 8))
index = torch.tensor([[-1] + [0] * 4 + [1] * 4] * 2).int()
run = torch.compile(media_attention, fullgraph=True, backend="aot_eager")
pairs = []
for f in (run, media_attention):
    out = f(q, k, v, index, 4)
    pairs.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
assert all(torch.equal(x, y) for x, y in zip(*pairs)), "compiled differs"
torch.save({"logits": logits.detach(), **grads}, sys.argv[1])
print({implementation(op).name for op in OPERATIONS}, implementation(OPERATIONS[0]).why)
"""
BROKEN = """
import sys, flamvid
flamvid.__path__.insert(0, sys.argv[1])
import torch
from flamvid.ops import implementation, media_attention
q = torch.randn(1, 1, 3, 8)
media_attention(q, q, q, torch.zeros(1, 3).int(), 3)
print(implementation("media_attention_forward"))
"""


def run(script: str, argument: Path, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", script, str(argument)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_model_is_the_same_without_kernels(tmp_path: Path) -> None:
    served = implementation("media_attention_forward").name
    with_kernels = run(SAME, tmp_path / "with.pt")
    assert with_kernels.stdout.startswith(f"{{'{served}'}}")
    without = run(SAME, tmp_path / "without.pt", FLAMVID_KERNELS="0")
    assert without.stdout == "{'reference'} FLAMVID_KERNELS=0 asks for it\n"
    left, right = (torch.load(tmp_path / f"{x}.pt", weights_only=True) for x in ("with", "without"))
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=1e-5, rtol=1e-5, msg=name)


def test_a_module_that_does_not_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "_C.abi3.so").write_bytes(b"not a library\n" * 99)
    done = run(BROKEN, tmp_path)
    warned = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert len(warned) == 1
    assert "flamvid._C does not load: " in warned[0]
    assert "--no-build-isolation" in warned[0]
    assert "FLAMVID_KERNELS=0" in warned[0]
    assert "name='reference'" in done.stdout
    silent = run(BROKEN, tmp_path, FLAMVID_KERNELS="0")
    assert "Warning" not in silent.stderr


@pytest.mark.skipif(
    os.environ.get("FLAMVID_EXPECT_KERNELS") != "1", reason="FLAMVID_EXPECT_KERNELS=1 asks for it"
)
def test_kernels_are_built_where_they_are_expected() -> None:
    assert implementation("media_attention_forward").name == "kernel"
