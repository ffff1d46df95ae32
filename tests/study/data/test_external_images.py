"""External pictures: the same pixels from every lossless format, and a clear message for everything else."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from study.data.external_images import STATISTICS, read_pictures, read_statistics


@pytest.fixture
def pixels():
    """uint8 (5, 12, 10, 3), the layout of pictures in an .npz."""
    return np.random.default_rng(0).integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)


def save(folder, pixels, suffix=".png", **options):
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number}{suffix}", **options)
    return folder


LOSSLESS = {
    ".png": {}, ".bmp": {}, ".webp": {"lossless": True, "exact": True}, ".tif": {},
    ".tiff": {"compression": "tiff_lzw"},
}  # fmt: skip


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_files_give_their_pixels(suffix, pixels, tmp_path):
    found = read_pictures(save(tmp_path / "theirs", pixels, suffix, **LOSSLESS[suffix]))
    np.testing.assert_array_equal(found.pixels, pixels.transpose(0, 3, 1, 2))
    assert (found.name, found.size) == ("theirs", (12, 10))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_an_npz_gives_the_same_as_the_folder(write, pixels, tmp_path):
    write(tmp_path / "theirs.npz", pixels, np.arange(5))  # ADM writes labels as arr_1
    found, folder = read_pictures(tmp_path / "theirs.npz"), read_pictures(save(tmp_path / "theirs", pixels))
    np.testing.assert_array_equal(found.pixels, folder.pixels)
    assert found.digest == folder.digest
    assert found.name == "theirs"


def test_the_first_so_many_and_subfolders_and_grey(pixels, tmp_path):
    folder = save(tmp_path / "theirs" / "b", pixels[3:, :, :, 0])
    save(tmp_path / "theirs" / "a", pixels[:3, :, :, 0])
    (folder / "notes.txt").write_text("not a picture")
    found = read_pictures(tmp_path / "theirs")
    np.testing.assert_array_equal(found.pixels, pixels.transpose(0, 3, 1, 2)[:, :1])
    first = read_pictures(tmp_path / "theirs", 4)
    np.testing.assert_array_equal(first.pixels, found.pixels[:4])
    assert first.digest != found.digest
    np.savez(tmp_path / "grey.npz", pixels[..., :1])
    assert read_pictures(tmp_path / "grey.npz").digest == found.digest
    np.testing.assert_array_equal(read_pictures(tmp_path / "grey.npz", 2).pixels, found.pixels[:2])
    with pytest.raises(ValueError, match=r"asked for 6 pictures of the 5 .* from 1 to 5"):
        read_pictures(tmp_path / "theirs", 6)
    with pytest.raises(ValueError, match="asked for 0 pictures"):
        read_pictures(tmp_path / "grey.npz", 0)


def test_opaque_alpha_and_palettes_are_read_and_transparency_is_not(pixels, tmp_path):
    opaque = np.concatenate([pixels, np.full((*pixels.shape[:3], 1), 255, np.uint8)], axis=3)
    found = read_pictures(save(tmp_path / "opaque", opaque))
    np.testing.assert_array_equal(found.pixels, pixels.transpose(0, 3, 1, 2))
    few = (pixels[0] // 128) * 255
    (tmp_path / "palette").mkdir()
    Image.fromarray(few).quantize(8).save(tmp_path / "palette" / "0.png")
    np.testing.assert_array_equal(read_pictures(tmp_path / "palette").pixels[0], few.transpose(2, 0, 1))
    opaque[2, 3, 3, 3] = 0
    with pytest.raises(ValueError, match=r"2\.png cannot be decoded \(it is partly transparent"):
        read_pictures(save(tmp_path / "holes", opaque))


def test_lossy_pictures_are_refused_with_the_reason(pixels, tmp_path):
    folder = save(tmp_path / "theirs", pixels)
    for name, options, what in (
        ("lossy.jpg", {}, "is a JPEG"),
        ("hidden.png", {"format": "JPEG"}, "is a JPEG"),
        ("lossy.webp", {"quality": 90}, "is a lossy WebP"),
        ("lossy.tif", {"compression": "jpeg"}, "is a TIFF with jpeg inside"),
    ):
        Image.fromarray(pixels[0]).save(folder / name, **options)
        with pytest.raises(ValueError, match=rf"{name} {what}: its artefacts change a Frechet distance"):
            read_pictures(folder)
        (folder / name).unlink()


def test_pictures_that_cannot_be_scored_unchanged_are_refused_in_one_line(pixels, tmp_path):
    folder = save(tmp_path / "theirs", pixels)

    def refused(name, message, write):
        write(folder / name)
        with pytest.raises(ValueError, match=message):
            read_pictures(folder)
        (folder / name).unlink()

    deep = Image.fromarray(np.arange(120, dtype=np.uint16).reshape(12, 10) * 500)
    refused("deep.png", r"deep\.png has more than 8 bits", deep.save)
    refused("deep.tif", r"deep\.tif has more than 8 bits", deep.save)
    frames = [Image.fromarray(picture) for picture in pixels]
    moving = {"save_all": True, "append_images": frames[1:]}
    refused("moving.tif", "holds 5 pictures", lambda path: frames[0].save(path, **moving))
    refused("moving.png", "holds 5 pictures", lambda path: frames[0].save(path, **moving))
    refused("ink.tif", "has the mode CMYK", frames[0].convert("CMYK").save)
    refused("large.png", r"sizes differ: .*large\.png is 24 x 20 px, 0\.png 12 x 10", frames[0].resize((20, 24)).save)
    refused("torn.png", r"torn\.png cannot be read as a picture", lambda path: path.write_bytes(b"text"))
    whole = (folder / "0.png").read_bytes()
    refused("half.png", r"half\.png cannot be decoded", lambda path: path.write_bytes(whole[: len(whole) // 2]))
    assert len(read_pictures(folder).pixels) == 5


def test_a_colour_png_of_16_bits_is_seen(tmp_path):
    """Pillow silently reads it as 8 bits; the depth is in the header."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(12)) * 2)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(content)
    assert Image.open(tmp_path / "deep.png").mode == "RGB"
    with pytest.raises(ValueError, match="more than 8 bits"):
        read_pictures(tmp_path)


def test_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match=r"holds no pictures \(\.png, \.bmp, \.webp, \.tif, \.tiff\)"):
        read_pictures(tmp_path)
    with pytest.raises(ValueError, match=r"does not exist: give a folder of lossless pictures, or an \.npz"):
        read_pictures(tmp_path / "nowhere")
    (tmp_path / "array.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"neither a folder nor an \.npz"):
        read_pictures(tmp_path / "array.npy")


def test_arrays_that_are_no_pictures(pixels, tmp_path):
    path = tmp_path / "theirs.npz"
    for array, found in (
        (pixels.astype(np.float32), "float32"),
        (pixels[0], r"uint8 \(12, 10, 3\)"),
        (pixels.transpose(0, 3, 1, 2).copy(), r"uint8 \(5, 3, 12, 10\)"),
    ):
        np.savez(path, array)
        with pytest.raises(ValueError, match=rf"arr_0 of .* is {found}.* it should be uint8 \(N, H, W, 3\)"):
            read_pictures(path)
    np.savez(path, images=pixels)
    with pytest.raises(ValueError, match=r"has no arr_0, .* found images"):
        read_pictures(path)
    np.savez(path, pixels[:0])
    with pytest.raises(ValueError, match="holds no pictures"):
        read_pictures(path)
    np.savez(path, np.asfortranarray(pixels))
    with pytest.raises(ValueError, match="is column-major"):
        read_pictures(path)


def test_a_damaged_npz_is_named(pixels, tmp_path):
    path = tmp_path / "theirs.npz"
    np.savez(path, pixels)
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"theirs\.npz cannot be read as an .npz \(File is not a zip file\)"):
        read_pictures(path)
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"arr_0 of .* cannot be read .*CRC"):
        read_pictures(path)
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 900, 900, 3)})
    for content in (file.getvalue(), b"", b"\x93NUMPY\x09\x00"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("arr_0.npy", content)
        with pytest.raises(ValueError, match=r"arr_0 of .* cannot be read .* damaged, or no \.npz"):
            read_pictures(path)


def statistics(**changes):
    rng = np.random.default_rng(0)
    found = {name: rng.normal(size=shape).astype(np.float32) for name, shape in STATISTICS.items()}
    return {**found, "arr_0": np.zeros((4, 8, 8, 3), np.uint8), **changes}


def test_statistics_of_a_reference_file(pixels, tmp_path):
    path = tmp_path / "VIRTUAL_made.npz"
    content = statistics()
    np.savez(path, **content)
    found = read_statistics(path)
    assert set(found) == {"mu", "sigma", "mu_s", "sigma_s"}
    assert found["sigma_s"].dtype == np.float64
    np.testing.assert_array_equal(found["sigma_s"], content["sigma_s"])
    np.savez(path, pixels)
    assert read_statistics(path) is None
    for changes, message in (
        ({"mu": np.zeros(768, np.float32)}, r"mu in .* is float32 \(768,\); expected floats \(2048,\)"),
        ({"mu_s": np.zeros(2023, int)}, "mu_s in .* is int64"),
        ({"mu": np.full(2048, np.nan)}, "mu in .* not finite"),
    ):
        np.savez(path, **statistics(**changes))
        with pytest.raises(ValueError, match=message):
            read_statistics(path)
    content.pop("sigma_s")
    np.savez(path, **content)
    with pytest.raises(ValueError, match="has statistics, but lacks sigma_s"):
        read_statistics(path)
