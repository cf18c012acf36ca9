"""What transformers makes of pictures, videos and sounds, written by a process of its own.

python oracle.py FOLDER: a directory for each case with the files of its processor and oracle.npz,
and sizes.npz, of `size_rules`.
In a process of its own, because transformers asks only once whether torchvision is there, for which
`stand_in` stands in.
"""

import io
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
SPECIAL = {
    "<image_soft_token>": "image_token", "<start_of_image>": "boi_token",
    "<end_of_image>": "eoi_token", "<audio_soft_token>": "audio_token",
    "<start_of_audio>": "boa_token", "<end_of_audio>": "eoa_token", "[IMG]": "", "[IMG_BREAK]": "",
    "[IMG_END]": "", "<|image|>": "", "<|patch|>": "", "<|image_start|>": "", "<|image_end|>": "",
    "<|tile_x_separator|>": "", "<|tile_y_separator|>": "", "<|image_pad|>": "image_token",
    "<|video_pad|>": "video_token", "<|vision_start|>": "vision_start_token",
    "<|vision_end|>": "vision_end_token", "<|media_pad|>": "image_token",
    "<|kimi_k25_video_placeholder|>": "video_token", "<|media_begin|>": "", "<|media_end|>": "",
    "<|media_content|>": "",
}  # fmt: skip
IDS = {text: id for id, text in enumerate(SPECIAL)}
QWEN, KIMI = "<|vision_start|><|image_pad|><|vision_end|>", "<|media_content|><|media_pad|>"
KIMI_VIDEO = "<|kimi_k25_video_placeholder|>"


SMALL = {"patch_size": 4, "merge_size": 2}
BOUNDS = {"shortest_edge": 512, "longest_edge": 1600}
HALVES = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.2, 0.4]}
QWEN_CONFIG = {
    "image_token_id": IDS["<|image_pad|>"],
    "video_token_id": IDS["<|video_pad|>"],
    "vision_config": {"patch_size": 4, "num_position_embeddings": 16},
}
KIMI_CONFIG = {
    "image_token_id": IDS["<|media_pad|>"],
    "video_token_id": IDS[KIMI_VIDEO],
    "vision_config": {"patch_size": 4, "pos_emb_height": 6, "pos_emb_width": 6},
}
MISTRAL_CONFIG = {"image_token_index": IDS["[IMG]"], "vision_config": {"patch_size": 14}}
GEMMA_CONFIG = {
    "image_token_index": IDS["<image_soft_token>"],
    "mm_tokens_per_image": 4,
    "vision_config": {"image_size": 56, "patch_size": 14},
}
LLAMA_CONFIG = {
    "image_token_index": IDS["<|patch|>"],
    "vision_config": {
        "hidden_size": 64, "intermediate_size": 256, "image_size": 56, "patch_size": 14,
        "projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32,
    },
}  # fmt: skip
GEMMA3N_CONFIG = {
    "image_token_id": IDS["<image_soft_token>"],
    "vision_soft_tokens_per_image": 4,
    "vision_config": {"model_args": {"msfa_output_resolution": 2}},
}
AUDIO_CONFIG = {
    "audio_token_id": IDS["<audio_soft_token>"],
    "audio_soft_tokens_per_image": 6,
    "audio_config": {"vocab_offset": 40, "vocab_size": 16},
}
# Case -> classes of processors with their settings, what config.json says of the tower, prompts:
# each with sizes of pictures (frames of a video and its rate; samples of a sound).
CASES: dict[str, dict[str, Any]] = {
    "mistral3": {
        "image": ("PixtralImageProcessor", {"size": {"longest_edge": 112}, "patch_size": 14}),
        "processor": ("PixtralProcessor", {"patch_size": 14, "spatial_merge_size": 2}),
        "config": MISTRAL_CONFIG,
        "prompts": [
            ("a [IMG]?", (41, 67)),
            ("[IMG] b [IMG] [IMG]", (150, 211), (29, 57), (600, 9)),
        ],
    },
    "gemma3": {
        "image": ("Gemma3ImageProcessor", {"size": {"height": 56, "width": 56}, **HALVES}),
        "processor": ("Gemma3Processor", {"image_seq_length": 4}),
        "config": GEMMA_CONFIG,
        "prompts": [("<start_of_image> and <start_of_image>!", (30, 97), (120, 55))],
    },
    "gemma3 with crops": {
        "image": ("Gemma3ImageProcessor", {"size": {"height": 56, "width": 56}}),
        "processor": ("Gemma3Processor", {"image_seq_length": 4}),
        "config": GEMMA_CONFIG,
        "sizes": {"pan_and_scan": True, "min_crop": 16, "max_crops": 3},
        "call": {
            "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16,
            "pan_and_scan_max_num_crops": 3,
        },
        "prompts": [
            ("<start_of_image> <start_of_image>", (30, 97), (60, 55)),
            ("<start_of_image>", (211, 34)),
        ],
    },
    "llama4": {
        "image": ("Llama4ImageProcessor", {"size": {"height": 56, "width": 56}, "max_patches": 6}),
        "processor": ("Llama4Processor", {"patch_size": 14, "pixel_shuffle_ratio": 0.5}),
        "config": LLAMA_CONFIG,
        "prompts": [
            ("a <|image|>", (41, 67)),
            ("<|image|> <|image|> <|image|>", (60, 171), (30, 31), (400, 300)),
        ],
    },
    "llama4, enlarged": {
        "image": (
            "Llama4ImageProcessor",
            {"size": {"height": 56, "width": 56}, "resize_to_max_canvas": True, **HALVES},
        ),
        "processor": ("Llama4Processor", {"patch_size": 14, "pixel_shuffle_ratio": 0.5}),
        "config": LLAMA_CONFIG,
        "prompts": [("a <|image|><|image|>", (41, 67), (150, 20))],
    },
    "qwen3_5": {
        "image": ("Qwen2VLImageProcessor", {**SMALL, "size": BOUNDS, **HALVES}),
        "video": (
            "Qwen3VLVideoProcessor",
            {**SMALL, "size": {"shortest_edge": 256, "longest_edge": 4096}},
        ),
        "processor": ("Qwen3VLProcessor", {}),
        "config": QWEN_CONFIG,
        "prompts": [
            (f"{QWEN} and {QWEN} hm {QWEN}", (19, 35), (61, 9), (4, 300)),
            ("clip <|video_pad|> so?", (5, 21, 30), 4.0),
        ],
    },
    "qwen3_vl": {
        "image": ("Qwen2VLImageProcessor", {**SMALL, "min_pixels": 64, "max_pixels": 900}),
        "video": (
            "Qwen3VLVideoProcessor",
            {
                **SMALL, "size": {"shortest_edge": 256, "longest_edge": 40960}, "max_frames": 8,
                "cap_pixels_per_frame": True, "max_video_tokens": 12,
            },
        ),
        "processor": ("Qwen3VLProcessor", {}),
        "config": QWEN_CONFIG,
        "prompts": [(f"{QWEN}", (41, 67)), ("<|video_pad|>", (30, 50, 6), 3.0)],
    },
    "kimi_k25": {
        "image": (
            "Kimi_K25ImageProcessor",
            {**SMALL, "max_patches": 64, "size": {"max_height": 16, "max_width": 16}},
        ),
        "video": (
            "Kimi_K25VideoProcessor",
            {
                **SMALL, "max_patches": 20, "size": {"max_height": 16, "max_width": 16},
                "temporal_patch_size": 4,
            },
        ),
        "processor": ("Kimi_K25Processor", {}),
        "config": KIMI_CONFIG,
        "prompts": [
            (f"{KIMI} and {KIMI} {KIMI}", (41, 67), (9, 11), (200, 7)),
            (f"clip {KIMI_VIDEO} so?", (14, 21, 30), 4.0),
        ],
    },
    "gemma3n": {
        "image": (
            "SiglipImageProcessor",
            {"size": {"height": 96, "width": 96}, "do_normalize": False, "resample": 2},
        ),
        "sound": ("Gemma3nAudioFeatureExtractor", {}),
        "processor": ("Gemma3nProcessor", {"audio_seq_length": 6, "image_seq_length": 4}),
        "config": GEMMA3N_CONFIG,
        "audio": AUDIO_CONFIG,
        "prompts": [
            ("see <image_soft_token>", (41, 67)),
            ("hear <audio_soft_token>", 5200),
            ("<audio_soft_token>", 9001),
        ],
    },
}  # fmt: skip


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Waves, edges and noise, uint8 [height, width, 3]: a wrong filter or rounding shows."""
    rows, columns = np.mgrid[:height, :width].astype(float)
    waves = [np.sin(columns / (3 + k) + rows / (5 - k) + seed) for k in range(3)]
    values = 127 + 110 * np.stack(waves, -1)
    values[(columns // 7 + rows // 5 + seed) % 3 == 0] *= 0.35
    noise = np.random.default_rng(height * width + seed).normal(0, 12, values.shape)
    return np.clip(values + noise, 0, 255).astype(np.uint8)


def video(count: int, height: int, width: int) -> np.ndarray:
    return np.stack([picture(height, width, seed) for seed in range(count)])


def sound(count: int) -> np.ndarray:
    noise = np.random.default_rng(count).normal(0, 0.05, count)
    return (0.4 * np.sin(np.arange(count) / 9) + noise).astype(np.float32)


def wav(samples: np.ndarray, rate: int = 16000, channels: int = 1, width: int = 2) -> bytes:
    made = io.BytesIO()
    with wave.open(made, "wb") as to:
        to.setnchannels(channels)
        to.setsampwidth(width)
        to.setframerate(rate)
        to.writeframes(samples.tobytes())
    return made.getvalue()


def image_id(config: dict[str, Any]) -> int:
    """Return the id of a config.json's token of pictures, which goes by two names."""
    found: int = config.get("image_token_id", config.get("image_token_index"))
    return found


def tokenizer(image: str) -> Any:
    """Return one token for each byte and special text, and names for those of a family."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: id for id, text in enumerate([*SPECIAL, *letters])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    own = {name: text for text, name in SPECIAL.items() if name}
    own["image_token"] = image
    own["video_token"] = KIMI_VIDEO if "media" in image else "<|video_pad|>"
    return PreTrainedTokenizerFast(tokenizer_object=made, extra_special_tokens=own)


def make(name: str, folder: Path) -> None:
    import transformers
    from PIL import Image

    case = CASES[name]
    image = next(t for t, id in IDS.items() if id == image_id(case["config"]))
    words = tokenizer(image)

    def made(key: str) -> Any:
        kind, settings = case[key]
        found = getattr(transformers, kind, None)
        if found is None:  # Kimi's are not at the top
            modules = transformers.models.kimi_k25
            found = getattr(modules, kind)
        return found(**settings)

    parts = [made(key) for key in ("sound", "image") if key in case] + [words]
    parts += [made("video")] if "video" in case else []
    kind, settings = case["processor"]
    found = getattr(transformers, kind, None) or getattr(transformers.models.kimi_k25, kind)
    processor = found(*parts, **settings)
    processor.save_pretrained(folder)
    arrays: dict[str, Any] = {}
    for number, (text, *given) in enumerate(case["prompts"]):
        called: dict[str, Any] = dict(case.get("call", {}))
        if isinstance(given[0], int):
            called["audio"] = [sound(given[0])]
        elif len(given[0]) == 3:
            frames = video(*given[0])
            n, height, width = frames.shape[:3]
            called |= {"videos": [frames]}
            called["video_metadata"] = [
                transformers.video_utils.VideoMetadata(
                    total_num_frames=n, fps=given[1], duration=n / given[1], height=height,
                    width=width,
                )
            ]  # fmt: skip
        else:
            called["images"] = [[Image.fromarray(picture(*size)) for size in given]]
        for key, value in processor(text=[text], return_tensors="pt", **called).items():
            if hasattr(value, "numpy"):
                value = value.float() if value.is_floating_point() else value
                arrays[f"{number} {key}"] = value.numpy()
    np.savez(folder / "oracle.npz", **arrays)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE / "stand_in"))
    from size_rules import sizes

    for name in CASES:
        make(name, Path(sys.argv[1]) / name)
    np.savez(Path(sys.argv[1]) / "sizes.npz", **sizes())
