"""Linear attention, delta rules and state space models; the convolution before them."""
