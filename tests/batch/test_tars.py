"""Tars, sound and damaged: every image in them has one row, and every loss is told."""

import io
import json
import random
import tarfile

import pytest
from PIL import Image

from florence_jax.batch.image_reader import open_image
from florence_jax.batch.sources.open import open_source
from florence_jax.datasets.tar_members import Damage, Member, NextArchive, read_members
from florence_jax.inference.requests import Query
from florence_jax.processing import ImageError
from tests.shared_data import needs_shared, shared_path

OD = Query(prompt="<OD>")
END = bytes(1024)


def png(number):
    """A picture whose width is its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (number, 8), (number, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def member(name, content=b"", *, kind=tarfile.REGTYPE, form=tarfile.GNU_FORMAT, **fields):
    """The blocks of one member."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    for field, value in fields.items():
        setattr(info, field, value)
    blocks = info.tobuf(form, "utf-8", "surrogateescape") + content
    return blocks + bytes(-len(blocks) % 512)


def summed(block, **at):
    """A header with other bytes at some offsets, and the checksum of those."""
    block = bytearray(block)
    for place, content in at.items():
        offset = int(place.removeprefix("at"))
        block[offset : offset + len(content)] = content
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


@pytest.fixture
def read(tmp_path):
    """Writes a tar and gives its items by id, without the path; of whole pictures, the width."""

    def rows(*blocks, name="a.tar", end=END, said=None):
        path = tmp_path / name
        path.write_bytes(b"".join(blocks) + end)
        source = open_source([path], [OD], say=None if said is None else said.append)
        items = list(source.read(0, len(source)))
        names = [item.id for item in items]
        assert names == list(source.ids())
        assert len(set(names)) == len(names)
        return {
            name.removeprefix(f"{path}/"): outcome(item)
            for name, item in zip(names, items, strict=True)
        }

    return rows


def outcome(item):
    if item.error is not None:
        return item.error
    try:
        return open_image(item.image).width
    except ImageError as error:
        return str(error)


def three(**options):
    return [member(f"{number}.png", png(number), **options) for number in (1, 2, 3)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("folder", ["", "train/", "x" * 90 + "/" + "y" * 60 + "/"])
def test_every_format_with_names_of_any_length(read, form, folder):
    names = [f"{folder}{letter * 90}.png" for letter in "abc"]
    rows = read(*(member(name, png(5), form=form) for name in names))
    assert rows == {name.removesuffix(".png"): 5 for name in names}


def test_version_7_has_no_magic(read):
    old = [summed(block[:512], at257=bytes(8)) + block[512:] for block in three()]
    assert read(*old) == {"1": 1, "2": 2, "3": 3}
    rows = read(old[0], flipped(old[1], 0), old[2])
    assert [rows["1"], rows["3"]] == [1, 3]
    assert "damaged header" in rows["bytes 1024 to 2048"]


def test_dots_and_several_images_of_one_key(read):
    names = [f"IMG.2024.01.01_00{number}.jpg" for number in (1, 2, 3)]
    captions = [
        member(f"IMG.2024.01.01_00{number}.json", json.dumps({"text": str(number)}).encode())
        for number in (1, 2)
    ]
    pictures = [member(name, png(number)) for number, name in enumerate(names, 1)]
    assert read(*pictures, *captions, member("a.jpg", png(8)), member("a.png", png(9))) == {
        **{name: number for number, name in enumerate(names, 1)},
        "a.jpg": 8,
        "a.png": 9,
    }


def test_each_image_has_the_json_of_its_own_name_or_of_its_key(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(
        member("a.left.png", png(1))
        + member("a.right.png", png(2))
        + member("a.right.json", b'{"side": "right"}')
        + member("a.json", b'{"side": "any"}')
        + END
    )
    items = list(open_source([path], [OD]).read(0, 2))
    assert [item.id for item in items] == [f"{path}/a.left.png", f"{path}/a.right.png"]
    assert [item.extra for item in items] == [{"side": "any"}, {"side": "right"}]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"{", "is not JSON"),
        (b"[]", "is no object"),
        (b"caf\xe9", "is not UTF-8"),
        (100_000 * b"[", "nested too deeply"),
        (b'{"region": ' * 100_000, "nested too deeply"),
        (b'{"task": "<OD>", "region": [0, 0, 1' + 400 * b"0" + b", 5]}", "four numbers"),
        (b" " * (4 << 20) + b"{}", "more than 4194304"),
    ],
)
def test_json_without_sense_is_an_error_of_its_key(read, content, error):
    rows = read(member("a.png", png(1)), member("a.json", content), *three())
    assert error in rows.pop("a")
    assert rows == {"1": 1, "2": 2, "3": 3}


def test_links_show_what_they_lead_to(read):
    def link(name, target, kind=tarfile.SYMTYPE):
        return member(name, kind=kind, linkname=target)

    hard = tarfile.LNKTYPE
    rows = read(
        member("x/a.png", png(1)),
        member("x/a.json", b'{"n": 1}'),
        link("x/b.png", "a.png"),
        link("y/c.png", "../x/a.png"),
        link("d.png", "./x/a.png", hard),
        link("e.png", "y/c.png"),
        link("f.png", "x/a.png", hard),
        link("f.json", "x/a.json", hard),
        member("x/a.png", png(7)),
        link("g.png", "nowhere.png"),
        link("h.png", "h.png"),
        link("i.png", "../../etc/i.png"),
        link("j.png", "/etc/j.png"),
        link("k.png", "x/later.png", hard),
        member("x/later.png", png(3)),
        link("folder", "x"),
    )
    # A symbolic link means the name, which is the later member's; a hard link what was stored.
    assert [rows[name] for name in ("x/a", "x/b", "y/c", "d", "e", "f")] == [1, 7, 7, 1, 7, 1]
    for name in "gijk":
        assert "which is not in the tar" in rows[name]
    assert "more than 8 others" in rows["h"]
    assert rows["x/later"] == 3
    assert "no image beside it" in rows["folder"]
    assert len(rows) == 14


def test_links_to_what_has_no_picture(read):
    rows = read(
        member("a.png", kind=tarfile.FIFOTYPE),
        member("b.png", kind=tarfile.CHRTYPE),
        member("c.png", kind=tarfile.SYMTYPE, linkname="a.png"),
        member("d.png", b"?" * 600, kind=b"Z"),
        member("e.png/", kind=tarfile.DIRTYPE),
        member("e.png/1.png", png(1)),
    )
    assert "is a pipe (FIFO)" in rows["a"]
    assert "is a device" in rows["b"]
    assert "to 'a.png', which is a pipe (FIFO)" in rows["c"]
    assert "unknown type b'Z'" in rows["d"]
    assert rows["e.png/1"] == 1
    assert len(rows) == 5


def test_sparse_members_are_errors_and_others_are_read(read):
    old = summed(member("a.png", b"?" * 512, kind=b"S")[:512], at482=b"\1") + b"?" * 512
    # The map goes on in two more blocks, which the size does not count.
    old = old[:512] + bytes(504) + b"\1" + bytes(7) + bytes(512) + old[512:]
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "real/b.png"}
    new = member("GNUSparseFile.0/b.png", b"?", form=tarfile.PAX_FORMAT, pax_headers=pax)
    json_too = member("c.json", b"?", form=tarfile.PAX_FORMAT, pax_headers=pax | {
        "GNU.sparse.name": "c.json"})  # fmt: skip
    rows = read(old, new, member("c.png", png(4)), json_too, *three())
    for name in ("a", "real/b", "c"):
        assert "stored as a sparse file" in rows[name]
    assert [rows[name] for name in "123"] == [1, 2, 3]


def test_pax_headers_say_the_name_and_the_size(read):
    real = png(6)
    block = member("short", b"", form=tarfile.PAX_FORMAT,
                   pax_headers={"path": "the/real name é.png", "size": str(len(real))})  # fmt: skip
    padded = real + bytes(-len(real) % 512)
    everyone = member("pax_global_header", b"52 comment=0123456789012345678901234567890123456789\n",
                      kind=tarfile.XGLTYPE)  # fmt: skip
    assert read(everyone, block, padded, *three()) == {
        "the/real name é": 6, "1": 1, "2": 2, "3": 3
    }  # fmt: skip


@pytest.mark.parametrize(
    "records",
    [b"11 path=a.p", b"99 path=a.png\n", b"0 path=a.png\n", b"x path=a.png\n", b"12 size=-512\n",
     b"13 path:a.pn\n", b"25 size=999999999999999999\n"],
)  # fmt: skip
def test_a_damaged_pax_header_is_told(read, records):
    rows = read(member("h", records, kind=tarfile.XHDTYPE), member("a.png", png(1)), *three())
    errors = [text for text in rows.values() if isinstance(text, str)]
    assert errors
    assert [rows[name] for name in "123"] == [1, 2, 3]


@pytest.mark.parametrize(
    "size", [b"\xff" * 12, b"\xff" * 10 + b"\xfe\0", b"-0000001000\0", b"notanumber\0\0"]
)
def test_a_size_without_sense_ends(read, size):
    wrong = member("x.png", png(9))
    rows = read(*three()[:1], summed(wrong[:512], at124=size) + wrong[512:], *three()[1:])
    assert [rows[name] for name in "123"] == [1, 2, 3]
    assert "is damaged" in rows["bytes 1024 to 2048"]


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\x7f" * 11])
def test_a_size_beyond_the_file_is_an_error_and_what_follows_is_read(read, size):
    wrong = member("x.png", png(9))
    rows = read(*three()[:1], summed(wrong[:512], at124=size) + wrong[512:], *three()[1:])
    assert [rows[name] for name in "123"] == [1, 2, 3]
    assert isinstance(rows["x"], str)
    assert "'x.png'" in rows["bytes 1536 to 2048"]


def flipped(blocks, offset, bit=1):
    return blocks[:offset] + bytes([blocks[offset] ^ bit]) + blocks[offset + 1 :]


@pytest.mark.parametrize("offset", [0, 100, 130, 150, 156, 257, 345])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_flipped_bit_in_a_header_loses_that_member_alone(read, offset, number):
    members = three()
    members[number] = flipped(members[number], offset)
    rows = read(*members)
    lost = rows.pop(f"bytes {1024 * number} to {1024 * (number + 1)}", None) or rows.pop(
        f"from byte {1024 * number} on"
    )
    assert "damaged header (bad checksum)" in lost
    assert rows == {str(one): one for one in (1, 2, 3) if one != number + 1}


def test_a_member_behind_a_damaged_long_name_is_lost_with_it(read):
    long = member("x" * 120 + ".png", png(5))
    rows = read(flipped(long, 3), *three())
    assert [rows.pop(name) for name in "123"] == [1, 2, 3]
    assert list(rows) == [f"bytes 0 to {len(long)}"]


@pytest.mark.parametrize(
    ("cut", "kept", "error"),
    [
        (3072, "123", "the file ends without an end of the archive"),
        (2048, "12", "the file ends without an end of the archive"),
        (2048 + 200, "12", "cut inside a header"),
        (3072 + 512, "123", "the archive's end is cut"),
        (3072 + 700, "123", "the archive's end is cut"),
        (3072 + 1023, "123", "the archive's end is cut"),
        (2048 + 520, "12", "'3.png' of"),
    ],
)
def test_a_cut_archive_says_so(read, cut, kept, error):
    whole = b"".join(three()) + END
    rows = read(whole[:cut], end=b"")
    assert [rows.pop(name) for name in kept] == [int(name) for name in kept]
    last = rows.pop(max(rows, key=lambda name: name.startswith("from byte")))
    assert error in last
    assert "lost" in last
    assert all(isinstance(text, str) for text in rows.values())


@pytest.mark.parametrize("zeros", [512, 1024, 4096])
def test_zeros_in_the_middle_are_told_and_what_follows_is_read(read, zeros):
    rows = read(*three(), bytes(zeros), *(member(f"{n}.png", png(n)) for n in (4, 5)))
    assert [rows.pop(name) for name in "12345"] == [1, 2, 3, 4, 5]
    assert list(rows) == [f"bytes 3072 to {3072 + zeros}"]


@pytest.mark.parametrize(
    ("zeros", "is_sound"),
    [
        (1024, True),
        (10240, True),
        (10100, False),
        (65536 - 3072, True),
        (1 << 20, False),
        (100_000, False),
    ],
)
def test_more_zeros_than_an_archive_ends_with_are_told(read, zeros, is_sound):
    """As of a download that was interrupted, in a file that was made at its full size."""
    rows = read(*three(), end=bytes(zeros))
    assert [rows.pop(name) for name in "123"] == [1, 2, 3]
    assert [*rows] == ([] if is_sound else ["from byte 3072 on"])


def test_archives_that_follow_each_other_are_read_to_the_last(read, tmp_path):
    path = tmp_path / "first.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("0.png")
        info.size = len(png(10))
        archive.addfile(info, io.BytesIO(png(10)))
    said = []
    assert read(path.read_bytes(), *three(), said=said) == {"0": 10, "1": 1, "2": 2, "3": 3}
    assert "is 2 archives, one behind the other" in said[0]


def test_what_is_behind_the_end_is_told(read):
    rows = read(*three(), END, b"garbage" * 1000, end=b"")
    assert "is damaged" in rows.pop("bytes 3072 to 4096")
    assert "is damaged" in rows.pop("from byte 4096 on")
    assert rows == {"1": 1, "2": 2, "3": 3}


def test_equal_names_have_a_row_each(read):
    rows = read(*three(), *three(), member("1.png", png(4)), member("1.png", png(5)))
    assert [rows[name] for name in "123"] == [1, 2, 3]
    assert [rows[f"{number} (byte {2048 + 1024 * number})"] for number in (1, 2, 3)] == [1, 2, 3]
    assert sorted(map(str, rows.values())) == ["1", "1", "2", "2", "3", "3", "4", "5"]


def test_names_that_are_no_utf8(read):
    assert read(member("caf\udce9.png", png(1))) == {"caf\udce9": 1}


def test_leftovers_are_skipped_and_counted(read):
    said = []
    names = ["._1.png", "__MACOSX/1.png", ".ipynb_checkpoints/1.png", "x/.DS_Store", "Thumbs.db"]
    rows = read(*(member(name, b"x") for name in names), *three(), member(".h.png", png(4)),
                said=said)  # fmt: skip
    assert rows == {"1": 1, "2": 2, "3": 3, ".h": 4}
    (sentence,) = said
    assert "skipped 5: 1 .DS_Store, 1 ._* (macOS), 1 Thumbs.db, 1 in .ipynb_checkpoints" in sentence


def test_an_archive_of_nothing_is_told(read):
    said = []
    assert read(said=said) == {}
    assert "is an archive of no image" in said[0]


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_compressed_tars_are_refused_by_name(tmp_path, mode):
    path = tmp_path / "shard.tar"
    with tarfile.open(path, f"w:{mode}"):
        pass
    with pytest.raises(ValueError, match=r"shard\.tar is no uncompressed tar, it is compressed"):
        open_source([path], [OD])
    named = path.rename(tmp_path / f"shard.tar.{mode}")
    with pytest.raises(ValueError, match=rf"shard\.tar\.{mode} is a compressed file: unpack"):
        open_source([named], [OD])


@pytest.mark.parametrize("content", [b"", b"x", b"no tar at all" * 1000])
def test_what_is_no_tar_is_refused_by_name(tmp_path, content):
    path = tmp_path / "shard.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard\.tar is no uncompressed tar, it is damaged"):
        open_source([path], [OD])


def test_tarfile_reads_the_same_of_sound_archives(tmp_path):
    path = tmp_path / "a.tar"
    rng = random.Random(0)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for number in range(40):
            info = tarfile.TarInfo("x" * rng.randint(1, 300) + f"/{number}.png")
            info.size = rng.randint(0, 3000)
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    with tarfile.open(path) as archive:
        expected = [(one.name, one.offset_data, one.size) for one in archive]
    assert [(one.name, one.offset, one.size) for one in read_members(path)] == expected


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_whatever_is_done_to_headers_no_member_is_lost_in_silence(tmp_path, form):
    """Bits flipped, bytes cut out and blocks zeroed at a header of a sound archive.

    No member is empty: without its header, nothing would be left of one.
    """
    path, rng = tmp_path / "a.tar", random.Random(0)
    long = "" if form == tarfile.USTAR_FORMAT else "x" * 101
    names = [f"{number}{long if number % 3 == 0 else ''}.png" for number in range(9)]
    contents = [rng.randbytes(rng.choice([1, 511, 512, 513, 1500])) for _ in names]
    blocks = [
        member(name, content, form=form) for name, content in zip(names, contents, strict=True)
    ]
    starts = [sum(map(len, blocks[:number])) for number in range(len(blocks) + 1)]
    whole = b"".join(blocks) + bytes(10240 - starts[-1] % 10240)
    for _ in range(150):
        number = rng.randrange(len(blocks))
        # Any block of the member but its content.
        headers = (len(blocks[number]) - len(contents[number])) // 512
        start = starts[number] + 512 * rng.randrange(headers)
        is_text = whole[start : start + 512].count(0) < 512 and start > starts[number]
        damaged = bytearray(whole)
        match rng.randrange(6):
            case 0:
                place = (starts[number] if is_text else start) + rng.randrange(512)
                damaged[place] ^= 1 << rng.randrange(8)
            case 1:
                del damaged[start + rng.randrange(512) :]
            case 2:
                del damaged[start:]
            case 3:
                damaged[start : start + 512] = bytes(512)
            case 4:
                del damaged[start : start + rng.randrange(1, 1024)]
            case 5 if number < len(blocks) - 1:  # the last one's zeros would be the end's
                damaged[starts[number] : starts[number + 1]] = bytes(len(blocks[number]))
        path.write_bytes(damaged)
        entries = list(read_members(path))
        read = {
            (one.name, bytes(damaged[one.offset : one.offset + one.size]))
            for one in entries
            if isinstance(one, Member)
        }
        missing = [pair for pair in zip(names, contents, strict=True) if pair not in read]
        # Zeros that end where archives do are told as the beginning of a second one.
        told = any(isinstance(one, Damage | NextArchive) for one in entries)
        assert told or not missing, missing
        assert all(one.start < one.stop or one.stop == len(damaged) for one in entries
                   if isinstance(one, Damage))  # fmt: skip


@needs_shared
@pytest.mark.parametrize(
    ("name", "pictures", "errors"),
    [
        ("many", 40, 0), ("header_flip", 39, 1), ("trunc_header", 20, 1), ("concat", 41, 0),
        ("dots", 3, 0), ("two_ext", 2, 0), ("jfif", 2, 0), ("hardlink", 4, 0), ("deepjson", 1, 1),
        ("sparse_more", 0, 3), ("negative512", 0, 2),
    ],
)  # fmt: skip
def test_archives_from_the_field(name, pictures, errors):
    path = shared_path("..", "field", "tars", f"{name}.tar")
    source = open_source([path], [OD])
    outcomes = [outcome(item) for item in source.read(0, len(source))]
    assert sum(isinstance(one, int) for one in outcomes) == pictures
    assert sum(isinstance(one, str) for one in outcomes) == errors
