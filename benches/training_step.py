"""The step of training_step.rs in PyTorch: a line on standard input is one step, the answer is its milliseconds."""

import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, DEPTH, HEADS, SIDE, BATCH, NECK = 192, 6, 3, 256, 8, 64


class LayerNorm2d(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.lin1, self.lin2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, n, WIDTH))
        return x + self.lin2(F.gelu(self.lin1(self.norm2(x))))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        grid = SIDE // 16
        self.patches = nn.Conv2d(3, WIDTH, 16, 16)
        self.positions = nn.Parameter(torch.zeros(1, grid * grid, WIDTH))
        self.blocks = nn.Sequential(*[Block() for _ in range(DEPTH)])
        self.neck = nn.Sequential(
            nn.Conv2d(WIDTH, NECK, 1, bias=False),
            LayerNorm2d(NECK),
            nn.Conv2d(NECK, NECK, 3, padding=1, bias=False),
            LayerNorm2d(NECK),
        )

    def forward(self, image):
        x = self.patches(image)
        grid = x.shape[-1]
        x = self.blocks(x.flatten(2).transpose(1, 2) + self.positions)
        return self.neck(x.transpose(1, 2).reshape(-1, WIDTH, grid, grid))


def main():
    torch.set_num_threads(int(sys.argv[1]))
    torch.manual_seed(1)
    rounded = sys.argv[2] == "bf16"
    model = Encoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    image = torch.sin(torch.arange(BATCH * 3 * SIDE * SIDE) * 0.37).reshape(BATCH, 3, SIDE, SIDE)
    for _ in sys.stdin:
        started = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            out = model(image)
        out.float().square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        print(1e3 * (time.perf_counter() - started), flush=True)


main()
