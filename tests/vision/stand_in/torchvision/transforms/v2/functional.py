"""Functions of images of any leading axes, as in torchvision.transforms.v2.functional."""

import torch

from torchvision.transforms import InterpolationMode


def resize(image, size, interpolation=InterpolationMode.BILINEAR, antialias=True):
    assert image.dtype == torch.uint8  # floats would be rounded elsewhere
    flat = image.reshape(-1, *image.shape[-3:])
    made = torch.nn.functional.interpolate(
        flat, size=tuple(size), mode=interpolation.value, antialias=antialias
    )
    return made.reshape(*image.shape[:-2], *size)


def pad(image, padding, fill=0, padding_mode="constant"):
    left, top, right, bottom = padding
    fill = fill[0] if isinstance(fill, list) else fill
    return torch.nn.functional.pad(image, (left, right, top, bottom), padding_mode, fill)


def normalize(image, mean, std, inplace=False):
    mean = torch.as_tensor(mean, dtype=image.dtype)[:, None, None]
    std = torch.as_tensor(std, dtype=image.dtype)[:, None, None]
    return image.sub(mean).div(std)


def grayscale_to_rgb(image):
    assert image.shape[-3] == 3
    return image
