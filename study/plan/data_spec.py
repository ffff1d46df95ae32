"""What a plan knows of a data set: its sizes and its content."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A packed data set. The same pixels and labels in the same order have the same content, wherever
    from."""

    name: str
    resolution: int  # pixels, height and width
    channels: int  # 1 or 3
    classes: int
    train_images: int
    test_images: int
    content: str  # 16 hex digits of the SHA-256 of all pixels and labels
    flip: bool  # whether a mirrored image is as good as the image
    class_names: tuple[str, ...]


# Data sets that only their users can give, as a folder: a study on them can be planned without it
GIVEN_AS_FOLDER = {
    "imagenet": DataSpec(
        name="imagenet",
        resolution=256,
        channels=3,
        classes=1000,
        train_images=1_281_167,
        test_images=50_000,
        content="",
        flip=True,
        class_names=(),
    )
}
