"""Multi-head latent attention (MLA), sparse attention (DSA) and its index."""
