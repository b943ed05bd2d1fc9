"""What of an image is checked before an engine gets it, where its tag stands in a prompt, and which paths a prompt names."""

from __future__ import annotations

import base64
import os
import random
import struct
from pathlib import Path

import pytest

from ndani.cli import image_paths
from ndani.cli.image_paths import take_images
from ndani.engines.image_files import MAX_IMAGES, MAX_PIXELS, MAX_PIXELS_TOGETHER, check_images
from ndani.errors import BadRequest
from ndani.prompts.image_tags import IMAGE_TOKENS, ImageTags, image_tags
from ndani.types import Message
from vision_models import GIF, JPEG, WEBP, bmp, png

MORE = "and may have 50,000,000 of them; make it smaller"
ALL = (png(), JPEG, GIF, bmp(), bmp(height=-4))


def png_head(width: int, height: int) -> bytes:
    """A PNG of any size: nothing reads more than this."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + bytes(9)


def jpeg(*segments: bytes, width: int = 8, height: int = 8) -> bytes:
    frame = b"\xff\xc0" + struct.pack(">HBHH", 17, 8, height, width) + bytes(10)
    return b"\xff\xd8" + b"".join(segments) + frame


def refusal(*images: bytes) -> str:
    with pytest.raises(BadRequest) as found:
        check_images(images)
    return str(found.value)


def test_usual_files_pass() -> None:
    check_images(ALL)
    check_images([png_head(50_000, 1000)])
    table = b"\xff\xe1" + struct.pack(">H", 4) + b"ab"
    for before in ((table,), (table, b"\xff\xff" + table), (table, b"\0\0", table)):
        check_images([jpeg(*before, width=3000, height=2000)])


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (png_head(50_000, 1001), f"the image has 50000 x 1001 pixels, {MORE}"),
        (png_head(2**31, 2**31), f"the image has 2147483648 x 2147483648 pixels, {MORE}"),
        (jpeg(width=65535, height=65535), f"the image has 65535 x 65535 pixels, {MORE}"),
        (b"GIF89a\xff\xff\xff\xff", f"the image has 65535 x 65535 pixels, {MORE}"),
        (bmp()[:18] + struct.pack("<ii", 8000, -8000), f"the image has 8000 x 8000 pixels, {MORE}"),
        (png_head(0, 5), "the image cannot be read: its head is damaged or cut off; send the whole file"),
        (bmp()[:14] + b"\x99" + bmp()[15:], "the image cannot be read: its head is damaged or cut off; send the whole file"),
        (jpeg(b"\xff\xda\0\2"), "the image cannot be read: its head is damaged or cut off; send the whole file"),
        (jpeg(*[b"\xff\xfe\0\2"] * 5000), "the image cannot be read: its head is damaged or cut off; send the whole file"),
        (WEBP, "the image is WebP; send it as PNG, JPEG, GIF or BMP"),
        (b"\0\0\0\x1cftypavif", "the image is AVIF or HEIC; send it as PNG, JPEG, GIF or BMP"),
        (b"\0\0\0\x1cftypisom", "the image is a video; send it as PNG, JPEG, GIF or BMP"),
        (b"II*\0", "the image is TIFF; send it as PNG, JPEG, GIF or BMP"),
        (b"P6 8 8 255 ", "the image is not a PNG, JPEG, GIF or BMP file; send it as one"),
        (b"", "the image is not a PNG, JPEG, GIF or BMP file; send it as one"),
    ],
)  # fmt: skip
def test_what_the_engine_must_not_get_is_one_sentence(image: bytes, sentence: str) -> None:
    assert refusal(image) == sentence


def test_many_images_are_counted_together() -> None:
    assert refusal(*[png()] * (MAX_IMAGES + 1)) == "a request may have 64 images, and this one has 65; leave some out"
    large = png_head(10_000, MAX_PIXELS // 10_000)
    check_images([large] * (MAX_PIXELS_TOGETHER // MAX_PIXELS))
    assert refusal(large, large, png()).startswith("the images have 100,000,192 pixels together, and may have 100,000,000")
    assert refusal(png(), b"x") == "image 2 is not a PNG, JPEG, GIF or BMP file; send it as one"


def test_a_cut_or_changed_file_never_raises_anything_else() -> None:
    chance = random.Random(5)
    for whole in ALL:
        for cut in range(len(whole)):
            changed = bytearray(whole[:cut])
            for _ in range(chance.randrange(3)):
                if changed:
                    changed[chance.randrange(min(len(changed), 40))] = chance.randrange(256)
            try:
                check_images([bytes(changed)])
            except BadRequest as error:
                assert str(error).startswith("the image ")


TALK = (Message("user", "one", images=(b"1", b"2")), Message("assistant", "fine"), Message("user", "a [img] b", images=(b"3",)))


def joined(messages: tuple[Message, ...]) -> str:
    return "|".join(message.content for message in messages)


def test_each_image_has_its_place_and_goes_with_its_turn() -> None:
    tags = ImageTags(TALK)
    whole, end = joined(tags.put(TALK)), joined(tags.put(TALK[1:]))
    assert tags.shown(whole) == "[img-0][img-1]one|fine|a [img-2] b"
    assert tags.plain(whole) == "one|fine|a  b"
    assert tags.placed(whole, "<M>") == ("<M><M>one|fine|a <M> b", [b"1", b"2", b"3"])
    assert tags.placed(end, "<M>") == ("fine|a <M> b", [b"3"])
    assert (tags.tokens(whole), tags.tokens(end)) == (3 * IMAGE_TOKENS, IMAGE_TOKENS)
    assert image_tags(TALK[1:2]) is None


def test_no_text_is_taken_for_a_tag() -> None:
    seen = ImageTags(TALK).put(TALK)[0].content
    again = (Message("user", f"{seen} [img-0] <__media__>", images=(b"4",)),)
    tags = ImageTags(again)
    prompt, images = tags.placed(joined(tags.put(again)), "<M>")
    assert images == [b"4"]
    assert prompt == f"<M>{seen} [img-0] <__media__>"


def test_typed_tags_say_where_images_are() -> None:
    for text, shown in (("x [img-1] y [img-0]", "x [img-1] y [img-0]"), ("x [img-1] y [img-7]", "[img-0]x [img-1] y [img-7]")):
        messages = (Message("user", text, images=(b"1", b"2")),)
        tags = ImageTags(messages, typed=True)
        prompt = joined(tags.put(messages))
        assert tags.shown(prompt) == shown
        assert tags.count(prompt) == 2


def test_a_template_must_show_each_image_once() -> None:
    tags = ImageTags(TALK)
    prompt = joined(tags.put(TALK))
    tags.require_all(prompt)
    with pytest.raises(BadRequest, match="more than once"):
        tags.require_all(prompt + prompt)
    with pytest.raises(BadRequest, match="leaves out"):
        tags.require_all(joined(tags.put(TALK[1:])))


@pytest.mark.parametrize(("counted", "each"), [(10 + 3 * 64, 64), (10 + 3 * 64 + 1, 65), (0, 1), (10, 1)])
def test_the_engines_count_says_how_many_tokens_an_image_has(counted: int, each: int) -> None:
    tags = ImageTags(TALK)
    tags.learn(joined(tags.put(TALK)), 10, counted)
    assert tags.image_tokens == each


def test_paths_in_a_prompt_become_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.png", "b c.JPG", "it's.gif"):
        Path(name).write_bytes(name.encode())
    for typed, text, names in (
        ("what is ./a.png?", "what is ?", ["a.png"]),
        ("./a.png what is it", "what is it", ["a.png"]),
        ("compare ./a.png with './b c.JPG'", "compare  with", ["a.png", "b c.JPG"]),
        (r"see ./b\ c.JPG", "see", ["b c.JPG"]),
        (f'see "{tmp_path}/it\'s.gif"', "see", ["it's.gif"]),
        ("see ~/a.png", "see", ["a.png"]),
        ("see ./none.png", "see ./none.png", []),
        ("see a.png", "see a.png", []),
        ("see http://127.0.0.1/a.png", "see http://127.0.0.1/a.png", []),
        ("see ./a.png/x or ./a.pngs", "see ./a.png/x or ./a.pngs", []),
    ):
        assert take_images(typed) == (text, [base64.b64encode(name.encode()).decode() for name in names]), typed
        assert capsys.readouterr().err.count("Added image '") == len(names)


def test_an_image_that_cannot_be_sent_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"12345")
    monkeypatch.setattr(image_paths, "MAX_FILE_SIZE", 4)
    with pytest.raises(BadRequest, match=r"^the image a\.png is larger than 0 MB; make it smaller$"):
        take_images(f"see {path}")
    if os.geteuid():
        path.write_bytes(b"1")
        path.chmod(0)
        with pytest.raises(BadRequest, match=r"^the image a\.png cannot be read"):
            take_images(f"see {path}")


def test_a_message_keeps_its_images_through_its_tags() -> None:
    """Templates count them."""
    assert [message.images for message in ImageTags(TALK).put(TALK)] == [message.images for message in TALK]
