"""What travels: the same at both ends, and nothing but numbers and text, whatever the bytes."""

import json
import pickle

import numpy as np
import pytest

from taskloom.sites import Answer, Update, decode, encode
from taskloom.sites._lines import REJECT, failure, read_failure
from taskloom.tasks import DataError


def assert_same_message(one, two):
    assert type(one) is type(two)
    for name, value in vars(one).items():
        other = getattr(two, name)
        if isinstance(value, np.ndarray):
            assert other.shape == value.shape
            assert other.dtype == np.float64
            np.testing.assert_array_equal(other, value)
        else:
            assert repr(other) == repr(value)


def draw(rng):
    """A random message, with extremes."""

    def array(*shape):
        kinds = (rng.normal(size=shape), rng.choice([np.inf, -np.inf, np.nan, -0.0, 5e-324, 1.7e308], size=shape))
        made = kinds[int(rng.integers(2))]
        return np.asfortranarray(made) if rng.random() < 0.5 else made

    def maybe(value):
        return value if rng.random() < 0.7 else None

    d, m = int(rng.integers(0, 6)), int(rng.integers(1, 4))
    name = "".join(rng.choice(list("aZ \n\"'\\éß漢\x00{}"), size=int(rng.integers(0, 9))))
    whole = [int(n) for n in rng.integers(0, 2**62, size=3)]
    if rng.random() < 0.5:
        return Update(name, whole[0], whole[1], maybe(array(d, m)), maybe(array(m)), maybe(array(m)), whole[2])
    numbers = (float(rng.exponential()), float(rng.choice([1.8, 5e-324, 1.7e308])))
    return Answer(name, *whole, array(d, m), *numbers, maybe(array(d, m)), bool(rng.random() < 0.5), name)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_decoded_is_what_was_encoded(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        message = draw(rng)
        assert_same_message(decode(encode(message)), message)


def test_single_precision_and_views_travel_as_doubles():
    message = Update("a", 1, columns=np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2])
    np.testing.assert_array_equal(decode(encode(message)).columns, message.columns)
    assert decode(encode(message)).columns.dtype == np.float64


@pytest.mark.parametrize("letters", range(9))
def test_numbers_are_used_as_they_lie_and_cannot_be_written_to(letters):
    columns = decode(encode(Update("a" * letters, 1, columns=np.ones((2, 2))))).columns
    assert columns.flags.aligned
    assert not columns.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        columns += 1


def test_a_message_is_a_line_and_eight_bytes_a_number():
    raw = encode(Update("ward", 7, 2, columns=np.ones((1000, 1))))
    assert len(raw.partition(b"\n")[2]) == 8000
    assert len(raw) < 8000 + 250


def test_a_message_that_was_cut_anywhere_is_refused():
    for message in (
        Update("ward", 7, 2, columns=np.ones((3, 2)), intercepts=np.ones(2)),
        Answer("ward", 7, 2, 5, np.ones((3, 2)), 0.1, 1.0, np.ones((3, 2))),
    ):
        raw = encode(message)
        for end in range(len(raw)):
            with pytest.raises(DataError, match=r"`raw` is no message of taskloom.*both ends must run the same version"):
                decode(raw[:end])
        for more in (b"\x00", raw, b"\n"):
            with pytest.raises(DataError, match="bytes are left over"):
                decode(raw + more)


@pytest.mark.parametrize("seed", range(4))
def test_garbage_is_refused_or_is_a_message(seed):
    rng = np.random.default_rng(seed)
    raw = encode(Answer("ward", 7, 2, 5, np.ones((3, 2)), 0.1, 1.0, np.ones((3, 2))))
    for _ in range(400):
        if rng.random() < 0.3:
            spoiled = rng.bytes(int(rng.integers(0, 60)))
        else:
            spoiled = bytearray(raw)
            for place in rng.integers(0, len(raw), size=int(rng.integers(1, 4))):
                spoiled[place] = int(rng.integers(256))
        try:
            message = decode(bytes(spoiled))
        except DataError:
            continue
        # What is read is of the right types, so that nobody further in trips over it.
        assert type(message.sequence) is type(message.epoch) is type(message.version) is int
        assert isinstance(message.site, str)
        assert message.columns is None or message.columns.dtype == np.float64


def head(**changes):
    made = {"kind": "Update", "site": "a", "sequence": 1, "epoch": 0, "version": 0, "shapes": {}} | changes
    return json.dumps(made).encode() + b"\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\n",
        b"null\n",
        b"[]\n",
        b"3\n",
        b'"Update"\n',
        b"{}\n",
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        head(kind="Popen"),
        head(kind=["Update"]),
        head(kind=None),
        head(kind="Answer"),
        b'{"kind": "Update", "site": "a", "shapes": {}}\n',
        head(sequence="1"),
        head(sequence=1.5),
        head(sequence=True),
        head(sequence=None),
        head(sequence=-1),
        head(sequence=2**63),
        head(version=-(10**400)),
        head(site="a" * 70_000),
        head(site=3),
        head(site=["a"]),
        head(columns=[[1.0]]),
        head(__class__="x"),
        head(kind="Answer", step=None, relaxation=1, stop=False, refusal="", shapes={"columns": [1]}) + b"\x00" * 8,
        head(kind="Answer", step=1, relaxation=1, stop=False, refusal=""),
        head(kind="Answer", step=1, relaxation=1, stop=False, refusal="", shapes={"intercepts": [1]}) + b"\x00" * 8,
        head(shapes={"restart": [1]}) + b"\x00" * 8,
        head(shapes=None),
        head(shapes=[]),
        head(shapes={"site": [1]}) + b"\x00" * 8,
        head(shapes={"columns": None}),
        head(shapes={"columns": "12"}),
        head(shapes={"columns": [-1]}) + b"\x00" * 8,
        head(shapes={"columns": [1.0]}) + b"\x00" * 8,
        head(shapes={"columns": [True]}) + b"\x00" * 8,
        head(shapes={"columns": [2**40, 2**40]}),
        head(shapes={"columns": [10**30]}),
        head(shapes={"columns": [1] * 70}) + b"\x00" * 8,
        head()[:-3] + b'{"columns": [1e999]}}\n',
    ],
    ids=lambda raw: repr(raw[:80]),
)
def test_what_only_looks_like_a_message_is_refused(raw):
    with pytest.raises(DataError, match="`raw` is no message of taskloom"):
        decode(raw)


@pytest.mark.parametrize(
    "raw",
    [
        head(shapes={"all is well\nsite north converged": [1]}),
        head(shapes={"\ud800": [1]}),
        head(sequence="\x1b[2J\u2028\ud800"),
        head(sequence="9" * 60_000),
        head(shapes={"columns": ["9" * 60_000]}),
        b"x" * 5_000_000 + b"\n",
        b"x" * 5_000_000,
        b"\x80" * 100 + b"\n",
    ],
    ids=lambda raw: repr(raw[:80]),
)
def test_what_is_said_of_bad_bytes_can_be_logged_and_sent_back(raw):
    with pytest.raises(DataError) as refusal:
        decode(raw)
    said = str(refusal.value)
    assert len(said) < 400
    assert said.isprintable()
    assert said.encode()


@pytest.mark.parametrize(
    "said",
    ["", "null", "5", "[1]", "[1, 2, 3]", "[" * 60_000, '"' + "a" * 9, "[1e", "9" * 9000, "\xff"],
    ids=lambda said: said[:9],
)
def test_what_only_begins_like_the_last_word_of_a_site_is_no_word(said):
    with pytest.raises(ValueError, match=r"\w"):
        read_failure(REJECT + said.encode("latin-1"))


def test_the_last_word_of_a_site_is_one_line_that_can_be_sent_on():
    assert read_failure(failure("ward", "DataError: Spalte »ä« fehlt")) == ("ward", "DataError: Spalte »ä« fehlt")
    assert read_failure(encode(Update("ward", 1))) is None
    name, reason = read_failure(failure("ward", "no table\nall is well \ud800" + "x" * 9000))
    assert name == "ward"
    assert reason.startswith(r"no table\nall is well \ud800xxx")
    assert reason.isprintable()
    assert len(reason) < 2100


def test_nothing_is_ever_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for raw in (pickle.dumps(Bomb()), b"\n" + pickle.dumps(Bomb()), head() + pickle.dumps(Bomb())):
        with pytest.raises(DataError):
            decode(raw)
    assert not list(tmp_path.iterdir())
