"""MiniMax-Text-01 as its own code spells it: M1 under another name."""

from dataclasses import replace

from lmcast.graphs.archs import minimax_m1

ARCH = replace(minimax_m1.ARCH, name="minimax_text_01")
