"""What transformers' image processors call of torchvision, which is not installed where tests run:
its resize of uint8 is PyTorch's own, and the others are a line each."""

__version__ = "0.28.0"
