"""Training speed in float32 and in bfloat16, by architecture: what `precision="auto"` goes by on a CPU.

    python benchmarks/precision.py resnet18 mobilenet_v3_small ...      # none: a choice of families

Untrained networks of coursekit and torchvision, random pictures, SGD; the best of a few steps, both precisions in turn. Prints a Markdown table.
"""
import argparse
import time

import torch
import torch.nn.functional as F

from coursekit.cli.doctor import processor
from coursekit.core import precision_dtype
from coursekit.vision.models import whole_net

ARCHS = ["coursenet", "resnet18", "densenet121", "squeezenet1_1", "regnet_y_400mf", "convnext_tiny", "mobilenet_v3_small", "efficientnet_b0",
         "shufflenet_v2_x1_0", "mnasnet0_5"]


def seconds(net, opt, x, y, dtype):
    "One training step."
    start = time.perf_counter()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        preds = net(x)
    F.cross_entropy(preds.float(), y).backward()
    opt.step()
    opt.zero_grad()
    return time.perf_counter() - start


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("archs", nargs="*", metavar="arch", help=f"names (default: {' '.join(ARCHS)})")
    ap.add_argument("--size", type=int, default=64, help="pixels")
    ap.add_argument("--bs", type=int, default=32)
    ap.add_argument("--steps", type=int, default=6)
    args = ap.parse_args()
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(args.bs, 3, args.size, args.size, generator=rng).contiguous(memory_format=torch.channels_last)
    y = torch.randint(1000, (args.bs,), generator=rng)
    print(f"{time.strftime('%Y-%m-%d')}, {processor()}, torch {torch.__version__}; {args.size} pixels, batches of {args.bs}, best of {args.steps} steps\n")
    print("| network | fp32, photos/s | bf16, photos/s | ratio | `auto` here |\n|---|---|---|---|---|")
    for arch in args.archs or ARCHS:
        net = whole_net(arch).to(memory_format=torch.channels_last).train()
        opt = torch.optim.SGD(net.parameters(), lr=1e-3)
        times = [[seconds(net, opt, x, y, dtype) for dtype in (None, torch.bfloat16)] for _ in range(args.steps + 1)][1:]
        plain, half = (args.bs / min(column) for column in zip(*times))
        print(f"| {arch} | {plain:,.0f} | {half:,.0f} | {half / plain:.2f} | {'bf16' if precision_dtype(torch.device('cpu'), model=net) else 'fp32'} |", flush=True)


if __name__ == "__main__":
    main()
