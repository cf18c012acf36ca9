"""Kimi K2 and K2 Thinking: DeepSeek V3 under another name."""

from dataclasses import replace

from lmcast.graphs.archs import deepseek_v3

ARCH = replace(deepseek_v3.ARCH, name="kimi_k2")
