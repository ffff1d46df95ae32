"""What a plan needs to know about a data set: its sizes and the hash of its content."""

from __future__ import annotations

from dataclasses import dataclass

from study.core.settings import outside_identity


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A packed data set. `content` is the same for the same pictures, whatever their source, names and order."""

    name: str = outside_identity()
    resolution: int  # pixels, height and width
    channels: int  # 1 or 3
    classes: int
    train_images: int
    test_images: int
    content: str  # 16 hex digits of a SHA-256 over the sorted hashes of the pictures of each split, with their labels
    flip: bool  # whether images may be mirrored in training
    class_names: tuple[str, ...] = outside_identity()


# Data sets that a user must supply as a folder (--data); a study on them can be planned without the folder
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
